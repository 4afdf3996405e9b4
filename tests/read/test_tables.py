"""Tables made by their own libraries are refused as inputs by name.

Oracle: what deltalake and pyiceberg write.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import SpecError
from pipeline.read.input.shards import list_shards

ROWS = pa.table({"text": ["one", "two"], "lang": ["ja", "en"]})


def check_refused(tables: dict[str, Path], kind: str) -> None:
    for place, table in tables.items():
        with pytest.raises(SpecError, match=rf"{table} is an? {kind} .*another folder"):
            list_shards([place], {})


@pytest.mark.parametrize("partition_by", [[], ["lang"]])
def test_a_delta_table(tmp_path: Path, partition_by: list[str]) -> None:
    deltalake = pytest.importorskip("deltalake")
    table = tmp_path / "lake/t"
    deltalake.write_deltalake(str(table), ROWS, partition_by=partition_by)
    deltalake.DeltaTable(str(table)).delete("lang = 'en'")
    below = "t/lang=ja" if partition_by else "t/*.parquet"
    places = [f"{tmp_path}/lake/{name}" for name in ("t", below, "**", "")]
    check_refused(dict.fromkeys([*places, str(tmp_path)], table), "Delta table")


def test_an_iceberg_table(tmp_path: Path) -> None:
    pytest.importorskip("pyiceberg")
    pytest.importorskip("sqlalchemy")
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("c", uri="sqlite://", warehouse=f"file://{tmp_path}/lake")
    catalog.create_namespace("db")
    iceberg = catalog.create_table("db.t", ROWS.schema)
    iceberg.append(ROWS)
    table = Path(iceberg.location().removeprefix("file://"))
    places = [str(table), f"{table}/data", f"{table}/data/*.parquet", f"{tmp_path}/lake"]
    check_refused(dict.fromkeys(places, table), "Iceberg table")
