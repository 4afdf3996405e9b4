"""Every path that is made is recognised; the name of a foreign object is not."""

from __future__ import annotations

import pytest

from pipeline.storage import layout
from pipeline.storage.layout import Location

FINGERPRINT = "0123456789abcdef"
PART_ID = "ab" * 16
RUN_ID = "cd" * 8
DIGEST = "ef" * 32
SEGMENT = Location("index", FINGERPRINT, name="a1")


@pytest.mark.parametrize(
    ("path", "location"),
    [
        (layout.data_file("", PART_ID), Location("data", part_id=PART_ID)),
        (layout.data_file("lang=ja/year=2026", PART_ID), Location("data", part_id=PART_ID)),
        (layout.rejects(RUN_ID, PART_ID), Location("rejects", run_id=RUN_ID, part_id=PART_ID)),
        (layout.manifest(FINGERPRINT, PART_ID), Location("manifest", FINGERPRINT, PART_ID)),
        (layout.snapshot(7), Location("snapshot", number=7)),
        (layout.file_list(DIGEST), Location("file list", name=DIGEST)),
        (layout.generation(FINGERPRINT), Location("generation", FINGERPRINT)),
        (layout.run_spec(RUN_ID), Location("run record", run_id=RUN_ID, name="spec.yaml")),
        (layout.run_plan(RUN_ID), Location("run record", run_id=RUN_ID, name="plan.parquet")),
        (layout.index_segment(FINGERPRINT, "a1", "arrow"), SEGMENT),
        (layout.index_segment(FINGERPRINT, "a1", "json"), SEGMENT),
        (layout.lease(3, "beat-2"), Location("lease", number=3, name="beat-2")),
        (layout.probe("ab"), Location("probe", name="ab")),
        (f"{layout.STAGING}/tmp1", Location("temporary", name="tmp1")),
    ],
    ids=str,
)
def test_a_path_that_is_made_is_recognised(path: str, location: Location) -> None:
    assert layout.locate(path) == location


def test_a_sibling_is_an_object_of_its_own_in_the_same_folder() -> None:
    for path in (layout.data_file("lang=ja", PART_ID), layout.rejects(RUN_ID, PART_ID)):
        sibling = layout.sibling(path, PART_ID, "12")
        location = layout.locate(sibling)
        assert location is not None
        assert location.part_id == f"{PART_ID}12"
        assert layout.partition_folder(sibling) == layout.partition_folder(path)


def test_only_an_attempt_is_one() -> None:
    paths = [layout.run_attempt(RUN_ID, 2), layout.run_spec(RUN_ID), layout.snapshot(1)]
    locations = [layout.locate(path) for path in paths]
    assert [location.is_attempt for location in locations if location] == [True, False, False]


@pytest.mark.parametrize("folder", ["", "lang=ja", "lang=ja/year=2026"])
def test_the_folder_of_a_partition_is_read_back(folder: str) -> None:
    assert layout.partition_folder(layout.data_file(folder, PART_ID)) == folder


@pytest.mark.parametrize(
    "path",
    [
        "notes.txt",
        "data/part-xyz.parquet",
        f"data/part-{PART_ID}.parquet.bak",
        "_meta/snapshots/1.json",
        f"_meta/publications/delta-{FINGERPRINT}.json",
        f"other/{layout.data_file('', PART_ID)}",
    ],
)
def test_another_name_is_nobodys(path: str) -> None:
    assert layout.locate(path) is None
