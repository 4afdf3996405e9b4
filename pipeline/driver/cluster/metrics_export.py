"""Whether a run reports metrics, and through what.

In: a plan, and what Ray was started with. Out: an `Exporter`, or None where nobody collects
metrics: in a cluster that was started for one job on this machine, unless its environment asks.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipeline.driver.cluster.own_ray import is_collecting
from pipeline.driver.planning.plan import Plan

if TYPE_CHECKING:
    from pipeline.observe.prometheus import Exporter

log = logging.getLogger(__name__)


def exporter_of(plan: Plan) -> Exporter | None:
    """Raises nothing: a Ray without metrics is no reason not to run."""
    if not is_collecting():
        return None
    try:
        from pipeline.observe.prometheus import Exporter
    except Exception as error:  # noqa: BLE001 - see above
        log.warning("metrics cannot be reported: %s: %s", type(error).__name__, error)
        return None
    return Exporter(plan.job.spec.name, plan.run_id, plan.job.fingerprint)
