"""What a person wants to know before a run beyond the arithmetic of its plan: how long chunks are,
and how many partitions there will be.

In: a plan. Out: an `Outlook`. Cost: the start of one shard for partitions, the loading of the
tokenizer for chunks. Neither torch nor ray is imported.
"""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.driver.plan import Plan
from pipeline.errors import InputError, SpecError
from pipeline.job.resolve import Job
from pipeline.read.parts import read_tables
from pipeline.storage.lineage import Span
from pipeline.storage.words import agreeing, counted, number
from pipeline.tokenize import load_tokenizer
from pipeline.workers.rows import chunk_limits


@dataclasses.dataclass(frozen=True)
class Outlook:
    """chunks: their length in words, None where nothing is cut. n_partitions: combinations of
    partition values among the first `n_sampled` records; None where nothing is partitioned or
    read."""

    chunks: str | None = None
    n_partitions: int | None = None
    n_sampled: int = 0


def outlook_of(plan: Plan) -> Outlook:
    """Look at the model and the first shard of a plan that has something to do. Raises ModelError
    for a tokenizer that cannot be loaded."""
    if not plan.todo:
        return Outlook()
    n_partitions, n_sampled = _partitions(plan.job, plan.todo[0].split.spans[0])
    return Outlook(_chunks(plan.job), n_partitions, n_sampled)


def _chunks(job: Job) -> str | None:
    prepare = job.spec.prepare
    if prepare.long_documents == "truncate":
        return None
    tokenizer = load_tokenizer(job.model(), max_tokens=job.max_tokens, prompt=job.prompt)
    limit, overlap = chunk_limits(job, tokenizer)
    words = f"chunks of at most {counted(limit, 'token')}, {number(overlap)} shared with the next"
    if limit == prepare.chunk.max_tokens:
        return words
    n_others = tokenizer.special_tokens + tokenizer.prompt_tokens
    return (
        f"{words} (asked {number(prepare.chunk.max_tokens)}; the model takes "
        f"{number(job.max_tokens)}, of which {number(n_others)} "
        f"{agreeing(n_others, 'is', 'are')} special tokens and the prompt)"
    )


def _partitions(job: Job, span: Span) -> tuple[int | None, int]:
    """(combinations of partition values, records) in the first table of a span."""
    by = list(job.spec.output.partition_by)
    if not by:
        return None, 0
    try:
        records = next(read_tables(span, job), None)
    except (InputError, SpecError):  # its preview says so
        return None, 0
    if records is None:
        return None, 0
    good = records.filter(pc.is_null(records["reason"])).select(by)
    as_text = pa.table({name: pc.cast(good[name], pa.string()) for name in by})
    return as_text.group_by(by, use_threads=False).aggregate([]).num_rows, good.num_rows
