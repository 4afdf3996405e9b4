"""Whatever is changed in what an output holds, `verify` finds it from storage alone: every field,
every file, every reject.

Each case takes a fresh copy of one output (chunks, partitions, rejects, several parts), changes one
thing, and expects a finding or a clear refusal. Oracle: the change itself.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import CorpusEmbedError
from pipeline.output.snapshots import live_parts, load_snapshot
from pipeline.storage import layout
from pipeline.storage.store import Store
from pipeline.tools.verify.verification import verify
from tests.support import stand_in
from tests.support.outputs import write_shard

pytestmark = pytest.mark.faults

DOCS = [
    {
        "id": f"d{n}",
        "text": f"some words of text number {n} " * (1 + n % 5) if n % 6 else None,
        "lang": "en" if n % 2 else "ja",
    }
    for n in range(24)
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tampering")
    write_shard(root / "in/a.jsonl", DOCS[:12])
    write_shard(root / "in/b.jsonl.gz", DOCS[12:])
    spec = stand_in.make_spec(
        root / "in",
        root / "out",
        input={"keep_columns": ["lang"]},
        output={"partition_by": ["lang"]},
        prepare={
            "long_documents": "chunk",
            "chunk": {"max_tokens": 40, "overlap_tokens": 4, "boundary": "token"},
        },
        runtime={"part_bytes": 1024},
    )
    assert stand_in.run(spec)
    return root / "out"


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def is_detected(output: Path) -> bool:
    """Whether verify reports a finding, or refuses what it cannot read."""
    try:
        return not verify(str(output), sample=0).ok
    except CorpusEmbedError:
        return True


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all single values in nested plain data."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from leaves(inner, (*path, number))
    else:
        yield path


def altered(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return {} if value is None else None


def tampered(value: Any, path: tuple[Any, ...]) -> Any:
    changed = json.loads(json.dumps(value))
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = altered(inner[path[-1]])
    return changed


def undetected(output: Path, path: Path) -> list[str]:
    """Fields of one JSON record that can be changed without verify noticing."""
    before = path.read_bytes()
    fields = json.loads(before)
    missed = []
    for leaf in leaves(fields):
        path.write_text(json.dumps(tampered(fields, leaf)))
        if not is_detected(output):
            missed.append(".".join(map(str, leaf)))
    path.write_bytes(before)
    return missed


def test_an_untouched_output_passes(output: Path) -> None:
    assert not is_detected(output)


def test_every_field_of_a_snapshot_is_held_by_what_it_names(output: Path) -> None:
    # complete: one without all that was asked for looks the same as one that a run made on its way
    assert undetected(output, output / f"_meta/snapshots/{1:020d}.json") == ["complete"]


def test_every_field_of_a_generation_is_held_by_its_fingerprint_or_the_files(output: Path) -> None:
    # model_name: a label; the same model may lie elsewhere in the next run, its files' hashes are
    # in the identity
    assert undetected(output, next(output.glob("_meta/generations/*.json"))) == ["model_name"]


def test_every_field_of_a_manifest_is_held_by_its_other_copy(output: Path) -> None:
    with_rejects = [
        path
        for path in output.glob("_meta/manifests/*/*.json")
        if json.loads(path.read_text())["n_rejects"]
    ]
    assert undetected(output, with_rejects[0]) == []


@pytest.mark.slow  # as the one above, from the other side
def test_every_field_of_a_listed_manifest_is_held_by_its_other_copy(output: Path) -> None:
    (path,) = output.glob("_meta/files/*.parquet")
    table = pq.read_table(path)
    manifests = table["manifest"].to_pylist()
    fields = json.loads(manifests[0])
    missed = []
    for leaf in leaves(fields):
        manifests[0] = json.dumps(tampered(fields, leaf))
        changed = table.set_column(
            table.schema.get_field_index("manifest"), "manifest", pa.array(manifests)
        )
        pq.write_table(changed, path)
        if not is_detected(output):
            missed.append(".".join(map(str, leaf)))
    assert missed == []


def test_a_flipped_bit_in_any_object_is_found_or_changes_nothing(output: Path) -> None:
    """In the middle of each object in turn: files, lists, records, dead letters, the plan. Nothing
    is decided from the record of an attempt, and so nothing checks it; a damaged segment of an
    index counts as missing, and what it says is read from the data files instead; the list of files
    for other programs is replaced, and another one is a warning (`test_files.py`)."""
    missed = []
    for path in sorted(output.rglob("*")):
        if not path.is_file() or path.name == "spec.yaml" or path.match("attempt-*.json"):
            continue
        if path.is_relative_to(output / "_meta/ids") or path == output / layout.CURRENT:
            continue
        before = path.read_bytes()
        middle = len(before) // 2
        path.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        if not is_detected(output) and not pq.read_table(path).equals(
            pq.read_table(io.BytesIO(before))
        ):
            missed.append(path.relative_to(output).as_posix())
        path.write_bytes(before)
    assert missed == []


@pytest.mark.parametrize(
    "folder", ["data", "_meta/manifests", "_meta/rejects", "_meta/files", "_meta/generations"]
)
def test_every_object_that_is_gone_is_missed(output: Path, folder: str) -> None:
    for path in sorted(path for path in (output / folder).rglob("*") if path.is_file()):
        before = path.read_bytes()
        path.unlink()
        assert is_detected(output), path
        path.write_bytes(before)


def test_a_reject_that_changed_in_a_well_formed_file_is_found(output: Path) -> None:
    path = next(output.glob("_meta/rejects/*/*.parquet"))
    table = pq.read_table(path)
    for name in ("doc_id", "detail", "source_record"):
        values = [altered(value) for value in table[name].to_pylist()]
        changed = table.set_column(
            table.schema.get_field_index(name), table.schema.field(name), pa.array(values)
        )
        pq.write_table(changed, path)
        assert is_detected(output), name


def test_documents_read_are_documents_of_rows_and_rejects_for_every_shard(output: Path) -> None:
    """The end-to-end checksum, by a query of its own: the ids of each input file, against rows and
    dead letters."""
    store = Store(str(output))
    parts = live_parts(store, load_snapshot(store))
    read: dict[str, int] = {}
    ids: dict[str, set[str]] = {}
    for part in parts:
        for source in part.sources:
            read[source.uri] = read.get(source.uri, 0) + source.n_records
        for path in [
            *(file.path for file in part.data_files),
            *([part.rejects_path] if part.rejects_path else []),
        ]:
            for row in pq.read_table(
                io.BytesIO(store.read(path)), columns=["doc_id", "source_uri"]
            ).to_pylist():
                ids.setdefault(row["source_uri"], set()).add(row["doc_id"])
    assert {uri.rpartition("/")[2]: n for uri, n in read.items()} == {
        "a.jsonl": 12,
        "b.jsonl.gz": 12,
    }
    assert {uri: len(doc_ids) for uri, doc_ids in ids.items()} == read
    assert set().union(*ids.values()) == {doc["id"] for doc in DOCS}
