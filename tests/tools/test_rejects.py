"""`rejects` counts every rejected record and shows what stands in its source, also after a run that
stopped because of them.

Oracle: the documents that the test has written, and the files of rejects read with pyarrow.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.cli.commands import invoke
from pipeline.errors import OutputError, SpecError, TooManyRejects
from pipeline.storage.store import Store
from pipeline.tools import rejects as module
from tests.support.outputs import make_spec, run_without_ray, write_shard


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, bert_mean_dir: Path) -> str:
    """Three shards, two of them in one part: good records, and bad ones of five reasons."""
    root = tmp_path_factory.mktemp("rejects")
    good = [{"id": f"g{n}", "text": f"text {n}"} for n in range(4)]
    long = {"id": "m", "body": "本文 " * 400}
    write_shard(root / "in/a.jsonl", [*good, long, {"id": "n", "text": None}])
    lines = [json.dumps(good[0]), '{"id": "broken", "text": ', json.dumps({"id": "e", "text": " "})]
    (root / "in/b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    write_shard(root / "in/sub/c.parquet", [{"id": str(n), "text": None} for n in range(5)])
    spec = make_spec(str(root / "in"), str(root / "out"), bert_mean_dir, input={"keep_columns": []})
    assert run_without_ray(spec)
    return str(root / "out")


def by_pyarrow(out: str) -> list[dict[str, Any]]:
    paths = Path(out, "_meta/rejects").rglob("*.parquet")
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_counts_are_those_of_the_files_by_reason_and_by_shard(out: str) -> None:
    truth = by_pyarrow(out)
    listed = pipeline.rejects(out)
    assert listed.counts == Counter(row["reason"] for row in truth)
    assert listed.counts == {
        "null_text": 6,
        "missing_text": 1,
        "malformed_json": 1,
        "empty_text": 1,
    }
    assert (listed.snapshot, listed.n_rejects, listed.n_records) == (1, 9, 14)
    assert list(listed.counts) == ["null_text", "empty_text", "malformed_json", "missing_text"]
    for shard, n_records in (("a.jsonl", 6), ("*/b.jsonl*", 3), ("sub/c.parquet", 5)):
        of_shard = pipeline.rejects(out, shard=shard, n=None, texts=False)
        name = shard.strip("*/")
        expected = [row for row in truth if name in row["source_uri"]]
        assert of_shard.counts == Counter(row["reason"] for row in expected)
        assert of_shard.n_records == n_records
        assert len(of_shard.examples) == len(expected)
        assert {name in uri for uri in of_shard.examples["source_uri"].to_pylist()} == {True}
    only = pipeline.rejects(out, reason="null_text", shard="c.parquet")
    assert (only.counts, len(only.examples)) == ({"null_text": 5}, 3)
    assert pipeline.rejects(out, reason="not_finite").counts == {}


def test_examples_hold_the_beginning_of_the_text_or_of_the_line(out: str) -> None:
    rows = pipeline.rejects(out, n=None).examples.to_pylist()
    texts = {row["doc_id"] or row["reason"]: row["source_text"] for row in rows}
    line = json.dumps({"id": "m", "body": "本文 " * 400}, ensure_ascii=False)
    assert texts["m"] == line[:500]
    assert texts["malformed_json"] == '{"id": "broken", "text": '
    assert texts["e"] == " "
    assert texts["n"] == '{"id": "n", "text": null}'
    assert texts["0"] is None  # a Parquet file has no lines, and its text is null
    assert {row["problem"] for row in rows} == {None}
    plain = pipeline.rejects(out, n=None, texts=False).examples
    assert plain["source_text"].null_count == len(plain) == 9


def test_only_the_files_that_are_needed_are_read(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = Store.read

    def counted(self: Store, relative: str, size_bytes: int | None = None) -> bytes:
        reads.append(relative)
        return read(self, relative, size_bytes)

    monkeypatch.setattr(Store, "read", counted)
    assert pipeline.rejects(out, n=0, texts=False).n_rejects == 9
    assert not [path for path in reads if "rejects" in path]
    pipeline.rejects(out, n=1, reason="malformed_json", texts=False)
    assert len([path for path in reads if "rejects" in path]) == 1


def test_the_command_prints_them(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["rejects", out, "-n", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "snapshot 1: 9 rejects of 14 records"
    assert [line.split()[:2] for line in lines[2:4]] == [["6", "null_text"], ["1", "empty_text"]]
    (place,) = (line for line in lines if line.startswith("malformed_json file://"))
    assert place.endswith("in/b.jsonl.gz record 31, no id")
    assert '  text    {"id": "broken", "text":' in lines
    assert invoke(["rejects", out, "--shard", "b.jsonl.gz", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"] == {"malformed_json": 1, "empty_text": 1}
    assert [row["source_record"] for row in facts["examples"]] == [57, 31]


def test_unknown_reasons_shards_and_outputs_are_named(out: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--reason nonsense: the reasons are malformed_json"):
        pipeline.rejects(out, reason="nonsense")
    with pytest.raises(SpecError, match=r"--shard x\.jsonl: .* has no such shard among its 3"):
        pipeline.rejects(out, shard="x.jsonl")
    with pytest.raises(OutputError, match="no snapshot and no finished part"):
        pipeline.rejects(str(tmp_path))


def test_a_run_that_rejects_stopped_shows_them_and_nothing_that_it_replaces(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    def run(text_column: str, limit: float) -> None:
        spec = make_spec(
            str(tmp_path / "in"),
            out,
            bert_mean_dir,
            input={"text_column": text_column, "keep_columns": []},
            runtime={"max_reject_fraction": limit},
        )
        run_without_ray(spec)

    out = str(tmp_path / "out")
    write_shard(tmp_path / "in/a.jsonl", [{"id": str(n), "body": "a text"} for n in range(5)])
    with pytest.raises(TooManyRejects):
        run("text", 0.5)
    stopped = pipeline.rejects(out)
    assert (stopped.snapshot, stopped.n_waiting_parts) == (None, 1)
    assert stopped.counts == {"missing_text": 5}
    assert stopped.examples["source_text"][0].as_py() == '{"id": "0", "body": "a text"}'
    assert "body" in stopped.examples["detail"][0].as_py()
    run("body", 0.5)  # the spec was corrected: what the first run rejected is of no interest
    good = pipeline.rejects(out)
    assert (good.snapshot, good.n_waiting_parts, good.counts) == (1, 0, {})
    write_shard(tmp_path / "in/a.jsonl", [{"id": "0", "body": "a text"}, {"id": "1"}, {"id": "2"}])
    write_shard(tmp_path / "in/b.jsonl", [{"id": "3"}])
    with pytest.raises(TooManyRejects):
        run("body", 0.5)
    again = pipeline.rejects(out)
    assert again.snapshot == 1
    assert again.n_waiting_parts > 0
    assert (again.counts, again.n_records) == ({"missing_text": 3}, 4)
    assert pipeline.rejects(out, snapshot=1).counts == {}


def test_a_source_that_changed_or_that_only_the_output_names_leaves_its_detail(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "0", "text": "a text"}, {"id": "1"}])
    out = str(tmp_path / "out")
    run_without_ray(make_spec(str(tmp_path / "in"), out, bert_mean_dir))
    write_shard(tmp_path / "in/a.jsonl", [{"id": "0"}])
    (row,) = pipeline.rejects(out).examples.to_pylist()
    assert row["detail"]
    assert row["source_text"] is None
    assert row["problem"].startswith("source no longer there")


def test_a_file_of_rejects_that_is_gone_is_named(tmp_path: Path, bert_mean_dir: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1"}])
    out = str(tmp_path / "out")
    run_without_ray(make_spec(str(tmp_path / "in"), out, bert_mean_dir))
    (path,) = Path(out, "_meta/rejects").rglob("*.parquet")
    path.unlink()
    assert pipeline.rejects(out, n=0).n_rejects == 1
    with pytest.raises(OutputError, match=r"the rejects of part \w+ cannot be read"):
        pipeline.rejects(out)
    assert module.EXAMPLE_COLUMNS.keys() == {*pipeline.rejects(out, n=0).examples.column_names}
