"""The figures of a run as metrics of Ray, which every node of a cluster shows to Prometheus.

In: a `Progress`. Out: `ray_corpus_embed_…` at the metrics endpoints of the cluster; names and
labels are in docs/operations.md, a dashboard in docs/grafana/corpus-embed.json. Method: the driver
reports what has been added since it reported last. A failure is logged once and hurts nothing.
Cost: about a millisecond for each report, on the thread that watches the run. Imports ray, so the
driver imports it only where metrics are collected.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from ray.util import metrics

from pipeline.observe.figures import WORK
from pipeline.observe.progress import PHASES, Progress

log = logging.getLogger(__name__)

LABELS = ("job_name", "run_id", "fingerprint")
"""Labels of every metric: the name in the spec, the run, the start of the fingerprint."""

COUNTERS = {
    "corpus_embed_documents": ("documents of finished parts", ()),
    "corpus_embed_rows": ("rows of finished parts", ()),
    "corpus_embed_reused_rows": ("rows whose vector an earlier run had computed", ()),
    "corpus_embed_parts": ("finished parts", ()),
    "corpus_embed_source_bytes": ("bytes of records of finished parts", ()),
    "corpus_embed_tokens": ("tokens that went through the model", ()),
    "corpus_embed_padded_tokens": ("tokens that were computed, padding included", ()),
    "corpus_embed_rejects": ("rejected records by reason", ("reason",)),
    "corpus_embed_stage_seconds": ("seconds of workers by stage", ("stage",)),
    "corpus_embed_retries": ("requests to stores that were tried again", ()),
    "corpus_embed_oom_halvings": ("buckets that were halved because memory ran out", ()),
    "corpus_embed_worker_restarts": ("workers that were started again", ()),
}
"""Description and own labels of what only grows. Starvation is the stage `embedders_starved`,
waiting for embedders the stage `tokenizers_blocked`."""

GAUGES = {
    "corpus_embed_phase": ("1 for the phase that the run is in", ("phase",)),
    "corpus_embed_fraction": ("share of the source bytes that is done", ()),
    "corpus_embed_eta_seconds": ("seconds until the embedding ends, -1 where unknown", ()),
    "corpus_embed_tokens_per_second": ("tokens through the model while embedding", ()),
    "corpus_embed_workers": ("workers that do this now", ("work",)),
    "corpus_embed_queued_parts": ("parts that are ready and wait for an embedder", ()),
}
"""The same for what rises and falls."""

_SUMS = {
    "corpus_embed_documents": "n_documents",
    "corpus_embed_rows": "n_rows",
    "corpus_embed_reused_rows": "n_reused",
    "corpus_embed_parts": "parts",
    "corpus_embed_source_bytes": "record_bytes",
    "corpus_embed_tokens": "n_embedded_tokens",
    "corpus_embed_padded_tokens": "n_padded_tokens",
    "corpus_embed_retries": "storage_retries",
    "corpus_embed_oom_halvings": "n_oom_halvings",
    "corpus_embed_worker_restarts": "worker_restarts",
}
"""The counters that are a total of `Progress`."""

Sample = tuple[str, Mapping[str, str], float]


class Exporter:
    """Reports the figures of one run, again and again."""

    def __init__(self, job: str, run_id: str, fingerprint: str) -> None:
        self._labels = dict(zip(LABELS, (job, run_id, fingerprint[:8]), strict=True))
        self._reported: dict[tuple[str, str], float] = {}
        self._metrics: dict[str, Any] = {}
        self._has_failed = False

    def report(self, progress: Progress) -> None:
        """Raises nothing."""
        try:
            for name, labels, value in counts(progress):
                key = (name, "".join(labels.values()))
                added = value - self._reported.get(key, 0)
                if added > 0:
                    self._metric(name).inc(added, {**self._labels, **labels})
                    self._reported[key] = value
            for name, labels, value in levels(progress):
                self._metric(name).set(value, {**self._labels, **labels})
        except Exception as error:  # noqa: BLE001 - metrics are no reason to lose a run
            if not self._has_failed:
                log.warning("metrics cannot be reported: %s: %s", type(error).__name__, error)
            self._has_failed = True

    def _metric(self, name: str) -> Any:
        if name not in self._metrics:
            is_counter = name in COUNTERS
            description, labels = COUNTERS[name] if is_counter else GAUGES[name]
            kind = metrics.Counter if is_counter else metrics.Gauge
            self._metrics[name] = kind(name, description, tag_keys=(*LABELS, *labels))
        return self._metrics[name]


def counts(progress: Progress) -> Iterator[Sample]:
    """Each counter of a run: name, own labels, value so far."""
    for name, total in _SUMS.items():
        yield name, {}, progress.totals.get(total, 0)
    for reason, number in progress.reject_reasons.items():
        yield "corpus_embed_rejects", {"reason": reason}, number
    for stage, seconds in progress.stage_seconds.items():
        yield "corpus_embed_stage_seconds", {"stage": stage}, seconds


def levels(progress: Progress) -> Iterator[Sample]:
    """Each gauge of a run: name, own labels, value now."""
    for phase in PHASES:
        yield "corpus_embed_phase", {"phase": phase}, float(phase == progress.phase)
    eta_s = progress.eta_s
    yield "corpus_embed_fraction", {}, progress.fraction
    yield "corpus_embed_eta_seconds", {}, -1.0 if eta_s is None else eta_s
    yield "corpus_embed_tokens_per_second", {}, progress.tokens_per_s
    for work in WORK:
        yield "corpus_embed_workers", {"work": work}, progress.workers.get(work, 0)
    yield "corpus_embed_queued_parts", {}, progress.workers.get("queued", 0)
