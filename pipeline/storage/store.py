"""Objects in, objects out: the output root.

`Store` offers whole-object reads, listings, and `put_if_absent`, the one primitive that the commit
protocol stands on. What is tried again is in `pipeline/storage/retry.py`, the input side (listing
and pinned reading of shards) in `pipeline/read/shards.py`. Measured facts behind both are in
docs/design.md.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from pipeline.errors import OutputError, SpecError, StorageError
from pipeline.storage import layout
from pipeline.storage.addresses import problem_of, problem_of_options, shown
from pipeline.storage.retry import causes, count_quick_retries, retried

T = TypeVar("T")

RANGE_BYTES = 8 << 20
"""One ranged request of a reader that goes front to back."""

CLOCK_TOLERANCE_S = 240
"""Stores refuse requests signed with a time that is 5 to 15 minutes off. Only an error text rests
on this."""


def filesystem(uri: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path in it. Raises SpecError for what
    `pipeline/storage/addresses.py` refuses."""
    if problem := problem_of(uri) or problem_of_options(options):
        raise SpecError(f"{shown(uri)}: {problem}.")
    protocol = uri.split("://", 1)[0] if "://" in uri else "file"
    fixed: dict[str, Any] = {"use_listings_cache": False} if protocol != "file" else {}
    if protocol in ("s3", "s3a"):
        # botocore tries one request (a page of a listing) again; what is above that is `retried`,
        # and has a deadline
        count_quick_retries()
        config = {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 3}}
        options = {**options, "config_kwargs": {**config, **options.get("config_kwargs", {})}}
        # one request reads a whole object: S3 gives a checksum for that, and none for a range
        fixed |= {"default_block_size": RANGE_BYTES, "max_concurrency": 1}
    try:
        fs = fsspec.filesystem(protocol, **{**fixed, **options})
    except (ImportError, ValueError, TypeError) as error:
        raise SpecError(f"{shown(uri)}: protocol '{protocol}' cannot be used: {error}") from error
    if protocol in ("s3", "s3a"):
        # not s3fs' 5 on top of these: they are not counted, and a store that hangs would take 15
        # timeouts
        fs.retries = 1
    path = str(fs._strip_protocol(uri))
    return fs, os.path.abspath(path) if protocol == "file" else path


def etag_of(info: Mapping[str, Any]) -> str:
    """Which version of an object a file system describes: its ETag or the like, else when it was
    changed, and its size."""
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
    # no inode number: network and FUSE mounts give one file another number on every node
    return f"{changed}-{info.get('size')}".replace(" ", "T")


def cache_folder(name: str) -> Path:
    """Where this node keeps copies of one kind: below CORPUS_EMBED_CACHE (default
    ~/.cache/corpus-embed)."""
    return (
        Path(os.environ.get("CORPUS_EMBED_CACHE") or Path.home() / ".cache" / "corpus-embed") / name
    )


class Store:
    """A root under which whole objects are read and created. Paths are relative, with `/`, and stay
    inside."""

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        self.uri, self.options = uri, dict(options or {})
        self.fs, self.root = filesystem(uri, self.options)
        self.local = "file" in (
            self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        )

    def __reduce__(self) -> tuple[type[Store], tuple[str, dict[str, Any]]]:
        return Store, (self.uri, self.options)

    def path(self, relative: str) -> str:
        """Full path of a relative one. Raises StorageError if it would leave the root, by its steps
        or by a link."""
        if any(step in ("", ".", "..") for step in relative.split("/")):
            raise StorageError(f"{shown(self.uri)}: '{relative}' is not a path inside the output")
        path = f"{self.root}/{relative}"
        if self.local and not (real := os.path.realpath(path)).startswith(
            os.path.realpath(self.root) + "/"
        ):
            raise StorageError(
                f"{shown(self.uri)}/{relative}: a link leads out of the output, to {real}. Remove it."
            )
        return path

    def read(self, relative: str) -> bytes:
        """One whole object. Raises FileNotFoundError when it is not there."""
        return cast(
            bytes, self._asked(lambda: self.fs.cat_file(self.path(relative)), "read", relative)
        )

    def read_many(self, relatives: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Many small objects, fetched side by side; memory is one batch of them."""
        # not fs.cat(paths), which would take "[" in a path for a glob
        with ThreadPoolExecutor(max_workers=32) as pool:
            for start in range(0, len(relatives), 256):
                batch = relatives[start : start + 256]
                yield from zip(batch, pool.map(self.read, batch), strict=True)

    def read_or_none(self, relative: str) -> bytes | None:
        try:
            return self.read(relative)
        except FileNotFoundError:
            return None

    def open(self, relative: str) -> BinaryIO:
        """A seekable reader of one object, for footers and single columns: it fetches what is asked
        for and no more."""
        exact = {} if self.local else {"cache_type": "none"}
        return cast(
            BinaryIO,
            self._asked(lambda: self.fs.open(self.path(relative), "rb", **exact), "open", relative),
        )

    def list(self, prefix: str) -> dict[str, int]:
        """Sizes in bytes of all objects under a relative prefix (a folder), by relative path,
        sorted."""
        path = self.path(prefix)
        found = self._asked(lambda: self.fs.find(path, detail=True), "list", prefix)
        cut = len(self.root) + 1
        # SeaweedFS also lists an emptied folder itself, as an object without bytes
        return {
            name[cut:]: int(info["size"])
            for name, info in sorted(found.items())
            if name.startswith(f"{path}/")
        }

    def put_if_absent(self, relative: str, data: bytes) -> bool:
        """Create one object whole, or not at all. Returns False when the name is taken.

        False can also mean that an earlier attempt of ours landed and its answer was lost, so a
        caller that is refused reads back what is there. Local: temporary file, fsync, hard link,
        fsync of the folder. Elsewhere: one conditional PUT (`If-None-Match: *`).
        """
        path = self.path(relative)
        create = self._link if self.local else self._conditional_put
        return self._asked(lambda: create(path, data), "write", relative)

    def delete(self, relative: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._asked(lambda: self.fs.rm_file(self.path(relative)), "delete", relative)

    def info(self, relative: str) -> dict[str, Any]:
        """What the file system says of one object. Raises FileNotFoundError when it is not there."""
        return dict(self._asked(lambda: self.fs.info(self.path(relative)), "read", relative))

    def time(self) -> float:
        """Seconds since 1970 by the store's own clock: when it says that an object written now was
        changed."""
        probe = layout.probe(os.urandom(8).hex())
        self.put_if_absent(probe, b"time")
        try:
            return self.changed_at(self.info(probe))
        finally:
            self.delete(probe)

    def changed_at(self, info: Mapping[str, Any]) -> float:
        """When an object was last changed, from its `info`, by the store's clock: no decision rests
        on one of ours.

        S3 says LastModified, in whole seconds; a disk has mtimes. Raises OutputError where a store
        says nothing.
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
            f"{shown(self.uri)}: the store does not say when objects were changed, so no age can be told"
        )

    def check_conditional_put(self) -> None:
        """Prove that this root can be written and that a second create of one name is refused.

        Raises StorageError otherwise: without that primitive, two runs could tear one output.
        """
        probe = layout.probe(os.urandom(8).hex())
        try:
            self.put_if_absent(probe, b"1")  # the answer may be lost: what counts is what is there
            second, first = self.put_if_absent(probe, b"2"), self.read_or_none(probe) == b"1"
            # a writer that may not delete leaves a byte behind
            with contextlib.suppress(StorageError):
                self.delete(probe)
        except (OSError, StorageError) as error:
            raise StorageError(
                f"{shown(self.uri)}: the output cannot be written: {reason(error)}"
            ) from error
        if not first or second:
            raise StorageError(
                f"{shown(self.uri)}: this store does not honour conditional writes (create-only PUT), which the "
                "commit protocol needs. Use a store that has If-None-Match: S3, MinIO, SeaweedFS, Ceph, or a local disk."
            )

    def _conditional_put(self, path: str, data: bytes) -> bool:
        try:
            # one request up to the limit of a single PUT: a multipart upload could leave parts
            # behind
            limit = {"chunksize": 5 << 30} if "s3" in self.fs.protocol else {}
            self.fs.pipe_file(path, data, mode="create", **limit)
        except FileExistsError:
            return False
        except OSError as error:
            cause = getattr(error.__cause__, "response", {}) or {}
            if cause.get("Error", {}).get("Code") in ("PreconditionFailed", "412"):
                return False
            raise
        return True

    def _link(self, path: str, data: bytes) -> bool:
        folder, staging = Path(path).parent, Path(self.path(layout.STAGING))
        for directory in (folder, staging):
            directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=staging)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True

    def _asked(self, request: Callable[[], T], verb: str, relative: str) -> T:
        """One request, again after transient failures; a store that refuses it or is full as our
        error."""
        what = f"{verb} {shown(self.uri)}/{relative}"
        try:
            return retried(request, what)
        except OSError as error:
            refused, full = (
                isinstance(error, PermissionError),
                error.errno in (errno.ENOSPC, errno.EDQUOT),
            )
            if not (refused or full):
                raise
            hint = f"access was refused. {refusal(error)}" if refused else "no room. Make room"
            raise StorageError(
                f"{what}: {hint}, then run the same command again ({reason(error)})."
            ) from error


def refusal(error: BaseException) -> str:
    """What to mend after a PermissionError. S3 also refuses requests that were signed at a wrong
    time of day."""
    for link in causes(error):
        answer = getattr(link, "response", None) or {}
        date = parsedate_tz(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))
        if date and abs(off_s := time.time() - mktime_tz(date)) > CLOCK_TOLERANCE_S:
            return (
                f"The clock of this machine is {off_s:+.0f} s off that of the store: set it right"
            )
    return "Check the credentials and what they permit"


def reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
