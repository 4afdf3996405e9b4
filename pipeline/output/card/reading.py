"""How to read the output with five tools: Python that a card shows and that its reader can run.

All of it works on exactly the files of the newest snapshot, whatever else lies under `data/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

from pipeline.storage import layout


def listing(root: str = ".") -> str:
    """Python that names the files of the newest snapshot. root: the folder of the output."""
    comment = "  # the folder of this card" if root == "." else ""
    return f"""\
import json
from pathlib import Path

import pyarrow.parquet as pq

root = Path({json.dumps(root, ensure_ascii=False)}).resolve(){comment}
newest = max((root / "{layout.SNAPSHOTS}").glob("*.json"))
file_list = root / json.loads(newest.read_text())["file_list"]
paths = pq.read_table(file_list, columns=["paths"])["paths"].to_pylist()
files = [str(root / path) for of_part in paths for path in of_part]
"""


FILES = listing()
_ARROW = {pa.string(): "pa.string()", pa.int64(): "pa.int64()", pa.float64(): "pa.float64()"}
_ARROW |= {pa.bool_(): "pa.bool_()", pa.date32(): "pa.date32()"}
_ARROW |= {pa.timestamp("us", tz="UTC"): 'pa.timestamp("us", tz="UTC")'}
_SQL = {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.float64(): "DOUBLE"}
_SQL |= {pa.bool_(): "BOOLEAN", pa.date32(): "DATE"}
_SQL |= {pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ"}
_POLARS = {pa.string(): "pl.String", pa.int64(): "pl.Int64", pa.float64(): "pl.Float64"}
_POLARS |= {pa.bool_(): "pl.Boolean", pa.date32(): "pl.Date"}
_POLARS |= {pa.timestamp("us", tz="UTC"): 'pl.Datetime("us", "UTC")'}


def snippets(partitions: Mapping[str, pa.DataType]) -> dict[str, str]:
    """Python by the name of the tool, to be run after FILES. partitions: the type of each column
    that exists only as the name of folders."""
    return {
        "pyarrow": _pyarrow(partitions),
        "DuckDB": _duckdb(partitions),
        "Polars": _polars(partitions),
        "pandas": _pandas(partitions),
        "Spark": _spark(partitions),
    }


def _pyarrow(partitions: Mapping[str, pa.DataType]) -> str:
    options = ", partitioning=folders" if partitions else ""
    return (
        f"import pyarrow.dataset as ds\n{_arrow_folders(partitions)}\n"
        f"dataset = ds.dataset(files{options})\n"
        'table = dataset.to_table(columns=["doc_id", "embedding"])\n'
    )


def _pandas(partitions: Mapping[str, pa.DataType]) -> str:
    options = ", partitioning=folders" if partitions else ""
    imports = "import pandas as pd\n"
    if partitions:
        imports += "import pyarrow.dataset as ds\n"
    folders = _arrow_folders(partitions)
    return f"{imports}{folders}\nframe = pd.read_parquet(files{options})\n"


def _arrow_folders(partitions: Mapping[str, pa.DataType]) -> str:
    if not partitions:
        return ""
    fields = ", ".join(f"({name!r}, {_ARROW[type_]})" for name, type_ in partitions.items())
    schema = f"pa.schema([{fields}])"
    return f'import pyarrow as pa\n\nfolders = ds.partitioning({schema}, flavor="hive")'


def _duckdb(partitions: Mapping[str, pa.DataType]) -> str:
    query = "SELECT * FROM read_parquet($files)"
    if partitions:
        types = ", ".join(
            f"'{name.replace(chr(39), chr(39) * 2)}': {_SQL[type_]}"
            for name, type_ in partitions.items()
        )
        options = f"hive_partitioning = true, hive_types = {{{types}}}"
        query = f"SELECT * FROM read_parquet($files, {options})"  # noqa: S608 - shown, not run
    return f'import duckdb\n\nrows = duckdb.sql({query!r}, params={{"files": files}})\n'


def _polars(partitions: Mapping[str, pa.DataType]) -> str:
    options = ""
    if partitions:
        types = ", ".join(f"{name!r}: {_POLARS[type_]}" for name, type_ in partitions.items())
        options = f", hive_partitioning=True, hive_schema={{{types}}}"
    return f"import polars as pl\n\nframe = pl.read_parquet(files{options})\n"


def _spark(partitions: Mapping[str, pa.DataType]) -> str:
    setting = '"spark.sql.sources.partitionColumnTypeInference.enabled", "false"'
    as_text = f"spark.conf.set({setting})\n" if partitions else ""
    return (
        "from pyspark.sql import SparkSession\n\n"
        f"spark = SparkSession.builder.getOrCreate()\n{as_text}"
        'reader = spark.read.option("basePath", str(root / "data"))\n'
        "rows = reader.parquet(*files)\n"
    )
