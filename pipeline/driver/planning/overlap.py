"""The output never becomes its own input: neither lies inside the other, under whatever names.

Local places are compared as the file system sees them, through links, mounts and spellings; places
on a store by their keys, where doubled slashes count as one, because stores differ in that. Cost: a
few system calls per URI.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SpecError
from pipeline.job.spec import JobSpec
from pipeline.storage.addresses import is_local, normalized, normalized_output, shown
from pipeline.storage.options import server_of

_DATA_SUFFIX = ".parquet"
"""How the names of an output's data files end."""


def check_apart(spec: JobSpec) -> None:
    """Raises SpecError when the output lies inside an input, or an input inside the output.

    A pattern may stand above the output when it can match no data file there, as `lake/*.jsonl`
    for the output `lake/vectors`.
    """
    output = normalized_output(spec.output.uri)
    server = server_of(output, spec.output.storage_options)
    for uri in spec.input.uri:
        name = normalized(uri)
        if server_of(name, spec.input.storage_options) != server:
            continue
        steps_below = _steps_on_disk if is_local(uri) else _steps_on_store
        # A name with a wildcard can be an exact one: which of both it is, only the store knows.
        folder = re.split(r"[*?\[]", name)[0]
        is_pattern = folder != name
        folder = (folder.rpartition("/")[0] or "/") if is_pattern else name
        if steps_below(folder, output) is not None:
            raise SpecError(
                f"input.uri {shown(uri)} lies inside output.uri {shown(spec.output.uri)}: a run "
                "would read what it has written. Put the output elsewhere."
            )
        steps = steps_below(output, folder)
        if steps is None:
            continue
        pattern = name.removeprefix(folder).strip("/").split("/")
        if not is_pattern or steps_below(output, name) is not None or _can_match(pattern, steps):
            example = f"{shown(folder).rstrip('/')}/*.jsonl"
            raise SpecError(
                f"output.uri {shown(spec.output.uri)} lies inside input.uri {shown(uri)}: a later "
                "run would embed its own output. Put the output elsewhere, or name the input by a "
                f"pattern that matches nothing below the output, such as {example}."
            )


def _steps_on_disk(path: str, folder: str) -> list[str] | None:
    """The steps of `path` below `folder`, [] for the folder itself; None when it is elsewhere."""
    target = Path(os.path.realpath(path))
    top = Path(os.path.realpath(folder))
    for ancestor in (target, *target.parents):
        if ancestor == top or (_exist(ancestor, top) and os.path.samefile(ancestor, top)):
            return list(target.relative_to(ancestor).parts)
    return None


def _exist(*paths: Path) -> bool:
    """False also where this user may not look."""
    return all(map(os.path.exists, paths))


def _steps_on_store(uri: str, folder: str) -> list[str] | None:
    """As `_steps_on_disk`, for URIs of one store."""
    steps = [step for step in uri.split("/") if step not in ("", ".")]
    top = [step for step in folder.split("/") if step not in ("", ".")]
    return steps[len(top) :] if steps[: len(top)] == top else None


def _can_match(pattern: Sequence[str], steps: Sequence[str]) -> bool:
    """Whether a pattern can match a data file of the output at `steps`, both by folder."""
    ending = re.split(r"[*?\]]", pattern[-1])[-1]
    if not (_DATA_SUFFIX.endswith(ending) or ending.endswith(_DATA_SUFFIX)):
        return False
    for number, step in enumerate(steps):
        if pattern[number] == "**":
            return True
        if number == len(pattern) - 1 or not fnmatch.fnmatchcase(step, pattern[number]):
            return False
    return True
