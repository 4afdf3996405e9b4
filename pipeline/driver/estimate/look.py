"""The look at the input that an estimate takes, in a process of its own.

In: a plan, the store of its output, seconds. Out: a `Look`. A record that kills whoever touches it
costs the estimate: a run rejects such a record, and must not die of having looked at it before.
Cost: a process, 0.5 s of CPU, beside that of the sample; nobody else loads the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.driver.estimate.outlook import Outlook, outlook_of
from pipeline.driver.estimate.sample import Sample, sample
from pipeline.driver.planning.plan import Plan
from pipeline.errors import WorkerError
from pipeline.job.model.directory import ModelDir
from pipeline.storage.store import Store
from pipeline.tokenize import load_tokenizer
from pipeline.workers.isolate import Child, Crashed

__all__ = ["Look", "look_at"]


@dataclass(frozen=True)
class Look:
    """prompt_tokens: leading ids of every text."""

    sample: Sample
    outlook: Outlook
    prompt_tokens: int


def look_at(plan: Plan, store: Store, model: ModelDir, seconds: float) -> Look | None:
    """None where a plan leaves nothing to do. Raises ModelError for a tokenizer that cannot be
    loaded, StorageError, and WorkerError where looking killed the process."""
    with Child(_load, plan, store, model) as child:
        try:
            look: Look | None = child.ask(seconds)
        except Crashed as crash:
            raise WorkerError(
                f"there is no estimate, because some of the input kills the process that prepares "
                f"it ({crash.detail}). A run finds the records that do so and rejects them."
            ) from crash
    return look


def _load(plan: Plan, store: Store, model: ModelDir) -> Callable[[float], Look | None]:
    job = plan.job
    tokenizer = load_tokenizer(model, max_tokens=job.max_tokens, prompt=job.prompt)

    def look(seconds: float) -> Look | None:
        seen = sample(plan, store, tokenizer, seconds)
        if seen is None:
            return None
        return Look(seen, outlook_of(plan, tokenizer, seen), tokenizer.prompt_tokens)

    return look
