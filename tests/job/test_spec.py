"""The job spec: closed, typed, explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import SpecError
from pipeline.job.spec import JobSpec, load_spec, spec_from

MINIMAL: dict[str, Any] = {
    "name": "job",
    "input": {"uri": "s3://lake/wiki/*.jsonl.gz"},
    "model": {"path": "org/model"},
    "output": {"uri": "s3://lake/out"},
}


def spec_with(section: str, **fields: Any) -> dict[str, Any]:
    return {**MINIMAL, section: {**MINIMAL.get(section, {}), **fields}}


def test_a_minimal_spec_gets_documented_defaults() -> None:
    spec = spec_from(MINIMAL)
    assert spec.input.uri == ("s3://lake/wiki/*.jsonl.gz",)
    assert (spec.runtime.part_bytes, spec.runtime.max_reject_fraction) == ("auto", 0.01)
    assert spec.runtime.commit_every is not None
    assert spec.runtime.commit_every.total_seconds() == 600


def test_the_resolved_spec_read_back_is_the_same_spec() -> None:
    spec = spec_from(
        spec_with("runtime", commit_every="90s", part_bytes="1MiB", max_batch_tokens=4096)
    )
    for text in (spec.to_yaml(), spec.settings()):
        assert JobSpec.model_validate(yaml.safe_load(text)) == spec


@pytest.mark.parametrize(
    ("section", "fields", "expected"),
    [
        ("runtime", {"part_byte": 5}, "did you mean 'part_bytes'"),
        ("input", {"formt": "jsonl"}, "did you mean 'format'"),
        ("input", {"format": "xml"}, "found 'xml'; it takes one of auto, jsonl"),
        (
            "runtime",
            {"max_reject_fraction": 2},
            "found 2; it takes a number from 0 to 1",
        ),
        ("runtime", {"embedders": 0}, "embedders"),
        ("output", {"partition_by": ["lang"]}, "must also be in input.keep_columns"),
        ("input", {"keep_columns": ["embedding"]}, "is a column of the output"),
        ("input", {"keep_columns": {"year": "decimal"}}, "is not one of string"),
        ("model", {"prompt": "a", "prompt_name": "b"}, "exclude each other"),
        ("prepare", {"chunk": {"max_tokens": 8, "overlap_tokens": 8}}, "smaller than max_tokens"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_way_out(
    section: str, fields: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SpecError, match=expected):
        spec_from(spec_with(section, **fields))


def test_dotted_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    spec = load_spec(
        path, ["runtime.max_batch_tokens=8192", "input.keep_columns=[lang]", "model.normalize=true"]
    )
    assert spec.runtime.max_batch_tokens == 8192
    assert spec.input.keep_columns == {"lang": "string"}
    assert spec.model.normalize is True


@pytest.mark.parametrize("override", ["runtime", "=3", "name.x=1", "runtime.part_bytes=[: "])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(SpecError, match="--set"):
        load_spec(path, [override])


@pytest.mark.parametrize(
    "content", ["- a\n- b\n", "a: [", "!!python/object/apply:os.system [true]\n"]
)
def test_a_file_that_is_no_plain_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(content)
    with pytest.raises(SpecError):
        load_spec(path)


def test_a_spec_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        spec_from(MINIMAL).runtime.device = "cuda"  # type: ignore[misc]


@pytest.mark.parametrize("setting", ["runtime.part_bytes", "input.max_record_bytes"])
def test_sizes_that_a_column_could_not_hold_are_refused(tmp_path: Path, setting: str) -> None:
    section, key = setting.split(".")
    fields = {
        "name": "a",
        "input": {"uri": "in"},
        "model": {"path": "m"},
        "output": {"uri": "out"},
        "runtime": {},
    }
    assert spec_from({**fields, section: {**fields[section], key: "512MiB"}})
    for size in ("513MiB", "10TB", 0):
        with pytest.raises(SpecError, match=rf"{setting}: found .*; it takes .*512MiB"):
            spec_from({**fields, section: {**fields[section], key: size}})
