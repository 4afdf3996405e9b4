"""What `verify` says beside ok and FAIL, and what to do about a lost file. Oracle: what was done to
the output, and its rows before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ModelError, OutputError, SpecError
from pipeline.job.sections import PublishSpec
from pipeline.job.spec import JobSpec
from pipeline.output.change_feed import changes
from pipeline.output.dataset import open_dataset, read_vectors
from pipeline.output.snapshots import load_snapshot
from pipeline.output.table_records import TableState, publications_of, record, record_state
from pipeline.storage.store import Store
from pipeline.tools.compact import compact
from pipeline.tools.search import search
from pipeline.tools.trace import trace
from pipeline.tools.verify.verification import Verification, verify
from tests.support.outputs import DOCUMENTS, make_spec, run_without_ray, write_shard


def failed(verification: Verification) -> set[str]:
    return {check.name for check in verification.checks if not check.ok}


def detail(verification: Verification, name: str) -> str:
    return next(check.detail for check in verification.checks if check.name == name)


def own_output(root: Path, model: Path) -> JobSpec:
    """An output of two shards."""
    write_shard(root / "in/a.jsonl", DOCUMENTS[:4])
    write_shard(root / "in/b.jsonl", DOCUMENTS[4:])
    spec = make_spec(str(root / "in"), str(root / "out"), model, runtime={"part_bytes": 1024})
    assert run_without_ray(spec)
    return spec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, bert_mean_dir: Path) -> Path:
    root = tmp_path_factory.mktemp("warnings")
    own_output(root, bert_mean_dir)
    return root / "out"


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def marks(verification: Verification) -> dict[str, str]:
    return {check.name: check.mark for check in verification.checks}


def test_a_sample_of_nothing_is_named_and_a_negative_one_refused(made: Path) -> None:
    verification = verify(str(made), sample=0)
    assert (marks(verification)["sample"], verification.ok) == ("skip", True)
    assert "--sample 0" in detail(verification, "sample")
    with pytest.raises(SpecError, match="--sample -3") as raised:
        verify(str(made), sample=-3)
    assert raised.value.exit_code == 2


def test_a_model_that_is_gone_costs_its_own_check_and_no_other(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(bert_mean_dir, model)
    spec = own_output(tmp_path, model)
    shutil.rmtree(model)
    with pytest.raises(ModelError):
        verify(spec.output.uri)
    verification = verify(spec.output.uri, need_model=False)
    assert failed(verification) == {"sample"}
    assert len(verification.checks) > 14
    assert "--model" in detail(verification, "sample")


def test_files_that_no_snapshot_names_are_a_warning(output: Path) -> None:
    verification = verify(str(output), sample=0)
    assert marks(verification)["extra"] == "ok"
    (output / "data/other.parquet").write_bytes(b"x")
    (output / f"data/part-{'a' * 32}.parquet").write_bytes(b"x")
    (output / "_meta/snapshots/Copy of 1.json").write_bytes(b"x")
    verification = verify(str(output), sample=0)
    assert (marks(verification)["extra"], verification.ok) == ("warn", True)
    expected = ("2 files under data/", "other.parquet", "1 object under _meta/", "Copy of 1.json")
    assert all(words in detail(verification, "extra") for words in expected)


def test_documents_that_left_against_the_spec_are_a_warning(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    spec = own_output(tmp_path, bert_mean_dir)
    (tmp_path / "in/b.jsonl").unlink()
    write_shard(tmp_path / "in/a.jsonl", DOCUMENTS[:2])
    assert run_without_ray(spec)
    assert marks(verify(spec.output.uri, sample=0))["deletions"] == "ok"
    head = load_snapshot(Store(spec.output.uri))
    assert head
    path = tmp_path / "out/_meta/runs" / head.run_id / "spec.yaml"
    text = path.read_text()
    path.write_text(text.replace("max_delete_fraction: 1.0", "max_delete_fraction: 0.2"))
    verification = verify(spec.output.uri, sample=0)
    assert (marks(verification)["deletions"], verification.ok) == ("warn", True)
    assert "6 of 8 documents of snapshot 1" in detail(verification, "deletions")


@pytest.mark.parametrize("how", ["gone", "cut", "joined and gone"])
def test_a_lost_data_file_says_what_to_do_and_the_next_run_makes_it_anew(
    tmp_path: Path, bert_mean_dir: Path, how: str
) -> None:
    """Search, trace, diff, read_vectors and open_dataset give one sentence; a run embeds the lost
    part again, and the same rows are there. Oracle: the rows before."""
    spec = own_output(tmp_path, bert_mean_dir)
    uri = spec.output.uri
    if how.startswith("joined"):
        assert compact(uri).n_parts_joined == 2
    ids, vectors = read_vectors(uri)
    path = Path(open_dataset(uri).files[0])
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    verification = verify(uri, sample=0)
    assert {"files"} <= failed(verification) <= {"files", "pages", "ids"}
    assert "run the job again" in detail(verification, "files")
    for use in (
        lambda: search(uri, "a text"),
        lambda: trace(uri, "doc-1"),
        lambda: list(changes(uri, 0).upserts()),
        lambda: read_vectors(uri),
        lambda: open_dataset(uri),
    ):
        with pytest.raises(OutputError, match=rf"{path.name}.*run the job again"):
            use()
    assert run_without_ray(spec)
    assert failed(verify(uri, sample=0)) == set()
    ids_again, vectors_again = read_vectors(uri)
    order, order_again = np.argsort(ids.to_pylist()), np.argsort(ids_again.to_pylist())
    assert sorted(ids.to_pylist()) == sorted(ids_again.to_pylist())
    np.testing.assert_allclose(vectors[order], vectors_again[order_again], atol=1e-6)


@pytest.mark.parametrize("change", [{"run_id": "f" * 16}, {"number": 9}], ids=["run", "number"])
def test_a_table_that_showed_another_snapshot_of_the_number_is_a_warning(
    output: Path, change: dict[str, Any]
) -> None:
    store = Store(str(output))
    head = load_snapshot(store)
    assert head
    (publication,) = publications_of(PublishSpec(delta=True))
    record(store, publication)
    state = TableState(number=head.number, run_id=head.run_id, file_list=head.file_list)
    record_state(store, publication.key, state)
    assert marks(verify(str(output), sample=0))["tables"] == "ok"
    record_state(store, publication.key, state.model_copy(update=change))
    verification = verify(str(output), sample=0)
    assert (marks(verification)["tables"], verification.ok) == ("warn", True)
    assert "restored or rolled back" in detail(verification, "tables")
