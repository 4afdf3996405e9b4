"""The events of one run, from its start to its end, whatever the end is.

    with reported(job, nominal_time) as lineage:      START
        lineage.planned(run_id, shards)               RUNNING
        lineage.finished(store, snapshot, …)          COMPLETE, as the block ends
                                                      FAIL or ABORT, if it raises

Everything here returns at once and raises nothing; `reported` waits for the last event as the
sender does. A file of the environment that names no receiver, or the missing extra, is a warning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import CorpusEmbedError
from pipeline.job.resolve import Job
from pipeline.observe.openlineage.environment import is_on
from pipeline.observe.openlineage.run_facts import RunFacts
from pipeline.observe.openlineage.sender import Sender, log, problem_in
from pipeline.output.snapshots import live_parts, load_generation
from pipeline.storage.lineage import Shard, Snapshot
from pipeline.storage.store import Store

_INSTALL = (
    "OpenLineage events are asked for by the environment and were not sent: %s. Install what they "
    "need: pip install '.[openlineage]' in a clone of this package, or pip install "
    "'corpus-embed[openlineage]' where an index has it. The run continues without them."
)


class Lineage:
    """The events of one run. A plain one reports nothing: events are not asked for."""

    def planned(self, run_id: str, shards: Sequence[Shard]) -> None:
        """What the input holds and what is to be done is known."""

    def finished(
        self,
        store: Store,
        snapshot: Snapshot,
        rows: Mapping[str, int],
        *,
        embedded: bool,
        elapsed_s: float,
    ) -> None:
        """What the run has made is known, or that there was nothing to make."""


class SentLineage(Lineage):
    """Events that go to a receiver."""

    def __init__(self, sender: Sender, facts: RunFacts) -> None:
        from openlineage.client.uuid import generate_new_uuid

        self._sender = sender
        self._facts = facts
        self._run_id = str(generate_new_uuid())

    def planned(self, run_id: str, shards: Sequence[Shard]) -> None:
        self._facts = dataclasses.replace(self._facts, run_id=run_id, shards=shards)
        self.report("RUNNING")

    def finished(
        self,
        store: Store,
        snapshot: Snapshot,
        rows: Mapping[str, int],
        *,
        embedded: bool,
        elapsed_s: float,
    ) -> None:
        generation, parts = None, []
        with contextlib.suppress(CorpusEmbedError, OSError):
            generation = load_generation(store, snapshot.fingerprint)
            parts = live_parts(store, snapshot)
        self._facts = dataclasses.replace(
            self._facts,
            snapshot=snapshot,
            parts=parts,
            rows=rows,
            generation=generation,
            embedded=embedded,
            elapsed_s=round(elapsed_s, 3),
        )

    def report(self, state: str, error: BaseException | None = None) -> None:
        """Queue one event."""
        from pipeline.observe.openlineage.events import event

        problem = None
        if error is not None:
            problem = (type(error).__name__, problem_in(error).partition(": ")[2])
        try:
            self._sender.send(event(state, self._facts, self._run_id, problem))
        except Exception as fault:  # noqa: BLE001 - an event is no reason to stop a run
            self._sender.warn(problem_in(fault))


@contextlib.contextmanager
def reported(
    job: Job, nominal_time: datetime.datetime | None, limit: int | None = None
) -> Iterator[Lineage]:
    """Report the run of a job as its block goes. limit: of a trial, which nothing is made from and
    nobody is told of."""
    lineage = _lineage(job, nominal_time) if limit is None else None
    if lineage is None:
        yield Lineage()
        return
    sent, sender = lineage
    sent.report("START")
    try:
        yield sent
    except Exception as error:
        sent.report("FAIL", error)
        raise
    except BaseException as error:  # a person or a scheduler stops the run
        sent.report("ABORT", error)
        raise
    else:
        sent.report("COMPLETE")
    finally:
        sender.close()


def _lineage(job: Job, nominal_time: datetime.datetime | None) -> tuple[SentLineage, Sender] | None:
    if not is_on():
        return None
    try:
        from pipeline.observe.openlineage.client import client_of_environment
    except ImportError as error:
        log.warning(_INSTALL, error)
        return None
    try:
        client: Any = client_of_environment()
    except Exception as error:  # noqa: BLE001 - a setting of the receiver is no reason to stop
        log.warning("OpenLineage events are not sent: %s. The run continues.", problem_in(error))
        return None
    sender = Sender(client.emit)
    return SentLineage(sender, RunFacts(job=job, nominal_time=nominal_time)), sender
