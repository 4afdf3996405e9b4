"""What a run shows of itself at one moment: one plain record for every display.

In: a `Progress`. Out: a dictionary that JSON can hold, the content of a line of `--progress json`
and of a live record; docs/operations.md describes its fields. Cost: microseconds.
"""

from __future__ import annotations

from typing import Any

from pipeline.observe.progress import EMBEDDING, END, SECONDS, START_UP, Progress

STAGES = ("read", "tokenize", "embed", "write")
"""The stages of a part, in order."""
WORK = ("loading", "reading", "embedding", "writing")
"""What workers do, by the names in `Progress.workers`."""

MOSTLY = 0.5
"""Share of the tokenizers' time that they wait for embedders where these hold them up."""


def figures(progress: Progress) -> dict[str, Any]:
    """The figures of a run now. Counts never fall while it lasts. `fraction`: of the source bytes,
    0 to 1. `eta_s`: None where nothing can be estimated yet."""
    eta_s = progress.eta_s
    return {
        "phase": progress.phase,
        "elapsed_s": round(progress.elapsed_s, 1),
        "start_up_s": round(progress.seconds_in(*START_UP), 1),
        "embedding_s": round(progress.seconds_in(EMBEDDING), 1),
        "end_s": round(progress.seconds_in(*END), 1),
        "fraction": round(progress.fraction, 4),
        "eta_s": None if eta_s is None else round(eta_s, 1),
        "documents": int(progress.live("n_documents")),
        "rows": progress["n_rows"],
        "reused": progress["n_reused"],
        "tokens": int(progress.live("n_embedded_tokens")),
        "tokens_per_s": round(progress.tokens_per_s, 1),
        "padding_share": round(progress.padding_share, 4),
        "rejects": progress["n_rejects"],
        "reject_reasons": progress.reject_reasons,
        "parts": progress["parts"],
        "record_bytes": int(progress.live("record_bytes")),
        "record_bytes_expected": int(progress.remaining.total_bytes),
        "stage_seconds": progress.stage_seconds,
        "tokens_per_stage_second": stage_rates(progress),
        "workers": dict(progress.workers),
        "waits": waits(progress),
        "retries": progress["storage_retries"],
        "worker_restarts": progress["worker_restarts"],
        "oom_halvings": progress["n_oom_halvings"],
    }


def stage_rates(progress: Progress) -> dict[str, float]:
    """Tokens of finished parts for each second that workers spent in a stage."""
    seconds = progress.stage_seconds
    n_tokens = dict.fromkeys(STAGES, progress["n_tokens"])
    n_tokens["embed"] = progress["n_embedded_tokens"]
    return {
        stage: round(n_tokens[stage] / seconds[stage], 1)
        for stage in STAGES
        if seconds.get(stage, 0) > 0
    }


def waits(progress: Progress) -> str | None:
    """Who waits for whom, in words; None where nobody does to speak of."""
    if progress.phase != EMBEDDING:
        return None
    if progress.workers and not progress.workers.get("embedding"):
        is_loading = progress.workers.get("loading")
        return "texts wait for workers that load" if is_loading else "embedders wait for texts"
    limit = progress.stage_limit
    if limit is not None and limit != "embed":
        return f"embedders wait for {limit}"
    totals = progress.totals
    blocked_s = totals.get(SECONDS + "tokenizers_blocked", 0.0)
    working_s = sum(totals.get(SECONDS + stage, 0.0) for stage in ("read", "tokenize"))
    if blocked_s > MOSTLY * (blocked_s + working_s):
        return "tokenizers wait for embedders"
    return None
