"""Where a sample looks: the stored bytes that a plan still reads, divided into cells.

In: the splits of a plan. Out: cells in the order in which they are read. A cell is a stretch of an
uncompressed line format, a row group of Parquet, or a whole shard of another kind. Method:
sequential Poisson sampling (Ohlsson 1998): cells stand in the order of a random number divided by
their bytes, so the first n of them are a sample without replacement whose probabilities are in
proportion to bytes, for every n. Cost: a footer for each Parquet shard, where these are few.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError, ShardDamaged
from pipeline.job.input_spec import InputSpec
from pipeline.read import format_of
from pipeline.read.compression import compression_of
from pipeline.read.input.shards import open_shard
from pipeline.read.parts import Todo
from pipeline.read.row_groups import ParquetShard
from pipeline.storage.lineage import Shard, Span

__all__ = ["Cell", "Cells", "cells_of"]

MANY_CELLS = 4096
"""The most cells among which a sample chooses; of more, so many are drawn first."""

MANY_FOOTERS = 32
"""The most Parquet shards whose footers are read; of more, a row group stands for its shard."""

_LINE_FORMATS = {"jsonl", "text"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """span: what is read of the shard. n_bytes: its weight, in stored bytes. is_lines: whether it
    is a stretch that was cut at bytes, in which records start and end anywhere. is_any: whether one
    row group has to be drawn from it."""

    format: str
    span: Span
    n_bytes: float
    is_lines: bool = False
    is_any: bool = False


@dataclasses.dataclass(frozen=True)
class Cells:
    """Cells in the order of a sample. n_bytes: of the whole population, of which they may be a
    sample themselves."""

    ordered: tuple[Cell, ...]
    n_bytes: float
    is_all: bool

    def probabilities(self, n: int) -> npt.NDArray[np.float64]:
        """(n,) with which each of the first n cells is among the first n."""
        weights = np.array([cell.n_bytes for cell in self.ordered])
        if not self.is_all:
            return np.minimum(1.0, n * weights[:n] / self.n_bytes)
        if n >= len(weights):
            return np.ones(len(weights))
        is_certain = np.zeros(len(weights), bool)
        while True:  # large cells are certain, and the others share what remains
            rest = weights[~is_certain].sum()
            shares = np.where(is_certain, 1.0, (n - is_certain.sum()) * weights / rest)
            if (shares <= 1).all():
                return shares[:n]
            is_certain |= shares >= 1


def cells_of(
    todo: Sequence[Todo], spec: InputSpec, cell_bytes: int, chance: random.Random
) -> Cells:
    """The cells of some splits, those of line formats of `cell_bytes` each."""
    spans_of: dict[Shard, list[Span]] = {}
    for split in todo:
        for span in split.split.spans:
            spans_of.setdefault(span.shard, []).append(span)
    n_parquet = sum(format_of(shard.uri, spec.format) == "parquet" for shard in spans_of)
    whole: list[Cell] = []
    lines: list[Span] = []
    for shard, spans in spans_of.items():
        name = format_of(shard.uri, spec.format)
        if name in _LINE_FORMATS and not compression_of(shard.uri):
            lines += spans
        elif name == "parquet":
            whole += _row_groups(shard, spans, spec, n_parquet <= MANY_FOOTERS)
        else:
            whole.append(Cell(name, Span(shard=shard), shard.size_bytes))
    n_bytes = sum(cell.n_bytes for cell in whole) + sum(map(_range_bytes, lines))
    n_cells = len(whole) + sum(_range_bytes(span) // cell_bytes + 1 for span in lines)
    if n_cells > MANY_CELLS:
        drawn = _drawn([*whole, *(_whole_range(span, spec) for span in lines)], cell_bytes, chance)
        return Cells(tuple(drawn), n_bytes, is_all=False)
    cells = [*whole, *(cell for span in lines for cell in _stretches(span, cell_bytes, spec))]
    cells = [cell for cell in cells if cell.n_bytes]
    cells.sort(key=lambda cell: chance.random() / cell.n_bytes)
    return Cells(tuple(cells), n_bytes, is_all=True)


def _drawn(ranges: Sequence[Cell], cell_bytes: int, chance: random.Random) -> list[Cell]:
    """MANY_CELLS of very many cells in random order, in proportion to bytes: at equal distances
    from a random start. ranges: whole cells, and byte ranges of which one stretch is taken."""
    ends = np.cumsum([each.n_bytes for each in ranges])
    positions = (np.arange(MANY_CELLS) + chance.random()) * (ends[-1] / MANY_CELLS)
    numbers = np.minimum(np.searchsorted(ends, positions, side="right"), len(ranges) - 1)
    cells: dict[tuple[int, int], Cell] = {}
    for number, position in zip(numbers.tolist(), positions.tolist(), strict=True):
        cell = ranges[number]
        stretch = 0
        if cell.is_lines:
            offset = position - (ends[number] - cell.n_bytes)
            stretch = int(offset // cell_bytes)
            start = cell.span.start + stretch * cell_bytes
            n_bytes = min(cell_bytes, cell.span.start + cell.n_bytes - start)
            span = Span(shard=cell.span.shard, start=start, stop=start + int(n_bytes))
            cell = dataclasses.replace(cell, span=span, n_bytes=n_bytes)
        cells[number, stretch] = cell
    drawn = list(cells.values())
    chance.shuffle(drawn)
    return drawn


def _whole_range(span: Span, spec: InputSpec) -> Cell:
    return Cell(format_of(span.shard.uri, spec.format), span, _range_bytes(span), is_lines=True)


def _stretches(span: Span, cell_bytes: int, spec: InputSpec) -> Iterator[Cell]:
    stop = span.start + _range_bytes(span)
    name = format_of(span.shard.uri, spec.format)
    for start in range(span.start, stop, cell_bytes):
        end = min(start + cell_bytes, stop)
        stretch = Span(shard=span.shard, start=start, stop=end)
        yield Cell(name, stretch, end - start, is_lines=True)


def _row_groups(
    shard: Shard, spans: Sequence[Span], spec: InputSpec, reads_footer: bool
) -> Iterator[Cell]:
    """A cell for each row group to read, or one for the shard. The bytes of a row group are its
    share of the rows: a footer can state any size."""
    if not reads_footer:
        yield from (Cell("parquet", span, shard.size_bytes, is_any=True) for span in spans[:1])
        return
    try:
        with open_shard(shard, spec.storage_options) as file:
            metadata = ParquetShard(file, shard.uri).metadata
    except (ShardDamaged, InputError):  # reading it reports the damage
        yield Cell("parquet", Span(shard=shard), shard.size_bytes)
        return
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    groups = itertools.chain.from_iterable(range(len(counts))[s.start : s.stop] for s in spans)
    for group in groups:
        n_bytes = shard.size_bytes * counts[group] / max(1, sum(counts))
        yield Cell("parquet", Span(shard=shard, start=group, stop=group + 1), n_bytes)


def _range_bytes(span: Span) -> int:
    stop = span.shard.size_bytes if span.stop is None else min(span.stop, span.shard.size_bytes)
    return max(0, stop - span.start)
