"""Which jobs read pages of HTML (WARC that is not WET) or CSV. Oracle: the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.job.input_spec import InputSpec
from pipeline.read.input import shards
from pipeline.read.input.shards import Listing
from pipeline.read.pages import text_formats


def formats_of(uris: list[str], format: Any = "auto") -> frozenset[str]:
    spec = InputSpec(uri=tuple(uris), format=format)
    return text_formats(spec, Listing(spec))


@pytest.mark.parametrize(
    ("uris", "format", "expected"),
    [
        (["s3://b/crawl/*.warc.gz"], "auto", {"pages"}),
        (["s3://b/a.jsonl", "s3://b/A.WARC"], "auto", {"pages"}),
        (["s3://b/*.warc.wet.gz"], "auto", set()),
        (["s3://b/*.warc.wet.gz"], "warc", set()),
        (["s3://b/a.wet"], "warc", set()),
        (["s3://b.warc/a.jsonl.gz", "s3://b/*.parquet"], "auto", set()),
        (["s3://b/a.warc.gz"], "jsonl", set()),
        (["s3://b/*.csv.gz", "s3://b/a.jsonl"], "auto", {"csv"}),
        (["s3://b/a.tsv", "s3://b/a.warc"], "auto", {"pages", "csv"}),
        (["s3://b/export"], "csv", {"csv"}),
    ],
)
def test_names_tell_without_a_listing(
    uris: list[str], format: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "list_shards", None)
    assert formats_of(uris, format) == expected


@pytest.mark.parametrize(
    ("names", "format", "expected"),
    [
        (["a.jsonl", "b.warc.gz"], "auto", {"pages"}),
        (["a.jsonl", "b.warc.wet.gz"], "auto", set()),
        (["a.jsonl", "b.tsv.zst"], "auto", {"csv"}),
        (["crawl.gz"], "warc", {"pages"}),
        (["a.wet", "b.wet.gz"], "warc", set()),
    ],
)
def test_the_files_of_a_folder_tell(
    tmp_path: Path, names: list[str], format: str, expected: set[str]
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert formats_of([str(tmp_path)], format) == expected
    assert formats_of([f"{tmp_path}/*"], format) == expected
