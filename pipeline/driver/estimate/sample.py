"""A sample of what a plan embeds: windows of records, prepared as a run prepares them.

In: a plan, seconds. Out: a `Sample`: totals with margins, lengths, duplicates, the first document.
Method: cells are drawn (`cells`, `blocks`), seeded by the id of the run, and go through
`workers.steps.prepare_part`, so that cleaning, cuts, prompt and limits are the run's own. Sampling
ends when the margins are small or the time is over. An input of WHOLE_BYTES is counted whole, part
by part. Cost: `seconds`, and one block more; the loading of the tokenizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time

import numpy as np
import pyarrow as pa

from pipeline.driver.estimate.blocks import Blocks, record_bytes
from pipeline.driver.estimate.cells import cells_of
from pipeline.driver.estimate.first_document import FirstDocument, first_document
from pipeline.driver.estimate.known_texts import KnownTexts
from pipeline.driver.estimate.observed import Observed
from pipeline.driver.estimate.totals import Figure, Sums, Totals
from pipeline.driver.planning.plan import Plan
from pipeline.errors import InputError
from pipeline.read.parts import Part, with_source
from pipeline.storage.lineage import Manifest
from pipeline.storage.store import Store
from pipeline.storage.words import agreeing, counted
from pipeline.tokenize import Tokenizer
from pipeline.workers.isolate import Crashed, in_process
from pipeline.workers.steps import prepare_part, unfinished_parts

__all__ = ["Sample", "sample"]

SECONDS = 4.0
"""How long `plan` samples by default."""

MARGIN = 0.05
"""Sampling ends when the 95 % intervals of rows and tokens are narrower than this to each side."""

MIN_CELLS = 30
MIN_CELL_BYTES = 64 << 10
MAX_CELL_BYTES = 512 << 10
"""Bytes of a cell of lines: a 128th of the input between these, more where records are long."""

RECORDS_PER_CELL = 8
PREPARED_BYTES = 64 << 10
"""About how many bytes of the records of a cell are prepared, which costs most of the time."""

MIN_PREPARED = 4
ALL_STARTS_BYTES = 64 << 20
MIN_START_BYTES = 1 << 20
MAX_START_BYTES = 8 << 20
"""How much is read of a shard that cannot be read from its middle: the more, the fewer there are.
"""

WHOLE_BYTES = 2 << 20
"""An input of so many bytes of records is counted and not sampled."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a sample says of the work that a plan leaves.

    figures: by name, see `Observed.add`. is_whole: whether everything was read. n_cells: 0 then.
    problems: what the sample cannot know, in sentences. observed: the records that were looked at.
    """

    figures: dict[str, Figure]
    is_whole: bool
    n_cells: int
    share_read: float
    seconds: float
    observed: Observed
    first: FirstDocument | None
    problems: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Figure:
        return self.figures.get(name, Figure(0.0, 0.0))


def sample(
    plan: Plan,
    store: Store,
    tokenizer: Tokenizer,
    seconds: float = SECONDS,
    seed: int | str | None = None,
) -> Sample | None:
    """Look at what a plan leaves to do; None where that is nothing. seed: by default the id of the
    run. Raises StorageError."""
    if not plan.todo:
        return None
    started_s = time.monotonic()
    deadline_s = started_s + seconds
    known = KnownTexts(store, plan.job.fingerprint, plan.earlier)
    first, n_record_bytes = first_document(plan, tokenizer, deadline_s)
    chance = random.Random(plan.run_id if seed is None else seed)  # noqa: S311 - no secret
    sampling = _Sampling(plan, tokenizer, known, chance, deadline_s)
    is_whole = plan.todo_bytes <= WHOLE_BYTES and sampling.read_all()
    if not is_whole:
        sampling = _Sampling(plan, tokenizer, known, chance, deadline_s)
        sampling.read_cells(n_record_bytes)
    observed = sampling.observed
    problems = [known.problem] if known.problem else []
    return Sample(
        figures=sampling.figures(),
        is_whole=is_whole,
        n_cells=0 if is_whole else len(sampling.totals),
        share_read=1.0 if is_whole else min(1.0, observed.n_bytes / max(1, plan.todo_bytes)),
        seconds=time.monotonic() - started_s,
        observed=observed,
        first=first,
        problems=(*problems, *sampling.problems),
    )


class _Sampling:
    """One way through the input, whole or in cells."""

    def __init__(
        self,
        plan: Plan,
        tokenizer: Tokenizer,
        known: KnownTexts,
        chance: random.Random,
        deadline_s: float,
    ) -> None:
        self._plan = plan
        self._tokenizer = tokenizer
        self._known = known
        self._deadline_s = deadline_s
        self._chance = chance
        self._before: list[Manifest] = []
        self.observed = Observed(plan.job)
        self.totals = Totals(None)
        self.problems: list[str] = []

    def read_all(self) -> bool:
        """Every part that is to be done; False where the time was over before, or one failed."""
        try:
            for todo in self._plan.todo:
                for part in unfinished_parts(todo, self._plan.job):
                    if time.monotonic() > self._deadline_s:
                        return False
                    self.totals.add(self._sums(part, part.records.num_rows))
        except (InputError, Crashed):
            return False
        return True

    def read_cells(self, n_record_bytes: int) -> None:
        """Cells until the margins are small or the time is over."""
        plan = self._plan
        spec = plan.job.spec.input
        cell_bytes = min(max(MIN_CELL_BYTES, plan.todo_bytes // 128), MAX_CELL_BYTES)
        cell_bytes = min(max(cell_bytes, RECORDS_PER_CELL * n_record_bytes), 8 * MAX_CELL_BYTES)
        cells = cells_of(plan.todo, spec, cell_bytes, self._chance)
        n_likely = min(len(cells.ordered), 2 * MIN_CELLS) or 1
        prepared_bytes = max(PREPARED_BYTES, WHOLE_BYTES // n_likely)
        start_bytes = min(max(MIN_START_BYTES, ALL_STARTS_BYTES // n_likely), MAX_START_BYTES)
        self.totals = Totals(cells)
        # finished parts of a split are among its cells
        split_ids = {todo.split.split_id for todo in plan.todo}
        self._before = [part for part in plan.done if part.split.split_id in split_ids]
        n_starts = 0
        with contextlib.closing(
            Blocks(spec, self._chance, start_bytes, self._deadline_s)
        ) as blocks:
            for place, cell in enumerate(cells.ordered):
                try:
                    block = blocks.read(cell)
                    records = with_source(
                        _some(block.records, prepared_bytes, self._chance), block.shard, spec
                    )
                    part = Part(plan.todo[0].split, 0, True, records, ())
                    sums = self._sums(part, block.records.num_rows)
                except InputError as error:  # its preview says so, where it concerns the spec
                    self.problems = [f"some of the input could not be read: {error}"]
                    continue
                except Crashed as crash:  # a run isolates the record
                    self.problems = [f"some of the input could not be prepared: {crash.detail}"]
                    continue
                n_starts += block.share_read < 1
                self.totals.add(sums, place, block.n_bytes, block.share_read)
                if self._is_enough() or time.monotonic() > self._deadline_s:
                    break
        if n_starts:
            shards = counted(n_starts, "shard or row group", "shards or row groups")
            self.problems.append(
                f"{shards} of {len(self.totals)} {agreeing(n_starts, 'was', 'were')} read from the "
                "start and not to the end: the margins hold if the rest is alike"
            )

    def figures(self) -> dict[str, Figure]:
        """The totals by name, without what is finished."""
        figures = {name: self.totals.figure(name) for name in self.totals.names()}
        for name, field in _FIELDS.items():
            if name in figures:
                n_before = sum(getattr(part, field) for part in self._before)
                figures[name] = figures[name].plus(-n_before)
        return figures

    def _sums(self, part: Part, n_records: int) -> Sums:
        started_s = time.perf_counter()
        prepare = in_process(prepare_part)
        prepared = prepare(part, self._plan.job, self._tokenizer, self._plan.run_id)
        seconds = time.perf_counter() - started_s
        return self.observed.add(part.records, prepared, seconds, n_records, self._known)

    def _is_enough(self) -> bool:
        n = len(self.totals)
        if n < MIN_CELLS or n % 4:
            return False
        margins = [self.totals.figure(name).margin for name in ("rows", "tokens")]
        return all(margin is not None and margin <= MARGIN for margin in margins)


def _some(records: pa.Table, n_bytes: int, chance: random.Random) -> pa.Table:
    """About `n_bytes` of records, at equal distances in the order of their lengths, from a random
    start."""
    lengths = record_bytes(records).to_numpy()
    mean_bytes = lengths.sum() / max(1, len(lengths))
    n_taken = max(MIN_PREPARED, round(n_bytes / max(1.0, mean_bytes)))
    if n_taken >= records.num_rows:
        return records
    places = (np.arange(n_taken) + chance.random()) * (records.num_rows / n_taken)
    return records.take(np.argsort(lengths, kind="stable")[places.astype(np.int64)])


_FIELDS = {
    **{name: f"n_{name}" for name in ("records", "documents", "rejects", "rows", "tokens")},
    **{name: f"n_{name}" for name in ("embedded_tokens", "reused", "truncated")},
}
"""Figure -> field of a manifest."""
