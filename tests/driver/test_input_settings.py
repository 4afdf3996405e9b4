"""Whole runs over inputs as people have them: what lies in the output is the text and the id of the
source, and verify reads each record again."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, TooManyRejects, TooMuchDamage
from pipeline.output.dataset import open_dataset
from pipeline.tools.verify.verification import verify
from tests.support import outputs

IDS = [uuid.UUID(int=7), uuid.UUID(int=2**127 + 1)]


def rows_of(root: Path, model: Path, **sections: Any) -> list[dict[str, Any]]:
    """The rows of a job over `root/in`, after `verify` has found nothing wrong with them."""
    sections["runtime"] = {"max_reject_fraction": 0.0, "max_damaged_fraction": 0.0}
    spec = outputs.make_spec(str(root / "in"), str(root / "out"), model, **sections)
    outputs.run_without_ray(spec)
    output = str(root / "out")
    checks = verify(output, sample=10).checks
    assert [check for check in checks if not check.ok] == []
    table = open_dataset(output).to_table()
    return table.sort_by("doc_id").to_pylist()


def test_a_template_over_files_of_three_formats(tmp_path: Path, bert_mean_dir: Path) -> None:
    folder = tmp_path / "in/lang=ja"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(
        '{"key": 3.0, "title": "JSON", "body": ["one", null, "two"], "score": NaN}\n'
    )
    (folder / "b.tsv").write_text('key\ttitle\tbody\n4\t"TSV"\t"open\n')
    (folder / "c.csv").write_text('key; title; body\n5; "CSV"; "a; b"\n')
    table = pa.table({"key": [6], "title": ["Parquet"], "body": [["one", "two"]]})
    pq.write_table(table, folder / "d.parquet")
    settings = {"text_template": "{title}: {body}", "id_column": "key", "keep_columns": "lang"}
    rows = rows_of(tmp_path, bert_mean_dir, input=settings, output={"partition_by": "lang"})
    assert [(row["doc_id"], row["text"], row["lang"]) for row in rows] == [
        ("3", "JSON: one\ntwo", "ja"),
        ("4", '"TSV": "open', "ja"),
        ("5", "CSV: a; b", "ja"),
        ("6", "Parquet: one\ntwo", "ja"),
    ]


def test_a_path_into_a_warehouse_table_with_uuids(tmp_path: Path, bert_mean_dir: Path) -> None:
    (tmp_path / "in").mkdir()
    doc = pa.array([{"text": "one", "lang": "en"}, {"text": "two", "lang": None}])
    ids = pa.array([value.bytes for value in IDS], pa.uuid())
    pq.write_table(pa.table({"id": ids, "doc": doc}), tmp_path / "in/a.parquet")
    settings = {"text_column": "doc.text", "keep_columns": ["doc.lang", "id"], "id_column": "id"}
    rows = rows_of(tmp_path, bert_mean_dir, input=settings)
    assert [row["doc_id"] for row in rows] == [row["id"] for row in rows] == list(map(str, IDS))
    assert [(row["text"], row["doc.lang"]) for row in rows] == [("one", "en"), ("two", None)]


def test_text_files_as_documents(tmp_path: Path, bert_mean_dir: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.md").write_bytes(b"# One\n\nA paragraph.\r\n")
    (tmp_path / "in/b.txt").write_bytes(b"two")
    settings = {"format": "document", "id_column": None, "keep_columns": []}
    rows = rows_of(tmp_path, bert_mean_dir, input=settings)
    uri = f"file://{tmp_path}/in"
    assert [(row["doc_id"], row["text"]) for row in rows] == [
        (f"{uri}/a.md#0", "# One\n\nA paragraph.\r\n"),
        (f"{uri}/b.txt#0", "two"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [
        (
            "a.jsonl",
            b'{"id": "1", "lang": "en", "body": "a"}\n' * 60,
            TooManyRejects,
            "missing_text 60. First: .*a.jsonl record 0: the record has id, lang, body and no 't",
        ),
        (
            "a.json",
            json.dumps([{"id": "1", "lang": "en", "text": "a"}], indent=1).encode(),
            TooMuchDamage,
            "First: .*a.json record 0: the shard is one JSON array",
        ),
        (
            "a.csv",
            b"id,lang,body\n1,en,a\n",
            InputError,
            "a.csv: column 'text' not found; columns are id, lang, body. Set input.text_column",
        ),
    ],
)
def test_an_input_that_does_not_fit_is_explained_by_what_is_there(
    tmp_path: Path, bert_mean_dir: Path, name: str, data: bytes, error: type[Exception], words: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    with pytest.raises(error, match=words):
        rows_of(tmp_path, bert_mean_dir)
