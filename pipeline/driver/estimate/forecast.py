"""The estimate of a run: what it will read and embed, how long it takes here, what it costs
elsewhere, how large its output is.

In: a plan, and the place of its run. Out: an `Estimate`. Method: a sample (`sample`), the rates of
earlier runs or a short measurement, the pools that the run will have. Cost: the seconds of the
sample, those of the measurement where there is one. Neither torch nor ray is imported.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.driver.estimate.device_rows import DeviceRow, device_rows
from pipeline.driver.estimate.look import look_at
from pipeline.driver.estimate.model_costs import ModelCosts, costs_of
from pipeline.driver.estimate.outlook import Outlook
from pipeline.driver.estimate.output_bytes import output_bytes
from pipeline.driver.estimate.rates import known_rates
from pipeline.driver.estimate.sample import SECONDS, Sample
from pipeline.driver.estimate.time_here import TimeHere, seen_tokens, time_here
from pipeline.driver.estimate.totals import Figure
from pipeline.driver.planning.plan import Plan
from pipeline.job.model.directory import ModelDir
from pipeline.output.snapshots import load_generation
from pipeline.storage.store import Store

__all__ = ["Estimate", "estimate_of"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """carried: rows that stay as they are, or are finished. here: None for a run on a cluster, and
    where nothing is known of the speed. bytes_by_precision: of the rows that are new. notes:
    sentences on what was not done."""

    sample: Sample
    carried: int
    documents_removed_at_most: int
    costs: ModelCosts
    model_bytes: int
    dimension: int | None
    bytes_by_precision: dict[str, int]
    precision: str
    here: TimeHere | None
    devices: tuple[DeviceRow, ...]
    outlook: Outlook
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """What the record of an attempt keeps, to be compared with what came."""
        figures = {
            name: round(self.sample[name].value)
            for name in ("documents", "rows", "tokens", "embedded_tokens")
        }
        return {
            **figures,
            "seconds": round(self.here.seconds, 1) if self.here else None,
            "margin": _plain(self.sample["tokens"])["margin"],
        }

    def facts(self) -> dict[str, Any]:
        """The whole estimate as plain data."""
        sample = self.sample
        observed = sample.observed
        lengths = sorted(
            int(name.split()[1]) for name in sample.figures if name.startswith("length ")
        )
        return {
            **{name: _plain(sample[name]) for name in _FIGURES},
            "carried_rows": self.carried,
            "documents_removed_at_most": self.documents_removed_at_most,
            "sample": {
                "is_whole": sample.is_whole,
                "cells": sample.n_cells,
                "documents": observed.n_documents,
                "rows": observed.n_rows,
                "share_read": round(sample.share_read, 4),
                "seconds": round(sample.seconds, 2),
                "repeated_rows": observed.n_repeated,
                "reject_reasons": dict(observed.reject_reasons),
                "partitions": len(observed.partitions),
            },
            "first_document": None if sample.first is None else dataclasses.asdict(sample.first),
            "lengths": [
                {
                    "from_tokens": 1 << power,
                    "below_tokens": 2 << power,
                    "rows": round(sample[f"length {power}"].value),
                }
                for power in lengths
            ],
            "chunks": self.outlook.chunks,
            "model": {
                "parameters": self.costs.parameters,
                "weights_bytes": self.model_bytes,
                "dimension": self.dimension,
            },
            "bytes_by_precision": self.bytes_by_precision,
            "precision": self.precision,
            "here": None if self.here is None else dataclasses.asdict(self.here),
            "devices": [dataclasses.asdict(row) for row in self.devices],
            "notes": [*sample.problems, *self.notes],
        }


_FIGURES = ("documents", "rejects", "rows", "tokens", "embedded_tokens", "reused", "truncated")


def _plain(figure: Figure) -> dict[str, float | None]:
    margin = None if figure.margin is None else round(figure.margin, 4)
    return {"value": round(figure.value), "margin": margin}


def estimate_of(
    plan: Plan,
    store: Store,
    is_alone: bool,
    *,
    seconds: float = SECONDS,
    is_measuring: bool = True,
) -> Estimate | None:
    """The estimate of what a plan leaves to do; None where that is nothing.

    is_alone: whether all workers are on this machine. is_measuring: whether a speed that nobody
    knows is measured. Raises ModelError for a tokenizer that cannot be loaded, SpecError for a
    table of prices that cannot be read, StorageError, WorkerError where the input cannot be looked
    at.
    """
    if not plan.todo:
        return None
    job = plan.job
    model = job.model_of_driver()
    look = look_at(plan, store, model, seconds)
    if look is None:
        return None
    seen = look.sample
    costs = costs_of(model)
    rates = known_rates(job, store, plan.head)
    notes: list[str] = []
    here = None
    if is_alone:
        here = time_here(plan, seen, costs, rates, look.prompt_tokens, is_measuring, notes)
    tokens = seen["embedded_tokens"].value
    dimension = _dimension(plan, store, model)
    precision = job.spec.output.vector_precision
    row_bytes = seen.observed.row_bytes(job.spec.output.include_text)
    budget = job.spec.runtime.max_batch_tokens
    return Estimate(
        sample=seen,
        carried=sum(part.n_rows for part in plan.done),
        documents_removed_at_most=sum(part.n_documents for part in plan.stale),
        costs=costs,
        model_bytes=costs.weight_bytes(job.engine.dtype),
        dimension=dimension,
        bytes_by_precision=output_bytes(seen["rows"].value, dimension, row_bytes)
        if dimension
        else {},
        precision=precision,
        here=here,
        devices=tuple(
            device_rows(
                tokens,
                seen_tokens(seen),
                costs,
                rates,
                job.spec.model.dtype,
                None if budget == "auto" else budget,
            )
        ),
        outlook=look.outlook,
        notes=tuple(notes),
    )


def _dimension(plan: Plan, store: Store, model: ModelDir) -> int | None:
    """Of the vectors: what the output has, else what the directory says."""
    options = plan.job.engine
    if plan.head and plan.head.fingerprint == plan.job.fingerprint:
        generation = load_generation(store, plan.head.fingerprint)
        return generation.dimension if generation else None
    stated = model.max_dimension
    if options.truncate_dim:
        return min(options.truncate_dim, stated or options.truncate_dim)
    return stated
