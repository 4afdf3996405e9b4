"""What a setting or a stored value takes, in words, and what is there instead: "auto, or a whole
number from 1 to 2147483647, for instance 8".

A model, an error of pydantic and a JSON Schema come in, words come out, none of them pydantic's.
They are made from the schema, so that a new setting has them by itself; a type that the schema does
not explain brings `takes`, with an example (`pipeline/job/field_types.py`). A `description`, what a
setting is for, is no part of them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

Node = Mapping[str, Any]
_LONGEST_VALUE = 80


@functools.cache
def schema_of(model: type[pydantic.BaseModel]) -> Node:
    return model.model_json_schema()


def first_mistake(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> str:
    """What is wrong with a stored object, in one line: the place, what is there, what belongs
    there."""
    detail = error.errors(include_url=False, include_context=False)[0]
    kind = detail["type"]
    if kind == "json_invalid":
        return "it is no JSON"
    schema = schema_of(model)
    name, node = place(schema, detail["loc"])
    if kind == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        return f"{name}: {message}" if name else message
    if kind == "missing":
        return f"{name}: is missing"
    if kind == "extra_forbidden":
        return f"{name}: unknown key"
    value = detail["input"]
    words = accepted(schema, node).partition(", for instance")[0]
    is_large = isinstance(value, list | dict)
    return f"{name or 'the record'}: found {shown_value(value, hidden=is_large)}; it takes {words}"


def shown_value(value: Any, *, hidden: bool = False) -> str:
    """A value as it stands in YAML, or only its kind."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | dict):
        kind = "a mapping" if isinstance(value, dict) else "a list"
        if not value:
            return f"{kind} that is empty"
        if hidden:
            return kind
        return f"{kind}, {_cut(json.dumps(value, ensure_ascii=False, default=str))}"
    if isinstance(value, str):
        return "a text" if hidden else f"'{_cut(value)}'"
    return "a number" if hidden else _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def place(schema: Node, location: Sequence[str | int]) -> tuple[str, Node]:
    """The dotted name that a person knows a setting by, and its part of the schema.

    location: where pydantic found a mistake, which also names branches of unions; these are no key
    of anything and are left out. An unknown key counts as one if it is the last step.
    """
    node: Node = schema
    name = ""
    for index, step in enumerate(location):
        node = section_of(schema, node)
        properties = node.get("properties")
        is_last = index == len(location) - 1
        if properties is not None and (step in properties or is_last):
            node = properties.get(step, {})
            name = f"{name}.{step}" if name else str(step)
        elif isinstance(step, int):
            name = f"{name}[{step}]"
            node = _inner(node, "items")
        elif "object" in _types(node) and not step.startswith("["):
            name = f"{name}.{step}" if step else name
            node = _inner(node, "additionalProperties")
    return name, node


def accepted(schema: Node, node: Node) -> str:
    """What a setting takes; "" where the schema does not say."""
    section = section_of(schema, node)
    if properties := section.get("properties"):
        words = f"a section with the keys {', '.join(properties)}"
        return f"{words}, or null" if "null" in _types(node) else words
    choices = [choice for choice in _branches(node) if choice.get("type") != "null"]
    words = node.get("takes", "") or ", or ".join(map(_words, choices))
    if "null" in _types(node):
        words += ", or null"
    default = node.get("default")
    types = {str(choice.get("type")) for choice in choices if not choice.keys() & {"const", "enum"}}
    examples = [example for kind, example in _EXAMPLES.items() if kind in types]
    if "for instance" in words or not examples:
        return words
    is_shown = default not in (None, "auto") and not isinstance(default, bool)
    return f"{words}, for instance {default if is_shown else examples[0]}"


def section_of(schema: Node, node: Node) -> Node:
    """The section that a node refers to, alone or beside null; else the node itself."""
    for branch in [*_branches(node), *node.get("allOf", [])]:
        if reference := branch.get("$ref"):
            section: Node = schema["$defs"][str(reference).rpartition("/")[2]]
            return section
    return node


_EXAMPLES = {"integer": "8", "number": "0.05", "string": "v1, or '1.0' in quotes"}


def _words(node: Node) -> str:
    if "takes" in node:
        return str(node["takes"])
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    names = {
        "boolean": "true or false",
        "integer": "a whole number",
        "number": "a number",
        "string": "a text that is not empty" if node.get("minLength") else "a text",
        "array": "a list",
        "object": "a mapping",
    }
    least, most = node.get("minimum"), node.get("maximum")
    bounds = "" if least is None else f" from {least}"
    bounds += "" if most is None else f" to {most}"
    bounds += f" below {node['exclusiveMaximum']}" if "exclusiveMaximum" in node else ""
    return names.get(str(node.get("type")), "another value") + bounds


def takes_only_text(node: Node, *, of_any_words: bool = False) -> bool:
    """Whether a value of another kind was probably meant as a text. of_any_words: only where every
    text is taken."""
    types = {
        "string" if "enum" in branch and not of_any_words else branch.get("type")
        for branch in _branches(node)
        if not (of_any_words and "enum" in branch)
    }
    is_plain = not any("format" in branch for branch in _branches(node))
    return is_plain and "string" in types and types <= {"string", "null"}


def _branches(node: Node) -> list[Node]:
    branches: list[Node] = node.get("anyOf") or node.get("oneOf") or [node]
    return branches


def _inner(node: Node, key: str) -> Node:
    """The values of a list or a mapping; the whole, where that has words of its own."""
    if "takes" in node:
        return node
    inner = [branch[key] for branch in _branches(node) if isinstance(branch.get(key), Mapping)]
    return inner[0] if inner else node


def _types(node: Node) -> set[str]:
    return {str(branch.get("type")) for branch in _branches(node)}
