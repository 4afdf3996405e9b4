"""The table of `benchmarks.engine`, and what follows from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.engine_candidates import Entry, Workload
from benchmarks.machine import cpu_name
from benchmarks.reference import min_cosine

SAME = 0.9999
"""Lowest cosine of a float32 rival that computes what `encode` computes."""
NARROW = ("int8", "qint8")


def print_header(work: Workload, n_rounds: int) -> None:
    print(cpu_name())
    print(
        f"{len(work.texts)} texts, {work.n_tokens.mean():.0f} tokens on average "
        f"(median {np.median(work.n_tokens):.0f}, longest {work.n_tokens.max()}), "
        f"{work.n_threads} threads, torch {torch.__version__} "
        f"({torch.backends.cpu.get_cpu_capability()}), {n_rounds} rounds",
        flush=True,
    )


def report(
    entries: Sequence[Entry],
    ceilings: dict[torch.dtype, list[float]],
    work: Workload,
    reference: np.ndarray,
) -> bool:
    """Print it; True when every float32 rival computed the same vectors."""
    for dtype, measured in ceilings.items():
        print(
            f"GEMM ceiling {dtype}: {statistics.median(measured):.0f} GFLOP/s "
            f"({min(measured):.0f}-{max(measured):.0f})"
        )
    median = {entry.name: statistics.median(entry.seconds) for entry in entries}
    cosine = {entry.name: min_cosine(entry.vectors, reference) for entry in entries}
    rivals = [entry for entry in entries if entry.is_rival]
    void = [e for e in rivals if e.precision == "float32" and not cosine[e.name] >= SAME]
    valid = [entry for entry in rivals if entry not in void]
    exact, narrow = (
        min(
            (entry for entry in valid if entry.precision in precisions),
            key=lambda entry: median[entry.name],
            default=None,
        )
        for precisions in (("float32",), NARROW)
    )
    base_s = median[exact.name] if exact else float("nan")
    encode_s = median.get("encode", float("nan"))
    print(
        f"{'':24} {'batch':>5} {'texts/s':>8} {'spread':>13} {'tokens/s':>9} {'of GEMM':>7} "
        f"{'padding':>7} {'÷ encode':>8} {'÷ rival':>8} {'lowest cosine':>13}"
    )
    for entry in entries:
        seconds = median[entry.name]
        spread = f"{len(work.texts) / max(entry.seconds):.1f}-"
        spread += f"{len(work.texts) / min(entry.seconds):.1f}"
        dtype = getattr(torch, entry.precision, None)
        share = "-"
        if dtype in ceilings:
            share = f"{entry.gflop / seconds / statistics.median(ceilings[dtype]):.0%}"
        padding = f"{entry.padding():.1%}" if entry.padding else "-"
        print(
            f"{entry.name:24} {entry.batch_size or '-':>5} {len(work.texts) / seconds:8.1f} "
            f"{spread:>13} {work.n_tokens.sum() / seconds:9,.0f} {share:>7} {padding:>7} "
            f"{encode_s / seconds:8.2f} {base_s / seconds:8.2f} {cosine[entry.name]:13.7f}"
        )
    for entry in void:
        print(f"{entry.name} is void: its vectors are not those of encode in float32.")
    for rival, precisions, word in ((exact, ("float32",), "float32"), (narrow, NARROW, "8-bit")):
        own = [e for e in entries if e.name.startswith("ours") and e.precision in precisions]
        if rival and own:
            best = min(own, key=lambda entry: median[entry.name])
            print(
                f"{best.name} ÷ {rival.name}, the best {word} rival: "
                f"{median[rival.name] / median[best.name]:.2f}"
            )
    return not void
