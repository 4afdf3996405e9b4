"""verify: an untouched output passes, and each kind of damage fails exactly the checks that it
breaks.

Oracles: damage done by hand (bytes, files, manifests), so what must be found is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.embed import int8
from pipeline.errors import ModelError, OutputError
from pipeline.job import resolve as job_module
from pipeline.job.spec import JobSpec
from pipeline.output.snapshots import create_file_list, live_parts, load_snapshot
from pipeline.storage.layout import manifest as manifest_path
from pipeline.storage.lineage import Manifest
from pipeline.storage.store import Store
from pipeline.tools.loaded_snapshot import load_snapshot_with_lineage
from pipeline.tools.verify.verification import Verification, verify
from pipeline.write import parquet as write_parquet
from pipeline.write.vectors import vector_columns
from tests.support import model_dirs, outputs

LONG = " ".join(document["text"] for document in outputs.DOCUMENTS)
LAST = 8
THIS_INT8 = job_module.INT8_ALGORITHM


def failed(verification: Verification) -> set[str]:
    return {check.name for check in verification.checks if not check.ok}


def detail(verification: Verification, name: str) -> str:
    return next(check.detail for check in verification.checks if check.name == name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, bert_mean_dir: Path) -> tuple[Path, JobSpec]:
    """Two shards in two parts; one record has no text. Tests damage copies of the output."""
    root = tmp_path_factory.mktemp("verify")
    documents = outputs.DOCUMENTS
    outputs.write_shard(
        root / "in" / "a.jsonl", [*documents[:4], {"id": "empty", "text": "  ", "lang": "en"}]
    )
    outputs.write_shard(root / "in" / "b.jsonl.gz", documents[4:])
    spec = outputs.make_spec(
        str(root / "in"), str(root / "out"), bert_mean_dir, runtime={"part_bytes": 1024}
    )
    outputs.run_without_ray(spec)
    return root, spec


@pytest.fixture
def output(made: tuple[Path, JobSpec], tmp_path: Path) -> Path:
    shutil.copytree(made[0] / "out", tmp_path / "out")
    return tmp_path / "out"


def data_files(output: Path) -> list[Path]:
    return sorted(output.glob("data/**/*.parquet"), key=lambda path: path.stat().st_size)


def record_again(output: Path, path: Path, **counts: int) -> None:
    """Make manifest and file list agree with a changed data file, so that only the rows differ."""
    store = Store(str(output))
    snapshot = load_snapshot(store)
    assert snapshot
    data = path.read_bytes()
    changed = []
    for part in live_parts(store, snapshot):
        files = [
            file.model_copy(
                update={"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
            )
            if file.path == path.relative_to(output).as_posix()
            else file
            for file in part.data_files
        ]
        changed.append(part.model_copy(update={"data_files": tuple(files)}))
    list_again(output, changed, **counts)


def list_again(output: Path, parts: list[Manifest], **counts: int) -> None:
    store = Store(str(output))
    snapshot = load_snapshot(store)
    assert snapshot
    (output / snapshot.file_list).unlink(missing_ok=True)
    path = create_file_list(store, parts)
    for part in parts:
        (output / manifest_path(part.fingerprint, part.part_id)).write_bytes(part.to_json())
    files = [file for part in parts for file in part.data_files]
    sums = {"n_files": len(files), "size_bytes": sum(file.size_bytes for file in files)}
    changed = snapshot.model_copy(update={"file_list": path, **sums, **counts})
    (output / f"_meta/snapshots/{snapshot.number:020d}.json").write_bytes(changed.to_json())


def rewrite(path: Path, change) -> None:
    """A well-formed data file with other rows and the same footer metadata."""
    parquet = pq.ParquetFile(path)
    footer = json.loads(parquet.metadata.metadata[b"corpus_embed"])
    path.write_bytes(write_parquet.encode(change(parquet.read()), footer))


def set_vector(row: int, values) -> object:
    def change(table: pa.Table) -> pa.Table:
        type_ = table.schema.field("embedding").type
        vectors = np.stack(table["embedding"].to_numpy()).astype(np.float32)
        vectors[row] = values(vectors[row])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=type_)
        position = table.schema.get_field_index("embedding")
        return table.set_column(position, table.schema.field("embedding"), column)

    return change


def test_an_untouched_output_passes_every_check_and_its_whole_sample_is_embedded_again(made):
    verification = verify(str(made[0] / "out"))
    assert failed(verification) == set()
    sample = next(check for check in verification.checks if check.name == "sample")
    assert sample.figures["embedded_again"] == 8
    assert sample.figures["source_gone"] == 0
    assert sample.figures["lowest_similarity"] > 0.9999
    assert {
        "files",
        "pages",
        "counts",
        "rejects",
        "splits",
        "records",
        "ids",
        "finite",
        "text_hashes",
    } <= {check.name for check in verification.checks}


def test_the_sample_depends_only_on_its_seed(made):
    samples = [verify(str(made[0] / "out"), sample=3, seed=seed).checks[-1] for seed in (1, 1)]
    assert samples[0] == samples[1]
    assert samples[0].figures["rows"] == 3


@pytest.mark.faults
def test_a_flipped_byte_of_a_vector_is_found_by_hash_and_by_page_checksum(output):
    path = data_files(output)[0]
    column = pq.ParquetFile(path).metadata.row_group(0)
    at = next(
        column.column(n)
        for n in range(column.num_columns)
        if column.column(n).path_in_schema.startswith("embedding")
    )
    data = bytearray(path.read_bytes())
    data[at.data_page_offset + at.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    verification = verify(str(output), sample=0)
    assert failed(verification) == {"files", "pages"}
    assert path.name in detail(verification, "files")


@pytest.mark.faults
def test_a_flipped_byte_that_no_row_needs_is_found_by_hash_alone(output):
    path = data_files(output)[0]
    data = path.read_bytes().replace(b'"fingerprint"', b'"fingerprinT"')  # in the footer metadata
    path.write_bytes(data)
    assert failed(verify(str(output), sample=0)) == {"files"}


@pytest.mark.faults
def test_a_footer_whose_lineage_is_not_json_is_a_finding_and_not_a_crash(output):
    path = data_files(output)[0]
    path.write_bytes(path.read_bytes().replace(b'"fingerprint"', b'?fingerprint"'))
    verification = verify(str(output), sample=0)
    assert failed(verification) == {"files"}
    assert "the lineage in its footer is not JSON" in detail(verification, "files")


@pytest.mark.faults
def test_a_deleted_data_file_is_named(output):
    path = data_files(output)[0]
    path.unlink()
    verification = verify(str(output))
    assert failed(verification) == {"files"}
    assert f"{path.name}: missing" in detail(verification, "files")


@pytest.mark.faults
def test_a_truncated_data_file_fails_files_and_pages(output):
    path = data_files(output)[0]
    path.write_bytes(path.read_bytes()[:-100])
    assert failed(verify(str(output), sample=0)) == {"files", "pages"}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("values", "check"),
    [
        (lambda v: np.where(np.arange(len(v)) == 3, np.nan, v), "finite"),
        (lambda v: np.full_like(v, np.inf), "finite"),
        (lambda v: np.zeros_like(v), "nonzero"),
    ],
)
def test_a_broken_vector_in_a_well_formed_file_fails_its_own_check(output, values, check):
    path = data_files(output)[0]
    rewrite(path, set_vector(1, values))
    record_again(output, path)
    assert failed(verify(str(output), sample=0)) == {check}


@pytest.mark.faults
def test_a_vector_of_another_text_is_found_by_embedding_the_sample_again(output):
    path = data_files(output)[0]
    rewrite(path, set_vector(1, lambda v: v[::-1]))
    record_again(output, path)
    verification = verify(str(output))
    assert failed(verification) == {"sample"}
    assert "similarity" in detail(verification, "sample")


@pytest.mark.faults
def test_a_changed_text_fails_its_hash(output):
    path = data_files(output)[0]

    def change(table: pa.Table) -> pa.Table:
        texts = table["text"].to_pylist()
        texts[0] += "!"
        return table.set_column(
            table.schema.get_field_index("text"), table.schema.field("text"), pa.array(texts)
        )

    rewrite(path, change)
    record_again(output, path)
    assert failed(verify(str(output))) == {"text_hashes"}


@pytest.mark.faults
def test_doubled_rows_fail_records_ids_and_counts(output):
    path = data_files(output)[0]
    rewrite(path, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    record_again(output, path)
    verification = verify(str(output), sample=0)
    # files: the footer has one row more
    assert failed(verification) == {"records", "ids", "counts", "files"}


@pytest.mark.faults
def test_a_lost_row_fails_counts(output):
    path = data_files(output)[0]
    rewrite(path, lambda table: table.slice(1))
    record_again(output, path)
    assert failed(verify(str(output), sample=0)) == {"files", "counts"}


@pytest.mark.faults
def test_a_missing_part_leaves_a_gap(output):
    store = Store(str(output))
    parts = live_parts(store, load_snapshot(store))
    # else the snapshot's sum of reasons is wrong too
    gone = next(part for part in parts if not part.n_rejects)
    list_again(output, [part for part in parts if part != gone])
    verification = verify(str(output), sample=0)
    assert failed(verification) == {"splits", "counts"}
    assert "planned by run" in detail(verification, "splits")


@pytest.mark.faults
def test_a_part_under_the_wrong_name_is_found(output):
    small, large = data_files(output)[:2]
    data = small.read_bytes()
    large.write_bytes(data)
    record_again(output, large)
    verification = verify(str(output), sample=0)
    assert {"files", "lineage", "records", "ids", "counts"} <= failed(verification)
    assert not failed(verification) & {"pages", "finite", "text_hashes", "schema"}


@pytest.mark.faults
def test_vectors_of_another_dimension_fail_the_schema(output):
    path = data_files(output)[0]

    def change(table: pa.Table) -> pa.Table:
        vectors = np.stack(table["embedding"].to_numpy())[:, :32].astype(np.float32)
        column = vector_columns(np.ascontiguousarray(vectors), "float32")["embedding"]
        return table.set_column(table.schema.get_field_index("embedding"), "embedding", column)

    rewrite(path, change)
    record_again(output, path)
    assert failed(verify(str(output), sample=0)) == {"schema"}


@pytest.mark.faults
def test_a_row_of_a_shard_that_the_part_did_not_read_fails_lineage_and_not_the_whole_command(
    output,
):
    path = data_files(output)[0]

    def change(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index("source_etag")
        return table.set_column(
            position, table.schema.field("source_etag"), pa.array(["0"] * table.num_rows)
        )

    rewrite(path, change)
    record_again(output, path)
    assert failed(verify(str(output))) == {"lineage", "sample"}


@pytest.mark.faults
def test_a_lost_plan_is_a_finding_and_a_lost_file_list_an_error(output):
    next(output.glob("_meta/runs/*/plan.parquet")).unlink()
    assert failed(verify(str(output), sample=0)) == {"splits"}
    next(output.glob("_meta/files/*.parquet")).unlink()
    with pytest.raises(OutputError, match="file list of snapshot 1"):
        verify(str(output), sample=0)


@pytest.mark.faults
def test_missing_rejects_are_found(output):
    next(output.glob("_meta/rejects/*/*.parquet")).unlink()
    assert failed(verify(str(output), sample=0)) == {"rejects"}


@pytest.mark.faults
def test_rejects_with_another_reason_are_found(output):
    path = next(output.glob("_meta/rejects/*/*.parquet"))
    table = pq.read_table(path)
    position = table.schema.get_field_index("reason")
    pq.write_table(
        table.set_column(position, "reason", pa.array(["null_text"] * table.num_rows)), path
    )
    verification = verify(str(output), sample=0)
    assert failed(verification) == {"rejects"}
    assert "null_text" in detail(verification, "rejects")


def own_output(tmp_path: Path, model: Path, documents=outputs.DOCUMENTS, **sections) -> JobSpec:
    outputs.write_shard(tmp_path / "in" / "a.jsonl", documents)
    spec = outputs.make_spec(str(tmp_path / "in"), str(tmp_path / "out"), model, **sections)
    outputs.run_without_ray(spec)
    return spec


@pytest.mark.faults
def test_a_changed_or_vanished_source_is_reported_and_no_failure_of_the_output(
    tmp_path, bert_mean_dir
):
    spec = own_output(tmp_path, bert_mean_dir)
    shard = tmp_path / "in" / "a.jsonl"
    shard.write_text(shard.read_text().replace("library", "Library"))
    for _ in range(2):
        verification = verify(spec.output.uri)
        assert failed(verification) == set()
        assert verification.checks[-1].figures["source_gone"] == len(outputs.DOCUMENTS)
        assert "source no longer there" in detail(verification, "sample")
        shard.unlink(missing_ok=True)


@pytest.mark.faults
def test_a_source_that_changed_without_a_trace_fails_the_sample(tmp_path, bert_mean_dir):
    spec = own_output(tmp_path, bert_mean_dir)
    shard = tmp_path / "in" / "a.jsonl"
    before = shard.stat()
    # same inode, size and time: no store would see it, only the hash of the text
    with shard.open("r+b") as file:
        file.write(shard.read_bytes().replace(b"library", b"Library"))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    verification = verify(spec.output.uri)
    assert failed(verification) == {"sample"}
    assert "doc-0 chunk 0" in detail(verification, "sample")


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8", "ubinary"])
def test_every_precision_is_compared_in_its_own_form(tmp_path, bert_mean_dir, precision):
    spec = own_output(tmp_path, bert_mean_dir, output={"vector_precision": precision})
    verification = verify(spec.output.uri)
    assert failed(verification) == set()
    assert verification.checks[-1].figures["embedded_again"] == len(outputs.DOCUMENTS)


@pytest.mark.parametrize("algorithm", [1, THIS_INT8 - 1, THIS_INT8])
def test_vectors_of_an_earlier_int8_arithmetic_may_differ_and_others_not(
    tmp_path, bert_mean_dir, monkeypatch, algorithm
):
    def coarser(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = weight.abs().amax(1) / 15
        return (weight / scale[:, None]).round().to(torch.int8), scale

    with monkeypatch.context() as earlier:
        earlier.setattr(job_module, "INT8_ALGORITHM", algorithm)
        earlier.setattr(int8, "_rounded_weight", coarser)
        outputs.write_shard(tmp_path / "in" / "a.jsonl", outputs.DOCUMENTS)
        places = str(tmp_path / "in"), str(tmp_path / "out")
        spec = outputs.make_spec(*places, bert_mean_dir, model={"dtype": "int8"})
        outputs.run_without_ray(spec)
    verification = verify(spec.output.uri)
    assert failed(verification) == (set() if algorithm < THIS_INT8 else {"sample"})
    assert verification.checks[-1].figures["lowest_similarity"] < 0.999


@pytest.mark.parametrize("mode", ["chunk", "chunk_and_pool"])
def test_chunked_documents_are_cut_again_as_the_run_cut_them(tmp_path, bert_mean_dir, mode):
    documents = [*outputs.DOCUMENTS[:2], {"id": "long", "text": f"\ufb01rst {LONG}", "lang": "ja"}]
    prepare = {
        "long_documents": mode,
        "unicode": "NFKC",
        "chunk": {"max_tokens": 24, "overlap_tokens": 6},
    }
    spec = own_output(
        tmp_path, bert_mean_dir, documents, prepare=prepare, output={"partition_by": ["lang"]}
    )
    verification = verify(spec.output.uri, sample=100)
    assert failed(verification) == set()
    figures = verification.checks[-1].figures
    assert figures["embedded_again"] == figures["rows"] >= (6 if mode == "chunk" else 3)


def test_shared_ids_of_the_input_pass_only_where_the_snapshot_flags_them(tmp_path, bert_mean_dir):
    documents = [{**document, "id": "same"} for document in outputs.DOCUMENTS[:3]]
    spec = own_output(tmp_path, bert_mean_dir, documents)
    store = Store(spec.output.uri)
    assert load_snapshot(store).n_duplicate_ids == 1
    assert failed(verify(spec.output.uri, sample=0)) == set()
    list_again(Path(spec.output.uri), live_parts(store, load_snapshot(store)), n_duplicate_ids=None)
    assert failed(verify(spec.output.uri, sample=0)) == {"ids"}


def test_an_output_without_ids_and_texts_passes(tmp_path, bert_mean_dir):
    spec = own_output(
        tmp_path, bert_mean_dir, input={"id_column": None}, output={"include_text": False}
    )
    verification = verify(spec.output.uri)
    assert failed(verification) == set()
    assert "text_hashes" not in {check.name for check in verification.checks}


def test_an_output_of_nothing_but_rejects_passes(tmp_path, bert_mean_dir):
    spec = own_output(tmp_path, bert_mean_dir, [{"id": "1", "text": "", "lang": None}])
    verification = verify(spec.output.uri)
    assert failed(verification) == set()


def test_another_model_in_its_place_is_refused_and_the_same_one_elsewhere_is_not(
    tmp_path, bert_mean_dir
):
    spec = own_output(tmp_path, bert_mean_dir)
    moved = tmp_path / "moved"
    shutil.copytree(bert_mean_dir, moved)
    assert failed(verify(spec.output.uri, model_path=str(moved), sample=2)) == set()
    other = model_dirs.bert_mean(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="differ"):
        verify(spec.output.uri, model_path=str(other), sample=2)


def test_without_a_snapshot_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(OutputError, match="no snapshot"):
        verify(str(tmp_path))


def test_the_stored_spec_is_the_one_of_the_run(made):
    root, spec = made
    loaded = load_snapshot_with_lineage(str(root / "out"))
    assert loaded.spec == spec
    assert loaded.job.fingerprint == loaded.snapshot.fingerprint


def test_equal_hashes_of_different_keys_are_no_finding(made, monkeypatch):

    monkeypatch.setattr(
        "pipeline.tools.verify.row_checks._hashes",
        lambda rows, columns: np.zeros(rows.num_rows, np.int64),
    )
    assert failed(verify(str(made[0] / "out"), sample=0)) == set()


def test_the_number_of_documents_is_that_of_distinct_ids(made):
    """The figures of a check are true ones: counted here with a query of its own."""
    table = pa.concat_tables([pq.read_table(path) for path in data_files(made[0] / "out")])
    checks = {check.name: check for check in verify(str(made[0] / "out"), sample=0).checks}
    assert (
        checks["records"].figures["n_documents"]
        == pc.count_distinct(table["doc_id"]).as_py()
        == LAST
    )
