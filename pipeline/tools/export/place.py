"""The folder that an export is written to: on a disk or a store, never over something else.

In: a URI. Out: a `Place` that files are written into one after the other. `export.json` is written
last, so a folder without it is an export that was cut off. Requests for whole objects are tried
again after transient failures; a stream of rows is not, because what it has sent is not kept.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import CorpusEmbedError, SpecError
from pipeline.storage.addresses import is_local, normalized_output, problem_of, shown
from pipeline.storage.filesystems import endpoint_of, failed, filesystem, options_place
from pipeline.storage.retry import retried

T = TypeVar("T")

RECORD = "export.json"
KEYS = "keys.parquet"
SECTION = "destination"


class Place:
    """A destination. local: its path on this machine, None on a store."""

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        if problem := problem_of(uri):
            raise SpecError(f"-o {shown(uri)}: {problem}.")
        self.uri = normalized_output(uri)
        self.shown_uri = shown(self.uri)
        self.options = dict(options or {})
        self.fs, self.root = filesystem(self.uri, self.options, SECTION)
        self.local = Path(self.root) if is_local(self.uri) else None

    def check_is_free(self) -> None:
        """Raises SpecError where something is there already."""
        names = self._asked("list", self._names)
        if names is None:
            return
        is_whole = any(name.endswith(f"/{RECORD}") for name in names)
        what = "an export" if is_whole else "something"
        raise SpecError(
            f"-o {self.shown_uri}: {what} is there already, and an export overwrites nothing. Name "
            "a new folder, or remove this one first."
        )

    def _names(self) -> list[str] | None:
        """Of what lies there; None where that is nothing."""
        if not self.fs.exists(self.root):
            return None
        names = [] if self.fs.isfile(self.root) else self.fs.ls(self.root, detail=False)
        return None if self.fs.isdir(self.root) and not names else list(map(str, names))

    def create(self) -> None:
        self._asked("create", lambda: self.fs.makedirs(self.root, exist_ok=True))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file of the folder, for writing from its first byte to its last."""
        with self._as_own_errors("write", name):
            file = self.fs.open(f"{self.root}/{name}", "wb")
            try:
                yield cast(BinaryIO, file)
            finally:
                file.close()

    @contextlib.contextmanager
    def writing_table(self, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
        """A Parquet file of the folder, written a batch at a time."""
        with self.writing(name) as file, pq.ParquetWriter(file, schema, compression="zstd") as rows:
            yield rows

    def put(self, local: Path, name: str) -> None:
        """Copy a finished local file into the folder."""
        self._asked("write", lambda: self.fs.put_file(str(local), f"{self.root}/{name}"), name)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write `export.json`, which says what the folder holds and where that comes from."""
        data = json.dumps(record, indent=1, ensure_ascii=False).encode() + b"\n"
        self._asked("write", lambda: self.fs.pipe_file(f"{self.root}/{RECORD}", data), RECORD)

    def discard(self) -> None:
        """Remove what an export that failed has written."""
        if self.local:
            shutil.rmtree(self.local, ignore_errors=True)
            return
        with contextlib.suppress(Exception):  # one by one: of a bucket, `rm` would take itself
            for name in self.fs.find(self.root):
                self.fs.rm_file(name)

    def _asked(self, verb: str, request: Callable[[], T], name: str = "") -> T:
        """The answer to a request that can be repeated."""
        with self._as_own_errors(verb, name):
            endpoint = endpoint_of(self.uri, self.options, options_place(SECTION))
            return retried(request, f"{verb} {self.shown_uri}", endpoint)

    @contextlib.contextmanager
    def _as_own_errors(self, verb: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except (CorpusEmbedError, pa.ArrowException):
            raise
        except OSError as error:
            action = f"{verb} {self.shown_uri}" + (f"/{name}" if name else "")
            raise failed(error, action, self.uri, self.options, SECTION) from error
