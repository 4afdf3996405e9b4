"""Nothing that lies in input or output is ever unpickled, not even by the libraries underneath.

Ray registers an Arrow type whose values it unpickles as soon as Python sees them; an Arrow schema
inside a Parquet file may claim it for any column. Oracle: a pickle that makes a folder. Fresh
interpreters, since the registry is global.
"""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.snapshots import live_parts, load_snapshot
from pipeline.storage.store import Store
from tests import ROOT
from tests.support.outputs import DOCUMENTS, make_spec, run_without_ray, write_shard

PICKLED = b"ray.data.arrow_pickled_object"
PACKAGE = ROOT / "pipeline"


class Folder:
    """Unpickling this makes the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def claimed(storage: pa.DataType, nested: bool) -> pa.Field:
    marks = {b"ARROW:extension:name": PICKLED, b"ARROW:extension:metadata": b""}
    if nested:
        return pa.field("x", pa.list_(pa.field("element", storage, metadata=marks)))
    return pa.field("x", storage, metadata=marks)


def write_hostile(path: Path, column: str, victim: Path, nested: bool, rows: pa.Table) -> None:
    """`rows` with `column` replaced by pickles under Ray's type."""
    bomb = pickle.dumps(Folder(victim))
    field = claimed(pa.large_binary(), nested).with_name(column)
    values = pa.array([[bomb] if nested else bomb] * rows.num_rows, field.type)
    where = rows.column_names.index(column) if column in rows.column_names else rows.num_columns
    rows = rows.drop_columns([column]) if column in rows.column_names else rows
    pq.write_table(rows.add_column(where, field, values), path)


def with_rays_type(code: str) -> str:
    """What `code` prints in a process in which Ray has registered that type."""
    lines = f"import ray.data._internal.object_extensions.arrow\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "in a list"])
def test_a_column_of_an_input_shard_is_not_unpickled_with_rays_type(
    tmp_path: Path, nested: bool
) -> None:
    rows = pa.table({"id": ["1"], "text": ["one"]})
    shard, victim = tmp_path / "a.parquet", tmp_path / "victim"
    write_hostile(shard, "lang", victim, nested, rows)
    code = f"""
from pipeline.storage.lineage import Shard, Span
from pipeline.job.input_spec import InputSpec
from pipeline.read import READERS
span = Span(shard=Shard(uri="a.parquet", etag="e", size_bytes=1))
spec = InputSpec(uri="a.parquet", id_column="id", keep_columns=["lang"], max_record_bytes=1000)
for table in READERS["parquet"].records(open({str(shard)!r}, "rb"), span, spec):
    print("READ", table.num_rows)
"""
    answer = with_rays_type(code)
    assert ("and not string. Set its type" if nested else "READ 1") in answer
    assert not victim.exists()


@pytest.fixture
def output(tmp_path: Path, bert_mean_dir: Path) -> Store:
    write_shard(
        tmp_path / "in/a.jsonl", [*DOCUMENTS[:2], {"id": "bad", "text": None, "lang": "en"}]
    )
    assert run_without_ray(make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir))
    return Store(str(tmp_path / "out"))


def test_no_record_of_an_output_is_unpickled(output: Store, tmp_path: Path) -> None:
    snapshot = load_snapshot(output)
    assert snapshot
    part = live_parts(output, snapshot)[0]
    victim = tmp_path / "victim"
    for path, column in (
        (snapshot.file_list, "manifest"),
        (str(part.rejects_path), "reason"),
        (f"_meta/runs/{snapshot.run_id}/plan.parquet", "split_id"),
        (part.data_files[0].path, "doc_id"),
    ):
        copy = shutil.copytree(output.root, tmp_path / column)
        write_hostile(
            copy / path, column, victim, False, pq.read_table(copy / path, partitioning=None)
        )
    code = f"""
from pipeline.errors import OutputError
from pipeline.tools.verify.verification import verify
for column in ("manifest", "reason", "split_id", "doc_id"):
    try:
        print(column, verify({str(tmp_path)!r} + "/" + column, sample=0).ok)
    except OutputError:
        print(column, "OutputError")
"""
    assert with_rays_type(code).splitlines() == [
        "manifest OutputError",
        "reason False",
        "split_id False",
        "doc_id False",
    ]
    assert not victim.exists()


@pytest.mark.parametrize("column", ["doc_id", "text_sha256", "embedding"])
def test_no_value_of_a_data_file_is_unpickled_by_who_reads_rows(
    output: Store, tmp_path: Path, column: str
) -> None:
    victim, data = tmp_path / "victim", next(Path(output.root).rglob("data/**/*.parquet"))
    write_hostile(data, column, victim, False, pq.read_table(data, partitioning=None))
    code = f"""
import pipeline
from pipeline.tools.search import search
from pipeline.tools.trace import trace
uri = {output.uri!r}
for read in (
    lambda: trace(uri, "doc-1"),
    lambda: search(uri, "text", k=5),
    lambda: pipeline.read_vectors(uri),
    lambda: [batch.to_pylist() for batch in pipeline.changes(uri, 0).upserts()],
    lambda: [batch.to_pylist() for batch in pipeline.changes(uri, 0).deletes()],
):
    try:
        read()
        print("READ")
    except Exception as error:
        print(type(error).__name__, error)
"""
    printed = with_rays_type(code).splitlines()
    assert len(printed) == 5
    assert sum("types this package does not write" in line for line in printed) >= 2
    assert not victim.exists()


def test_a_schema_in_a_generation_record_cannot_bring_such_a_type(
    output: Store, tmp_path: Path
) -> None:
    (path,) = output.list("_meta/generations")
    record = json.loads(output.read(path))
    schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(record["arrow_schema"])))
    record["arrow_schema"] = (
        schema.set(0, claimed(pa.large_binary(), False).with_name("doc_id"))
        .serialize()
        .to_pybytes()
        .hex()
    )
    Path(output.path(path)).unlink()
    output.put_if_absent(path, json.dumps(record).encode())
    printed = with_rays_type(
        f"from pipeline.output.dataset import read_vectors\nread_vectors({output.uri!r})"
    )
    assert "OutputError" in printed
    assert "types that this package does not write" in printed


@pytest.mark.thorough
def test_the_package_itself_names_no_way_to_unpickle() -> None:
    named = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [f"{ast.unparse(node.value)}.{node.attr}"]
            if isinstance(node, ast.Attribute)
            else []
        )
    }
    forbidden = {
        "pickle",
        "cloudpickle",
        "dill",
        "joblib",
        "marshal",
        "shelve",
        "torch.load",
        "numpy.load",
        "np.load",
    }
    assert not {use for use in named if use[1].split(".")[0] in forbidden or use[1] in forbidden}
