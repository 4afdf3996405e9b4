"""`init`: looks at data that nobody has described, and writes the spec of a job for it.

In: a path or URI. Out: a spec file with comments, and beside it the JSON Schema by which an editor
completes it. Method: the input is listed as a run would, a few hundred records of up to three
shards are read by its readers, fields are guessed (`columns.py`), and the first record is read once
more by the spec that came of it. Cost: a listing and the start of three shards.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.driver.planning.overlap import check_apart
from pipeline.driver.starter.columns import Roles, language_of, roles_of
from pipeline.driver.starter.fields import Field, fields_of
from pipeline.driver.starter.look import csv_of, sample_of, shards_of
from pipeline.driver.starter.models import Model, default_model, model_named
from pipeline.driver.starter.place import most_of, name_of, patterns_of
from pipeline.driver.starter.spec_text import Choices, spec_text
from pipeline.errors import InputError, SpecError
from pipeline.job.input_spec import InputSpec
from pipeline.job.resolve import device_here
from pipeline.job.spec import JobSpec, spec_from
from pipeline.read.compression import path_of
from pipeline.read.peek import TEXT
from pipeline.read.preview import previews
from pipeline.storage import layout
from pipeline.storage.addresses import shown
from pipeline.storage.closed_yaml import load_yaml
from pipeline.storage.lineage import Shard
from pipeline.storage.words import counted

SCHEMA_NAME = ".corpus-embed.schema.json"
"""Hidden, so that a run that reads the folder does not take it for data."""
CHARS_PER_TOKEN = {"ja": 1.7, "many": 4.0}
"""Estimates, for the question whether texts are longer than a model takes."""

_TAGS = re.compile(r"</?(p|div|br|span|a|li|td|h[1-6])[ />]", re.IGNORECASE)

WITHOUT_FIELDS = ("text", "document", "warc")
"""Formats whose records are texts."""


@dataclasses.dataclass(frozen=True)
class Starter:
    """A spec that was made from a look at an input. text: the YAML. choices: what is in it. spec:
    the same, checked."""

    text: str
    choices: Choices
    spec: JobSpec

    def write(self, path: str | Path, *, is_forced: bool = False) -> None:
        """Write the spec, and the schema beside it. Raises SpecError where a file is there already
        that this would replace, unless `is_forced`."""
        target = Path(path)
        schema_path = target.parent / SCHEMA_NAME
        schema = json.dumps(JobSpec.model_json_schema(), indent=1, ensure_ascii=False) + "\n"
        try:
            if target.exists() and not is_forced:
                raise SpecError(
                    f"{target}: is there already. Give another file with -o, or --force to replace "
                    "it."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.text, encoding="utf-8")
            schema_path.write_text(schema, encoding="utf-8")
        except OSError as error:
            raise SpecError(f"{target}: cannot be written: {error.strerror or error}") from error


def look_at(
    uri: str,
    *,
    model: str | None = None,
    format: str = "auto",
    output: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Starter:
    """Look at an input and make a spec for it.

    model: as in `model_named`; by default one that fits the language and this machine. format: for
    names that do not show it. output: where the vectors will be; by default a folder `out/`.
    Raises SpecError, ModelError or InputError, which name what was looked at.
    """
    options = dict(storage_options or {})
    known = model_named(model) if model is not None else None
    section, shards = shards_of(_input_section([uri], format, options))
    shards, kind, others = most_of(shards, section.format)
    csv = csv_of(shards[0], section) if kind == "csv" else {}
    section = _input_section([uri], section.format, options, csv)
    records = sample_of(shards, section)
    fields = fields_of(records)
    in_path = list(layout.partition_values(path_of(shards[0].uri)))
    roles = _roles(fields, in_path, kind, shards[0])
    texts = next((field.texts for field in fields if field.name == (roles.text or TEXT)), [])
    language = language_of(texts)
    chosen = known or default_model(language, device_here())
    uris = patterns_of(uri, shards, section.format) if others else [uri]
    name = name_of(uri)
    choices = Choices(
        name=name,
        uri=uris,
        output=output or f"out/{name}",
        model=chosen,
        roles=roles if kind not in WITHOUT_FIELDS else dataclasses.replace(roles, text=None),
        fields=fields,
        seen=(
            f"Made by a look at {counted(len(records), 'record')} of "
            f"{counted(len(shards), f'{kind} file')} in {shown(uri)}."
        ),
        schema_path=f"./{SCHEMA_NAME}",
        format=section.format,
        csv=csv,
        storage_options=options,
        long_share=_long_share(texts, chosen, language),
        notes=_notes(others, texts, chosen),
    )
    if output is None and "://" not in uri:
        choices = _with_output(choices, uri)
    return _checked(choices, shards)


def _checked(choices: Choices, shards: Sequence[Shard]) -> Starter:
    """The spec, if a run would take it: its output lies apart from its input, and a record of the
    input can be embedded."""
    text = spec_text(choices)
    spec = spec_from(load_yaml(text.encode()))
    check_apart(spec)
    entries = previews(shards, spec.input)
    if problems := [entry.problem for entry in entries if entry.text is None]:
        raise InputError(f"{problems[0]}. No text was found there.")
    return Starter(text, choices, spec)


def _with_output(choices: Choices, uri: str) -> Choices:
    """The choices with an output that is not in the input: a folder beside it, where `out/` is
    below it."""
    try:
        check_apart(spec_from(load_yaml(spec_text(choices).encode())))
    except SpecError:
        beside = Path(os.path.abspath(uri)).parent / f"{choices.name}-vectors"
        return dataclasses.replace(choices, output=str(beside))
    return choices


def _input_section(
    uris: Sequence[str], format: str, options: Mapping[str, Any], csv: Mapping[str, str] = {}
) -> InputSpec:
    fields = {
        "name": "x",
        "input": {"uri": list(uris), "format": format, "storage_options": dict(options)},
        "model": {"path": "x"},
        "output": {"uri": "x"},
    }
    fields["input"]["csv"] = dict(csv)  # type: ignore[index]
    return spec_from(fields, "--format and --storage-options").input


def _roles(fields: Sequence[Field], in_path: Sequence[str], kind: str, first: Shard) -> Roles:
    roles = roles_of(fields, in_path)
    if kind in WITHOUT_FIELDS:
        roles = dataclasses.replace(roles, text=None, title=None)
        return roles if kind == "warc" else dataclasses.replace(roles, id=None)
    if roles.text is None:
        names = ", ".join(f"{field.name} ({field.example})" for field in fields[:20])
        raise InputError(
            f"{shown(first.uri)}: no field looks like a text; its fields are {names or 'none'}."
        )
    return roles


def _long_share(texts: Sequence[str], model: Model, language: str) -> float:
    """Share of the texts that are probably longer than the model takes; 0 where nobody knows."""
    if not model.max_tokens or not texts:
        return 0.0
    max_chars = model.max_tokens * CHARS_PER_TOKEN[language]
    return sum(len(text) > max_chars for text in texts) / len(texts)


def _notes(others: Mapping[str, int], texts: Sequence[str], model: Model) -> list[str]:
    notes = []
    if others:
        left_out = ", ".join(f"{n} {name}" for name, n in others.items())
        notes.append(f"files of other formats are left out: {left_out}.")
    if sum(bool(_TAGS.search(text)) for text in texts) > len(texts) / 3:
        notes.append("the texts hold HTML tags, which are embedded as they are.")
    if "non-commercial" in model.licence.lower():
        notes.append("the licence of the model forbids commercial use.")
    return notes
