"""The input side of storage: which shards there are, and reading each as the very object that was planned.

`list_shards` turns files, folders, prefixes and globs into Shards (URI, ETag, size); `open_shard` opens one only as
that object. Cost: one listing per URI, one HEAD per opened shard, then ranged reads of 8 MiB.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, cast

from pipeline.errors import InputError, ShardChanged, SpecError
from pipeline.lineage import Shard
from pipeline.storage import RANGE_BYTES, filesystem, reason, retried, shown


def list_shards(
    uris: Sequence[str], options: Mapping[str, Any], accept: Callable[[str], bool]
) -> list[Shard]:
    """All input objects under files, folders, prefixes and globs, sorted by URI, each once.

    Names whose file or folder starts with `_` or `.`, empty names, and (when found by listing) names that `accept`
    refuses are passed over. Raises SpecError for a URI that names nothing, InputError when listing is refused.
    """
    shards: dict[str, Shard] = {}
    for uri in uris:
        fs, path = filesystem(uri, options)
        try:
            found, listed = retried(lambda fs=fs, path=path: _expand(fs, path), f"list {shown(uri)}")
        except PermissionError as error:
            raise InputError(
                f"{shown(uri)}: listing was refused: {reason(error)}. Check the credentials."
            ) from error
        except (OSError, ValueError) as error:
            raise SpecError(f"{shown(uri)}: cannot be listed: {reason(error)}. Check input.uri.") from error
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
            full = str(fs.unstrip_protocol(name))
            shards[full] = Shard(uri=full, etag=_etag(info), size_bytes=int(info["size"]))
    return [shards[uri] for uri in sorted(shards)]


def _expand(fs: Any, path: str) -> tuple[dict[str, dict[str, Any]], bool]:
    if re.search(r"[*?\[]", path):
        found = fs.glob(path, detail=True)
        return {name: info for name, info in found.items() if info["type"] == "file"}, True
    found = fs.find(path, detail=True)
    if list(found) == [path] or not found:
        info = fs.info(path)
        return ({path: info}, False) if info["type"] == "file" else ({}, True)
    return found, True


def _visible(name: str, root: str) -> bool:
    steps = name.removeprefix(re.split(r"[*?\[]", root)[0]).split("/")
    return not any(step.startswith(("_", ".")) for step in steps)


def _etag(info: Mapping[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "generation", "VersionId"):
        if info.get(key):
            return str(info[key]).strip('"')
    changed = (
        info.get("mtime")
        or info.get("LastModified")
        or info.get("last_modified")
        or info.get("created")
        or ""
    )
    return f"{changed}-{info.get('ino', '')}-{info['size']}".replace(" ", "T")


def open_shard(shard: Shard, options: Mapping[str, Any]) -> BinaryIO:
    """Open a shard for reading, pinned to the planned ETag: bytes of two versions are never mixed.

    Returns a seekable raw reader. Raises ShardChanged when the object is gone or is another one, at opening or at any
    read after it (S3 reads carry If-Match; elsewhere the end of the file is checked against the plan again).
    """
    return cast(BinaryIO, io.BufferedReader(_PinnedShard(shard, options), buffer_size=1 << 20))


class _PinnedShard(io.RawIOBase):
    def __init__(self, shard: Shard, options: Mapping[str, Any]) -> None:
        self._shard, self._what = shard, f"read {shown(shard.uri)}"
        self._fs, self._path = filesystem(shard.uri, options)
        self._verify()
        # readahead: shards are read front to back; one request of 8 MiB a time (s3fs pins each with If-Match)
        settings = (
            {} if "file" in self._fs.protocol else {"block_size": RANGE_BYTES, "cache_type": "readahead"}
        )
        self._file = retried(lambda: self._fs.open(self._path, "rb", **settings), self._what)

    def _verify(self) -> None:
        shard = self._shard
        try:
            info = retried(lambda: self._fs.info(self._path), self._what)
        except FileNotFoundError as error:
            raise ShardChanged(
                f"{shown(shard.uri)}: planned with ETag {shard.etag}, but it is gone"
            ) from error
        except OSError as error:
            raise InputError(f"{shown(shard.uri)}: cannot be read: {reason(error)}") from error
        if (_etag(info), int(info["size"])) != (shard.etag, shard.size_bytes):
            raise ShardChanged(
                f"{shown(shard.uri)}: planned with ETag {shard.etag} and {shard.size_bytes} bytes, found "
                f"{_etag(info)} and {info['size']} bytes. It is planned again."
            )

    def readinto(self, buffer: Any) -> int:
        try:
            data = retried(lambda: self._file.read(len(buffer)), self._what)
        except FileNotFoundError as error:
            raise ShardChanged(f"{shown(self._shard.uri)}: vanished while it was read") from error
        except OSError as error:
            if type(error).__name__ == "FileExpired":
                raise ShardChanged(f"{shown(self._shard.uri)}: changed while it was read") from error
            raise InputError(f"{shown(self._shard.uri)}: cannot be read: {reason(error)}") from error
        if not data and self._file.tell() >= self._shard.size_bytes:
            self._verify()
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
