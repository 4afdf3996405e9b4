"""What one record can cost beside its text is bounded: long ids and kept columns are rejects, and a
part has a bounded number of partitions.

Oracle: the documents that the test wrote, and the limits of its spec.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.errors import TooManyPartitions, TooManyRejects
from pipeline.job.sections import OutputSpec
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import load_snapshot
from tests.support.outputs import write_shard
from tests.support.stand_in import job_of, make_spec, prepared_parts, run, store_of


def rejects_of(output: Path) -> dict[int, tuple[str, str]]:
    """(reason, detail) by source_record."""
    rows = [
        row
        for path in (output / "_meta/rejects").rglob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    return {row["source_record"]: (row["reason"], row["detail"]) for row in rows}


def ids_of(output: Path) -> list[str]:
    return open_dataset(str(output)).to_table(columns=["doc_id"])["doc_id"].to_pylist()


def test_long_ids_and_kept_columns_are_rejects_with_their_length(tmp_path: Path) -> None:
    documents = [
        {"id": "a" * 100, "text": "an id as long as it may be", "note": "b" * 100},
        {"id": "a" * 101, "text": "an id that is too long", "note": "short"},
        {"id": "c", "text": "a column that is too long", "note": "\u3042" * 34},
        {"id": "d", "text": "no column at all", "note": None},
    ]
    path = write_shard(tmp_path / "in/a.jsonl", documents)
    starts = [0]
    for line in path.read_bytes().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["note"], "max_column_bytes": 100},
    )
    run(spec)
    assert rejects_of(tmp_path / "out") == {
        starts[1]: ("invalid_id", "id: 101 bytes, input.max_column_bytes is 100"),
        starts[2]: ("invalid_column", "note: 102 bytes, input.max_column_bytes is 100"),
    }
    assert sorted(ids_of(tmp_path / "out")) == ["a" * 100, "d"]


def test_the_place_of_a_record_is_no_long_id(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"text": "one"}])
    settings = {"id_column": None, "max_column_bytes": 1}
    snapshot = run(make_spec(tmp_path / "in", tmp_path / "out", input=settings))
    assert snapshot is not None
    assert (snapshot.n_documents, snapshot.n_rejects) == (1, 0)


def partitioned(tmp_path: Path, users: list[str | None], **sections: dict[str, Any]) -> Any:
    documents = [{"id": str(n), "text": f"text {n}", "user": user} for n, user in enumerate(users)]
    write_shard(tmp_path / "in/a.jsonl", documents)
    sections["output"] = {"partition_by": ["user"], **sections.get("output", {})}
    sections["input"] = {"keep_columns": ["user"]}
    return make_spec(tmp_path / "in", tmp_path / "out", **sections)


def test_the_partitions_with_the_most_records_of_a_part_keep_theirs(tmp_path: Path) -> None:
    users = ["rare", None, "often", "often", None, "also rare", "often", "first of the rare"]
    spec = partitioned(tmp_path, users, output={"max_partitions": 3})
    snapshot = run(spec)
    assert snapshot is not None
    assert snapshot.reject_reasons == {"too_many_partitions": 2}
    rows = open_dataset(str(tmp_path / "out")).to_table(columns=["user"])["user"].to_pylist()
    assert Counter(rows) == {"often": 3, None: 2, "rare": 1}
    reasons = set(rejects_of(tmp_path / "out").values())
    assert reasons == {
        (
            "too_many_partitions",
            "5 combinations of user in one part, output.max_partitions is 3; those with the most "
            "records keep theirs",
        )
    }


def test_a_partition_for_each_document_ends_the_run_before_thousands_of_files(
    tmp_path: Path,
) -> None:
    limits = {"max_reject_fraction": 0.01}
    spec = partitioned(tmp_path, [f"u{n}" for n in range(1000)], runtime=limits)
    with pytest.raises(TooManyRejects, match=r"too_many_partitions 872\. First: file"):
        run(spec)
    assert len(list((tmp_path / "out/data").rglob("*.parquet"))) == 128


def test_the_partitions_of_all_parts_are_bounded_together(tmp_path: Path) -> None:
    users = [f"u{n}" for n in range(30)]
    spec = partitioned(tmp_path, users, runtime={"max_partitions": 29, "part_bytes": 1024})
    with pytest.raises(TooManyPartitions, match=r"makes 30 folders .*runtime.max_partitions"):
        run(spec)
    assert load_snapshot(store_of(spec)) is None
    run(partitioned(tmp_path, users, runtime={"max_partitions": 30, "part_bytes": 1024}))


def test_limits_at_their_defaults_leave_the_fingerprint_as_it_was(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    identity = job_of(spec).identity
    assert "max_partitions" not in json.dumps(identity)
    assert "max_column_bytes" not in json.dumps(identity)
    other = make_spec(tmp_path / "in", tmp_path / "out", output={"max_partitions": 5})
    assert job_of(other).identity["output"]["max_partitions"] == 5
    assert OutputSpec.model_fields["max_partitions"].default == 128


@pytest.mark.thorough
def test_a_long_column_is_held_once_a_document_and_written_with_each_chunk(tmp_path: Path) -> None:
    notes = ["n" * 50_000, None, "short"]
    text = "Some words here. " * 4000
    documents = [{"id": f"d{n}", "text": text, "note": note} for n, note in enumerate(notes)]
    write_shard(tmp_path / "in/a.jsonl", documents)
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["note"]},
        prepare={"long_documents": "chunk", "chunk": {"max_tokens": 64, "overlap_tokens": 8}},
    )
    plan = make_plan(job_of(spec), store_of(spec))
    (part,) = prepared_parts(spec, plan)
    assert part.rows.num_rows > 3000
    assert part.rows.select(["doc_id", "note"]).nbytes < 200_000
    run(spec)
    table = open_dataset(str(tmp_path / "out")).to_table(columns=["doc_id", "note"])
    assert table.schema.types == [pa.string(), pa.string()]
    assert table.num_rows == part.rows.num_rows
    values = dict(zip(table["doc_id"].to_pylist(), table["note"].to_pylist(), strict=True))
    assert values == {f"d{n}": note for n, note in enumerate(notes)}
