"""trace: from a row back to the very record, in every format, and what it says when the record is
not there any more.

Oracle: the documents that the test wrote, and the places it knows them at.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from pipeline.errors import OutputError
from pipeline.tools import source_records
from pipeline.tools.trace import trace
from tests.support import outputs

NAMES = ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.csv", "e.jsonl.zst")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, bert_mean_dir: Path) -> Path:
    """Every format holds every document, under the format's own ids."""
    root = tmp_path_factory.mktemp("trace")
    for name in NAMES:
        documents = [
            {**d, "id": f"{name}-{n}", "text": f"{d['text']} {name}"}
            for n, d in enumerate(outputs.DOCUMENTS)
        ]
        outputs.write_shard(root / "in" / name, documents)
    outputs.run_without_ray(outputs.make_spec(str(root / "in"), str(root / "out"), bert_mean_dir))
    return root


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [0, 3, 7])
def test_a_row_leads_back_to_its_record_in_every_format(output, name, number):
    result = trace(str(output / "out"), f"{name}-{number}")
    assert (result.ok, result.n_rows, result.n_documents) == (True, 1, 1)
    row = result.rows[0]
    text = f"{outputs.DOCUMENTS[number]['text']} {name}"
    assert row.source_text == text
    assert row.text_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert row.source_uri.endswith(f"/in/{name}")
    if "jsonl" in name:
        texts = [f"{d['text']} {name}" for d in outputs.DOCUMENTS]
        documents = [
            {**d, "id": f"{name}-{n}", "text": texts[n]} for n, d in enumerate(outputs.DOCUMENTS)
        ]
        lines = [json.dumps(document) + "\n" for document in documents]
        assert row.source_record == sum(map(len, lines[:number]))
        assert row.record_bytes == len(lines[number]) - 1
    else:
        assert row.source_record == number
    assert (output / "out" / row.data_file).is_file()
    assert (
        hashlib.sha256((output / "out" / row.data_file).read_bytes()).hexdigest()
        == row.data_file_sha256
    )
    shown = "\n".join(result.lines())
    assert text in shown
    assert row.run_id in shown
    assert "same" in shown


def test_a_record_of_an_uncompressed_line_format_is_read_without_the_rest(output, monkeypatch):
    spans = []
    read_span = source_records.read_span
    monkeypatch.setattr(
        source_records,
        "read_span",
        lambda r, f, span, o: spans.append(span) or read_span(r, f, span, o),
    )
    row = trace(str(output / "out"), "a.jsonl-5").rows[0]
    assert [(span.start, span.stop) for span in spans] == [
        (row.source_record, row.source_record + 1)
    ]
    spans.clear()
    trace(str(output / "out"), "c.parquet-5")  # row groups of three rows
    assert [(span.start, span.stop) for span in spans] == [(1, 2)]


def make(tmp_path: Path, model: Path, documents, name: str = "a.jsonl", **sections) -> str:
    outputs.write_shard(tmp_path / "in" / name, documents)
    spec = outputs.make_spec(str(tmp_path / "in"), str(tmp_path / "out"), model, **sections)
    outputs.run_without_ray(spec)
    return spec.output.uri


def test_a_chunk_shows_its_own_characters_after_normalisation(tmp_path, bert_mean_dir):
    text = "Ｐｒｅｓｓ the button. " + " ".join(d["text"] for d in outputs.DOCUMENTS)
    prepare = {
        "long_documents": "chunk",
        "unicode": "NFKC",
        "chunk": {"max_tokens": 20, "overlap_tokens": 0},
    }
    uri = make(
        tmp_path, bert_mean_dir, [{"id": "long", "text": text, "lang": "en"}], prepare=prepare
    )
    whole = trace(uri, "long")
    assert whole.ok
    assert whole.n_documents == 1
    assert [row.chunk for row in whole.rows] == list(range(whole.n_rows))
    assert whole.n_rows >= 4
    normal = text.replace("Ｐｒｅｓｓ", "Press")
    assert [row.source_text for row in whole.rows] == [
        normal[row.char_start : row.char_end] for row in whole.rows
    ]
    one = trace(uri, "long#2")
    assert one.rows == (whole.rows[2],)


def test_an_id_with_a_sharp_is_found_before_it_is_taken_for_a_chunk(tmp_path, bert_mean_dir):
    documents = [
        {"id": "x", "text": "The first one.", "lang": "en"},
        {"id": "x#0", "text": "The second one.", "lang": "en"},
    ]
    uri = make(tmp_path, bert_mean_dir, documents)
    assert [row.source_text for row in trace(uri, "x#0").rows] == ["The second one."]
    assert [row.source_text for row in trace(uri, "x#0#0").rows] == ["The second one."]
    assert [row.source_text for row in trace(uri, "x").rows] == ["The first one."]
    for missing in ("x#1", "y", "x#-1", "x#"):
        with pytest.raises(OutputError, match="no row"):
            trace(uri, missing)


def test_ids_made_of_uri_and_record_are_traced_too(tmp_path, bert_mean_dir):
    uri = make(tmp_path, bert_mean_dir, outputs.DOCUMENTS, "b.jsonl.gz", input={"id_column": None})
    shard = (tmp_path / "in" / "b.jsonl.gz").resolve()
    first = len(gzip.decompress(shard.read_bytes()).splitlines(keepends=True)[0])
    result = trace(uri, f"file://{shard}#{first}")
    assert [row.source_text for row in result.rows] == [outputs.DOCUMENTS[1]["text"]]


def test_all_documents_of_a_shared_id_are_listed(tmp_path, bert_mean_dir):
    outputs.write_shard(
        tmp_path / "in" / "0.csv", [{"id": "same", "text": "From a table.", "lang": "en"}]
    )
    uri = make(tmp_path, bert_mean_dir, [{"id": "same", "text": "From a line.", "lang": "en"}])
    result = trace(uri, "same")
    assert (result.n_rows, result.n_documents, result.ok) == (2, 2, True)
    assert {row.source_text for row in result.rows} == {"From a table.", "From a line."}


def test_partition_columns_do_not_hide_the_data_file(tmp_path, bert_mean_dir):
    documents = [
        {**d, "lang": lang}
        for d, lang in zip(outputs.DOCUMENTS, ["en", "ja", None] * 3, strict=False)
    ]
    uri = make(tmp_path, bert_mean_dir, documents, output={"partition_by": ["lang"]})
    assert trace(uri, "doc-1").rows[0].data_file.startswith("data/lang=ja/part-")
    assert trace(uri, "doc-2").ok


@pytest.mark.faults
def test_a_changed_shard_is_said_to_have_changed_and_nothing_is_read_from_it(
    tmp_path, bert_mean_dir
):
    uri = make(tmp_path, bert_mean_dir, outputs.DOCUMENTS)
    shard = tmp_path / "in" / "a.jsonl"
    shard.write_text("")
    for what in ("planned with ETag", "gone"):
        result = trace(uri, "doc-0")
        assert not result.ok
        assert result.rows[0].verdict.startswith("source no longer there")
        assert what in result.rows[0].verdict
        assert result.rows[0].source_text is None
        shard.unlink(missing_ok=True)


def test_an_older_snapshot_can_be_traced(tmp_path, bert_mean_dir):
    uri = make(tmp_path, bert_mean_dir, outputs.DOCUMENTS[:2])
    make(tmp_path, bert_mean_dir, outputs.DOCUMENTS[2:4], "b.jsonl")
    assert trace(uri, "doc-3").snapshot == 2
    with pytest.raises(OutputError, match="no row"):
        trace(uri, "doc-3", snapshot=1)
    assert trace(uri, "doc-0", snapshot=1).ok
