"""Everything that a report shows, gathered from the records, a sample and the sources.

In: a snapshot and the options of the report. Out: `Findings`, plain figures that the page, the
Markdown and `--json` are made from. The manifests are read once; no column is read whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.output.identity import ModelFacts, identity_of
from pipeline.storage.lineage import Manifest
from pipeline.tools.loaded_snapshot import LoadedSnapshot
from pipeline.tools.rejects import Rejects, rejects_of
from pipeline.tools.report.attempts import Version, load_versions
from pipeline.tools.report.geometry import (
    Cosines,
    Histogram,
    Map,
    cosines,
    flat_map,
    histogram,
    norms,
    unit,
)
from pipeline.tools.report.near_duplicates import (
    NearDuplicates,
    Neighbourhood,
    near_duplicates,
    neighbourhoods,
)
from pipeline.tools.report.sample import Sample, draw_sample
from pipeline.tools.report.shards import ShardStates, shard_states
from pipeline.tools.report.texts import Heads, heads_of_rows
from pipeline.tools.report.timeline import Stage, Timeline, newest_embedding, stages, timeline

MOST = 1e15
"""The largest number of an estimate that is shown."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a report is asked for. size: rows of the sample. threshold: the cosine from which two
    rows are near duplicates. ask_sources: whether texts that the output lacks are read from the
    sources."""

    size: int
    seed: int
    threshold: float
    ask_sources: bool


@dataclasses.dataclass(frozen=True)
class Norms:
    """Lengths of the sample's vectors."""

    histogram: Histogram
    quantiles: Mapping[str, float]
    n_zero: int


@dataclasses.dataclass(frozen=True)
class Compared:
    """One figure of the estimate before a run, and of the truth after it."""

    name: str
    estimate: Any
    truth: Any

    @property
    def error(self) -> float | None:
        """How far off the estimate was, as a share of the truth."""
        numbers = (int, float)
        if isinstance(self.estimate, numbers) and isinstance(self.truth, numbers) and self.truth:
            return float(self.estimate / self.truth - 1)
        return None


@dataclasses.dataclass(frozen=True)
class Findings:
    """See the fields' own classes. texts: the heads of the sample's texts, in its order.
    notes: what could not be read, one sentence each."""

    loaded: LoadedSnapshot
    options: Options
    model: ModelFacts
    versions: Sequence[Version]
    embedding: Version | None
    stages: Sequence[Stage]
    timeline: Timeline | None
    totals: Mapping[str, int]
    engines: Mapping[str, int]
    shards: ShardStates
    rejects: Rejects
    sample: Sample
    texts: Heads
    lengths: Histogram
    norms: Norms | None
    cosines: Cosines
    nearest: Histogram
    flat: Map | None
    near: NearDuplicates
    neighbourhoods: Sequence[Neighbourhood]
    compared: Sequence[Compared]
    notes: Sequence[str]

    @property
    def padding_share(self) -> float | None:
        """Share of the tokens that the model computed for the snapshot's rows that was padding."""
        padded = self.totals["n_padded_tokens"]
        return 1 - self.totals["n_embedded_tokens"] / padded if padded else None


def gather(loaded: LoadedSnapshot, options: Options) -> Findings:
    """Read what a report of a snapshot shows. Raises OutputError for records or files that are gone
    or damaged."""
    head = loaded.snapshot
    parts = loaded.manifests
    versions, notes = load_versions(loaded.store, head)
    embedding = newest_embedding(versions)
    earlier = (version.snapshot for version in versions[1:])
    rejected = rejects_of(
        loaded.store,
        head,
        parts,
        texts=options.ask_sources,
        source_options=loaded.source_options,
    )
    sample = draw_sample(loaded, options.size, options.seed)
    texts = _texts(loaded, sample, options)
    hashes = np.array([row["text_sha256"] for row in sample.rows])
    same_texts = np.unique(hashes, return_inverse=True)[1]
    units = unit(sample.vectors)
    compared = cosines(units, same_texts, options.threshold)
    latest = versions[0].attempt
    lengths = np.array([row["n_tokens"] for row in sample.rows], np.int64)
    return Findings(
        loaded=loaded,
        options=options,
        model=identity_of(loaded.generation).model,
        versions=versions,
        embedding=embedding,
        stages=stages(embedding) if embedding else [],
        timeline=timeline(loaded.store, embedding, parts) if embedding else None,
        totals=_totals(parts),
        engines=_engines(parts),
        shards=shard_states(loaded.store, head, parts, earlier),
        rejects=rejected,
        sample=sample,
        texts=texts,
        lengths=histogram(lengths),
        norms=_norms(sample) if loaded.generation.vector_precision != "ubinary" else None,
        cosines=compared,
        nearest=histogram(compared.scores[:, 0] if compared.scores.size else np.zeros(0)),
        flat=flat_map(units, compared.neighbours, options.seed),
        near=near_duplicates(sample, compared, options.threshold),
        neighbourhoods=neighbourhoods(sample, compared, options.seed),
        compared=_compared(latest.estimate, latest.truth) if latest else [],
        notes=notes,
    )


def _texts(loaded: LoadedSnapshot, sample: Sample, options: Options) -> Heads:
    """The heads of the sample's texts: from the output where it has them, otherwise from the
    sources."""
    stored = [row["text"] for row in sample.rows]
    if all(text is not None for text in stored):
        return Heads(stored, {})
    rows = list(zip(sample.manifests, sample.rows, strict=True))
    return heads_of_rows(loaded, rows, ask=options.ask_sources)


def _totals(parts: Sequence[Manifest]) -> dict[str, int]:
    """Counts of the live manifests that no snapshot sums up."""
    names = ("n_truncated", "n_embedded", "n_embedded_tokens", "n_padded_tokens", "n_reused")
    return {name: sum(getattr(part, name) for part in parts) for name in names}


def _engines(parts: Sequence[Manifest]) -> dict[str, int]:
    """Rows by the engine, device and dtype that made their part."""
    rows: dict[str, int] = {}
    for part in parts:
        name = ", ".join(part.engine.get(key, "unknown") for key in ("name", "device", "dtype"))
        rows[name] = rows.get(name, 0) + part.n_rows
    return dict(sorted(rows.items(), key=lambda item: (-item[1], item[0])))


def _norms(sample: Sample) -> Norms | None:
    if not len(sample.vectors):
        return None
    lengths = norms(sample.vectors)
    shares = {"smallest": 0, "1 in 100": 0.01, "median": 0.5, "99 in 100": 0.99, "largest": 1}
    quantiles = {name: float(np.quantile(lengths, share)) for name, share in shares.items()}
    return Norms(histogram(lengths), quantiles, int((lengths == 0).sum()))


def _compared(
    estimate: Mapping[str, Any] | None, truth: Mapping[str, Any] | None
) -> list[Compared]:
    """The figures that an estimate and the truth have in common; of nested ones, by dotted
    names."""
    guessed, true = _flat(estimate or {}), _flat(truth or {})
    return [Compared(name, guessed[name], true[name]) for name in guessed if name in true]


def is_number(value: Any) -> bool:
    """Whether a value is a number that a run can have measured."""
    return isinstance(value, int | float) and abs(value) <= MOST


def _flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, str) or is_number(value):
            flat[f"{prefix}{name}"] = value
    return flat
