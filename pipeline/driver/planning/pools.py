"""How many workers each stage of a run gets, from what there is.

In: a job, and the CPUs and GPUs of a cluster or of this machine. Out: a pool for each stage. Ray is
not imported: a plan asks, too. Cost: arithmetic.
"""

from __future__ import annotations

import dataclasses
import math

from pipeline.job.resolve import Job

__all__ = ["Pool", "Pools", "pools_of"]


@dataclasses.dataclass(frozen=True)
class Pool:
    """The workers of a stage.

    min_workers: how many it starts with and keeps. max_workers: how many it can grow to. cpus,
    gpus: what each worker requests from the cluster. threads: how many each computes with; None for
    PyTorch's default.
    """

    min_workers: int
    max_workers: int
    cpus: float
    gpus: float = 0.0
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Pools:
    """The pool of each stage."""

    tokenizers: Pool
    embedders: Pool
    writers: Pool


def pools_of(job: Job, cpus: int, gpus: int, n_splits: int, n_parts: int) -> Pools:
    """Pool sizes for so many CPUs and GPUs; `runtime.tokenizers` and `runtime.embedders`
    override the counts.

    GPU cluster: there is one embedder per GPU, and 70 % of the CPUs tokenize. Embedders request no
    CPU, so tokenizers can never keep one from its GPU. CPU only: embedding is nearly all of the
    work, so each core gets an embedder with one thread. The shares of all pools add up to the CPUs
    of the cluster; otherwise one stage could wait without end for what another one holds.

    Ray Data grows a pool up to `max_workers` while parts wait for it and a node has room, which is
    how nodes that join late are used, and removes those workers again when they are idle.
    """
    runtime = job.spec.runtime
    on_gpu = job.engine.device == "cuda"
    tokenize_share, embed_share, write_share = (0.7, 0.0, 0.1) if on_gpu else (0.1, 0.8, 0.1)

    max_embedders = max(1, n_parts) if runtime.embedders == "auto" else runtime.embedders
    embedders = max_embedders
    if on_gpu:
        embedders = min(max(1, gpus), max_embedders)
    elif runtime.embedders == "auto":
        embedders = min(cpus, max_embedders)

    tokenizers = (
        max(1, int(tokenize_share * cpus)) if runtime.tokenizers == "auto" else runtime.tokenizers
    )
    min_tokenizers = min(tokenizers, n_splits)
    tokenizers_grow = on_gpu and runtime.tokenizers == "auto"

    writers = max(2, embedders, cpus // 4)

    def cpus_each(share: float, workers: int) -> float:
        return min(1.0, math.floor(share * cpus / workers * 1000) / 1000)

    return Pools(
        tokenizers=Pool(
            min_workers=min_tokenizers,
            max_workers=n_splits if tokenizers_grow else min_tokenizers,
            # An embedder must fit on the same node, which may have only one CPU.
            cpus=min(cpus_each(tokenize_share, tokenizers), round(1 - embed_share, 3)),
        ),
        embedders=Pool(
            min_workers=embedders,
            max_workers=max_embedders,
            cpus=cpus_each(embed_share, embedders),
            gpus=1.0 if on_gpu else 0.0,
            threads=None if on_gpu else max(1, cpus // embedders),
        ),
        writers=Pool(
            min_workers=writers,
            max_workers=max(writers, max_embedders) if on_gpu else writers,
            cpus=cpus_each(write_share, writers),
        ),
    )
