"""The look at the input that an estimate takes, in a process of its own.

In: a plan, the store of its output, seconds. Out: a `Look`. A record that kills the process which
reads it costs the estimate alone: a run rejects such a record, and must not die of a look at it.
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
    loaded, StorageError, and WorkerError where the look killed its process or raised."""
    with Child(_load, plan, store, model) as child:
        try:
            look: Look | None = child.ask(seconds)
        except Crashed as crash:
            if crash.died:
                raise WorkerError(
                    "There is no estimate: some of the input kills the process that prepares it "
                    f"({crash.detail}). A run finds the records that do so and rejects them."
                ) from crash
            raise WorkerError(
                f"There is no estimate: a look at a sample of the input failed ({crash.detail}). "
                "The rest of the plan does not need it."
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
