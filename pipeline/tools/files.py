"""The live data files of a snapshot, for other programs: their addresses, and the line that reads
them with DuckDB, Polars or Spark.

In: an output. Out: `Files`. A glob over `data/**` also finds files that a compaction or a refresh
has replaced, and counts their rows twice; these are counted in `n_other`. Cost: the file list of
the snapshot and a listing of `data/`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.errors import OutputError, SpecError
from pipeline.output import current_list, dataset
from pipeline.output.snapshots import live_parts
from pipeline.storage import layout
from pipeline.storage.store import Store

ENGINES = ("duckdb", "spark", "polars")
_TYPES = {
    pa.string(): ("VARCHAR", "pl.String", "string"),
    pa.int64(): ("BIGINT", "pl.Int64", "bigint"),
    pa.float64(): ("DOUBLE", "pl.Float64", "double"),
    pa.bool_(): ("BOOLEAN", "pl.Boolean", "boolean"),
    pa.date32(): ("DATE", "pl.Date", "date"),
    pa.timestamp("us", tz="UTC"): ("TIMESTAMPTZ", 'pl.Datetime("us", "UTC")', "timestamp"),
}
"""What a kept column's type is called by DuckDB, Polars and Spark."""


@dataclasses.dataclass(frozen=True)
class LiveFile:
    """A data file. uri: its absolute path or URI; path: relative to the output; partition: the
    values of its Hive folders, as text."""

    uri: str
    path: str
    n_rows: int
    size_bytes: int
    partition: dict[str, str | None]


@dataclasses.dataclass(frozen=True)
class Files:
    """The live data files of a snapshot, sorted by path.

    n_other: files under `data/` that are not among them. partition_types: the type of each
    partition column. list_uri: where the paths stand: the list of the newest snapshot, which
    follows later ones, or the Parquet file list of a snapshot that was asked for by number.
    root: the output.
    """

    snapshot: int
    root: str
    files: tuple[LiveFile, ...] = dataclasses.field(repr=False)
    n_other: int
    partition_types: dict[str, pa.DataType]
    list_uri: str

    @property
    def uris(self) -> list[str]:
        """The absolute path or URI of each file."""
        return [file.uri for file in self.files]

    @property
    def n_rows(self) -> int:
        return sum(file.n_rows for file in self.files)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def code(self, engine: str) -> str:
        """The lines that read exactly these rows: SQL for "duckdb", Python for "polars" and
        "spark".

        Those of the newest snapshot read the list that follows it, so they can be kept and give
        each time what is the newest then. Raises SpecError for another engine, OutputError for a
        snapshot without files.
        """
        if engine not in ENGINES:
            raise SpecError(f"--sql {engine}: it takes one of {', '.join(ENGINES)}")
        if not self.files:
            raise OutputError(f"snapshot {self.snapshot} has no data files, so nothing reads them")
        return {"duckdb": self._duckdb, "polars": self._polars, "spark": self._spark}[engine]()

    @property
    def _follows(self) -> bool:
        return self.list_uri.endswith(layout.CURRENT)

    def _duckdb(self) -> str:
        place = _sql(self.list_uri)
        if self._follows:
            paths = f"string_split(rtrim(content, chr(10)), chr(10)) FROM read_text({place})"
        else:
            paths = (
                f"list({_sql(self.root + '/')} || path) "  # noqa: S608  printed, with quotes
                f"FROM (SELECT unnest(paths) AS path FROM read_parquet({place}))"
            )
        types = [f"{_name(name)}: {self._type(name, 0)}" for name in self.partition_types]
        options = f", hive_partitioning = true, hive_types = {{{', '.join(types)}}}"
        return (
            f"SET VARIABLE files = (SELECT {paths});\n"  # noqa: S608  printed, with quotes
            f"SELECT * FROM read_parquet(getvariable('files'){options if types else ''});"
        )

    def _polars(self) -> str:
        place = repr(self.list_uri)
        lines = ["import polars as pl", ""]
        if self._follows:
            lines[:0] = ["import fsspec"]
            lines += [f"with fsspec.open({place}, 'rt', encoding='utf-8') as file:"]
            lines += ["    files = file.read().splitlines()"]
        else:
            lines += [f"paths = pl.read_parquet({place}, columns=['paths'])['paths']"]
            lines += [f"files = [{self.root + '/'!r} + path for path in paths.explode()]"]
        types = [f"{name!r}: {self._type(name, 1)}" for name in self.partition_types]
        options = f", hive_partitioning=True, hive_schema={{{', '.join(types)}}}"
        return "\n".join(
            [*lines, f"frame = pl.scan_parquet(files, glob=False{options if types else ''})"]
        )

    def _spark(self) -> str:
        place = repr(_hadoop(self.list_uri))
        root = _hadoop(self.root)
        if self._follows:
            lines = [f"files = [row.value for row in spark.read.text({place}).collect()]"]
            if root != self.root:
                lines += ["files = ['s3a' + file.removeprefix('s3') for file in files]"]
        else:
            lines = [
                f"parts = spark.read.parquet({place}).select('paths').collect()",
                f"files = [{root + '/'!r} + path for part in parts for path in part.paths]",
            ]
        reader = f"spark.read.option('basePath', {f'{root}/{layout.DATA}'!r})"
        if not self.partition_types:
            return "\n".join([*lines, f"frame = {reader}.parquet(*files)"])
        infers = "'spark.sql.sources.partitionColumnTypeInference.enabled', 'false'"
        casts = "".join(
            f".withColumn({name!r}, frame[{_quoted(name)!r}].cast({self._type(name, 2)!r}))"
            for name, type_ in self.partition_types.items()
            if type_ != pa.string()
        )
        lines += [f"spark.conf.set({infers})", f"frame = {reader}.parquet(*files)"]
        return "\n".join([*lines, *([f"frame = frame{casts}"] if casts else [])])

    def _type(self, name: str, engine: int) -> str:
        return _TYPES[self.partition_types[name]][engine]


def files(
    uri: str,
    *,
    snapshot: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Files:
    """The live data files of a snapshot (the newest by default).

    Raises OutputError when there is no such snapshot or its records cannot be read.
    """
    store = Store(uri, storage_options)
    head, generation = dataset.read_head(store, snapshot)
    types = dataset.arrow_schema(generation)
    live = [
        LiveFile(
            current_list.address(store, file.path),
            file.path,
            file.n_rows,
            file.size_bytes,
            file.partition,
        )
        for part in live_parts(store, head)
        for file in part.data_files
    ]
    live.sort(key=lambda file: file.path)
    paths = {file.path for file in live}
    n_other = sum(
        path not in paths and path.endswith(".parquet") for path in store.list(layout.DATA)
    )
    is_followed = snapshot is None and store.read_or_none(layout.CURRENT) == current_list.as_lines(
        store, [file.path for file in live]
    )
    return Files(
        snapshot=head.number,
        root=current_list.address(store, "")[:-1],
        files=tuple(live),
        n_other=n_other,
        partition_types={name: types.field(name).type for name in generation.partition_by},
        list_uri=current_list.address(store, layout.CURRENT if is_followed else head.file_list),
    )


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _hadoop(uri: str) -> str:
    """A URI as Hadoop's file systems are called."""
    return "s3a" + uri.removeprefix("s3") if uri.startswith("s3://") else uri
