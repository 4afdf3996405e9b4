"""The registry of formats: a new one is a class and a line."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ShardDamaged, SpecError
from pipeline.job.input_spec import FORMATS, InputSpec
from pipeline.read import EXTENSIONS, READERS, format_of, read_span
from pipeline.read.compression import compression_of
from pipeline.read.records import records_table
from pipeline.storage.lineage import Shard, Span
from tests.support.specs import input_spec


class PairsReader:
    """A toy format: id and text on alternate lines."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        return [Span(shard=shard)]

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        lines = file.read().decode().split("\n")
        n_records = len(lines) // 2
        yield records_table(
            spec,
            source_record=np.arange(n_records),
            record_bytes=np.ones(n_records, np.int64),
            doc_id=pa.array(lines[0 : 2 * n_records : 2]),
            text=pa.array(lines[1::2]),
            kept=[],
            rejects={0: ("too_short", "of no interest")},
        )
        raise ShardDamaged("no more", 77)


def test_a_new_format_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "pairs", PairsReader())
    monkeypatch.setitem(EXTENSIONS, ".pairs", "pairs")
    uri = "s3://lake/x.pairs"
    span = Span(shard=Shard(uri=uri, etag="e", size_bytes=9))
    tables = read_span(
        READERS[format_of(uri)], io.BytesIO(b"1\na\n2\nb"), span, input_spec("text", "id", {}, 99)
    )
    rows = pa.concat_tables(tables).to_pylist()
    assert [(r["source_record"], r["doc_id"], r["text"], r["reason"]) for r in rows] == [
        (0, "1", None, "too_short"),
        (1, "2", "b", None),
        (77, None, None, "damaged_shard"),
    ]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b/a.jsonl", "jsonl"),
        ("s3://b/a.JSONL.gz", "jsonl"),
        ("a.ndjson.zst", "jsonl"),
        ("a.json", "jsonl"),
        ("a.json.gz", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.txt.xz", "text"),
        ("a.tsv.bz2", "csv"),
        ("CC-MAIN-2026-1.warc.wet.gz", "warc"),
        ("a.warc", "warc"),
        ("a.json.zstd", "jsonl"),
        ("a.jsonl.gzip", "jsonl"),
        ("a.parq", "parquet"),
        ("a.pq", "parquet"),
        ("df.parquet.gzip", "parquet"),
        ("https://host/a.jsonl.gz?download=true", "jsonl"),
        ("https://host/a.txt.gz?name=b.csv#c.doc", "text"),
        ("s3://b/what?.jsonl/a#1.csv.gz", "csv"),
    ],
)
def test_the_format_is_told_by_the_suffix_under_the_compression(uri: str, expected: str) -> None:
    assert format_of(uri) == expected
    assert format_of(uri, "jsonl") == "jsonl"
    plain = (".jsonl", ".parquet", ".warc", ".json", ".parq", ".pq")
    assert (compression_of(uri) is not None) == (not uri.endswith(plain))


def test_the_spec_allows_exactly_the_formats_that_have_a_reader() -> None:
    assert tuple(READERS) == FORMATS
    assert {*EXTENSIONS.values(), "document"} == set(FORMATS)  # a document has no suffix of its own


def test_what_cannot_be_told_or_read_is_a_mistake_in_the_spec() -> None:
    with pytest.raises(
        SpecError, match=r"a\.doc: the name does not show the format.*Set input\.format"
    ):
        format_of("a.doc")
    with pytest.raises(ValueError, match="should be 'auto', 'jsonl'"):
        InputSpec(uri="a.yaml", format="yaml")
    with pytest.raises(SpecError, match="Parquet is compressed inside"):
        format_of("a.parquet.gz")


def test_a_reason_outside_the_closed_list_is_refused() -> None:
    with pytest.raises(ValueError, match="'bored' is not in"):
        records_table(
            input_spec("text", None, {}, 9),
            source_record=np.zeros(1, np.int64),
            record_bytes=np.zeros(1, np.int64),
            doc_id=pa.nulls(1, pa.string()),
            text=pa.array(["a"]),
            kept=[],
            rejects={0: ("bored", "")},
        )
