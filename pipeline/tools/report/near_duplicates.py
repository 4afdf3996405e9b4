"""Near duplicates in a sample, and what they mean for the whole output; nearest-neighbour examples.

In: the cosines of a sample. Out: counts, pairs, an estimate with its margin, and examples. A pair
of rows of the whole output is in the sample with the same probability as any other, so the share of
near pairs in the sample estimates the share in the whole; the margin is 1.96 standard errors. A row
of a sample meets only few of its duplicates, so the number of rows that have one is never estimated
from how many have one in the sample.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.tools.report.geometry import Cosines
from pipeline.tools.report.sample import Sample

N_EXAMPLES = 6
N_NEAREST = 3
OTHER_DOCUMENT = "different documents"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two rows of the sample, by their indices."""

    score: float
    first: int
    second: int
    relation: str


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """n_same: near pairs with the very same text, which are not among the listed `pairs`. per_row:
    the expected number of near duplicates of a row in the whole output, with its bounds; exact
    where the sample is the whole."""

    threshold: float
    n_rows: int
    n_pairs: int
    n_near: int
    n_same: int
    n_rows_near: int
    pairs: tuple[Pair, ...]
    per_row: float
    per_row_low: float
    per_row_high: float
    is_exact: bool


@dataclasses.dataclass(frozen=True)
class Neighbourhood:
    """A row of the sample and the rows nearest to it."""

    row: int
    nearest: tuple[Pair, ...]


def near_duplicates(sample: Sample, cosines: Cosines, threshold: float) -> NearDuplicates:
    """What the near pairs of a sample say about the whole output."""
    others = max(0, sample.n_rows - 1)
    error = 0.0 if sample.is_whole else 1.96 * cosines.share_error
    no_pair = not cosines.n_near and not sample.is_whole and cosines.n_pairs
    # none among n pairs: at most 3 in n, with 95 % confidence, as far as pairs are independent
    high = 3 / cosines.n_pairs if no_pair else cosines.near_share + error
    return NearDuplicates(
        threshold=threshold,
        n_rows=len(sample.rows),
        n_pairs=cosines.n_pairs,
        n_near=cosines.n_near,
        n_same=cosines.n_same,
        n_rows_near=cosines.n_rows_near,
        pairs=tuple(_pair(sample, *pair) for pair in cosines.pairs),
        per_row=cosines.near_share * others,
        per_row_low=max(0.0, cosines.near_share - error) * others,
        per_row_high=min(1.0, high) * others,
        is_exact=sample.is_whole,
    )


def neighbourhoods(sample: Sample, cosines: Cosines, seed: int) -> list[Neighbourhood]:
    """A few rows, drawn by the seed, each with the rows of other documents and with other texts
    that are nearest; a row that has none among its N_NEIGHBOURS nearest is left out."""
    random = np.random.default_rng([seed, 1])
    n_rows = len(sample.rows)
    chosen = np.sort(random.choice(n_rows, min(N_EXAMPLES, n_rows), replace=False)).tolist()
    examples = []
    for row in chosen:
        pairs = zip(cosines.scores[row].tolist(), cosines.neighbours[row].tolist(), strict=True)
        others = [_pair(sample, round(score, 3), row, other) for score, other in pairs]
        distinct = [pair for pair in others if pair.relation == OTHER_DOCUMENT]
        if distinct:
            examples.append(Neighbourhood(row, tuple(distinct[:N_NEAREST])))
    return examples


def _pair(sample: Sample, score: float, first: int, second: int) -> Pair:
    one, other = sample.rows[first], sample.rows[second]
    source = ("source_uri", "source_etag", "source_record")
    if one["text_sha256"] == other["text_sha256"]:
        relation = "same text"
    elif all(one[name] == other[name] for name in source):
        relation = "chunks of one document"
    else:
        relation = OTHER_DOCUMENT
    return Pair(score, first, second, relation)
