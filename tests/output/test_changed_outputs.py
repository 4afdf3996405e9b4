"""Whatever somebody changes in an output, every command on it ends with an answer or with one of
the package's own errors, in seconds and within bounds of memory. Oracle: class and length of the
error, the clock, and the limits of a child process (tests/support/fuzz_output.py)."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import CorpusEmbedError, OutputError
from pipeline.output.dataset import open_dataset, read_vectors
from pipeline.output.snapshots import live_parts, load_generation, load_snapshot
from pipeline.storage import layout
from pipeline.storage.object_limits import max_bytes
from pipeline.storage.store import Store
from pipeline.tools.vacuum import vacuum
from tests.support import fuzz_output, stand_in
from tests.support.outputs import write_shard
from tests.support.processes import printed_by


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("changed_outputs") / "made"
    fuzz_output.make_output(root)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of one output, in the folder that its spec names."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


@pytest.mark.thorough
def test_an_untouched_output_serves_every_command(root: Path) -> None:
    for use in fuzz_output.uses(fuzz_output.spec_of(root)).values():
        use()


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_no_change_of_a_stored_object_is_more_than_an_error_of_one_screen() -> None:
    n_tried, failures = fuzz_output.fuzz(1, 9, cpu_s=250)
    assert failures == []
    assert n_tried == 8


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_change_of_a_stored_object_is_more_than_an_error_of_one_screen_for_long() -> None:
    n_tried, failures = fuzz_output.fuzz(1000, 1300, cpu_s=1000)
    assert failures == []
    assert n_tried == 300


def test_an_object_that_is_larger_than_its_kind_is_not_read(made: Path, tmp_path: Path) -> None:
    """A sparse file of 2 GiB in the place of each; read whole, it would not fit into the child."""
    code = f"""
import resource, shutil
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from pathlib import Path
from pipeline.errors import CorpusEmbedError
from tests.support import fuzz_output
root = Path({str(tmp_path)!r}, "made")
for kind in ("snapshots", "generations", "manifests", "index", "runs"):
    print(kind, flush=True)
    shutil.copytree({str(made)!r}, root)
    for path in (root / "out/_meta" / kind).rglob("*.*"):
        path.unlink()
        with path.open("wb") as file:
            file.truncate(2 << 30)
    for name, use in fuzz_output.uses(fuzz_output.spec_of(root)).items():
        try:
            use()
        except CorpusEmbedError as error:
            assert len(str(error)) < 1000
    shutil.rmtree(root)
print("done")
"""
    assert printed_by(code).endswith("done\n")


NAMES_OF_OTHERS = [
    "Copy of {name}",
    ".nfs000000000001",
    ".DS_Store",
    "{name}~",
    "README",
    "sub/folder/{name}",
    "{name}.d/x",
    "²²",
    "[1]*?.json",
    "a\nb",
]


def add_names_of_others(out: Path) -> list[Path]:
    """A copy of an object beside it, and as a folder, under each name that programs of others
    give, in every folder of an output; also a name that is not UTF-8."""
    added = []
    for folder in [path for path in out.rglob("*") if path.is_dir()]:
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        content = files[0].read_bytes() if files else b"x"
        for name in [*NAMES_OF_OTHERS, "\udcff\udcfe"]:
            path = folder / name.format(name=files[0].name if files else "x")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            added.append(path)
    return added


@pytest.mark.thorough
def test_names_that_others_gave_disturb_no_command_and_are_never_deleted(root: Path) -> None:
    added = add_names_of_others(root / "out")
    for name, use in fuzz_output.uses(fuzz_output.spec_of(root)).items():
        use()
        assert all(path.exists() for path in added), name


@pytest.mark.parametrize("column", ["a copy", "another part"])
def test_a_manifest_under_another_name_is_refused_by_a_run_and_named(
    root: Path, column: str
) -> None:
    path = next((root / "out/_meta/manifests").rglob("*.json"))
    fields = json.loads(path.read_text())
    if column == "another part":
        fields["part_id"] = "f" * 32
    copy = path.with_name("e" * 32 + ".json")
    copy.write_text(json.dumps(fields))
    with pytest.raises(OutputError, match=f"{copy.name}: is the manifest of part"):
        stand_in.run(fuzz_output.spec_of(root))
    copy.unlink()
    assert stand_in.run(fuzz_output.spec_of(root))


def test_no_record_leads_out_of_the_output(root: Path, tmp_path: Path) -> None:
    """A file list whose manifests name a file beside the output: nothing reads or deletes it."""
    victim = tmp_path / "victim.parquet"
    victim.write_bytes(b"precious")
    store = Store(str(root / "out"))
    head = load_snapshot(store)
    assert head
    path = root / "out" / head.file_list
    table = pq.read_table(path)
    for name in ("../../victim.parquet", str(victim), "data/../../../victim.parquet"):
        manifests: list[Any] = list(map(json.loads, table["manifest"].to_pylist()))
        for manifest in manifests:
            for file in manifest["data_files"]:
                file["path"] = name
            manifest["rejects_path"] = name
        texts = pa.array(map(json.dumps, manifests))
        pq.write_table(table.set_column(3, "manifest", texts), path)
        for use in (
            lambda: live_parts(store, head),
            lambda: open_dataset(store.uri),
            lambda: read_vectors(store.uri),
            lambda: stand_in.run(fuzz_output.spec_of(root)),
        ):
            with pytest.raises(CorpusEmbedError, match="is no path of a data file"):
                use()
        with pytest.raises(CorpusEmbedError):
            vacuum(store.uri, older_than=datetime.timedelta(0), delete=True)
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([]),
        pa.schema([("doc_id", pa.string()), ("embedding", pa.list_(pa.float32(), 2**31 - 1))]),
        pa.schema([("doc_id", pa.dictionary(pa.int32(), pa.string()))]),
    ],
    ids=["empty", "list of 2^31-1", "dictionary"],
)
def test_a_generation_has_the_columns_of_this_package_or_is_refused(
    root: Path, schema: pa.Schema
) -> None:
    path = next((root / "out/_meta/generations").glob("*.json"))
    fields = json.loads(path.read_text())
    fields["arrow_schema"] = schema.serialize().to_pybytes().hex()
    path.write_text(json.dumps(fields))
    for use in (open_dataset, read_vectors):
        with pytest.raises(OutputError, match="its arrow_schema is damaged"):
            use(str(root / "out"))


def test_every_kind_of_object_that_is_read_whole_has_a_limit(root: Path) -> None:
    store = Store(str(root / "out"))
    paths = [path for path in store.list(layout.META) if not path.startswith("_meta/leases")]
    assert all(max_bytes(path) for path in paths)
    head = load_snapshot(store)
    assert head
    assert load_generation(store, head.fingerprint)


def test_a_segment_of_the_index_that_claims_gigabytes_counts_as_missing(root: Path) -> None:
    """Compressed columns of Arrow's file format: 3 GiB of zeros in a megabyte. Oracle: the rows of
    a run, and the peak of its process."""
    zeros = pa.chunked_array([pa.array(np.zeros(1 << 24, np.uint64))] * 8)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    table = pa.table({"key": zeros, "file": zeros, "row": zeros}, metadata={"paths": "[]"})
    (path,) = list((root / "out/_meta/index").rglob("*.arrow"))[:1]
    with pa.ipc.new_file(path, table.schema, options=options) as file:
        file.write_table(table)
    del zeros, table
    assert path.stat().st_size < 2 << 20
    write_shard(root / "in/c.jsonl", [{"id": "c", "text": "one more", "lang": "en"}])
    code = f"""
import re
from pathlib import Path
from tests.support import fuzz_output, stand_in
print(stand_in.run(fuzz_output.spec_of(Path({str(root)!r}))).n_rows)
# not ru_maxrss, which begins with what the process had before exec
print(re.search("VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    n_rows, peak_kib = map(int, printed_by(code).split())
    head = load_snapshot(Store(str(root / "out")))
    assert head
    assert n_rows == head.n_rows
    assert peak_kib < 1536 << 10


@pytest.mark.parametrize(
    "metadata",
    [{}, {"paths": "7"}, {"paths": "[1, 2]"}, {"paths": '["../victim.parquet"]'}, {"paths": "{"}],
    ids=["none", "a number", "numbers", "a path that leads out", "no JSON"],
)
def test_a_segment_of_the_index_that_names_no_data_files_counts_as_missing(
    root: Path, metadata: dict[str, str]
) -> None:
    for path in (root / "out/_meta/index").rglob("*.arrow"):
        table = pa.ipc.open_file(path.read_bytes()).read_all().replace_schema_metadata(metadata)
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    write_shard(root / "in/c.jsonl", [{"id": "c", "text": "one more", "lang": "en"}])
    before = load_snapshot(Store(str(root / "out")))
    after = stand_in.run(fuzz_output.spec_of(root))
    assert before
    assert after
    assert after.n_rows == before.n_rows + 1
