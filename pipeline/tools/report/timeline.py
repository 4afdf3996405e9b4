"""When the parts of the newest embedding run were finished, and what its time went into.

In: manifests, the attempt's record, and the times at which the store says that both were written,
since no record holds a time. Out: a `Timeline` of embedded tokens, three stretches of wall time,
and the seconds of all workers by stage. A copied output has the times of its copy. Cost: a listing
of the manifests' folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pipeline.errors import OutputError
from pipeline.storage import layout
from pipeline.storage.lineage import Manifest
from pipeline.storage.retry import retried
from pipeline.storage.store import Store
from pipeline.tools.report.attempts import Version

MAX_POINTS = 400
STAGES = {
    "read": "reading and decoding shards",
    "tokenize": "cleaning, chunking and tokenizing",
    "tokenizers_blocked": "tokenizers waiting for embedders to take a part",
    "embedders_starved": "embedders waiting for a tokenized part",
    "embed": "the model",
    "write": "encoding and storing vectors",
}
"""The stages of a run in their order; others that a record names come after them."""
WAITS = {"tokenizers_blocked", "embedders_starved"}
"""Stages in which workers waited for others."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """seconds: of all workers together."""

    name: str
    meaning: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Timeline:
    """points: (seconds since the start, tokens embedded so far), at most MAX_POINTS of them.
    stretches: wall seconds before the first finished part, between the first and the last, and
    after the last."""

    run_id: str
    points: tuple[tuple[float, int], ...]
    stretches: tuple[tuple[str, float], ...]
    n_parts: int


def newest_embedding(versions: Sequence[Version]) -> Version | None:
    """The newest version whose run embedded something and recorded it."""
    return next((v for v in versions if v.attempt and v.attempt.counts.n_embedded_tokens), None)


def stages(version: Version) -> list[Stage]:
    """What the workers of a run did with their time."""
    seconds = dict(version.attempt.counts.seconds) if version.attempt else {}
    names = [*(name for name in STAGES if name in seconds), *sorted(seconds.keys() - STAGES.keys())]
    return [Stage(name, STAGES.get(name, ""), seconds[name]) for name in names]


def timeline(store: Store, version: Version, parts: Sequence[Manifest]) -> Timeline | None:
    """The parts of a version's run in the order in which they were finished.

    None where the store reports no times, or none of the run's parts is live any more.
    """
    attempt = version.attempt
    run_id = version.snapshot.run_id
    own = [part for part in parts if part.run_id == run_id and part.n_embedded_tokens]
    if attempt is None or version.path is None or not own:
        return None
    try:
        times = _written_at(store, version.snapshot.fingerprint)
        ended = store.changed_at(store.info(version.path))
    except (OutputError, FileNotFoundError):
        return None
    finished = sorted(
        (times[path], part.n_embedded_tokens)
        for part in own
        if (path := layout.manifest(part.fingerprint, part.part_id)) in times
    )
    if not finished:
        return None
    first, last = finished[0][0], finished[-1][0]
    start = min(ended - attempt.counts.elapsed_s, first)
    points = _cumulated(finished, start)
    stretches = (
        ("before the first finished part", first - start),
        ("from the first to the last part", last - first),
        ("after the last part", max(0.0, ended - last)),
    )
    return Timeline(run_id, tuple(points), stretches, len(finished))


def _cumulated(finished: Sequence[tuple[float, int]], start: float) -> list[tuple[float, int]]:
    points = [(0.0, 0)]
    n_tokens = 0
    for time, tokens in finished:
        n_tokens += tokens
        points.append((round(time - start, 1), n_tokens))
    step = -(-len(points) // MAX_POINTS)
    return [*points[:-1:step], points[-1]]


def _written_at(store: Store, fingerprint: str) -> Mapping[str, float]:
    """When each manifest was written, by its path, in seconds since 1970 by the store's clock."""
    folder = store.path(layout.manifests(fingerprint))
    infos = retried(
        lambda: store.fs.find(folder, detail=True),
        f"list {store.shown_uri}/{layout.manifests(fingerprint)}",
        store.endpoint,
    )
    root_length = len(store.root) + 1
    return {name[root_length:]: store.changed_at(info) for name, info in infos.items()}
