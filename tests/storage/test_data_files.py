"""Reading data files: the rows that were written, in order, and never from a thread of Arrow's.

Oracle: the tables that were written with pyarrow alone, and the identity of the thread that each
read came from.
"""

from __future__ import annotations

import ast
import contextlib
import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.storage import data_files, data_rows
from pipeline.storage.store import Store
from pipeline.tools.verify.verification import verify
from tests.conftest import S3Place
from tests.support import stand_in
from tests.support.fault_proxy import FaultProxy
from tests.support.outputs import write_shard
from tests.test_layers import MODULES, ROOT, place

TABLE = pa.table(
    {
        "n": range(50_000),
        "text": [f"text {n}" for n in range(50_000)],
        "unread": ["x" * 50] * 50_000,
    }
)


class Watched(io.BytesIO):
    """Remembers the threads that read from it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.threads: set[int] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        self.threads.add(threading.get_ident())
        return super().read(size)


def parquet(table: pa.Table = TABLE, row_group_size: int = 10_000) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_size)
    return sink.getvalue()


def test_a_file_of_pythons_is_read_by_the_callers_thread_alone() -> None:
    source = Watched(parquet())
    assert data_files.read_table(data_files.opened(source), ["n", "text"]).equals(
        TABLE.select(["n", "text"])
    )
    rows = np.array([3, 9_999, 10_000, 49_999])
    assert data_rows.read_rows(data_files.opened(source), rows, ["n"]).equals(
        TABLE.select(["n"]).take(pa.array(rows))
    )
    assert source.threads == {threading.get_ident()}
    pq.read_table(source, columns=["n", "text"])  # proves that the watch sees threads of Arrow
    assert source.threads != {threading.get_ident()}


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_arrow_reads_parquet_in_two_modules_only(path: Path) -> None:
    """Everything else asks pipeline/storage/data_files.py (outputs) or pipeline/read/row_groups.py
    (input), which know why."""
    calls = {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    if place(path) not in ("storage/data_files.py", "read/row_groups.py"):
        assert not calls & {
            "pq.read_table",
            "pq.ParquetFile",
            "pq.ParquetDataset",
            "pq.read_schema",
        }


@pytest.mark.parametrize("n_files", [0, 1, 3, 9])
def test_scan_gives_all_rows_in_order_with_their_places(tmp_path: Path, n_files: int) -> None:
    names = [f"{number}.parquet" for number in range(n_files)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(
            parquet(TABLE.slice(number * 1000, 100 * number), row_group_size=250)
        )
    batches = list(data_rows.scan(Store(str(tmp_path)), names, ["text", "n"]))
    assert all(batch.schema.names == ["text", "n"] for _, _, batch in batches)
    rows = [
        (file, first + n, key)
        for file, first, batch in batches
        for n, key in enumerate(batch["n"].to_pylist())
    ]
    assert rows == [
        (file, row, file * 1000 + row) for file in range(n_files) for row in range(100 * file)
    ]


@pytest.mark.parametrize("small_bytes", [0, 4 << 20], ids=["in ranges", "whole"])
def test_scan_of_a_store_gives_the_same_rows_and_small_files_cost_one_read(
    s3: S3Place, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, small_bytes: int
) -> None:
    monkeypatch.setattr(data_rows, "SMALL_BYTES", small_bytes)
    for name in "ab":
        s3.filesystem.pipe_file(f"{s3.key}/{name}.parquet", parquet())
    store = Store(s3.uri, {"endpoint_url": proxy.endpoint_url})
    batches = [
        batch for _, _, batch in data_rows.scan(store, ["a.parquet", "b.parquet"], ["n", "text"])
    ]
    assert pa.Table.from_batches(batches).equals(
        pa.concat_tables([TABLE.select(["n", "text"])] * 2)
    )
    n_reads = sum(request.method == "GET" for request in proxy.log)
    # a footer, and two columns of five row groups
    assert n_reads == 2 if small_bytes else n_reads >= 2 * (1 + 5 * 2)


def test_a_scan_that_is_left_early_ends_its_threads(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(parquet())
    before = set(threading.enumerate())  # of other tests, some of which may end meanwhile
    rows = data_rows.scan(Store(str(tmp_path)), ["a"] * 20, ["n"])
    assert next(rows).batch.num_rows == 10_000
    rows.close()
    # the first request of a process starts the thread that names waits
    assert {thread.name for thread in set(threading.enumerate()) - before} <= {"waits"}


def test_a_column_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid, match="vector"):
        data_files.read_table(parquet(), ["n", "vector"])
    with pytest.raises(pa.ArrowInvalid, match="vector"):
        data_files.read_text(parquet(), "text", "vector")


@pytest.mark.slow  # 100 processes
def test_short_processes_that_read_end_well() -> None:
    """pq.read_table(io.BytesIO(data)) in the same place: 37 of 750 processes aborted."""
    script = """
import io, sys
import pyarrow as pa, pyarrow.parquet as pq
from pipeline.storage import data_files
sink = io.BytesIO()
pq.write_table(pa.table({f"c{k}": [f"x{n}" for n in range(60)] for k in range(8)}), sink)
data_files.read_table(sink.getvalue(), ["c1", "c2"])
data_files.read_table(data_files.opened(io.BytesIO(sink.getvalue())), ["c1", "c2"])
"""
    codes = []
    for _ in range(25):
        four = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) for _ in range(4)]
        codes += [process.wait(120) for process in four]
    assert codes == [0] * 100


def test_a_plan_that_lost_a_column_is_a_finding_of_verify_and_no_crash(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "a", "text": "a"}])
    snapshot = stand_in.run(
        stand_in.make_spec(tmp_path / "in", tmp_path / "out"), stand_in.HashEngine()
    )
    plan = tmp_path / f"out/_meta/runs/{snapshot.run_id}/plan.parquet"
    plan.write_bytes(parquet(pq.read_table(plan, partitioning=None).drop_columns(["split_id"])))
    verification = verify(str(tmp_path / "out"), sample=0)
    assert "split_id" in str([check for check in verification.checks if not check.ok])


@pytest.mark.parametrize("byte", [b"\xff", b"\x00"])
def test_a_footer_of_any_bytes_is_no_complete_file(byte: bytes) -> None:
    """Arrow reports some of them as OSError."""
    data = parquet()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for at in range(start, len(data) - 8, 7):
        changed = data[:at] + byte * 5 + data[at + 5 :]
        with contextlib.suppress(OutputError):
            data_files.read_footer(changed[: len(data)])
