"""A refresh through Ray Data: the index is built in tasks, tokenizers look it up, only new texts
reach the embedders."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.driver.cluster.on_ray import run
from pipeline.output import dataset
from pipeline.output.snapshots import live_parts, snapshot_numbers
from pipeline.storage.store import Store
from tests.support.outputs import DOCUMENTS, make_spec, write_shard

pytestmark = [pytest.mark.usefixtures("ray_local")]


def vectors(uri: str) -> dict[str, np.ndarray]:
    rows = dataset.open_dataset(uri).to_table(columns=["text", "embedding"]).to_pylist()
    return {row["text"]: np.array(row["embedding"], np.float32) for row in rows}


def test_a_refresh_embeds_new_texts_only_and_carries_moved_vectors_over_bit_by_bit(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", DOCUMENTS[:5])
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    first = run(spec)
    assert first.rows == {"carried": 0, "reused": 0, "embedded": 5, "removed": 0, "rejected": 0}
    assert 0 < first.progress.busy_share < 1
    assert not (tmp_path / "out/_meta/index").exists()
    before = vectors(str(tmp_path / "out"))
    (tmp_path / "in/a.jsonl").unlink()
    write_shard(tmp_path / "in/moved.jsonl.gz", [*reversed(DOCUMENTS[1:5]), *DOCUMENTS[5:7]])
    when = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
    second = run(spec, nominal_time=when)
    assert second.rows == {"carried": 0, "reused": 4, "embedded": 2, "removed": 1, "rejected": 0}
    assert second.snapshot.nominal_time == when
    store = Store(spec.output.uri)
    (part,) = live_parts(store, second.snapshot)
    assert (part.n_rows, part.n_reused, part.n_embedded) == (6, 4, 2)
    assert part.n_tokens > part.n_embedded_tokens > 0
    after = vectors(str(tmp_path / "out"))
    assert after.keys() - before.keys() == {document["text"] for document in DOCUMENTS[5:7]}
    for text in after.keys() & before.keys():
        np.testing.assert_array_equal(after[text], before[text])
    assert not run(spec, nominal_time=when).embedded
    assert snapshot_numbers(store) == [1, 2]
