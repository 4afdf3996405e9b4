"""The output never becomes its own input, under whatever names the two are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.driver.planning.overlap import check_apart
from pipeline.driver.planning.plan import make_plan
from pipeline.errors import SpecError
from tests.support.outputs import write_shard
from tests.support.stand_in import job_of, make_spec, run, store_of

S3 = {"endpoint_url": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("input_uri", "output_uri"),
    [
        ("own", "own/vectors"),
        ("own", "own"),
        (".", "own/vectors"),
        ("./own/", "own//x/../vectors"),
        ("linked", "own/vectors"),
        ("own", "linked/vectors"),
        ("own/**", "own/vectors"),
        ("own/**/*.parquet", "own/vectors"),
        ("own/*/*/*.parquet", "own/vectors"),
        ("own/v*/**", "own/vectors"),
        ("own/*", "own"),
        ("own/a.jsonl", "own"),
        ("own/vectors/data", "own/vectors"),
        ("own/vectors/data/*.parquet", "own/vectors"),
        ("{as_uri}/own", "own/vectors"),
        ("file://localhost{path}/o%77n", "own/vectors"),
        ("own", "{as_uri}/o%77n/vectors"),
    ],
)
def test_an_output_inside_the_input_is_a_mistake_in_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, input_uri: str, output_uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "own/a.jsonl", [{"id": "1", "text": "one"}])
    (tmp_path / "linked").symlink_to("own")
    places = {"as_uri": tmp_path.as_uri(), "path": str(tmp_path)}
    spec = make_spec(input_uri.format(**places), output_uri.format(**places))
    with pytest.raises(SpecError, match=r"lies inside (input|output)\.uri .* Put the output"):
        run(spec)
    assert sorted(os.listdir(tmp_path / "own")) == ["a.jsonl"]  # nothing was written


@pytest.mark.parametrize(
    ("input_uri", "output_uri"),
    [
        ("own/*.jsonl", "own/vectors"),
        ("own/*", "own/vectors"),
        ("own/**/*.jsonl", "own/vectors"),
        ("own/a*/**", "own/vectors"),
        ("own/a.jsonl", "own/vectors"),
        ("own", "own-vectors"),
        ("own", "../{name}-out"),
    ],
)
def test_an_output_beside_what_is_read_stays_out_of_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, input_uri: str, output_uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "own/a.jsonl", [{"id": "1", "text": "one"}])
    write_shard(tmp_path / "own/ab/a.jsonl", [{"id": "2", "text": "two"}])
    spec = make_spec(input_uri, output_uri.format(name=tmp_path.name))
    first, second = run(spec), run(spec)
    assert first is not None and first == second
    assert make_plan(job_of(spec), store_of(spec)).nothing_to_do


@pytest.mark.parametrize(
    ("input_uri", "output_uri", "is_inside"),
    [
        ("s3://lake/", "s3://lake/embeddings", True),
        ("s3://lake", "s3a://lake/embeddings", True),
        ("s3://lake/x", "s3://lake//x/out", True),
        ("s3://lake//x/", "s3://lake/x/out", True),
        ("s3://lake/*/data/*.parquet", "s3://lake/out", True),
        ("s3://lake/[2024]", "s3://lake/[2024]/out", True),
        ("s3://lake/out/data/", "s3://lake/out", True),
        ("s3://lake/x", "s3://lake/x", True),
        ("s3://lake/x", "s3://lake/xy", False),
        ("s3://lake/x", "s3://lake2/x/out", False),
        ("s3://lake/*.jsonl.gz", "s3://lake/out", False),
        ("s3://lake/x", "gs://lake/x/out", False),
        ("lake", "s3://lake/out", False),
        ("https://host/lake", "s3://lake/out", False),
    ],
)
def test_places_on_a_store_are_compared_by_their_keys(
    input_uri: str, output_uri: str, is_inside: bool
) -> None:
    options = {"storage_options": S3}
    spec = make_spec(input_uri, output_uri, input=options, output=options)
    if is_inside:
        with pytest.raises(SpecError, match="lies inside"):
            check_apart(spec)
        other = {"storage_options": {"endpoint_url": "http://127.0.0.1:2"}}
        check_apart(make_spec(input_uri, output_uri, input=options, output=other))
    else:
        check_apart(spec)
