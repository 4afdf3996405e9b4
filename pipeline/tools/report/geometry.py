"""What a sample of vectors looks like: lengths, a flat map, near duplicates, nearest neighbours.

In: vectors (N, D) float32. Out: plain figures. All cosines of the sample are computed, a block of
rows at a time. The map is a projection on the two principal components (scikit-learn's randomized
solver): it takes a second where t-SNE takes half a minute for 2,000 rows, gives the same picture
each time, and does not draw gaps that are not there; what it loses is stated with it. Memory:
BLOCK_ROWS times N cosines.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
BLOCK_ROWS = 512
N_NEIGHBOURS = 10
"""How many neighbours of each row are compared between the map and the vectors themselves."""
MAX_PAIRS = 12
"""How many near-duplicate pairs are listed."""
_MAP_CHECK_ROWS = 1000


@dataclasses.dataclass(frozen=True)
class Histogram:
    """counts[n] values lie in [edges[n], edges[n + 1])."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Cosines:
    """The cosines between the rows of a sample.

    neighbours, scores: (N, K), the nearest rows of each row, best first. pairs: the most similar
    pairs (cosine, row, row) of rows that are not the same, at most MAX_PAIRS. n_near: pairs at or
    above the threshold, of which n_same have the same text. n_rows_near: rows that are in one.
    share_error: the standard error of the share of near pairs.
    """

    neighbours: npt.NDArray[np.int64]
    scores: Matrix
    pairs: tuple[tuple[float, int, int], ...]
    n_pairs: int
    n_near: int
    n_same: int
    n_rows_near: int
    share_error: float
    mean: float

    @property
    def near_share(self) -> float:
        """Share of near pairs among all pairs."""
        return self.n_near / self.n_pairs if self.n_pairs else 0.0


@dataclasses.dataclass(frozen=True)
class Map:
    """places: (N, 2). kept_variance: of each of the two axes, as a share of all. kept_neighbours:
    share of the N_NEIGHBOURS nearest rows that are also among the nearest in the map; None for too
    few rows."""

    places: Matrix
    kept_variance: tuple[float, float]
    kept_neighbours: float | None


def histogram(values: npt.NDArray[np.floating | np.integer], bins: int = 30) -> Histogram:
    """Equal bins over all values; whole edges for whole numbers."""
    if not len(values):
        return Histogram((0.0, 1.0), (0,))
    low = float(values.min())
    high = float(values.max())
    if np.issubdtype(values.dtype, np.integer):
        width = max(1, math.ceil((high - low + 1) / bins))
        edges = np.arange(low, high + width + 1, width)
    else:
        # bins narrower than this would only show how numbers are rounded
        margin = max(0.0, (max(abs(high) * 1e-3, 1e-9) - (high - low)) / 2)
        edges = np.linspace(low - margin, high + margin, bins + 1)
    counts, edges = np.histogram(values, edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def norms(vectors: Matrix) -> npt.NDArray[np.float64]:
    """(N,) lengths."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))


def unit(vectors: Matrix) -> Matrix:
    """Vectors of length 1, in their directions; a vector of zeros stays."""
    lengths = norms(vectors)[:, None]
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def cosines(
    units: Matrix,
    texts: npt.NDArray[np.integer],
    threshold: float,
    k: int = N_NEIGHBOURS,
) -> Cosines:
    """Compare every two of N unit vectors (N, D). texts: (N,), equal numbers for equal texts. The
    standard error is that of a U-statistic, from how many near rows each row has (Hoeffding 1948):
    pairs of one row are not independent."""
    n_rows = len(units)
    k = min(k, max(0, n_rows - 1))
    neighbours = np.zeros((n_rows, k), np.int64)
    scores = np.zeros((n_rows, k), np.float32)
    degrees = np.zeros(n_rows, np.int64)
    pairs: list[tuple[float, int, int]] = []
    total = 0.0
    n_same = 0
    for start in range(0, n_rows, BLOCK_ROWS):
        block = units[start : start + BLOCK_ROWS] @ units.T  # (B, N)
        own = np.arange(len(block))
        total += float(block.sum(dtype=np.float64) - block[own, start + own].sum(dtype=np.float64))
        block[own, start + own] = -np.inf
        is_near = block >= threshold
        is_same = texts[start : start + len(block), None] == texts  # (B, N)
        degrees[start : start + len(block)] = is_near.sum(axis=1)
        n_same += int((is_near & is_same).sum())
        best = np.argsort(-block, axis=1, kind="stable")[:, :k]
        neighbours[start : start + len(block)] = best
        scores[start : start + len(block)] = np.take_along_axis(block, best, axis=1)
        pairs = _best_pairs(pairs, block, is_near & ~is_same, start)
    n_pairs = n_rows * (n_rows - 1) // 2
    deviation = float(np.std(degrees)) if n_pairs else 0.0
    error = 2 * deviation / max(1, n_rows - 1) / math.sqrt(max(1, n_rows))
    return Cosines(
        neighbours=neighbours,
        scores=scores,
        pairs=tuple(pairs),
        n_pairs=n_pairs,
        n_near=int(degrees.sum()) // 2,
        n_same=n_same // 2,
        n_rows_near=int((degrees > 0).sum()),
        share_error=error,
        mean=total / (2 * n_pairs) if n_pairs else 0.0,
    )


def _best_pairs(
    pairs: list[tuple[float, int, int]], block: Matrix, chosen: npt.NDArray[np.bool_], start: int
) -> list[tuple[float, int, int]]:
    """The most similar pairs so far of those that are chosen, each once. Scores are rounded, so
    that ties are settled by the order of rows and not by the last bit."""
    rows, columns = np.nonzero(chosen)
    is_first = columns > rows + start
    scores = np.round(block[rows, columns], 4)[is_first]
    order = np.argsort(-scores, kind="stable")[:MAX_PAIRS]
    own = rows[is_first][order] + start
    others = columns[is_first][order]
    added = zip(scores[order].tolist(), own.tolist(), others.tolist(), strict=True)
    return sorted([*pairs, *added], key=lambda pair: (-pair[0], *pair[1:]))[:MAX_PAIRS]


def flat_map(vectors: Matrix, neighbours: npt.NDArray[np.int64], seed: int) -> Map | None:
    """Project vectors (N, D) on their two principal components; None for fewer than three rows, one
    dimension, or vectors that are all the same."""
    from sklearn.decomposition import PCA

    if min(vectors.shape) < 2 or len(vectors) < 3 or np.ptp(vectors, axis=0).max() == 0:
        return None
    pca = PCA(2, svd_solver="randomized", random_state=seed)
    places = pca.fit_transform(vectors).astype(np.float32)
    first, second = (float(share) for share in pca.explained_variance_ratio_)
    return Map(places, (first, second), _kept_neighbours(places, neighbours))


def _kept_neighbours(places: Matrix, neighbours: npt.NDArray[np.int64]) -> float | None:
    """Of the first rows, the share of neighbours that are among the nearest in the map as well."""
    k = neighbours.shape[1]
    if len(places) <= 2 * N_NEIGHBOURS:
        return None
    shares = []
    for row in range(min(len(places), _MAP_CHECK_ROWS)):
        distances = ((places - places[row]) ** 2).sum(axis=1)
        distances[row] = np.inf
        near = np.argpartition(distances, k)[:k]
        shares.append(len(np.intersect1d(near, neighbours[row])) / k)
    return float(np.mean(shares))
