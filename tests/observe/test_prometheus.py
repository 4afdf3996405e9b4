"""The metrics of a run at a real endpoint of Ray, and the dashboard and docs that name them.

Oracle: what an HTTP client reads there, and figures that the test sets.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.processes import printed_by

SCRIPT = """
import json, os, sys, time, urllib.request
os.environ["RAY_enable_metrics_collection"] = "1"
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         _system_config={"metrics_report_interval_ms": 500})
from pipeline.observe.prometheus import Exporter
from tests.cli.test_live import half_done

progress, _ = half_done()
progress.workers = {"embedding": 2, "queued": 3}
exporter = Exporter("nightly", "0" * 16, "abcdef0123456789")
exporter.report(progress)
progress.finish_part("b", {"n_documents": 130, "record_bytes": 50_000,
                           "rejects.empty_text": 4, "storage_retries": 1,
                           "worker_restarts": 1, "n_oom_halvings": 1, "n_rows": 5, "n_reused": 2})
exporter.report(progress)
node = ray.nodes()[0]
url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
text = ""
deadline = time.time() + 90
while time.time() < deadline:
    try:
        text = urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        pass
    if "corpus_embed_queued_parts" in text and "corpus_embed_worker_restarts" in text:
        break
    time.sleep(0.5)
sys.stdout.write(text)
"""


def metric_names() -> set[str]:
    from pipeline.observe import prometheus

    counters = {f"ray_{name}_total" for name in prometheus.COUNTERS}
    return counters | {f"ray_{name}" for name in prometheus.GAUGES}


@pytest.mark.ray
def test_the_endpoint_of_ray_shows_every_metric_with_its_labels() -> None:
    samples: dict[str, dict[str, float]] = {}
    for line in printed_by(SCRIPT, timeout_s=240).splitlines():
        if match := re.fullmatch(r"(ray_corpus_embed_\w+)\{(.*)\} ([-+.e\d]+)", line):
            name, text, value = match.groups()
            labels = dict(re.findall(r'(\w+)="([^"]*)"', text))
            assert labels["job_name"] == "nightly"
            assert labels["run_id"] == "0" * 16
            assert labels["fingerprint"] == "abcdef01"
            own = next(
                (labels[key] for key in ("reason", "stage", "phase", "work") if key in labels), ""
            )
            samples.setdefault(name, {})[own] = float(value)
    assert set(samples) == metric_names()
    assert samples["ray_corpus_embed_documents_total"] == {"": 1330}
    assert samples["ray_corpus_embed_rejects_total"] == {"empty_text": 6, "[red]": 1}
    assert samples["ray_corpus_embed_stage_seconds_total"]["embedders_starved"] == 1
    assert samples["ray_corpus_embed_phase"]["embedding"] == 1
    assert samples["ray_corpus_embed_phase"]["planning"] == 0
    assert samples["ray_corpus_embed_eta_seconds"] == {"": 90}
    assert samples["ray_corpus_embed_queued_parts"] == {"": 3}
    assert samples["ray_corpus_embed_workers"]["embedding"] == 2


@pytest.mark.ray
def test_the_dashboard_and_the_docs_name_the_metrics_that_there_are() -> None:
    dashboard = (ROOT / "docs/grafana/corpus-embed.json").read_text()
    names = metric_names()
    queries = [
        target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]
    ]
    assert set(re.findall(r"ray_corpus_embed_\w+", " ".join(queries))) == names
    assert set(re.findall(r"ray_corpus_embed_\w+", dashboard)) == names
    docs = Path(ROOT / "docs/operations.md").read_text()
    assert set(re.findall(r"`(ray_corpus_embed_\w+)`", docs)) == names


@pytest.mark.ray
def test_metrics_that_fail_hurt_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.observe import prometheus
    from tests.cli.test_live import half_done

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no agent")

    monkeypatch.setattr(prometheus.metrics, "Counter", fail)
    prometheus.Exporter("job", "0" * 16, "f" * 16).report(half_done()[0])
