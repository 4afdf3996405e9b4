"""`files` lists exactly the rows of a snapshot, and the lines that it prints read them with other
programs, also after a compaction and a refresh, where a glob reads more.

Oracle: DuckDB and Polars execute what is printed; the rows of `open_dataset`.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pytest

import pipeline
from pipeline.cli.commands import invoke
from pipeline.errors import OutputError, SpecError, StorageError
from pipeline.output import current_list
from pipeline.storage import layout
from pipeline.storage.notes import listen_to_notes
from pipeline.storage.store import Store
from tests.support.outputs import make_spec, run_without_ray, write_shard

KEPT = {"lang": "string", "code": "string", "year": "int64", "seen": "timestamp"}


@pytest.fixture(scope="module")
def model(bert_mean_dir: Path) -> Path:
    return bert_mean_dir


def embed(root: Path, model: Path, **output: Any) -> str:
    """One more run over the shards in `in`; partition values that look like numbers, nulls and
    characters that mean something to shells, SQL and globs."""
    out = root / "out 'x'"
    spec = make_spec(str(root / "in"), str(out), model, input={"keep_columns": KEPT}, output=output)
    assert run_without_ray(spec)
    return str(out)


def embed_twice(root: Path, model: Path, **output: Any) -> str:
    """Two shards of five documents, the second one in a run of its own, so that there is something
    to compact."""
    for letter in "ab":
        write_shard(root / f"in/{letter}.jsonl", documents(letter, 5))
        out = embed(root, model, **output)
    return out


def documents(letter: str, n: int) -> list[dict[str, Any]]:
    codes = ["007", None, "a/b c", "it's", "[x]*"]
    return [
        {
            "id": f"{letter}{i}",
            "text": f"text {letter} {i}",
            "lang": "ja" if i % 2 else None,
            "code": codes[i % 5],
            "year": 2000 + i % 2,
            "seen": "2026-01-01T00:00:00Z",
        }
        for i in range(n)
    ]


def truth(out: str, snapshot: int | None = None) -> list[tuple[Any, ...]]:
    columns = ["doc_id", "code", "year", "text_sha256"]
    table = pipeline.open_dataset(out, snapshot).to_table(columns=columns)
    return sorted(tuple(row.values()) for row in table.to_pylist())


def by_duckdb(code: str) -> list[tuple[Any, ...]]:
    assignment, query = code.split("\n")
    connection = duckdb.connect()
    connection.execute(assignment)
    columns = "doc_id, code, year, text_sha256"
    rows = connection.sql(f"SELECT {columns} FROM ({query.rstrip(';')})").fetchall()
    return sorted(rows)


def by_polars(code: str) -> list[tuple[Any, ...]]:
    names: dict[str, Any] = {}
    exec(code, names)
    frame = names["frame"].select("doc_id", "code", "year", "text_sha256").collect()
    assert frame.schema["year"] == pl.Int64
    return sorted(frame.rows())


READ = {"duckdb": by_duckdb, "polars": by_polars}


@pytest.mark.parametrize("partition_by", [[], ["code", "year"]], ids=["flat", "partitioned"])
def test_lines_for_other_programs_follow_the_newest_snapshot_where_a_glob_reads_too_much(
    tmp_path: Path, model: Path, partition_by: list[str]
) -> None:
    out = embed_twice(tmp_path, model, partition_by=partition_by)
    kept = {engine: pipeline.files(out).code(engine) for engine in READ}
    pinned = {engine: pipeline.files(out, snapshot=2).code(engine) for engine in READ}
    first = truth(out)
    for step in ("compaction", "refresh"):
        if step == "compaction":
            pipeline.compact(out)
        else:
            write_shard(tmp_path / "in/b.jsonl", documents("c", 3))
            embed(tmp_path, model, partition_by=partition_by)
        by_glob = ds.dataset(sorted(str(p) for p in Path(out, "data").rglob("*.parquet")))
        assert by_glob.count_rows() > len(truth(out))
        for engine, read in READ.items():
            assert read(kept[engine]) == truth(out), (step, engine)
            assert read(pinned[engine]) == first, (step, engine)
    live = pipeline.files(out)
    assert live.n_rows == len(truth(out)) == 8
    assert ds.dataset(live.uris).count_rows() == live.n_rows
    assert live.size_bytes == sum(Path(uri).stat().st_size for uri in live.uris)
    every = {str(path) for path in Path(out, "data").rglob("*.parquet")}
    assert live.n_other == len(every - {*live.uris}) > 0


def test_the_command_lists_paths_rows_sizes_and_older_files(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = embed_twice(tmp_path, model, partition_by=["lang"])
    pipeline.compact(out)
    live = pipeline.files(out)
    capsys.readouterr()
    assert invoke(["files", out]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == live.uris
    assert f"{live.n_other} older files stay in data/" in printed.err
    assert invoke(["files", out, "--relative", "-l"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == ["4", "6"]
    assert {line.split()[3] for line in lines} == {"lang=null", "lang=ja"}
    assert {line.split()[-1] for line in lines} == {file.path for file in live.files}
    assert invoke(["files", out, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [file["uri"] for file in facts["files"]] == live.uris
    assert {file["partition"]["lang"] for file in facts["files"]} == {"ja", None}
    assert (facts["n_rows"], facts["n_other_files"]) == (10, live.n_other)
    assert invoke(["files", out, "--sql", "polars"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == live.code("polars")
    with pytest.raises(SpecError, match="--sql hive: it takes one of duckdb, spark, polars"):
        invoke(["files", out, "--sql", "hive"])


def test_an_output_without_the_list_is_read_by_the_file_list_and_gets_one_at_the_next_run(
    tmp_path: Path, model: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents("a", 5))
    out = embed(tmp_path, model)
    current = Path(out, layout.CURRENT)
    current.unlink()  # as of a release that wrote none
    assert by_duckdb(pipeline.files(out).code("duckdb")) == truth(out)
    embed(tmp_path, model)  # nothing to do
    assert current.read_text().splitlines() == pipeline.files(out).uris


def test_a_list_of_another_snapshot_or_place_is_a_warning_and_compact_writes_it_again(
    tmp_path: Path, model: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents("a", 5))
    out = embed(tmp_path, model)

    def current(uri: str) -> tuple[str, str]:
        (check,) = (c for c in pipeline.verify(uri, sample=0).checks if c.name == "current")
        return check.mark, check.detail

    assert current(out)[0] == "ok"
    moved = str(tmp_path / "moved")
    Path(out).rename(moved)
    mark, detail = current(moved)
    assert (mark, "has 1 file, 1 of them not of snapshot 1" in detail) == ("warn", True)
    assert by_duckdb(pipeline.files(moved).code("duckdb")) == truth(moved)
    pipeline.compact(moved)
    assert current(moved)[0] == "ok"
    assert pipeline.files(moved).uris[0].startswith(moved)


def test_a_list_that_cannot_be_written_is_a_note_and_the_snapshot_is_made(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Store, relative: str, data: bytes) -> None:
        raise StorageError(f"write {relative}: access was refused.")

    monkeypatch.setattr(Store, "replace", refuse)
    notes: list[str] = []
    listen_to_notes(notes.append)
    try:
        write_shard(tmp_path / "in/a.jsonl", documents("a", 5))
        out = embed(tmp_path, model)
    finally:
        listen_to_notes(None)
    assert len(truth(out)) == 5
    assert [note for note in notes if "access was refused" in note and layout.CURRENT in note]


def test_a_slow_writer_does_not_leave_an_older_list(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the snapshots and its write, another run commits."""
    write_shard(tmp_path / "in/a.jsonl", documents("a", 5))
    out = embed(tmp_path, model)
    store = Store(out)
    Path(out, layout.CURRENT).unlink()
    replace = Store.replace
    calls: list[bytes] = []

    def replace_late(self: Store, relative: str, data: bytes) -> None:
        calls.append(data)
        if len(calls) == 1:
            write_shard(tmp_path / "in/b.jsonl", documents("b", 5))
            embed(tmp_path, model)  # writes its own list
        replace(self, relative, data)

    monkeypatch.setattr(Store, "replace", replace_late)
    current_list.bring_up(store)
    assert calls[0] != calls[-1]
    assert Path(out, layout.CURRENT).read_text().splitlines() == pipeline.files(out).uris
    assert len(pipeline.files(out).uris) == 2


def test_a_vacuum_keeps_the_list(tmp_path: Path, model: Path) -> None:
    out = embed_twice(tmp_path, model)
    pipeline.compact(out)
    plan = pipeline.vacuum(out, keep_snapshots=1, older_than=datetime.timedelta(0), delete=True)
    assert plan.paths
    assert by_duckdb(pipeline.files(out).code("duckdb")) == truth(out)
    assert pipeline.files(out).n_other == 0


def test_an_output_without_rows_has_no_lines_to_print(tmp_path: Path, model: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "a", "text": " "}])
    out = embed(tmp_path, model)
    assert pipeline.files(out).uris == []
    with pytest.raises(OutputError, match="has no data files"):
        pipeline.files(out).code("duckdb")


def test_files_and_list_of_an_output_on_s3(s3: Any, tmp_path: Path, model: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents("a", 5))
    spec = make_spec(
        str(tmp_path / "in"),
        f"{s3.uri}/out",
        model,
        output={"partition_by": ["lang"], "storage_options": s3.storage_options},
    )
    for n in range(2):
        write_shard(tmp_path / f"in/{n}.jsonl", documents("abc"[n], 5))
        assert run_without_ray(spec)
    live = pipeline.files(spec.output.uri, storage_options=s3.storage_options)
    stored = s3.filesystem.cat_file(f"{s3.key}/out/{layout.CURRENT}").decode()
    assert stored.splitlines() == live.uris == sorted(live.uris)
    assert all(uri.startswith(f"{s3.uri}/out/data/lang=") for uri in live.uris)
    assert sum(s3.filesystem.size(uri) for uri in live.uris) == live.size_bytes
