"""Every setting of a job spec says what it is for: in the JSON Schema, and in docs/spec.md.

Oracle: the fields of pydantic's models for which settings there are; the page on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pydantic
import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline.errors import SpecError
from pipeline.job.spec import JobSpec, spec_from
from pipeline.job.spec_reference import reference
from tests import ROOT

SCHEMA = JobSpec.model_json_schema()


def sections(model: type[pydantic.BaseModel]) -> Iterator[type[pydantic.BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
                yield from sections(kind)


SETTINGS = [(model, name) for model in sections(JobSpec) for name in model.model_fields]


@pytest.mark.parametrize(
    ("model", "name"), SETTINGS, ids=lambda value: getattr(value, "__name__", value)
)
def test_every_setting_has_a_description_of_a_few_sentences(model: Any, name: str) -> None:
    section = SCHEMA if model is JobSpec else SCHEMA["$defs"][model.__name__]
    node = section["properties"][name]
    below = SCHEMA["$defs"].get(node.get("$ref", "").rpartition("/")[2], {})
    words = node.get("description") or below.get("description", "")
    assert words.endswith("."), words
    assert 1 <= len(re.findall(r"\.(?:\s|$)", words)) <= 4
    assert len(words) >= 30


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_editor_finds_no_fault_with_the_specs_of_the_repository(path: Path) -> None:
    schema = Draft202012Validator(SCHEMA)
    assert not list(schema.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    ("section", "fields", "is_right"),
    [
        ("input", {"uri": "a.jsonl"}, True),
        ("input", {"uri": ["a.jsonl", "b.jsonl"], "keep_columns": "lang"}, True),
        ("input", {"uri": "a", "keep_columns": {"year": "int64"}}, True),
        ("input", {"uri": "a", "keep_columns": ["lang"], "max_record_bytes": "1MiB"}, True),
        ("input", {"uri": 5}, False),
        ("input", {"uri": "a", "text_colum": "b"}, False),
        ("output", {"uri": "o", "partition_by": []}, True),
        ("output", {"uri": "o", "vector_precision": "float12"}, False),
        ("model", {"path": "m", "prompt_name": None, "max_tokens": 12}, True),
        ("model", {"path": "m", "max_tokens": 0}, False),
        ("runtime", {"commit_every": "10min", "part_bytes": "4MiB"}, True),
        ("runtime", {"commit_every": None, "embedders": "auto"}, True),
        ("runtime", {"commit_every": 0, "device": "gpu"}, False),
        ("prepare", {"chunk": {"max_tokens": 5, "overlap_tokens": 0}}, True),
    ],
)
def test_an_editor_takes_what_a_run_takes(
    section: str, fields: dict[str, Any], is_right: bool
) -> None:
    spec = {
        "name": "job",
        "input": {"uri": "a"},
        "model": {"path": "m"},
        "output": {"uri": "o"},
        section: fields,
    }
    assert Draft202012Validator(SCHEMA).is_valid(spec) is is_right
    if is_right:
        assert spec_from(spec)
    else:
        with pytest.raises(SpecError):
            spec_from(spec)


def test_the_page_of_the_docs_is_what_the_settings_say() -> None:
    page = (ROOT / "docs/spec.md").read_text(encoding="utf-8")
    assert page == reference(JobSpec), "make it anew: corpus-embed schema --markdown > docs/spec.md"
    leaves = [name for _, name in SETTINGS if name not in ("input", "prepare", "model", "output")]
    for name in leaves:
        assert f"`{name}`" in page or f".{name}`" in page or f"## `{name}`" in page


def test_rows_of_the_page_have_four_cells() -> None:
    rows = [line for line in reference(JobSpec).splitlines() if line.startswith("|")]
    assert len(rows) > len(SETTINGS) - 6
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
