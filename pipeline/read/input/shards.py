"""Shards in storage: which ones the input has, and reading each as exactly the object that was
planned.

`list_shards` turns files, folders, prefixes and globs into Shards (URI, ETag, size); `open_shard`
opens a shard only while it is that object. Cost: one listing per URI, one HEAD per opened shard,
then ranged reads of 8 MiB.
"""

from __future__ import annotations

import functools
import io
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar, cast

from pipeline.errors import InputError, ShardChanged, SpecError
from pipeline.job.input_spec import InputSpec
from pipeline.read.input import local_files
from pipeline.read.input.listing import listed, refused, server_answer
from pipeline.read.input.passed_over import SECOND_NAME, PassedOver
from pipeline.read.input.selection import inputs_of
from pipeline.storage.addresses import normalized, shown
from pipeline.storage.filesystems import (
    RANGE_BYTES,
    endpoint_of,
    filesystem,
    options_place,
    reason,
)
from pipeline.storage.lineage import Shard
from pipeline.storage.retry import retried
from pipeline.storage.versions import is_version, version_of

T = TypeVar("T")
SECTION = "input"
"""Where a spec names shards and their options."""


def list_shards(
    uris: Sequence[str],
    storage_options: Mapping[str, Any],
    format: str = "auto",
    passed_over: PassedOver | None = None,
) -> list[Shard]:
    """All input objects under exact names, folders, prefixes and patterns, sorted by URI. An object
    with several names is one shard, under the first name that is no link.

    A listed object is no shard when the name of its file or of a folder on the way starts with `_`
    or `.`, when no reader reads it as `format` (see `format_of`), when it marks a folder, is a
    checksum or no regular file, and when its name is not UTF-8; `passed_over` counts it. A link to
    a file inside the same folder, or inside the Hub's cache of the same repository, counts as that
    file; linked folders are not entered.

    Raises SpecError for a URI that names nothing, for a folder that is a table, and for a link that
    leads out of its folder; InputError when the store refuses to list or a file may not be opened.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    shards: dict[str, Shard] = {}  # by the plain URI of an object
    for uri in uris:
        fs, path = filesystem(normalized(uri), storage_options, SECTION)
        endpoint = endpoint_of(uri, storage_options, options_place(SECTION))
        inputs = inputs_of(fs, uri, listed(fs, path, uri, endpoint), format, passed_over)
        identities = local_files.identities(inputs) if local_files.is_local(fs) else {}
        for name, info in inputs.items():
            shard = _shard(str(fs.unstrip_protocol(name)), info)
            key = f"file://{identities[name]}" if identities else shard.uri
            _add(shards, key, shard, passed_over)
    for uri in list(shards):
        # Some stores fold doubled slashes: there both names have one version. Elsewhere they are
        # two objects, whose contents are equal if their versions are.
        protocol, mark, path = uri.partition("://")
        plain = f"{protocol}{mark}{re.sub('//+', '/', path)}" if "//" in path else uri
        if plain != uri and plain in shards and shards[plain].etag == shards[uri].etag:
            _add(shards, plain, shards.pop(uri), passed_over)
    for shard in shards.values():
        passed_over.forget(shard.uri)
    return sorted(shards.values(), key=lambda shard: shard.uri)


class Listing:
    """The shards of an input, listed once, when they are first asked for. passed_over: what was
    listed and is no shard."""

    def __init__(self, spec: InputSpec) -> None:
        self._spec = spec
        self.passed_over = PassedOver()

    @functools.cached_property
    def shards(self) -> list[Shard]:
        """Sorted by URI. Raises what `list_shards` raises."""
        spec = self._spec
        return list_shards(spec.uri, spec.storage_options, spec.format, self.passed_over)


def _add(shards: dict[str, Shard], key: str, shard: Shard, passed_over: PassedOver) -> None:
    """Add a shard, or another name of one. The plain name counts, then the first one, in whatever
    order they come. key: the plain name."""
    names = sorted((shards.get(key, shard), shard), key=lambda s: (s.uri != key, s.uri))
    shards[key] = names[0]
    if names[0].uri != names[1].uri:
        passed_over.add(names[1].uri, SECOND_NAME)


def _shard(uri: str, info: Mapping[str, Any]) -> Shard:
    if info.get("size") is None:
        raise SpecError(
            f"{shown(uri)}: the server does not report its length. Copy it to a store that does."
        )
    return Shard(uri=uri, etag=version_of(info), size_bytes=int(info["size"]))


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
        self._fs, self._path = filesystem(shard.uri, storage_options, SECTION)
        self._endpoint = endpoint_of(shard.uri, storage_options, options_place(SECTION))
        protocols = self._fs.protocol
        if isinstance(protocols, str):
            protocols = (protocols,)
        self._pinned_by_store = "s3" in protocols
        self._is_web = "http" in protocols
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
            info = self._asked(lambda: self._fs.info(self._path))
            self._compare(info)
            if self._is_web and (info.get("partial") is False or not shard.size_bytes):
                self._file = self._asked(self._copy)  # fsspec would stream it, without seeking
                self._file.seek(0)

    def verify(self) -> None:
        if not self._pinned_by_store:
            self._compare(self._asked(lambda: self._fs.info(self._path)))

    def _compare(self, info: Mapping[str, Any]) -> None:
        shard = self._shard
        if not is_version(shard.etag, info) or int(info["size"]) != shard.size_bytes:
            raise ShardChanged(
                f"{shown(shard.uri)}: planned with ETag {shard.etag} and {shard.size_bytes} bytes, "
                f"and it now has {version_of(info)} and {info['size']} bytes. It will be planned "
                "again."
            )

    def _asked(self, request: Callable[[], T]) -> T:
        """The answer to a request, retried after transient failures. Raises ShardChanged or
        InputError where the store raised its own errors."""
        shard = self._shard
        try:
            return retried(request, f"read {shown(shard.uri)}", self._endpoint)
        except FileNotFoundError as error:
            raise ShardChanged(
                f"{shown(shard.uri)}: planned with ETag {shard.etag}, but it is gone"
            ) from error
        except OSError as error:
            if type(error).__name__ == "FileExpired":
                raise ShardChanged(f"{shown(shard.uri)}: changed while it was read") from error
            if isinstance(error, PermissionError):
                raise refused(shard.uri, error) from error
            raise InputError(f"{shown(shard.uri)}: cannot be read: {reason(error)}") from error
        except Exception as error:
            if not self._is_web or (answer := server_answer(error)) is None:
                raise
            raise InputError(f"{shown(shard.uri)}: cannot be read: {answer}.") from error

    def _read(self, n_bytes: int) -> bytes:
        try:
            return cast(bytes, self._file.read(n_bytes))
        except ValueError:
            if not self._is_web:
                raise
        position = self._file.tell()
        self._file = self._copy()
        self._file.seek(position)
        return self._file.read(n_bytes)

    def _copy(self) -> BinaryIO:
        """The whole shard in a temporary file, because its server gives no ranges of it."""
        # closed with the shard
        copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
        with self._fs.open(self._path, "rb", block_size=0) as stream:
            shutil.copyfileobj(stream, copy, RANGE_BYTES)
        return copy

    def readinto(self, buffer: Any) -> int:
        data = self._asked(lambda: self._read(len(buffer)))
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
