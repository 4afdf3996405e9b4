"""Shards in storage: which ones the input has, and reading each as exactly the object that was
planned.

`list_shards` turns files, folders, prefixes and globs into Shards (URI, ETag, size); `open_shard`
opens a shard only while it is that object. Cost: one listing per URI, one HEAD per opened shard,
then ranged reads of 8 MiB.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from pipeline.errors import InputError, ShardChanged, SpecError
from pipeline.read import format_of
from pipeline.storage.addresses import shown
from pipeline.storage.filesystems import RANGE_BYTES, etag_of, filesystem, reason, refusal
from pipeline.storage.lineage import Shard
from pipeline.storage.retry import retried

T = TypeVar("T")


def list_shards(
    uris: Sequence[str], storage_options: Mapping[str, Any], format: str = "auto"
) -> list[Shard]:
    """All input objects under files, folders, prefixes and globs, sorted by URI, each once.

    A listed object is skipped when the name of its file or of a folder on the way starts with `_`
    or `.`, when no reader reads it as `format` (see `format_of`), and when it is not a regular
    file. A link to a file inside the same folder counts as that file; linked folders are not
    entered. Raises SpecError for a URI that names nothing and for a link that leads out of the
    folder, InputError when the store refuses to list.
    """
    shards: dict[str, Shard] = {}
    for uri in uris:
        fs, path = filesystem(uri, storage_options)
        try:
            objects, is_listing = retried(
                functools.partial(_expand, fs, path), f"list {shown(uri)}"
            )
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
        inputs = {
            name: info
            for name, info in objects.items()
            if not is_listing or (_is_visible(name, path) and _has_reader(name, format))
        }
        if not inputs:
            raise SpecError(
                f"{shown(uri)}: no input found there ({len(objects)} objects, none of a known "
                "format). Check input.uri."
            )
        for name, info in inputs.items():
            if is_listing and info.get("islink"):
                _check_inside(uri, _fixed_part(f"{path}/").rpartition("/")[0], name)
            full_uri = str(fs.unstrip_protocol(name))
            if info.get("size") is None:
                raise SpecError(
                    f"{shown(full_uri)}: the server does not report its length. Copy it to a store "
                    "that does."
                )
            shards[full_uri] = Shard(uri=full_uri, etag=etag_of(info), size_bytes=int(info["size"]))
    return [shards[uri] for uri in sorted(shards)]


def _expand(fs: Any, path: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """(objects by name, whether they come from a listing: False when the path names one object)."""
    if _fixed_part(path) != path:
        objects = fs.glob(path, detail=True)
        if not objects and fs.isfile(path):  # a file whose name contains such a character
            return {path: fs.info(path)}, False
        return _files(fs, objects), True
    objects = fs.find(path, detail=True)
    if list(objects) == [path] or not objects:
        info = fs.info(path)
        return ({path: info}, False) if info["type"] == "file" else ({}, True)
    return _files(fs, objects), True


def _files(fs: Any, objects: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The files among listed objects. A local listing describes a link itself; here a link stands
    for the file that it leads to."""
    targets = {
        name: fs.info(name) if info.get("islink") and fs.exists(name) else info
        for name, info in objects.items()
    }
    return {name: info for name, info in targets.items() if info["type"] == "file"}


def _fixed_part(path: str) -> str:
    """The part of a path before its first wildcard."""
    return re.split(r"[*?\[]", path)[0]


def _has_reader(name: str, format: str) -> bool:
    try:
        format_of(name, format)
    except SpecError:
        return False
    return True


def _check_inside(uri: str, root: str, link: str) -> None:
    """Files that nobody named must not be read: anyone who can write to the folder could link to
    any file the run can read."""
    top = os.path.realpath(root)
    target = os.path.realpath(link)
    if os.path.commonpath([top, target]) != top:
        raise SpecError(
            f"{shown(uri)}: {link} is a link to {target}, outside of {top}. Remove it, or name "
            "that file in input.uri."
        )


def _refused(uri: str, error: BaseException) -> InputError:
    return InputError(f"{shown(uri)}: access was refused: {reason(error)}. {refusal(error)}.")


def _is_about_credentials(error: BaseException) -> bool:
    """Whether it is botocore's NoCredentialsError or PartialCredentialsError, which are neither
    OSError nor ValueError."""
    return "Credential" in type(error).__name__


def _is_visible(name: str, path: str) -> bool:
    steps = name.removeprefix(_fixed_part(path)).split("/")
    return not any(step.startswith(("_", ".")) for step in steps)


class ShardFile(io.BufferedReader):
    """A shard open for reading."""

    def verify(self) -> None:
        """Ask the store whether the shard still is the planned object, after it was read. Raises
        ShardChanged."""
        cast(_PinnedShard, self.raw).verify()


def open_shard(shard: Shard, storage_options: Mapping[str, Any]) -> ShardFile:
    """Open a shard for reading, pinned to the planned ETag: bytes of two versions are never mixed.

    Returns a seekable raw reader. Raises ShardChanged when the object is gone or has been replaced:
    on S3 at opening and at any later read (each request carries If-Match), elsewhere at opening, at
    the end of the file, and in `verify`. Raises InputError when it cannot be read.
    """
    return ShardFile(_PinnedShard(shard, storage_options), buffer_size=1 << 20)


class _PinnedShard(io.RawIOBase):
    def __init__(self, shard: Shard, storage_options: Mapping[str, Any]) -> None:
        self._shard = shard
        self._fs, self._path = filesystem(shard.uri, storage_options)
        protocols = self._fs.protocol
        if isinstance(protocols, str):
            protocols = (protocols,)
        self._pinned_by_store = "s3" in protocols
        settings: dict[str, Any] = {}
        if "file" not in protocols:
            # Shards are read front to back, in requests of 8 MiB; s3fs pins each with If-Match.
            settings = {"block_size": RANGE_BYTES, "cache_type": "readahead"}
        self._file = self._asked(lambda: self._fs.open(self._path, "rb", **settings))
        # Compared after opening, on S3 with what the open file is pinned to: so the object that is
        # compared is the one that will be read.
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
                f"{shown(shard.uri)}: planned with ETag {shard.etag} and {shard.size_bytes} bytes, "
                f"found {etag_of(info)} and {info['size']} bytes. It will be planned again."
            )

    def _asked(self, request: Callable[[], T]) -> T:
        """The answer to a request, retried after transient failures. Raises ShardChanged or
        InputError where the store raised its own errors."""
        shard = self._shard
        try:
            return retried(request, f"read {shown(shard.uri)}")
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
            self.verify()  # the end of the file, perhaps because another program shortened it
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
