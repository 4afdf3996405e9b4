"""report: its figures are those of the records and the rows, for every kind of output.

Oracle: pyarrow over the data files and rejects, brute-force numpy over the vectors, and the
documents that the test wrote.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

import pipeline
from pipeline.errors import OutputError, SpecError
from pipeline.output.dataset import open_dataset, read_vectors
from pipeline.storage import layout
from pipeline.tools.loaded_snapshot import load_snapshot_with_lineage
from pipeline.tools.report.attempts import load_versions
from pipeline.tools.report.report import report
from pipeline.tools.report.timeline import timeline
from tests.cli.test_main import called
from tests.fixtures.make_output_of_ae349d3 import TARGET
from tests.support import stand_in
from tests.support.outputs import write_shard

pytestmark = pytest.mark.thorough  # each makes an output and a page of it

MADE = datetime.datetime(2026, 11, 26, 3, 0, tzinfo=datetime.UTC)


def documents(name: str, count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{name}-{n}", "text": f"text {n} of {name}, {'long ' * n}", "lang": "en"}
        for n in range(count)
    ]


def make_output(root: Path, **sections: dict[str, Any]) -> str:
    """Two snapshots: of three shards, then of one unchanged, one changed, one new, one removed."""
    given = {"keep_columns": ["lang"], **sections.pop("input", {})}
    spec = stand_in.make_spec(root / "in", root / "out", input=given, **sections)
    for name in ("a", "b", "c"):
        write_shard(root / f"in/{name}.jsonl", documents(name, 20))
    stand_in.run(spec)
    bad = [{"id": "null", "text": None}, {"id": "empty", "text": " "}, {"id": "void", "text": ""}]
    same = [{"id": f"twin-{n}", "text": "one text for three"} for n in range(3)]
    write_shard(root / "in/b.jsonl", [*documents("b", 25), *bad])
    write_shard(root / "in/d.jsonl", same)
    (root / "in/c.jsonl").unlink()
    stand_in.run(spec)
    return str(root / "out")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_output(tmp_path_factory.mktemp("report"))


def rejected(output: str) -> dict[str, int]:
    paths = [str(path) for path in Path(output, "_meta/rejects").rglob("*.parquet")]
    counts = ds.dataset(paths).to_table(columns=["reason"])["reason"].value_counts()
    return {row["values"]: row["counts"] for row in counts.to_pylist()}


def test_its_figures_are_those_of_the_rows_and_the_records(output: str) -> None:
    figures = report(output, format="md").figures
    rows = open_dataset(output).to_table()
    assert figures["rows"] == rows.num_rows == 48
    assert figures["documents"] == len(set(rows["doc_id"].to_pylist()))
    assert figures["tokens"] == pc.sum(rows["n_tokens"]).as_py()
    assert figures["rejects"] == rejected(output) == {"empty_text": 2, "null_text": 1}
    assert figures["shards"] == {"new": 1, "changed": 1, "unchanged": 1, "removed": 1}
    assert figures["sample_rows"] == rows.num_rows


def test_norms_and_near_duplicates_are_those_of_brute_force(output: str) -> None:
    figures = report(output, format="md", near=0.9).figures
    _, vectors = read_vectors(output)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    assert figures["norms"]["smallest"] == pytest.approx(lengths.min())
    assert figures["norms"]["median"] == pytest.approx(np.median(lengths))
    units = vectors.astype(np.float64) / lengths[:, None]
    pairs = [
        (a, b)
        for a, b in itertools.combinations(range(len(units)), 2)
        if units[a] @ units[b] >= 0.9
    ]
    near = figures["near_duplicates"]
    assert near["pairs"] == len(pairs) >= 3
    assert near["of_pairs"] == 48 * 47 // 2
    assert near["rows"] == len({row for pair in pairs for row in pair})
    assert near["per_row"] == pytest.approx(2 * len(pairs) / 48)
    assert near["per_row_margin"] == [near["per_row"]] * 2  # the sample is the whole


def test_the_page_shows_what_the_records_say(output: str) -> None:
    text = re.sub(r"\s+", " ", report(output, format="md").text)
    for line in (
        "| Rows | 48 (documents) |",
        "| Rejected | 3 (5.88% of the records) |",
        "| empty\\_text | 2 | 66.7% |",
        "| new | 1 |",
        "| 2 | – | 0 | 40 | 8 | 20 | 3 | 48 |",  # carried, reused, embedded, removed, rejected
        "3 pairs of 1,128 have a cosine of 0.95 or more",
    ):
        assert line in text, line


@pytest.mark.parametrize("precision", ["float16", "int8", "ubinary"])
def test_vectors_of_every_precision_are_compared(tmp_path: Path, precision: str) -> None:
    output = make_output(tmp_path, output={"vector_precision": precision})
    figures = report(output, format="md", near=0.9).figures
    _, vectors = read_vectors(output)
    if precision == "ubinary":
        vectors = np.unpackbits(vectors, axis=1)[:, : stand_in.DIM] * 2.0 - 1
        assert figures["norms"] is None
    else:
        longest = np.linalg.norm(vectors.astype(np.float64), axis=1).max()
        assert figures["norms"]["largest"] == pytest.approx(longest)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (units @ units.T)[np.triu_indices(len(units), 1)]
    assert figures["near_duplicates"]["pairs"] == int((cosines > 0.9 - 1e-6).sum())
    assert "<html" in report(output).text


def test_the_same_output_and_seed_give_the_same_bytes_apart_from_the_date(output: str) -> None:
    for form in ("html", "md"):
        one = report(output, format=form, sample=30, made=MADE).text
        assert report(output, format=form, sample=30, made=MADE).text == one
        later = report(output, format=form, sample=30, made=MADE + datetime.timedelta(1)).text
        pairs = zip(one.splitlines(), later.splitlines(), strict=True)
        assert [line for line, other in pairs if line != other] == [
            line for line in one.splitlines() if "2026-11-26 03:00 UTC" in line
        ]
        assert report(output, format=form, sample=30, seed=1, made=MADE).text != one


def test_texts_are_read_from_the_sources_where_the_output_has_none(tmp_path: Path) -> None:
    output = make_output(tmp_path, output={"include_text": False})
    assert "one text for three" in report(output).text
    unread = report(output, read_sources=False).text
    assert "one text for three" not in unread
    assert "The source text of 48 rows is not shown: sources were not to be read." in unread
    (tmp_path / "in/d.jsonl").write_text('{"id": "x", "text": "a secret of another file"}\n')
    changed = report(output).text
    assert "a secret of another file" not in changed
    assert "The source text of 3 rows is not shown: source no longer there." in changed


def test_rejects_have_the_head_of_their_source_text(tmp_path: Path) -> None:
    spec = stand_in.make_spec(tmp_path / "in", tmp_path / "out", prepare={"min_chars": 500})
    write_shard(
        tmp_path / "in/a.jsonl", [{"id": "short", "text": "too short, says the spec " * 10}]
    )
    stand_in.run(spec)
    result = report(str(tmp_path / "out"), format="md")
    assert result.figures["rejects"] == {"too_short": 1}
    assert "too short, says the spec too short" in result.text
    assert "There are too few different vectors for a map." in result.text
    assert "too short, says" not in report(str(tmp_path / "out"), read_sources=False).text


def test_an_output_of_an_earlier_release_is_reported_and_its_server_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(Path(__file__).parents[1] / "fixtures" / TARGET) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):  # the tests' own server
        monkeypatch.delenv(name, raising=False)
    result = report("out")
    assert result.figures["rows"] == 41
    assert result.figures["shards"] == {"new": 1, "changed": 0, "unchanged": 3, "removed": 0}
    assert "source not asked: it is on the S3 endpoint of AWS, which only the output" in result.text
    assert report("out", snapshot=1, format="md").figures["rows"] == 31


def test_a_damaged_record_of_a_run_is_named_and_nothing_fails(tmp_path: Path) -> None:
    output = make_output(tmp_path)
    for path in Path(output, "_meta/runs").rglob("attempt-*.json"):
        record = json.loads(path.read_bytes())
        record["counts"]["elapsed_s"] = "<script>alert(1)</script>"
        path.write_text(json.dumps(record))
    result = report(output)
    assert len(result.figures["notes"]) == 2
    assert "counts.elapsed_s" in result.figures["notes"][0]
    assert "<script>alert" not in result.text
    assert "No kept snapshot has a record of a run" in result.text


def test_an_estimate_is_shown_beside_the_truth(tmp_path: Path) -> None:
    output = make_output(tmp_path)
    for path in Path(output, "_meta/runs").rglob("attempt-*.json"):
        record = json.loads(path.read_bytes())
        record |= {"estimate": {"tokens": 900, "note": "x"}, "truth": {"tokens": 1000, "rows": 1}}
        path.write_text(json.dumps(record))
    text = report(output, format="md").text
    assert "| tokens | 900 | 1,000 | -10% |" in text
    assert "Estimate and truth" in text


def test_the_phases_of_a_run_and_its_rate_while_embedding_are_shown(tmp_path: Path) -> None:
    output = make_output(tmp_path)
    times = {"elapsed_s": 100.0, "start_up_s": 30.0, "embedding_s": 50.0, "end_s": 20.0}
    for path in Path(output, "_meta/runs").rglob("attempt-*.json"):
        record = json.loads(path.read_bytes())
        record["counts"] |= times | {"n_embedded_tokens": 9000}
        path.write_text(json.dumps(record))
    text = report(output, format="md").text
    for line in ("| Start-up | 0:30 |", "| Embedding | 0:50 |", "| End | 0:20 |"):
        assert line in text
    assert "90 tokens a second, start-up and end included; 180 a second while embedding" in text


def test_damage_ends_it_in_one_sentence(tmp_path: Path) -> None:
    output = make_output(tmp_path)
    rejects = next(Path(output, "_meta/rejects").rglob("*.parquet"))
    kept = rejects.read_bytes()
    rejects.write_bytes(kept[:-20])
    with pytest.raises(OutputError, match=r"the rejects of part .* cannot be read: .*verify"):
        report(output)
    rejects.write_bytes(kept)
    data = Path(open_dataset(output).files[0])
    for change in (data.read_bytes()[:-20], None):
        data.unlink() if change is None else data.write_bytes(change)
        with pytest.raises(OutputError, match=r"this data file is (damaged|gone)"):
            report(output)


def test_what_cannot_be_reported_is_refused(tmp_path: Path, output: str) -> None:
    with pytest.raises(OutputError, match="no snapshot yet"):
        report(str(tmp_path / "nothing"))
    with pytest.raises(OutputError, match="no snapshot 9; kept: 1 to 2"):
        report(output, snapshot=9)
    for wrong in ({"sample": 5001}, {"sample": -1}, {"near": 0}, {"near": 1.5}, {"seed": -1}):
        with pytest.raises(SpecError, match="report takes a sample of 0 to 5,000 rows"):
            report(output, **wrong)


def test_without_bokeh_it_says_what_to_install_and_markdown_works(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "bokeh"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "pipeline.tools.report.plots", raising=False)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(SpecError, match=r"pip install '\.\[report\]'.*--format md"):
        report(output)
    assert report(output, format="md").text.startswith("# stand")


def test_a_sample_of_no_rows_still_has_the_records(output: str) -> None:
    result = report(output, sample=0)
    assert (result.figures["rows"], result.figures["sample_rows"]) == (48, 0)


@pytest.mark.parametrize("tool", ["pyarrow", "DuckDB", "Polars", "pandas"])
def test_its_code_for_a_tool_reads_the_newest_snapshot_and_nothing_else(
    output: str, tool: str
) -> None:
    """The folder also holds the files of the first snapshot."""
    text = report(output, format="md").text
    blocks = dict(
        re.findall(r"^### ([^\n]*)\n\n```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    )
    scope: dict[str, Any] = {}
    exec("\n".join([blocks["The files of the newest snapshot"], blocks[tool]]), scope)
    rows = {"pyarrow": "table", "DuckDB": "rows"}.get(tool, "frame")
    table = scope[rows].to_arrow_table() if tool == "DuckDB" else scope[rows]
    column = table["doc_id"]
    ids = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    assert sorted(ids) == sorted(open_dataset(output).to_table()["doc_id"].to_pylist())


def test_licences_of_model_and_data_are_shown(tmp_path: Path) -> None:
    card = {"license": "CC-BY-4.0"}
    spec = stand_in.make_spec(tmp_path / "in", tmp_path / "out", output={"card": card})
    write_shard(tmp_path / "in/a.jsonl", documents("a", 3))
    stand_in.run(spec, model_license="apache-2.0")
    text = report(str(tmp_path / "out"), format="md").text
    assert "| Model | stand-in: apache-2.0 |" in text
    assert "| Data | CC-BY-4.0 |" in text


def test_the_command_writes_a_file_and_says_which(
    output: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert called(monkeypatch, "report", output) == 0
    assert capsys.readouterr().out.startswith("report.html: ")
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert called(monkeypatch, "report", output, "-o", "here.md", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["file"], answer["rows"]) == ("here.md", 48)
    assert Path("here.md").stat().st_size == answer["bytes"]
    assert called(monkeypatch, "report", output, "-o", "none/here.md") == 2
    assert "the folder none does not exist" in capsys.readouterr().err
    assert called(monkeypatch, "report", str(tmp_path / "x"), "-o", "x.html") == 1
    assert not Path("x.html").exists()


def test_it_is_a_function_of_the_package(output: str) -> None:
    assert pipeline.report(output, format="md").figures["rows"] == 48


def test_throughput_follows_the_times_at_which_the_store_got_the_parts(tmp_path: Path) -> None:
    spec = stand_in.make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})
    write_shard(tmp_path / "in/a.jsonl", documents("a", 60))
    stand_in.run(spec)
    loaded = load_snapshot_with_lineage(str(tmp_path / "out"))
    parts = loaded.manifests
    assert len(parts) > 3
    for number, part in enumerate(parts):
        path = tmp_path / "out" / layout.manifest(part.fingerprint, part.part_id)
        os.utime(path, (0, 1_000_010 + 10 * number))
    record = tmp_path / "out" / layout.run_attempt(loaded.snapshot.run_id, 1)
    facts = json.loads(record.read_bytes())
    facts["counts"]["elapsed_s"] = 10.0 * len(parts) + 7
    record.write_text(json.dumps(facts))
    os.utime(record, (0, 1_000_010 + 10 * len(parts) - 5))
    versions, notes = load_versions(loaded.store, loaded.snapshot)
    assert notes == []
    line = timeline(loaded.store, versions[0], parts)
    assert line is not None
    # the run began 2 s before the tenth second, and its end came 5 s after its last part
    tokens = np.cumsum([part.n_embedded_tokens for part in parts]).tolist()
    assert line.points == ((0.0, 0), *((12 + 10.0 * n, count) for n, count in enumerate(tokens)))
    assert [seconds for _, seconds in line.stretches] == [12, 10 * (len(parts) - 1), 5]
