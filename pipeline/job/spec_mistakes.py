"""Say what is wrong with a job spec: one line a mistake, with its place, the value found there and
what is accepted.

An error of pydantic comes in, text comes out. None of it is pydantic's own: that would name
branches of unions and classes of Python, or repeat a value that can hold a secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

import pydantic

from pipeline.storage.accepted import (
    Node,
    accepted,
    place,
    schema_of,
    section_of,
    shown_value,
    takes_only_text,
)

_VALUE_HIDDEN = {"uri", "path", "location", "storage_options", "iceberg"}
"""Keys whose values are not repeated: they can hold a secret."""


def explain_all(
    error: pydantic.ValidationError,
    root: type[pydantic.BaseModel],
    overridden: Collection[str] = (),
) -> list[str]:
    """One line for each mistake. root: the model that was validated. overridden: dotted names of
    the values that come from `--set`, which is named before them."""
    schema = schema_of(root)
    lines: dict[str, str] = {}
    for detail in error.errors():
        name, node = place(schema, detail["loc"])
        line = _explain(schema, name, node, detail)
        if any(name == key or name.startswith(f"{key}.") for key in overridden):
            line = f"--set {line}"
        # each branch of a union has its own mistake: one line says what all of them take
        lines.setdefault(name if detail["type"] != "value_error" else line, line)
    return list(lines.values())


def _explain(schema: Node, name: str, node: Node, detail: Any) -> str:
    kind = detail["type"]
    steps = [step.partition("[")[0] for step in name.split(".")]
    if kind == "extra_forbidden":
        section = place(schema, detail["loc"][:-1])[1]
        keys = list(section_of(schema, section)["properties"])
        nearest = difflib.get_close_matches(steps[-1], keys, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"valid keys: {', '.join(keys)}"
        return f"{name}: unknown key; {hint}"
    takes = accepted(schema, node)
    if kind == "missing":
        return f"{name}: is missing; it takes {takes}"
    if kind == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        # a check of a whole section names the places itself
        return message if not name or name.split(".")[0] + "." in message else f"{name}: {message}"
    value = detail["input"]
    hidden = not _VALUE_HIDDEN.isdisjoint(steps) and steps[-1] != "table"
    text = f"{name}: found {shown_value(value, hidden=hidden)}"
    if takes:
        text += f"; it takes {takes}"
    if takes_only_text(node) and isinstance(value, bool):
        text += ". YAML reads yes, no, on and off as true and false: write the word in quotes"
    elif takes_only_text(node, of_any_words=True) and isinstance(value, int | float):
        text += ". Write it in quotes to make it a text"
    return text
