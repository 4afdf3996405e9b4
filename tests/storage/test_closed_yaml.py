"""YAML is plain data within bounds, or one sentence. Oracle: PyYAML's safe loader for what is
plain; for the rest, the limits of time and memory that a child process is held to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.errors import SpecError
from pipeline.job.spec import load_spec
from pipeline.storage.closed_yaml import MAX_VALUES, YamlMistake, load_yaml
from tests.support.processes import printed_by

PLAIN = """
name: a-job   # a comment
input: {uri: [s3://lake/a, "b: c"], keep_columns: {lang: string, 'yes': int64}}
flags: [yes, no, true, ~, null, 1, -2, 0x10, 1_000, 1.5, .inf, 1e3, 1.0e+3, '01', "\\u3042"]
text: |
  two
  lines
shared: &shared {a: 1}
again: {<<: *shared, b: *shared}
"""

LAUGHS = "a0: &a0 [lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
LONG_LAUGHS = f"a: &a {'x' * 1_000_000}\nb: [{', '.join(['*a'] * 10_000)}]\n"
DEEP_BLOCKS = "".join(" " * n + "a:\n" for n in range(1000))

REFUSED = {
    "a key twice": ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5: key 'c' stands there twice"),
    "a key twice in braces": ("a: {b: 1, b: 2}", "line 1: key 'b' stands there twice"),
    "a list as a key": ("{[a]: b}", "line 1: a list or a mapping cannot be a key"),
    "a key that is no text": ("yes: 1", "line 1: key 'yes' is not taken for text"),
    "laughs": (LAUGHS, "values, aliases counted"),
    "laughs of one long text": (LONG_LAUGHS, "values, aliases counted"),
    "a value in itself": ("a: &a [*a]", "line 1: a value holds itself"),
    "many values": ("a: [" + "b," * (3 * MAX_VALUES) + "]", "has more than"),
    "large": (b"#" * (17 << 20), "at most"),
    "deep lists": ("[" * 100_000, "stand in each other"),
    "deep mappings": ("{a: " * 100_000, "stand in each other"),
    "deep blocks": (DEEP_BLOCKS, "stand in each other"),
    "an object of Python": ("!!python/object/apply:os.system [true]", "names a type"),
    "bytes": ("a: !!binary AAAA", "names a type"),
    "a set": ("a: !!set {b}", "names a type"),
    "digits": ("a: " + "9" * 5000, "line 1: a number of 5000 characters"),
    "no integer": ("a: !!int b", "line 1: 'b' is no int"),
    "no float": ("a: !!float ''", "line 1: '' is no float"),
    "no boolean": ("a: !!bool b", "line 1: 'b' is no bool"),
    "an underscore for digits": ("a: 0x_", "line 1: '0x_' is no int"),
    "not UTF-8": (b"a: \xff", "is not UTF-8"),
    "half a character": ("a: \ud800", "is not UTF-8"),
    "a control character": ("a: \x00", "cannot be read as YAML"),
    "two documents": ("a: 1\n---\nb: 1\n", "cannot be read as YAML: .*in line 2"),
    "a tab": ("a:\n\t- b\n", "cannot be read as YAML: .*in line 2"),
}


def test_plain_data_is_what_the_safe_loader_gives() -> None:
    assert load_yaml(PLAIN) == load_yaml(PLAIN.encode()) == yaml.safe_load(PLAIN)


@pytest.mark.parametrize("text", ["2020-02-30", "2024-01-01", "2024-01-01T99:99:99Z", "="])
def test_a_date_is_text(text: str) -> None:
    assert load_yaml(f"a: {text}") == {"a": text}


@pytest.mark.parametrize(("data", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_plain_data_within_bounds_is_one_sentence(
    data: str | bytes, expected: str
) -> None:
    with pytest.raises(YamlMistake, match=expected) as raised:
        load_yaml(data)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


def test_none_of_it_takes_more_than_seconds_and_a_gibibyte() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
from pipeline.storage.closed_yaml import YamlMistake, load_yaml
from tests.storage.test_closed_yaml import REFUSED
for data, _ in REFUSED.values():
    try:
        load_yaml(data)
    except YamlMistake:
        pass
print("done")
"""
    assert printed_by(code) == "done\n"


def test_a_spec_with_a_key_twice_names_file_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("name: a\nmodel: {path: m}\ninput: {uri: in}\nmodel: {path: n}\n")
    with pytest.raises(SpecError) as raised:
        load_spec(path)
    assert str(raised.value) == f"{path}: line 4: key 'model' stands there twice"
