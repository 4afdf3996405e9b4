"""Parts as rows of a Ray Dataset: everything comes back as it was, and vectors are never copied."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from pipeline.storage.lineage import PartFacts, Shard, Source, Span, Split
from pipeline.workers.cells import pack, unpack
from pipeline.write.part import FAILURES, EmbeddedPart

SHARD = Shard(uri="file:///\u6587.jsonl", etag="e", size_bytes=9)
FACTS = PartFacts(
    part_id="p",
    fingerprint="f",
    run_id="r",
    split=Split(spans=(Span(shard=SHARD),), part_bytes=9),
    index=0,
    last=True,
    sources=(Source(uri=SHARD.uri, etag="e", first_record=0, n_records=3, n_rejects=0),),
    record_bytes=9,
    n_embedded=2,
    seconds={"read": 0.1},
)


def part_of(vectors: np.ndarray, **changes: object) -> EmbeddedPart:
    rows = pa.table({"n": [len(vectors)]})
    part = EmbeddedPart(FACTS, rows, rows.slice(1), vectors, FAILURES.empty_table())
    return dataclasses.replace(part, **changes)


@pytest.mark.parametrize("n_rows", [0, 1, 5])
def test_vectors_are_packed_and_unpacked_without_a_copy(n_rows: int) -> None:
    vectors = np.arange(n_rows * 8, dtype=np.float32).reshape(-1, 8)
    unpacked = unpack(EmbeddedPart, pack(part_of(vectors))).vectors
    np.testing.assert_array_equal(unpacked, vectors)
    assert np.shares_memory(unpacked, vectors) == (n_rows > 0)


def test_every_field_of_a_part_comes_back_as_it_was() -> None:
    lost = pa.table(
        {"document": [1], "reason": ["out_of_memory"], "detail": ["a \u6587"]}, schema=FAILURES
    )
    part = part_of(np.ones((1, 4), np.float32), failures=lost)
    unpacked = unpack(EmbeddedPart, pack(part))
    for field in dataclasses.fields(EmbeddedPart):
        sent, received = getattr(part, field.name), getattr(unpacked, field.name)
        if isinstance(sent, np.ndarray):
            np.testing.assert_array_equal(received, sent)
        else:
            assert received == sent


def test_each_row_of_a_block_has_its_own_tables_and_vectors() -> None:
    sent = [np.full((n, 4), n, np.float32) for n in (3, 0, 2)]
    whole = pa.concat_tables(pack(part_of(vectors)) for vectors in sent)
    for block in (whole, whole.combine_chunks()):
        for position, vectors in enumerate(sent):
            part = unpack(EmbeddedPart, block.slice(position, 1))
            np.testing.assert_array_equal(part.vectors, vectors)
            assert part.rows["n"].to_pylist() == [len(vectors)]
