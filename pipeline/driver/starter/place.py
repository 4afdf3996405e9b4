"""How the input of a new spec is named: which of its files are meant, and what the job is called.

In: what a person gave, and the shards that are there. Out: shards of one format, patterns that
match them alone, a name. Nothing is opened.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import SpecError
from pipeline.read import format_of
from pipeline.read.compression import path_of
from pipeline.read.input.shards import open_shard
from pipeline.storage.lineage import Shard

_HEAD_BYTES = 4096
_STARTS = {b"PAR1": "parquet", b"WARC/": "warc", b"{": "jsonl"}
"""What files of a format start with."""


def most_of(shards: Sequence[Shard], format: str) -> tuple[list[Shard], str, dict[str, int]]:
    """The shards of the format with most bytes, its name, and how many others each format has."""
    n_bytes: Counter[str] = Counter()
    by_format: dict[str, list[Shard]] = {}
    for shard in shards:
        kind = format_of(shard.uri, format)
        n_bytes[kind] += shard.size_bytes
        by_format.setdefault(kind, []).append(shard)
    kind = n_bytes.most_common(1)[0][0]
    others = {name: len(some) for name, some in by_format.items() if name != kind}
    return by_format[kind], kind, others


def patterns_of(uri: str, shards: Sequence[Shard], format: str) -> list[str]:
    """Patterns that match, of what a folder or a pattern names, files of the chosen format alone.
    The URI itself where no pattern can say that."""
    if format != "auto":
        return [uri]
    last = uri.rsplit("/", 1)[-1]
    is_pattern = re.search(r"[*?\[]", last) is not None
    if is_pattern and not last.endswith("*"):
        return [uri]
    suffixes = {"".join(PurePosixPath(path_of(shard.uri)).suffixes[-2:]) for shard in shards}
    endings = sorted({_ending(suffix) for suffix in suffixes})
    start = uri if is_pattern else f"{uri.rstrip('/')}/**/*"
    return [f"{start}{ending}" for ending in endings]


def format_of_content(shard: Shard, options: Mapping[str, Any]) -> str | None:
    """The format that the first bytes of a shard show, for names that show none; None where they
    show none either."""
    with open_shard(shard, options) as file:
        head = file.read(_HEAD_BYTES).lstrip()
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)


def _ending(suffix: str) -> str:
    """The part of `.v2.jsonl` or `.jsonl.gz` that shows the format."""
    *_, last = suffix.split(".")
    try:
        format_of(f"x.{last}")
    except SpecError:
        return suffix
    return f".{last}"


def name_of(uri: str) -> str:
    """A name for the job: of the file or folder, without suffixes and wildcards."""
    steps = [step for step in path_of(uri).split("/") if step and not re.search(r"[*?\[]", step)]
    if "://" not in uri and steps and set(steps[-1]) <= {"."}:
        steps = list(Path(os.path.abspath(uri)).parts[1:])
    last = steps[-1].split(".")[0] if steps else ""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-_")[:60]
    return name or "my-corpus"
