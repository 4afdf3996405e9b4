"""Identity comes from content and never changes by accident; stored records are refused when they
cannot be trusted."""

from __future__ import annotations

import hashlib
import json

import pytest

from pipeline.errors import OutputError
from pipeline.storage import lineage
from pipeline.storage.lineage import Shard, Snapshot, Span, Split, content_hash, part_id

SHARD = Shard(uri="s3://lake/a.jsonl", etag="abc", size_bytes=10)
SNAPSHOT = Snapshot(
    number=1,
    parent=None,
    run_id="r",
    complete=True,
    fingerprint="f",
    file_list=f"_meta/files/{'0' * 64}.parquet",
    n_parts=0,
    n_files=0,
    n_records=0,
    n_documents=0,
    n_rejects=0,
    n_rows=0,
    n_tokens=0,
    size_bytes=0,
    n_duplicate_ids=None,
    reject_reasons={},
)


def test_ids_are_sha256_of_canonical_json_and_stay_what_they_are() -> None:
    """A release that changes these would embed every finished output again."""
    assert (
        content_hash({"b": 1, "a": "é"}, 64)
        == hashlib.sha256('{"a":"é","b":1}'.encode()).hexdigest()
    )
    split = Split(spans=(Span(shard=SHARD, start=0, stop=5), Span(shard=SHARD)), part_bytes=1024)
    spans = [["s3://lake/a.jsonl", "abc", 10, 0, 5], ["s3://lake/a.jsonl", "abc", 10, 0, None]]
    canonical = json.dumps([spans, 1024, 32768], separators=(",", ":"))
    assert split.split_id == hashlib.sha256(canonical.encode()).hexdigest()[:32]
    assert part_id("f", "s", 0) == hashlib.sha256(b'["f","s",0]').hexdigest()[:32]


def test_a_key_order_does_not_change_a_hash_and_any_value_does() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert len({content_hash(value) for value in ([1], ["1"], [1.5], [None], [True], [], {})}) == 7


def test_a_lone_surrogate_in_a_name_can_be_hashed() -> None:
    assert len(content_hash(["file\udcff.jsonl"])) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"shard": SHARD.model_copy(update={"etag": "other"})},
        {"shard": SHARD.model_copy(update={"uri": "s3://lake/b.jsonl"})},
        {"shard": SHARD.model_copy(update={"size_bytes": 11})},
        {"start": 1},
        {"stop": 5},
    ],
)
def test_whatever_changes_the_records_of_a_split_changes_its_id(change: dict[str, object]) -> None:
    span = Span(shard=SHARD)
    assert (
        Split(spans=(span.model_copy(update=change),), part_bytes=1).split_id
        != Split(spans=(span,), part_bytes=1).split_id
    )


@pytest.mark.parametrize("change", [{"part_bytes": 2}, {"part_records": 3}])
def test_whatever_changes_the_bounds_of_parts_changes_the_id_of_the_split(
    change: dict[str, int],
) -> None:
    assert Split(spans=(Span(shard=SHARD),), part_bytes=1).split_id != (
        Split(**{"spans": (Span(shard=SHARD),), "part_bytes": 1, **change}).split_id
    )


def test_the_id_of_a_split_is_computed_once_and_a_changed_copy_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every loop over manifests asks for it, and a split can hold thousands of spans."""
    hashed: list[object] = []

    def counted(value: object) -> str:
        hashed.append(value)
        return content_hash(value)

    monkeypatch.setattr(lineage, "content_hash", counted)
    split = Split(spans=(Span(shard=SHARD),), part_bytes=1)
    assert len({split.split_id for _ in range(3)}) == 1
    assert len(hashed) == 1
    assert split == Split(spans=(Span(shard=SHARD),), part_bytes=1)
    changed = split.model_copy(update={"part_bytes": 2})
    assert changed.split_id == Split(spans=(Span(shard=SHARD),), part_bytes=2).split_id
    assert changed.split_id != split.split_id


def test_a_record_survives_its_json() -> None:
    assert Snapshot.from_json(SNAPSHOT.to_json(), "x") == SNAPSHOT


def test_a_newer_format_is_refused_and_the_message_says_what_to_do() -> None:
    newer = json.dumps({**SNAPSHOT.model_dump(), "format_version": 2, "new_field": 1}).encode()
    with pytest.raises(
        OutputError, match=r"snap\.json: format version 2 is newer than 1.*newer release"
    ):
        Snapshot.from_json(newer, "snap.json")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"number": 1}',
        SNAPSHOT.to_json()[:-5],
        SNAPSHOT.to_json().replace(b'"number": 1', b'"number": "one"'),
        SNAPSHOT.to_json().replace(b'"number"', b'"unknown": 1, "number"'),
    ],
)
def test_a_broken_record_is_an_output_error_that_names_the_object(data: bytes) -> None:
    with pytest.raises(OutputError, match=r"snap\.json: not a valid snapshot"):
        Snapshot.from_json(data, "snap.json")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"file_list": "../../etc/passwd"}, "is no path of a file list"),
        ({"file_list": "_meta/snapshots/00000000000000000001.json"}, "is no path of a file list"),
        ({"fingerprint": "../../victim"}, "is no id"),
        ({"run_id": "a/b"}, "is no id"),
        ({"run_id": "a" * 99999}, "not a valid snapshot record: 'aaa"),
        ({"n_rows": -1}, "n_rows: found -1; it takes a whole number from 0 below"),
        ({"n_rows": 10**30}, "n_rows: found 10+; it takes a whole number from 0 below"),
        ({"reject_reasons": {"x": {"y": 1}}}, "reject_reasons.x: found a mapping; it takes a who"),
        ({"n_files": None}, "n_files: found null; it takes a whole number"),
        ({"another": 1}, "another: unknown key"),
    ],
)
def test_a_record_names_nothing_outside_the_output_and_counts_what_64_bits_hold(
    changes: dict[str, object], expected: str
) -> None:
    data = json.dumps({**SNAPSHOT.model_dump(), **changes}).encode()
    with pytest.raises(OutputError, match=expected) as raised:
        Snapshot.from_json(data, "snap.json")
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "data", [b"[" * 1_000_000, b'{"a":' * 1_000_000, b"9" * 1_000_000, b'{"number": "\\ud800"}']
)
def test_what_no_parser_can_hold_is_an_output_error(data: bytes) -> None:
    with pytest.raises(OutputError, match=r"snap\.json: not a valid snapshot") as raised:
        Snapshot.from_json(data, "snap.json")
    assert len(str(raised.value)) < 400
