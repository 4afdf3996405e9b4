"""A short measurement of this machine's speed: sampled token ids go through the engine in child
processes, as many as a run has embedders here.

In: a job, token ids. Out: a `Rate`, or why there is none. torch is imported in the children alone.
Cost: LIMIT_S at most, of which loading is most.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt

from pipeline.driver.estimate.rates import Rate, model_hash, now
from pipeline.errors import CorpusEmbedError
from pipeline.job.resolve import Job
from pipeline.workers.isolate import Child, Crashed

__all__ = ["measured_rate"]

LIMIT_S = 20.0
"""After this long the children are killed, whatever they do."""

EMBED_S = 3.0
CALL_TOKENS = 1 << 13
MAX_CHILDREN = 4

Ids = npt.NDArray[np.int32]

_Speed = tuple[int, float, str]
"""Tokens, the seconds that they took, and the name of the device."""


def measured_rate(
    job: Job,
    texts: Sequence[Ids],
    prompt_tokens: int,
    n_workers: int,
    threads: int | None,
    limit_s: float = LIMIT_S,
) -> Rate | str:
    """The speed of a worker while `n_workers` of them work; a sentence where it was not measured.

    texts: ids of the texts to embed. threads: of each worker. limit_s: when to give up.
    """
    deadline_s = time.monotonic() + limit_s
    arguments = (job, list(texts), prompt_tokens, threads)
    n_children = min(n_workers, MAX_CHILDREN)
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(_load, *arguments)) for _ in range(n_children)]
        with ThreadPoolExecutor(n_children) as pool:
            pending = [pool.submit(child.ask, None, deadline_s) for child in children]
            try:
                wait(pending)
            finally:  # also of a wait that Ctrl-C ends
                for child in children:
                    child.kill()
    answers: list[_Speed] = []
    for future in pending:
        try:
            answers.append(future.result())
        except TimeoutError:
            return f"no speed was measured: loading the model took more than {limit_s:.0f} s"
        except Crashed as crash:
            return f"no speed was measured: {crash.detail}"
        except (CorpusEmbedError, OSError) as error:
            return f"no speed was measured: {error}"
    speeds = [n_tokens / seconds for n_tokens, seconds, _ in answers]
    return Rate(
        device=job.engine.device,
        device_name=answers[0][2],
        dtype=job.engine.dtype,
        model=model_hash(job),
        tokens_per_s=round(sum(speeds) / len(speeds), 1),
        n_tokens=sum(answer[0] for answer in answers),
        source="measured",
        date=now(),
    )


def _load(
    job: Job, texts: list[Ids], prompt_tokens: int, threads: int | None
) -> Callable[[object], _Speed]:
    """For a `Child`. The model is loaded when it is asked: a child that dies before would be
    started again."""

    def speed(_: object) -> _Speed:
        # torch: for the child alone
        from pipeline.embed.loading import load_engine

        engine = load_engine(job.model(), job.engine, prompt_tokens, threads)
        calls = list(_calls(texts))
        engine.embed(*calls[0])  # warms up
        started_s = time.perf_counter()
        n_tokens = 0
        while (seconds := time.perf_counter() - started_s) < EMBED_S:
            for ids, offsets in calls:
                engine.embed(ids, offsets)
                n_tokens += len(ids)
                if time.perf_counter() - started_s > EMBED_S:
                    break
        return n_tokens, seconds, engine.device_name

    return speed


def _calls(texts: list[Ids]) -> list[tuple[Ids, npt.NDArray[np.int64]]]:
    """Texts in calls of about CALL_TOKENS: ids and offsets of each."""
    ends = np.cumsum([len(ids) for ids in texts])
    numbers = (ends // CALL_TOKENS).tolist()
    calls = []
    for number in sorted(set(numbers)):
        some = [ids for ids, own in zip(texts, numbers, strict=True) if own == number]
        offsets = np.cumsum([0, *(len(ids) for ids in some)]).astype(np.int64)
        calls.append((np.concatenate(some), offsets))
    return calls
