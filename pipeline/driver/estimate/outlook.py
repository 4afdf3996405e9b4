"""What a person wants to know before a run beyond its figures: how long chunks are, and how many
partitions there will be.

In: a plan, its tokenizer, and a sample of its input. Out: an `Outlook`. Cost: none. Neither torch
nor ray is imported.
"""

from __future__ import annotations

import dataclasses

from pipeline.driver.estimate.sample import Sample
from pipeline.driver.planning.plan import Plan
from pipeline.job.resolve import Job
from pipeline.storage.words import number
from pipeline.tokenize import Tokenizer
from pipeline.workers.rows import chunk_limits


@dataclasses.dataclass(frozen=True)
class Outlook:
    """chunks: their length in words, None where nothing is cut. n_partitions: combinations of
    partition values among `n_sampled` records; None where nothing is partitioned."""

    chunks: str | None = None
    n_partitions: int | None = None
    n_sampled: int = 0


def outlook_of(plan: Plan, tokenizer: Tokenizer, seen: Sample) -> Outlook:
    """The outlook of a plan that has something to do."""
    chunks = _chunks(plan.job, tokenizer)
    if not plan.job.spec.output.partition_by:
        return Outlook(chunks)
    return Outlook(chunks, len(seen.observed.partitions), seen.observed.n_records)


def _chunks(job: Job, tokenizer: Tokenizer) -> str | None:
    prepare = job.spec.prepare
    if prepare.long_documents == "truncate":
        return None
    limit, overlap = chunk_limits(job, tokenizer)
    words = f"chunks of at most {number(limit)} tokens, {number(overlap)} shared with the next"
    if limit == prepare.chunk.max_tokens:
        return words
    n_others = tokenizer.special_tokens + tokenizer.prompt_tokens
    return (
        f"{words} (asked {number(prepare.chunk.max_tokens)}; the model takes "
        f"{number(job.max_tokens)}, of which {number(n_others)} are special tokens and the prompt)"
    )
