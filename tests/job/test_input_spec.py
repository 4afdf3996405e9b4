"""The input section: one name stands for a list of one, and what has no meaning is refused in
words."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from pipeline.errors import SpecError
from pipeline.job.spec import JobSpec, spec_from


def spec_of(output: dict[str, Any] | None = None, **settings: Any) -> JobSpec:
    return spec_from(
        {
            "name": "job",
            "input": {"uri": "in", **settings},
            "model": {"path": "org/model"},
            "output": {"uri": "out", **(output or {})},
        }
    )


def test_one_name_is_a_list_of_one() -> None:
    spec = spec_of({"partition_by": "lang"}, keep_columns="lang")
    assert spec.input.keep_columns == {"lang": "string"}
    assert spec.output.partition_by == ("lang",)
    assert spec == spec_of({"partition_by": ["lang"]}, keep_columns=["lang"])
    assert spec == spec_of({"partition_by": ["lang"]}, keep_columns={"lang": "string"})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"keep_columns": [{"year": "int64"}]}, r"keep_columns: found a list.*\{year: int64\}"),
        ({"keep_columns": [["a"]]}, "keep_columns: found a list"),
        ({"text_template": "{title"}, r"text_template: .*write \{\{ and \}\}"),
        ({"text_template": "title"}, "names no field"),
        ({"text_template": "{a}", "text_column": "b"}, "exclude each other"),
        ({"text_column": ["title", "body"]}, "text_column: found a list.*text_template"),
        ({"text_template": ["title"]}, "text_template: found a list.*braces"),
        ({"csv": {"delimiter": "tab"}}, "csv.delimiter: found 'tab'; it takes .*one character"),
        ({"csv": {"header": False}}, "csv.header: unknown key"),
        ({"csv": {"encoding": "utf-16"}}, "csv.encoding: found 'utf-16'; it takes a charset"),
        ({"format": "txt"}, "format: found 'txt'; it takes one of auto, jsonl, .*document"),
    ],
)
def test_a_setting_without_a_meaning_is_refused_in_words(
    settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SpecError, match=expected):
        spec_of(**settings)


def test_the_resolved_input_read_back_is_the_same_and_has_the_same_identity() -> None:
    spec = spec_of(text_template="{a} {b.c}", csv={"columns": ["a", "b"], "delimiter": "\t"})
    again = JobSpec.model_validate(yaml.safe_load(spec.to_yaml()))
    assert again == spec
    assert again.input.identity() == spec.input.identity()
