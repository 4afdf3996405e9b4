"""Every mistake in a job spec is one line: its place, the value found there, what is accepted.

Oracle: the JSON Schema of a spec for which keys there are; a list of words that only a library
would say.
"""

from __future__ import annotations

import copy
import datetime
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import SpecError
from pipeline.job.spec import JobSpec, load_spec, spec_from

SPEC: dict[str, Any] = {
    "name": "job",
    "input": {"uri": "in.jsonl"},
    "model": {"path": "m"},
    "output": {"uri": "out"},
    "publish": {"iceberg": {"table": "lake.vectors"}},
}
SCHEMA = JobSpec.model_json_schema()
HUGE = 10**17
WRONG: tuple[Any, ...] = (
    *("two words!", "", "9999999999999d", "-5s", "P1"),
    *([], ["x", 3], [None], {}, {"a": 1}),
    *(-3, 0, 5, 2.5, HUGE, 10**30, float("nan"), float("-inf")),
    *(None, True, False),
)
A_LIBRARYS = re.compile(
    r"Input should|function-|type=|valid (tuple|dictionary|integer|string|timedelta|number)"
    r"|instance of|\bNone\b|\bTrue\b|\bFalse\b|NoneType|\bdict\b|\bstr\b|\bint\b|Error|pydantic"
    r"|literal\[|constrained|another value"
)


def settings(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of a spec, the sections too, as paths."""
    for branch in [node, *node.get("anyOf", []), *node.get("allOf", [])]:
        reference = branch.get("$ref", "").rpartition("/")[2]
        section = SCHEMA["$defs"][reference] if reference else branch
        for key, value in section.get("properties", {}).items():
            yield (*path, key)
            yield from settings(value, (*path, key))


def message_for(path: tuple[str, ...], value: Any) -> str:
    """What is said about one value in an otherwise right spec; "" where it is accepted."""
    fields = copy.deepcopy(SPEC)
    section = fields
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value
    try:
        spec_from(fields)
    except SpecError as error:
        return str(error).partition("the mapping is not a valid job spec:\n")[2]
    return ""


@pytest.mark.parametrize("path", list(settings(SCHEMA)), ids=".".join)
def test_every_kind_of_wrong_value_is_explained_at_every_setting(path: tuple[str, ...]) -> None:
    n_refused = 0
    for value in WRONG:
        lines = message_for(path, value).splitlines()
        n_refused += bool(lines)
        for line in lines:
            assert line.startswith("  "), line
            assert not A_LIBRARYS.search(line), line
            assert path[-1] in line
            assert re.search(r"it takes|unknown key|must|cannot|exclude|names|is not", line), line
            assert line.count(".".join(path) + ":") <= 1
            assert len(line) < 420
        places = [line.partition(": ")[0] for line in lines]
        assert len(places) == len(set(places)), lines  # one line, whatever the union
    assert n_refused > 5


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (
            ("output", "partition_by"),
            5,
            "output.partition_by: found 5; it takes a name or a list of names, for instance [lang]",
        ),
        (
            ("runtime", "part_bytes"),
            "lots",
            "runtime.part_bytes: found 'lots'; it takes auto, or a size from 1KiB to 512MiB, "
            "for instance 4MiB",
        ),
        (
            ("runtime", "embedders"),
            0,
            "runtime.embedders: found 0; it takes auto, or a whole number from 1 to 2147483647, "
            "for instance 8",
        ),
        (
            ("prepare", "chunk"),
            256,
            "prepare.chunk: found 256; it takes a section with the keys max_tokens, "
            "overlap_tokens, boundary",
        ),
        (
            ("name",),
            "my crawl",
            "name: found 'my crawl'; it takes up to 100 letters, digits, dots, dashes and "
            "underscores, of which the first is a letter or a digit, for instance my-crawl",
        ),
        (
            ("runtime", "commit_every"),
            "10m",
            "runtime.commit_every: found '10m'; it takes a duration with its unit, "
            "for instance 90s, 10min, 2h or 1d, or null",
        ),
        (
            ("runtime", "commit_every"),
            10,
            "runtime.commit_every: found 10; it takes a duration with its unit, "
            "for instance 90s, 10min, 2h or 1d, or null",
        ),
        (
            ("prepare", "unicode"),
            False,
            "prepare.unicode: found false; it takes one of none, NFC, NFKC. "
            "YAML reads yes, no, on and off as true and false: write the word in quotes",
        ),
        (
            ("model", "revision"),
            1.0,
            "model.revision: found 1.0; it takes a text, or null, for instance v1, or '1.0' in "
            "quotes. Write it in quotes to make it a text",
        ),
        (
            ("output", "partition_by"),
            ["lang"],
            "output.partition_by: 'lang' must also be in input.keep_columns",
        ),
        (
            ("publish", "iceberg", "table"),
            "vectors",
            "publish.iceberg.table: found 'vectors'; it takes a name below a namespace, "
            "for instance lake.vectors",
        ),
    ],
)
def test_a_message_names_the_place_once_the_value_and_what_is_accepted(
    path: tuple[str, ...], value: Any, line: str
) -> None:
    assert message_for(path, value) == f"  {line}"


@pytest.mark.parametrize("key", ["uri", "path", "storage_options", "catalog", "location"])
def test_a_value_that_can_hold_a_secret_is_not_repeated(key: str) -> None:
    for path in settings(SCHEMA):
        if path[-1] == key:
            for value in (["sesame"], {"a": "sesame"}, [["sesame"]], "foo://u:sesame@host/x"):
                assert "sesame" not in message_for(path, value)


def test_one_name_stands_for_a_list_of_one() -> None:
    fields = {
        **SPEC,
        "input": {"uri": "a", "keep_columns": "lang"},
        "output": {"uri": "o", "partition_by": "lang"},
    }
    spec = spec_from(fields)
    assert (spec.output.partition_by, spec.input.keep_columns) == (("lang",), {"lang": "string"})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("90s", 90), ("10min", 600), ("1.5 h", 5400), ("2d", 172_800)),
        *(("PT10M", 600), (0, 0), ("0", 0), (datetime.timedelta(seconds=5), 5)),
    ],
)
def test_a_duration_has_a_unit_or_is_a_stored_one_or_zero(value: Any, seconds: float) -> None:
    spec = spec_from({**SPEC, "runtime": {"commit_every": value}})
    assert spec.runtime.commit_every == datetime.timedelta(seconds=seconds)


def saved(folder: Path, fields: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields))
    return path


def test_a_mistake_of_set_is_said_to_come_from_set(tmp_path: Path) -> None:
    path = saved(tmp_path, SPEC)
    with pytest.raises(SpecError) as caught:
        load_spec(path, ["runtime.embedders=0"])
    assert str(caught.value).startswith("--set runtime.embedders: found 0; it takes auto, or")
    with pytest.raises(SpecError) as caught:
        load_spec(path, ["prepare={unicode: no}", "name=a b"])
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
        "--set name",
        "--set prepare.unicode",
    ]
    path = saved(tmp_path, {**SPEC, "prepare": {"min_chars": -1}})
    with pytest.raises(SpecError) as caught:
        load_spec(path, ["runtime.part_byts=1"])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path} is not a valid job spec:"
    assert lines[1].startswith("  prepare.min_chars: found -1")
    assert lines[2] == "  --set runtime.part_byts: unknown key; did you mean 'part_bytes'?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty; a job spec is a mapping with name, input, model and output"),
        ("# only a comment\n", "the file is empty;"),
        ("- a\n", 'found a list, ["a"]'),
        ("job\n", "found 'job'"),
        ("name: a\nname: b\n", "key 'name' stands there twice"),
    ],
)
def test_a_file_that_is_no_mapping_says_what_it_is(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        load_spec(saved(tmp_path, content))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.yaml", "nowhere.yaml: cannot be read: No such file or directory."),
        (".", ".: cannot be read: Is a directory."),
        ("s3://b/job.yaml", "cannot be read: No such file or directory. A job spec is a file on"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_without_codes(path: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        load_spec(path)
