"""The root of an output: whole objects are read and created under it.

`Store` offers whole-object reads, listings, and `put_if_absent`, the one primitive that the commit
protocol stands on. What is tried again is in `pipeline/storage/retry.py`, the input side (listing
and pinned reading of shards) in `pipeline/read/input/shards.py`. The measurements behind both are
in docs/design.md.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from pipeline.errors import CorpusEmbedError, OutputError, SpecError, StorageError
from pipeline.storage import layout
from pipeline.storage.addresses import normalized_output, problem_of, shown
from pipeline.storage.filesystems import endpoint_of, failed, filesystem, options_place, reason
from pipeline.storage.local_files import create_whole, replace_whole
from pipeline.storage.object_limits import max_bytes
from pipeline.storage.problems import is_bucket_missing
from pipeline.storage.retry import retried

T = TypeVar("T")
SECTION = "output"
"""Where a spec names a store and its options."""


class Store:
    """A root under which whole objects are read and created. Paths are relative, with `/`, and stay
    inside."""

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        if problem := problem_of(uri):
            raise SpecError(f"{shown(uri)}: {problem}.")
        self.uri = normalized_output(uri)
        self.shown_uri = shown(self.uri)
        self.options = dict(options or {})
        self.fs, self.root = filesystem(self.uri, self.options, SECTION)
        self.endpoint = endpoint_of(self.uri, self.options, options_place(SECTION))
        protocols = self.fs.protocol
        self.local = "file" in ((protocols,) if isinstance(protocols, str) else protocols)

    def __reduce__(self) -> tuple[type[Store], tuple[str, dict[str, Any]]]:
        return Store, (self.uri, self.options)

    def path(self, relative: str) -> str:
        """The full path of a relative one. Raises StorageError if it would leave the root, by its
        steps or by a link."""
        if any(step in ("", ".", "..") for step in relative.split("/")):
            raise StorageError(f"{self.shown_uri}: '{relative}' is not a path inside the output")
        path = f"{self.root}/{relative}"
        target = os.path.realpath(path) if self.local else path
        if self.local and not target.startswith(os.path.realpath(self.root) + "/"):
            raise StorageError(
                f"{self.shown_uri}/{relative}: a link leads out of the output, to {target}. "
                "Remove the link."
            )
        return path

    def read(self, relative: str, size_bytes: int | None = None) -> bytes:
        """One whole object. Raises FileNotFoundError when it does not exist.

        size_bytes: its size where a listing has told it, otherwise it is asked for. Raises
        OutputError for an object under `_meta` that is larger than `max_bytes` allows.
        """
        limit = max_bytes(relative)
        if limit is not None:
            size_bytes = int(self.info(relative)["size"]) if size_bytes is None else size_bytes
            if size_bytes > limit:
                raise OutputError(
                    f"{self.shown_uri}/{relative}: has {size_bytes} bytes, where this package "
                    f"writes at most {limit}. It was not read. Restore it from a backup."
                )
        return cast(bytes, self._request("read", relative, self.fs.cat_file))

    def read_many(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        """(path, content) of many small objects in their order, fetched side by side, 256 at a
        time. sizes: in bytes by path, as `list` gives them."""
        # not fs.cat(paths), which would take "[" in a path for a glob
        with ThreadPoolExecutor(max_workers=32) as pool:
            paths = list(sizes)
            for start in range(0, len(paths), 256):
                batch = paths[start : start + 256]
                contents = pool.map(self.read, batch, map(sizes.__getitem__, batch))
                yield from zip(batch, contents, strict=True)

    def read_or_none(self, relative: str) -> bytes | None:
        """One whole object, or None when it does not exist."""
        try:
            return self.read(relative)
        except FileNotFoundError:
            return None

    def open(self, relative: str) -> BinaryIO:
        """A seekable reader of one object, for footers and single columns: it fetches the bytes
        that are asked for and no others."""
        exact = {} if self.local else {"cache_type": "none"}
        open_file = functools.partial(self.fs.open, mode="rb", **exact)
        return cast(BinaryIO, self._request("open", relative, open_file))

    def list(self, prefix: str) -> dict[str, int]:
        """The size in bytes of every object below a relative folder, by relative path, sorted."""
        infos = self._request("list", prefix, functools.partial(self.fs.find, detail=True))
        folder = f"{self.root}/{prefix}/"
        root_length = len(self.root) + 1
        # SeaweedFS also lists an emptied folder itself, as an object without bytes
        return {
            name[root_length:]: int(info["size"])
            for name, info in sorted(infos.items())
            if name.startswith(folder)
        }

    def put_if_absent(self, relative: str, data: bytes) -> bool:
        """Create one object whole, or not at all. Returns False when the name is taken.

        False can also mean that an earlier attempt of this call succeeded and its answer was lost,
        so a caller that gets False reads the object back. Local: `create_whole` of
        `pipeline/storage/local_files.py`. Elsewhere: one conditional PUT (`If-None-Match: *`).
        """
        create = self._link if self.local else self._conditional_put
        return self._request("write", relative, functools.partial(create, data=data))

    def replace(self, relative: str, data: bytes) -> None:
        """Make `data` the whole content of an object, whether there is one or not: for what can be
        made again from the records, never for a record."""
        # by place: the second parameter of s3fs has another name than that of fsspec
        put = self._overwrite if self.local else self.fs.pipe_file
        self._request("write", relative, lambda path: put(path, data))

    def delete(self, relative: str) -> None:
        """Remove one object, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._request("delete", relative, self.fs.rm_file)

    def info(self, relative: str) -> dict[str, Any]:
        """The file system's description of one object. Raises FileNotFoundError when it does not
        exist."""
        return dict(self._request("read", relative, self.fs.info))

    def time(self) -> float:
        """Seconds since 1970 by the store's own clock: the modification time of an object that is
        written now, and removed again."""
        probe = layout.probe(os.urandom(8).hex())
        self.put_if_absent(probe, b"time")
        try:
            return self.changed_at(self.info(probe))
        finally:
            self.delete(probe)

    def changed_at(self, info: Mapping[str, Any]) -> float:
        """When the object of an `info` was last changed, in seconds since 1970 by the store's own
        clock: no decision depends on the clock of a client.

        S3 gives LastModified, in whole seconds; a disk has mtimes. Raises OutputError where a store
        reports neither.
        """
        for key in ("LastModified", "last_modified", "mtime", "updated", "created"):
            value = info.get(key)
            if isinstance(value, str):
                value = datetime.datetime.fromisoformat(value)
            if isinstance(value, datetime.datetime):
                return value.timestamp()
            if isinstance(value, int | float):
                return float(value)
        raise OutputError(
            f"{self.shown_uri}: this store reports no modification times, so the age of objects "
            "is unknown"
        )

    def check_conditional_put(self, *, is_partitioned: bool = False) -> None:
        """Prove that this root can be written, that what is written is listed and read under the
        name it was given (with is_partitioned, one like those of Hive folders), and that a second
        create of one name is refused.

        Raises StorageError otherwise: without these, two runs could tear one output.
        """
        step = layout.partition_step("語", "a/b %2F=#?") if is_partitioned else ""
        probe = layout.probe(os.urandom(8).hex(), step)
        try:
            # the answer to the first may be lost, so the content decides
            self.put_if_absent(probe, b"1")
            is_overwritten = self.put_if_absent(probe, b"2")
            is_first = self.read_or_none(probe) == b"1"
            is_listed = self.list(probe.rpartition("/")[0]).get(probe) == 1
            # a writer that is not allowed to delete leaves one byte behind
            with contextlib.suppress(StorageError):
                self.delete(probe)
        except (OSError, StorageError) as error:
            problem = str(error) if isinstance(error, StorageError) else f"{reason(error)}."
            raise StorageError(
                f"{self.shown_uri}: the output cannot be written: {problem}"
            ) from error
        if is_overwritten or not is_first:
            raise StorageError(
                f"{self.shown_uri}: this store does not honour conditional writes (create-only "
                "PUT), which the commit protocol needs. Use a store that supports If-None-Match: "
                "S3, MinIO, SeaweedFS, Ceph, or a local disk."
            )
        if not is_listed:
            raise StorageError(
                f"{self.shown_uri}: this store lists objects under other names than they were "
                f"written under: {probe} was written and read, and is not in the listing. Use an "
                "output.uri that the store does not rewrite."
            )

    def _conditional_put(self, path: str, data: bytes) -> bool:
        # one request up to S3's limit of a single PUT: a multipart upload could leave parts behind
        limit = {"chunksize": 5 << 30} if "s3" in self.fs.protocol else {}
        try:
            self.fs.pipe_file(path, data, mode="create", **limit)
        except FileExistsError:
            return False
        except OSError as error:
            answer = getattr(error.__cause__, "response", {}) or {}
            if answer.get("Error", {}).get("Code") in ("PreconditionFailed", "412"):
                return False
            raise
        return True

    def _link(self, path: str, data: bytes) -> bool:
        return create_whole(Path(path), Path(self.path(layout.STAGING)), data)

    def _overwrite(self, path: str, data: bytes) -> None:
        replace_whole(Path(path), Path(self.path(layout.STAGING)), data)

    def _request(self, verb: str, relative: str, request: Callable[[str], T]) -> T:
        """The answer to `request`, called with the full path and tried again after transient
        failures. Raises StorageError when the store refuses it or is full."""
        path = self.path(relative)
        action = f"{verb} {self.shown_uri}/{relative}"
        try:
            return retried(lambda: request(path), action, self.endpoint)
        except CorpusEmbedError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not is_bucket_missing(error):
                raise
            raise failed(error, action, self.uri, self.options, SECTION) from error
