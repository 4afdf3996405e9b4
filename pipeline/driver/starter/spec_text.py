"""The spec that `init` writes: YAML in which each choice has its reason as a comment.

In: what was seen of an input, and what was chosen. Out: text that `load_spec` takes. It is written
line by line, since a library that dumps YAML writes no comments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pipeline.driver.starter.columns import Roles
from pipeline.driver.starter.fields import Field
from pipeline.driver.starter.models import Model

MAX_SHOWN_FIELDS = 25


@dataclasses.dataclass(frozen=True)
class Choices:
    """What goes into a spec. seen: a line on what was looked at. format: for a format that names do
    not show, else "auto". notes: sentences on what a person should check."""

    name: str
    uri: Sequence[str]
    output: str
    model: Model
    roles: Roles
    fields: Sequence[Field]
    seen: str
    schema_path: str
    format: str = "auto"
    csv: Mapping[str, str] = dataclasses.field(default_factory=dict)
    storage_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    long_share: float = 0.0
    notes: Sequence[str] = ()


def spec_text(choices: Choices) -> str:
    """The whole file."""
    lines = [
        f"# yaml-language-server: $schema={choices.schema_path}",
        f"# {choices.seen}",
        *(f"# Check: {note}" for note in choices.notes),
        f"name: {_value(choices.name)}",
        "",
        *_input(choices),
        "",
        *_prepare(choices),
        "",
        *_model(choices.model),
        "",
        *_output(choices),
    ]
    return "\n".join(lines) + "\n"


def _input(choices: Choices) -> Iterator[str]:
    roles = choices.roles
    if choices.fields:
        yield "# The fields of the first records, with an example of each:"
        for field in choices.fields[:MAX_SHOWN_FIELDS]:
            share = "" if field.share == 1 else f" ({field.share:.0%} of the records)"
            yield f"#   {_printable(field.name)}{share}: {_printable(field.example)}"
        if len(choices.fields) > MAX_SHOWN_FIELDS:
            yield f"#   and {len(choices.fields) - MAX_SHOWN_FIELDS} more"
    yield "input:"
    uri = choices.uri[0] if len(choices.uri) == 1 else list(choices.uri)
    yield f"  uri: {_value(uri)}"
    if choices.format != "auto":
        yield f"  format: {choices.format}"
    if choices.csv:
        yield f"  csv: {_value(dict(choices.csv))}"
    if roles.text is not None:
        yield _with_reason(f"  text_column: {_value(roles.text)}", roles.why.get("text"))
        if roles.title is not None:
            template = f"{{{roles.title}}}\n{{{roles.text}}}"
            yield "  # Instead of text_column, to embed the title with each text:"
            yield f"  # text_template: {_value(template)}"
    if roles.id is not None:
        yield _with_reason(f"  id_column: {_value(roles.id)}", roles.why.get("id"))
    else:
        yield "  id_column: null # no field is different in each record: file and position stand in"
    if roles.keep:
        is_plain = set(roles.keep.values()) == {"string"}
        kept = list(roles.keep) if is_plain else dict(roles.keep)
        yield f"  keep_columns: {_value(kept)} # stored beside the vectors"
    if choices.storage_options:
        yield f"  storage_options: {_value(dict(choices.storage_options))}"


def _prepare(choices: Choices) -> Iterator[str]:
    limit = choices.model.max_tokens
    yield "prepare:"
    if choices.long_share > 0:
        share = max(1, round(100 * choices.long_share))
        yield f"  # About {share} % of the texts are longer than the {limit:,} tokens of the model:"
        yield "  # chunk makes a row of each piece, truncate embeds the start alone, chunk_and_pool"
        yield "  # makes one vector of all pieces."
        yield "  long_documents: chunk"
        yield "  chunk: {max_tokens: 256, overlap_tokens: 32, boundary: sentence}"
    else:
        yield "  long_documents: truncate # and flag; chunk makes a row of each piece"


def _model(model: Model) -> Iterator[str]:
    yield "model:"
    yield _with_reason(f"  path: {_value(model.path)}", str(model))
    if model.prompt is not None:
        words = "in front of each document, as the model's card says"
        yield _with_reason(f"  prompt: {_value(model.prompt)}", words if model.prompt else "none")


def _output(choices: Choices) -> Iterator[str]:
    yield "output:"
    is_local = "://" not in choices.output
    where = "a folder of this machine; name s3://… where workers are on others" if is_local else ""
    yield _with_reason(f"  uri: {_value(choices.output)}", where)
    if choices.roles.partition:
        yield f"  partition_by: {_value(list(choices.roles.partition))} # few different values"
    if choices.storage_options and "://" in choices.output:
        yield f"  storage_options: {_value(dict(choices.storage_options))}"


def _with_reason(line: str, reason: str | None) -> str:
    return f"{line} # {reason}" if reason else line


def _value(value: Any) -> str:
    """A value in YAML on one line."""
    style = '"' if isinstance(value, str) and ("\n" in value or not value.isprintable()) else None
    text = yaml.safe_dump(
        value,
        default_flow_style=True,
        default_style=style,
        allow_unicode=True,
        width=float("inf"),
        sort_keys=False,
    )
    return str(text).removesuffix("...\n").strip()


def _printable(text: str) -> str:
    """What can stand in a comment: nothing that ends its line."""
    return "".join(character if character.isprintable() else "�" for character in text)
