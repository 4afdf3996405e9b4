"""The reference of the job spec, docs/spec.md, from the schema of its settings.

The model of a spec comes in; Markdown comes out, with a table for each section: what a setting
takes, its default, what it is for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pydantic

from pipeline.storage.accepted import Node, accepted, schema_of, section_of

_HEAD = """# The job spec

Every setting of a job spec. `corpus-embed schema` prints the same as a JSON Schema, with which an
editor completes and checks a spec: put `# yaml-language-server: $schema=PATH` on its first line.
`--set section.key=value` overrides a setting for one command. An unknown key is an error.

This page is made by `corpus-embed schema --markdown`; `make docs` writes it anew.
"""


def reference(model: type[pydantic.BaseModel]) -> str:
    """All settings below `model` as Markdown."""
    schema = schema_of(model)
    return "\n".join([_HEAD, *_section(schema, schema, "")])


def _section(schema: Node, section: Node, path: str) -> Iterator[str]:
    if path:
        yield f"## `{path}`\n\n{_line(section['description'])}\n"
    below: list[tuple[str, Node]] = []
    rows: list[str] = []
    for key, node in section["properties"].items():
        name = f"{path}.{key}" if path else key
        inner = section_of(schema, node)
        is_section = "properties" in inner
        if is_section:
            below.append((name, inner))
        if is_section and path:
            link = f"see [`{name}`](#{name.replace('.', '')})"
            rows.append(
                f"| `{key}` | a section, {link} | {_default(node)} | {_about(node, inner)} |"
            )
        elif not is_section:
            is_required = key in section.get("required", [])
            default = "required" if is_required else _default(node)
            words = _cell(accepted(schema, node))
            rows.append(f"| `{key}` | {words} | {default} | {_about(node, inner)} |")
    if rows:
        yield "| setting | takes | default | what it is for |\n|---|---|---|---|"
        yield from rows
        yield ""
    for name, inner in below:
        yield from _section(schema, inner, name)


def _about(node: Node, section: Node) -> str:
    return _cell(_line(node.get("description") or section["description"]))


def _default(node: Node) -> str:
    default: Any = node.get("default")
    if isinstance(default, dict) and default:
        return ""  # of a section, whose settings have their own
    is_size = isinstance(default, int) and not isinstance(default, bool) and default >= 1 << 16
    if is_size:
        return f"`{default >> 20}MiB`" if default >= 1 << 20 else f"`{default >> 10}KiB`"
    if node.get("default") == "PT10M":
        return "`10min`"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
