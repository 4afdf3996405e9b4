"""Say what is wrong with a job spec: one line a mistake, with its place and the way out.

An error of pydantic comes in, text comes out. The library's own text is not shown where it would
name the branches of a union, or repeat a value that can hold a secret.
"""

from __future__ import annotations

import difflib
from typing import Any, get_args

import pydantic

_BRANCHES = ("literal['auto']", "constrained-int", "bool", "int")
"""Steps of pydantic's locations that name the branch of a union, and no key."""

_VALUE_HIDDEN = ("uri", "storage_options", "iceberg")
"""Keys whose values are not repeated: they can hold a secret."""


def explain_all(error: pydantic.ValidationError, root: type[pydantic.BaseModel]) -> str:
    """One indented line for each mistake; `root` is the model that was validated, for the names of
    valid keys."""
    return "\n".join(f"  {_explain(detail, root)}" for detail in error.errors())


def _explain(detail: Any, root: type[pydantic.BaseModel]) -> str:
    location = [str(step) for step in detail["loc"] if step not in _BRANCHES]
    dotted = ".".join(location) or "spec"
    if detail["type"] == "extra_forbidden":
        keys = _keys_at(location[:-1], root)
        nearest = difflib.get_close_matches(location[-1], keys, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"valid keys: {', '.join(keys)}"
        return f"{dotted}: unknown key; {hint}"
    is_hidden = location[1:2] and location[1] in _VALUE_HIDDEN
    is_clear = detail["type"] in ("missing", "value_error")
    value = "" if is_hidden or is_clear else f" (found {detail['input']!r:.120})"
    return f"{dotted}: {detail['msg'].removeprefix('Value error, ')}{value}"


def _keys_at(sections: list[str], root: type[pydantic.BaseModel]) -> list[str]:
    """The keys of a section; an optional one is the model among the branches of its union."""
    section: Any = root
    for step in sections:
        annotation = section.model_fields[step].annotation
        branches = [part for part in get_args(annotation) if hasattr(part, "model_fields")]
        section = branches[0] if branches else annotation
    return list(section.model_fields)
