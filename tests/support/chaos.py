"""Chaos: processes of the real protocol that race on one output, killed and stopped at seeded
moments; and their history.

In: a spec over a stand-in model (`tests/support/stand_in.py`; no torch, no Ray), a seed, and how
often to kill. Each process is a whole run of its own: preflight, plan, parts, partial commits,
commit. Out: a history of the answers that each got, and checks of it against the store, like
Jepsen's: what was acknowledged is there, nothing is there twice. Cost: a process starts in
milliseconds (forked from a server that has imported everything).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.driver.planning.plan import Plan
from pipeline.driver.run import run_job
from pipeline.errors import CommitConflict, ShardChanged
from pipeline.job.spec import JobSpec, spec_from
from pipeline.observe.progress import Progress
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import load_manifests, load_snapshot, snapshot_numbers
from pipeline.storage.failpoints import NAMES
from pipeline.storage.lineage import Snapshot
from pipeline.storage.store import Store
from pipeline.workers import steps
from tests.support import stand_in

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.chaos", "s3fs", "aiobotocore.session"])
AGAIN = 75  # exit code: superseded, or the input changed; the same command again
PARTS_PER_COMMIT = 6


@dataclasses.dataclass(frozen=True)
class Order:
    """What one process is to do; it travels to the fork."""

    spec: str
    history: str
    seed: int
    environment: dict[str, str]
    pause_s: float


def run_alone(order: Order) -> None:
    """The body of one process: a run, and one line of history with the answer that it got."""
    os.environ.update(order.environment)
    random.seed(order.seed)  # forks would share the jitter of their retries
    spec = spec_from(json.loads(order.spec))
    try:
        snapshot = _run(spec, random.Random(order.seed), order)
        _tell(order, "committed", snapshot)
    except (CommitConflict, ShardChanged) as error:
        _tell(order, type(error).__name__)
        sys.exit(AGAIN)
    except BaseException:
        _tell(order, "failed", error=traceback.format_exc())
        raise


def _run(spec: JobSpec, draw: random.Random, order: Order) -> Snapshot:
    store, job = stand_in.store_of(spec), stand_in.job_of(spec)
    store.check_conditional_put()
    embed = functools.partial(steps.embed_part, engine=stand_in.HashEngine(), job=job)

    def execute(plan: Plan) -> dict[str, float]:
        todo = list(plan.todo)
        draw.shuffle(todo)
        manifests = steps.do_splits(todo, stand_in.preparer(spec, plan), embed, job, store)
        for number, _ in enumerate(manifests, start=1):
            if number % PARTS_PER_COMMIT == 0 and not plan.stale:
                parts = load_manifests(store, job.fingerprint, plan.done)
                snapshot = stand_in.commit_plan(plan, store, parts, complete=False)
                _tell(order, "committed", snapshot)
            time.sleep(draw.uniform(0, 2 * order.pause_s))
        return {}

    return run_job(job, store, execute, Progress()).snapshot


def _tell(order: Order, what: str, snapshot: Snapshot | None = None, **more: Any) -> None:
    line = {"what": what, "pid": os.getpid(), **more}
    if snapshot:
        line |= {"snapshot": json.loads(snapshot.to_json())}
    with open(order.history, "a") as file:  # one short write: lines of several processes do not mix
        file.write(json.dumps(line) + "\n")


@dataclasses.dataclass
class _Life:
    process: Any
    kill_at: float
    stop_at: float
    stopped_s: float
    started: float = dataclasses.field(default_factory=time.monotonic)


class Chaos:
    """Runs `racers` processes at once until the work is done; kills them on the way. Everything
    drawn comes from `seed`."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        racers: int = 3,
        life_s: float = 3.0,
        pause_s: float = 0.02,
    ) -> None:
        self.folder, self.racers, self.life_s, self.pause_s = folder, racers, life_s, pause_s
        self.draw, self.exits, self.hit = random.Random(seed), Counter[str](), Counter[str]()
        self.history_path = folder / "history.jsonl"
        self.history_path.touch()
        self.n_started, self.patience = 0, 1.0

    @property
    def n_kills(self) -> int:
        return self.exits["killed"]

    def until_done(self, spec: JobSpec, timeout_s: float = 3000.0) -> None:
        """Start, kill and start again until a process that began after this call says that all is
        committed."""
        started = time.monotonic()
        lives: dict[int, _Life] = {}
        done = False
        self.patience = 1.0
        while not done:
            assert time.monotonic() < started + timeout_s, (
                f"not done after {timeout_s} s: {self.exits}"
            )
            for slot in range(self.racers):
                if slot not in lives:
                    lives[slot] = self._start(spec)
                done |= self._step(lives, slot)
            time.sleep(0.01)
        for life in lives.values():  # what still runs may end or not: the output is complete
            life.process.kill()
            life.process.join()
            self._ended(life)

    def _start(self, spec: JobSpec) -> _Life:
        self.n_started += 1
        draw, environment = self.draw, {}
        fate = draw.choices(["timed", "failpoint", "stopped", "long"], [5, 4, 1, 2])[0]
        if fate == "failpoint":
            points = self.folder / f"points-{self.n_started}"
            points.mkdir()
            environment = {
                "CORPUS_EMBED_FAILPOINT": f"{draw.choice(NAMES)}:kill",
                "CORPUS_EMBED_FAILPOINT_DIR": str(points),
            }
        environment = {
            **{key: value for key, value in os.environ.items() if key.startswith("AWS_")},
            **environment,
        }
        order = Order(
            spec.model_dump_json(),
            str(self.history_path),
            draw.getrandbits(32),
            environment,
            self.pause_s,
        )
        never, life_s = (
            float("inf"),
            self.life_s * self.patience * (1 if fate in ("timed", "failpoint") else 6),
        )
        life = _Life(
            FORKS.Process(target=run_alone, args=(order,)),
            kill_at=draw.uniform(0.05, life_s),
            stop_at=draw.uniform(0.05, self.life_s) if fate == "stopped" else never,
            stopped_s=draw.uniform(0.2, self.life_s),
        )
        life.process.start()
        return life

    def _step(self, lives: dict[int, _Life], slot: int) -> bool:
        """Look at one process; True when it has ended with everything committed."""
        life = lives[slot]
        age = time.monotonic() - life.started
        if life.process.exitcode is not None:
            del lives[slot]
            self._ended(life)
            return bool(life.process.exitcode == 0)
        if age > life.kill_at:
            life.process.kill()
            life.process.join()
        elif age > life.stop_at:
            os.kill(life.process.pid, signal.SIGSTOP)
            self.exits["stopped for a while"] += 1
            life.stop_at = float("inf")
            threading.Timer(life.stopped_s, _go_on, [life.process.pid]).start()
        return False

    def _ended(self, life: _Life) -> None:
        names = {-signal.SIGKILL: "killed", 0: "done", AGAIN: "superseded"}
        # a slow machine gets nothing done in short lives: they grow until the round ends
        self.patience *= 1.06
        self.exits[names.get(life.process.exitcode, f"exit {life.process.exitcode}")] += 1

    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history_path.read_text().splitlines()]


def _go_on(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return


class Reader:
    """Polls an output as a consumer would, in a thread: `problems` names whatever was not whole,
    `seen` the snapshots."""

    def __init__(self, store: Store) -> None:
        self.store, self.problems, self.seen = store, list[str](), dict[int, Snapshot]()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._done.wait(0.1):
            try:
                head = load_snapshot(self.store)
                if head and head.number not in self.seen:
                    self._look(head)
            except Exception:  # noqa: BLE001  a reader that fails is what is looked for
                self.problems.append(traceback.format_exc())

    def _look(self, head: Snapshot) -> None:
        if self.seen and head.number < max(self.seen):
            self.problems.append(f"the head went back from {max(self.seen)} to {head.number}")
        table = open_dataset(self.store.uri, head.number, self.store.options).to_table(
            ["doc_id", "chunk"]
        )
        rows = Counter(zip(table["doc_id"].to_pylist(), table["chunk"].to_pylist(), strict=True))
        if table.num_rows != head.n_rows or len(rows) != head.n_rows:
            self.problems.append(
                f"snapshot {head.number}: {table.num_rows} rows, {len(rows)} distinct, and "
                f"{head.n_rows} by its record"
            )
        self.seen[head.number] = head


def problems_of(history: list[dict[str, Any]], store: Store) -> list[str]:
    """What contradicts the promise: numbers dense, a run complete once, every acknowledged snapshot
    there as it was."""
    problems = [
        f"a process failed:\n{line['error']}" for line in history if line["what"] == "failed"
    ]
    numbers = snapshot_numbers(store)
    snapshots = {number: load_snapshot(store, number) for number in numbers}
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append(f"snapshot numbers are not dense: {numbers}")
    complete = Counter(
        snapshot.run_id for snapshot in snapshots.values() if snapshot and snapshot.complete
    )
    problems += [
        f"run {run_id} committed {n} complete snapshots" for run_id, n in complete.items() if n > 1
    ]
    for snapshot in snapshots.values():
        if snapshot and snapshot.parent != (snapshot.number - 1 or None):
            problems.append(f"snapshot {snapshot.number} has the parent {snapshot.parent}")
    for line in history:
        acknowledged = line.get("snapshot")
        if acknowledged and Snapshot.model_validate(acknowledged) != snapshots.get(
            acknowledged["number"]
        ):
            problems.append(
                f"acknowledged and missing: snapshot {acknowledged['number']} of run "
                f"{acknowledged['run_id']}"
            )
    return problems
