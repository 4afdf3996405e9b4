"""What a run tells a lineage service: OpenLineage run events (START, RUNNING, COMPLETE, FAIL or
ABORT), where the usual environment asks for them.

    environment ─► client (of openlineage-python) ─► sender, a thread
    job, shards, snapshot ─► datasets, facets ─► events ─► sender

Nothing of it can hurt a run: events are built behind a guard, sent from a thread, and given up
PATIENCE_S after the run has ended; what goes wrong is one warning. The package `openlineage-python`
is an extra and is imported only where events are asked for. docs/openlineage.md lists the facets.
"""

from pipeline.observe.openlineage.reporting import Lineage, reported

__all__ = ["Lineage", "reported"]
