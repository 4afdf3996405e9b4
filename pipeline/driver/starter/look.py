"""What there is to look at: the shards of an input, how they are written, and their first records.

In: an `input` section that says little more than where. Out: shards, settings of CSV, records.
Cost: a listing and the start of three shards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline.driver.starter.place import format_of_content
from pipeline.errors import InputError, SpecError
from pipeline.job.csv_spec import CsvSpec
from pipeline.job.input_spec import InputSpec
from pipeline.read import format_of
from pipeline.read.compression import path_of
from pipeline.read.input.shards import list_shards
from pipeline.read.peek import delimiter_of, peek
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Shard
from pipeline.storage.words import counted

N_RECORDS = 200
"""How many records of each of the first, the middle and the last shard are looked at."""

ENCODINGS = ("utf-8", "cp932", "gb18030", "cp1252")
"""Charsets of CSV files that are tried, in this order."""

_LONE = re.compile("[\ud800-\udfff]")


def shards_of(section: InputSpec) -> tuple[InputSpec, list[Shard]]:
    """The shards that are not empty, and the section with the format that their content shows where
    their names show none, or plain text whose lines are JSON. Raises SpecError for a place where
    nothing is, and InputError where all is empty."""
    options = section.storage_options
    try:
        shards = list_shards(section.uri, options, section.format)
    except SpecError:
        if section.format != "auto":
            raise
        shards = list_shards(section.uri, options, "document")
        shown_format = format_of_content(shards[0], options) if len(shards) == 1 else None
        if shown_format is None:
            raise
        return section.model_copy(update={"format": shown_format}), shards
    shards = [shard for shard in shards if shard.size_bytes]
    if not shards:
        raise InputError(
            f"{shown(section.uri[0])}: all files there are empty: there is nothing to look at."
        )
    is_text = {format_of(shard.uri, section.format) for shard in shards} == {"text"}
    if is_text and format_of_content(shards[0], options) == "jsonl":
        section = section.model_copy(update={"format": "jsonl"})
    return section, shards


def csv_of(shard: Shard, section: InputSpec) -> dict[str, str]:
    """How CSV files are written, where a run would not find it by itself."""
    settings = {}
    delimiter = delimiter_of(shard, section)
    if delimiter != "," and not (delimiter == "\t" and ".tsv" in path_of(shard.uri).lower()):
        settings["delimiter"] = delimiter
    for encoding in ENCODINGS:
        choice = CsvSpec.model_validate({**settings, "encoding": encoding})
        values = peek(shard, section.model_copy(update={"csv": choice}), N_RECORDS)
        # what does not fit a charset is a lone surrogate
        if not any(_LONE.search(f"{name}{value}") for row in values for name, value in row.items()):
            return settings if encoding == "utf-8" else {**settings, "encoding": encoding}
    return settings


def sample_of(shards: Sequence[Shard], section: InputSpec) -> list[dict[str, Any]]:
    """The first records of the first, the middle and the last shard. Raises InputError where none
    of them has one."""
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    for shard in dict.fromkeys([shards[0], shards[len(shards) // 2], shards[-1]]):
        try:
            records += peek(shard, section, N_RECORDS)
        except InputError as error:
            problems.append(str(error))
    if not records:
        first = problems[0] if problems else f"{shown(shards[0].uri)}: no record is in it"
        raise InputError(f"{first}. Looked at {counted(min(3, len(shards)), 'file')}.")
    return records
