"""How long a run takes on this machine, with the pools that it will have here.

In: a plan and a sample of it. Out: a `TimeHere`. Method: start-up, and the tokens over the rates of
all workers: that of earlier runs, else one that is measured now, else one that is calculated. Cost:
none, or that of `measure`.
"""

from __future__ import annotations

import dataclasses
import math

from pipeline.driver.estimate.device_rows import calculated_rate
from pipeline.driver.estimate.here import Here, this_machine
from pipeline.driver.estimate.measure import measured_rate
from pipeline.driver.estimate.model_costs import ModelCosts
from pipeline.driver.estimate.prices import CPU_CORE, device_named
from pipeline.driver.estimate.rates import Rate, model_hash, now, remember
from pipeline.driver.estimate.sample import Sample
from pipeline.driver.planning.plan import Plan
from pipeline.driver.planning.pools import pools_of
from pipeline.storage.words import human

__all__ = ["TimeHere", "seen_tokens", "time_here"]

START_S = 8.0
"""Seconds from the command to the first part and from the last one to the end, where no run has
recorded them: Ray, the imports of workers, listings, the commit."""

LOAD_S_PER_GB = 2.0
"""Seconds for loading a gigabyte of weights, where no run has recorded them."""

MEASURED_FROM_S = 5.0
"""No speed is measured for work that takes less by calculation,"""

MEASURED_FROM_TOKENS = 10_000_000
"""or has fewer tokens, where nothing can be calculated."""

MEASURED_UP_TO_BYTES = 2 << 30
"""The largest weights that a plan loads to measure a speed."""


@dataclasses.dataclass(frozen=True)
class TimeHere:
    """A run on this machine. seconds: in all. rate_source: "run", "measured" or "calculated".
    fits: whether the weights of all workers fit into the memory of this machine."""

    device_name: str
    workers: int
    tokens_per_s: float
    rate_source: str
    start_s: float
    embed_s: float
    seconds: float
    fits: bool


def time_here(
    plan: Plan,
    seen: Sample,
    costs: ModelCosts,
    rates: list[Rate],
    prompt_tokens: int,
    is_measuring: bool,
    notes: list[str],
) -> TimeHere | None:
    """The time of a run on this machine; None where nothing is known of its speed. A rate that is
    measured is added to `rates`, what was not done to `notes`."""
    job = plan.job
    machine = this_machine()
    pools = pools_of(job, machine.cpus, machine.gpus, len(plan.todo), plan.todo_parts)
    workers = pools.embedders.min_workers
    tokens = seen["embedded_tokens"].value
    rate = _rate_here(plan, machine, seen, costs, rates)
    weight_bytes = costs.weight_bytes(job.engine.dtype)
    is_long = tokens > MEASURED_FROM_TOKENS
    if rate:
        is_long = tokens / rate.tokens_per_s / workers > MEASURED_FROM_S
    if is_long and is_measuring and (rate is None or rate.source == "calculated"):
        measured: Rate | str
        if weight_bytes > MEASURED_UP_TO_BYTES:
            measured = f"no speed was measured: the model has {human(weight_bytes)} of weights"
        else:
            measured = measured_rate(
                job, seen.observed.ids, prompt_tokens, workers, pools.embedders.threads
            )
        if isinstance(measured, Rate):
            remember([measured])
            rates.append(measured)
            rate = measured
        else:
            notes.append(measured)
    if rate is None:
        return None
    n_parts = plan.todo_parts
    # the last parts keep some workers waiting
    rounds = math.ceil(n_parts / workers) * workers / n_parts
    embed_s = tokens / rate.tokens_per_s / workers * rounds
    prepare_s = seen.observed.prepare_s / max(1, seen.observed.n_prepared_tokens) * tokens
    if job.engine.device == "cuda":
        embed_s = max(embed_s, prepare_s / pools.tokenizers.min_workers)
    elif rate.source != "run":  # a run's own rate was slowed by its tokenizers
        embed_s += prepare_s / machine.cpus
    start_s = rate.overhead_s
    if start_s is None:
        start_s = START_S + LOAD_S_PER_GB * weight_bytes / 1e9
    return TimeHere(
        device_name=rate.device_name,
        workers=workers,
        tokens_per_s=rate.tokens_per_s,
        rate_source=rate.source,
        start_s=round(start_s, 1),
        embed_s=round(embed_s, 1),
        seconds=round(start_s + embed_s, 1),
        fits=job.engine.device == "cuda" or weight_bytes * workers < 0.9 * machine.memory_bytes,
    )


def _rate_here(
    plan: Plan, machine: Here, seen: Sample, costs: ModelCosts, rates: list[Rate]
) -> Rate | None:
    """The rate of a worker on this machine: a known one, else a calculated one."""
    job = plan.job
    on_gpu = job.engine.device == "cuda"
    name = (machine.gpu_name or "") if on_gpu else machine.cpu_name
    known = next((rate for rate in rates if rate.device_name == name), None)
    entry = device_named(name if on_gpu else CPU_CORE)
    if known or entry is None:
        return known
    calculated = calculated_rate(entry[1], job.engine.dtype, costs, seen_tokens(seen))
    if calculated is None:
        return None
    device = job.engine.device
    speed = round(calculated[0], 1)
    return Rate(device, name, job.engine.dtype, model_hash(job), speed, 0, "calculated", now())


def seen_tokens(seen: Sample) -> float:
    """How many tokens a token sees on average."""
    return seen["squared_tokens"].value / max(1.0, seen["tokens"].value)
