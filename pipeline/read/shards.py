"""The input side of storage: which shards there are, and reading each as the very object that was
planned.

`list_shards` turns files, folders, prefixes and globs into Shards (URI, ETag, size); `open_shard`
opens one only as that object. Cost: one listing per URI, one HEAD per opened shard, then ranged
reads of 8 MiB.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from pipeline.errors import InputError, ShardChanged, SpecError
from pipeline.storage.addresses import shown
from pipeline.storage.filesystems import RANGE_BYTES, etag_of, filesystem, reason, refusal
from pipeline.storage.lineage import Shard
from pipeline.storage.retry import retried

T = TypeVar("T")


def list_shards(
    uris: Sequence[str], options: Mapping[str, Any], accept: Callable[[str], bool]
) -> list[Shard]:
    """All input objects under files, folders, prefixes and globs, sorted by URI, each once.

    What listing finds is passed over when its file or a folder of it starts with `_` or `.`, when
    `accept` refuses the name, and when it is no regular file. A link to a file inside the same
    folder is one; linked folders are not entered. Raises SpecError for a URI that names nothing and
    for a link that leads out, InputError when listing is refused.
    """
    shards: dict[str, Shard] = {}
    for uri in uris:
        fs, path = filesystem(uri, options)
        try:
            found, listed = retried(functools.partial(_expand, fs, path), f"list {shown(uri)}")
        except (OSError, ValueError) as error:
            if isinstance(error, PermissionError):
                raise _refused(uri, error) from error
            raise SpecError(
                f"{shown(uri)}: cannot be listed: {reason(error)}. Check input.uri."
            ) from error
        except Exception as error:
            if _is_about_credentials(error):
                raise _refused(uri, error) from error
            raise
        named = {
            name: info
            for name, info in found.items()
            if not listed or (_visible(name, path) and accept(name))
        }
        if not named:
            raise SpecError(
                f"{shown(uri)}: no input found there ({len(found)} objects, none of a known format). Check input.uri."
            )
        for name, info in named.items():
            if listed and info.get("islink"):
                _check_inside(uri, re.split(r"[*?\[]", f"{path}/")[0].rpartition("/")[0], name)
            full = str(fs.unstrip_protocol(name))
            if info.get("size") is None:
                raise SpecError(
                    f"{shown(full)}: the server does not say how long it is. Copy it to a store that does."
                )
            shards[full] = Shard(uri=full, etag=etag_of(info), size_bytes=int(info["size"]))
    return [shards[uri] for uri in sorted(shards)]


def _expand(fs: Any, path: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """(objects by name, whether a listing found them or the path names one)."""
    if re.search(r"[*?\[]", path):
        found = fs.glob(path, detail=True)
        if not found and fs.isfile(path):  # a name that happens to hold such a character
            return {path: fs.info(path)}, False
        return _files(fs, found), True
    found = fs.find(path, detail=True)
    if list(found) == [path] or not found:
        info = fs.info(path)
        return ({path: info}, False) if info["type"] == "file" else ({}, True)
    return _files(fs, found), True


def _files(fs: Any, found: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Files among listed objects. A local listing describes a link itself; here it stands for the
    file behind it."""
    seen = {
        name: fs.info(name) if info.get("islink") and fs.exists(name) else info
        for name, info in found.items()
    }
    return {name: info for name, info in seen.items() if info["type"] == "file"}


def _check_inside(uri: str, root: str, link: str) -> None:
    """What nobody named must not be read: who may write into the folder could link to anything that
    a run may read."""
    top, target = os.path.realpath(root), os.path.realpath(link)
    if os.path.commonpath([top, target]) != top:
        raise SpecError(
            f"{shown(uri)}: {link} is a link to {target}, outside of {top}. Remove it, or name that file in input.uri."
        )


def _refused(uri: str, error: BaseException) -> InputError:
    return InputError(f"{shown(uri)}: access was refused: {reason(error)}. {refusal(error)}.")


def _is_about_credentials(error: BaseException) -> bool:
    """botocore's NoCredentialsError and PartialCredentialsError are neither OSError nor ValueError."""
    return "Credential" in type(error).__name__


def _visible(name: str, root: str) -> bool:
    steps = name.removeprefix(re.split(r"[*?\[]", root)[0]).split("/")
    return not any(step.startswith(("_", ".")) for step in steps)


class ShardFile(io.BufferedReader):
    """A shard open for reading; `verify` asks the store once more whether it still is the planned
    object."""

    def verify(self) -> None:
        """To be called when a reader is done. Raises ShardChanged."""
        cast(_PinnedShard, self.raw).verify()


def open_shard(shard: Shard, options: Mapping[str, Any]) -> ShardFile:
    """Open a shard for reading, pinned to the planned ETag: bytes of two versions are never mixed.

    Returns a seekable raw reader. Raises ShardChanged when the object is gone or is another one: on
    S3 at opening and at any read after it (each carries If-Match), elsewhere at opening, at the end
    of the file, and in `verify`.
    """
    return ShardFile(_PinnedShard(shard, options), buffer_size=1 << 20)


class _PinnedShard(io.RawIOBase):
    def __init__(self, shard: Shard, options: Mapping[str, Any]) -> None:
        self._shard, self._what = shard, f"read {shown(shard.uri)}"
        self._fs, self._path = filesystem(shard.uri, options)
        protocols = (
            (self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol
        )
        self._pinned_by_store = "s3" in protocols
        # readahead: shards are read front to back; one request of 8 MiB a time (s3fs pins each with
        # If-Match)
        settings = (
            {} if "file" in protocols else {"block_size": RANGE_BYTES, "cache_type": "readahead"}
        )
        self._file = self._asked(lambda: self._fs.open(self._path, "rb", **settings))
        # After opening, and on S3 what the open file was pinned to: whatever is compared is what
        # will be read.
        if self._pinned_by_store:
            self._compare(self._file.details)
        else:
            self.verify()

    def verify(self) -> None:
        if not self._pinned_by_store:
            self._compare(self._asked(lambda: self._fs.info(self._path)))

    def _compare(self, info: Mapping[str, Any]) -> None:
        shard = self._shard
        if (etag_of(info), int(info["size"])) != (shard.etag, shard.size_bytes):
            raise ShardChanged(
                f"{shown(shard.uri)}: planned with ETag {shard.etag} and {shard.size_bytes} bytes, found "
                f"{etag_of(info)} and {info['size']} bytes. It is planned again."
            )

    def _asked(self, request: Callable[[], T]) -> T:
        """One request, again after transient failures, with the errors of a store as ours."""
        shard = self._shard
        try:
            return retried(request, self._what)
        except FileNotFoundError as error:
            raise ShardChanged(
                f"{shown(shard.uri)}: planned with ETag {shard.etag}, but it is gone"
            ) from error
        except OSError as error:
            if type(error).__name__ == "FileExpired":
                raise ShardChanged(f"{shown(shard.uri)}: changed while it was read") from error
            if isinstance(error, PermissionError):
                raise _refused(shard.uri, error) from error
            raise InputError(f"{shown(shard.uri)}: cannot be read: {reason(error)}") from error

    def readinto(self, buffer: Any) -> int:
        data = self._asked(lambda: self._file.read(len(buffer)))
        if not data:
            self.verify()  # the end, or what another program made of it
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()
