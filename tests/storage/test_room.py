"""Names below an output fit into what its store takes, or are refused before they are made.

Oracle: the kernel, which makes the longest name and refuses one byte more; S3's documented 1,024.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import SpecError
from pipeline.storage import layout, room
from pipeline.storage.preflight import check_place
from pipeline.storage.room import folder_room_bytes
from pipeline.storage.store import Store
from pipeline.workers.bounds import reject_out_of_bounds
from tests.support.stand_in import make_spec, run

COLUMNS = [f"c{number}" for number in range(5)]
LONG_ID = "f" * (room.PART_ID_DIGITS + room.SIBLING_DIGITS)


def deep(tmp_path: Path, n_bytes: int) -> Path:
    """A path of so many bytes."""
    path = str(tmp_path)
    while len(path) < n_bytes - 201:
        path += "/" + "d" * 199
    return Path(path + "/" + "e" * (n_bytes - len(path) - 1))


def folders(n_bytes: int) -> str:
    """Hive folders of so many bytes."""
    text = "/".join(["a=" + "v" * 198] * (n_bytes // 200 + 2))[:n_bytes]
    return text if text[-1] != "/" else text[:-1] + "x"


def test_the_longest_name_below_a_deep_folder_can_be_made_and_no_longer_one(
    tmp_path: Path,
) -> None:
    root = deep(tmp_path, 3500)
    store = Store(str(root))
    n_bytes = folder_room_bytes(str(root))
    longest = layout.data_file(folders(n_bytes), LONG_ID)
    assert len(f"{root}/{longest}") == room.PATH_BYTES
    assert store.put_if_absent(longest, b"x")
    assert store.list("data") == {longest: 1}
    with pytest.raises(OSError, match="too long"):
        (root / layout.data_file(folders(n_bytes + 1), LONG_ID)).touch()


@pytest.mark.parametrize("uri", ["s3://lake", "s3://lake/", "s3://lake/" + "語" * 100, "/tmp/out"])
def test_a_key_has_1024_bytes_with_its_prefix(uri: str) -> None:
    key = layout.data_file(folders(folder_room_bytes(uri)), LONG_ID)
    prefix = uri.removeprefix("s3://lake").strip("/") if uri.startswith("s3") else ""
    assert len("/".join(filter(None, [prefix, key])).encode()) == 1024


def test_the_names_of_this_package_fit_into_what_is_kept_for_them() -> None:
    digits = "f" * 64
    names = [
        layout.manifest(digits, LONG_ID),
        layout.rejects(digits, LONG_ID),
        layout.file_list(digits),
        layout.index_segment(digits, digits, "arrow"),
        layout.ids_segment(digits, digits),
        layout.run_attempt(digits, 9999),
        layout.publication("iceberg", digits),
        layout.lease(10**19, digits),
    ]
    assert max(map(len, names)) < room.LONGEST_META_BYTES


def documents(folder: Path) -> Path:
    rows = [
        {"id": "short", "text": "a harmless one", **dict.fromkeys(COLUMNS, "x")},
        {"id": "none", "text": "no values"},
        {"id": "long", "text": "long values", **dict.fromkeys(COLUMNS, "v" * 240)},
        {"id": "longer", "text": "one longer value", **dict.fromkeys(COLUMNS, "あ" * 90)},
    ]
    folder.mkdir()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(text)
    return folder


@pytest.mark.parametrize("root_bytes", [0, 2900, 3500])
def test_a_record_whose_key_no_store_takes_is_a_reject(tmp_path: Path, root_bytes: int) -> None:
    root = deep(tmp_path, root_bytes) if root_bytes else tmp_path / "out"
    sections: dict[str, Any] = {
        "input": {"keep_columns": COLUMNS},
        "output": {"partition_by": COLUMNS},
    }
    snapshot = run(make_spec(documents(tmp_path / "in"), root, **sections))
    assert snapshot is not None
    assert (snapshot.n_rows, snapshot.n_rejects) == (2, 2)
    assert snapshot.reject_reasons == {"invalid_column": 2}
    keys = [str(path.relative_to(root)) for path in (root / "data").rglob("*.parquet")]
    assert len(keys) == 2
    assert max(len(key.encode()) for key in keys) <= 1024


def test_the_reject_says_how_long_the_folders_are_and_how_long_they_may_be(tmp_path: Path) -> None:
    spec = make_spec(
        tmp_path,
        "s3://lake/" + "p" * 400,
        input={"keep_columns": COLUMNS},
        output={"partition_by": COLUMNS},
    )
    values = {name: ["v" * 80, "v" * 200, None] for name in COLUMNS}
    nothing = pa.nulls(3, pa.string())
    records = pa.table({"doc_id": ["a", "b", "c"], **values, "reason": nothing, "detail": nothing})
    checked = reject_out_of_bounds(records, spec)
    assert checked["reason"].to_pylist() == [None, "invalid_column", None]
    folder_bytes = 5 * len("c0=") + 5 * 200 + 4
    room_bytes = 1024 - 401 - len(layout.data_file("", LONG_ID)) - 1
    assert checked["detail"][1].as_py() == (
        f"partition columns c0, c1, c2, c3, c4: {folder_bytes} bytes of folders, {room_bytes} fit "
        "into a key of this output"
    )


def test_a_root_that_leaves_no_room_is_a_mistake_of_the_spec(tmp_path: Path) -> None:
    for uri in (str(deep(tmp_path, 3900)), f"s3://lake/{'k' * 800}", f"s3://lake/{'語' * 260}"):
        assert "Choose a shorter one" in (room.problem_of_root(uri) or "")
    with pytest.raises(SpecError, match="Choose a shorter one"):
        check_place(Store(str(deep(tmp_path, 3900))))
