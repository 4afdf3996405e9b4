"""Which jobs read pages of HTML: those with WARC that is not WET. Oracle: the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.job.input_spec import InputSpec
from pipeline.read import pages
from pipeline.read.pages import reads_pages


def spec(uris: list[str], format: Any = "auto") -> InputSpec:
    return InputSpec(uri=tuple(uris), format=format)


@pytest.mark.parametrize(
    ("uris", "format", "expected"),
    [
        (["s3://b/crawl/*.warc.gz"], "auto", True),
        (["s3://b/a.jsonl", "s3://b/A.WARC"], "auto", True),
        (["s3://b/*.warc.wet.gz"], "auto", False),
        (["s3://b/*.warc.wet.gz"], "warc", False),
        (["s3://b/a.wet"], "warc", False),
        (["s3://b.warc/a.jsonl.gz", "s3://b/*.parquet"], "auto", False),
        (["s3://b/a.warc.gz"], "jsonl", False),
    ],
)
def test_names_tell_without_a_listing(
    uris: list[str], format: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "list_shards", None)
    assert reads_pages(spec(uris, format)) is expected


@pytest.mark.parametrize(
    ("names", "format", "expected"),
    [
        (["a.jsonl", "b.warc.gz"], "auto", True),
        (["a.jsonl", "b.warc.wet.gz"], "auto", False),
        (["crawl.gz"], "warc", True),
        (["a.wet", "b.wet.gz"], "warc", False),
    ],
)
def test_the_files_of_a_folder_tell(
    tmp_path: Path, names: list[str], format: str, expected: bool
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert reads_pages(spec([str(tmp_path)], format)) is expected
    assert reads_pages(spec([f"{tmp_path}/*"], format)) is expected
