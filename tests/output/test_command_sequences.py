"""Random sequences of all commands on one output, with kills, moves, restores and roll-backs in
between and within them: every snapshot that is listed holds what the model says, and so do tables.

Model: the documents of each snapshot by number, taken from the shards that the test wrote. Oracles:
pyarrow over the paths of a file list, without this package; deltalake; pyiceberg. A failure names
its seed and the steps that led to it; `COMMAND_SEQUENCES_SEED` gives other sequences.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import CorpusEmbedError, OutputError
from pipeline.job.sections import PublishSpec
from pipeline.output import lake
from pipeline.output.change_feed import changes
from pipeline.storage import layout
from pipeline.storage.failpoints import NAMES
from pipeline.storage.store import Store
from pipeline.tools.compact import compact
from pipeline.tools.vacuum import vacuum
from tests.support.outputs import write_shard
from tests.support.stand_in import make_spec, run

pytest.importorskip("pyiceberg", reason="extra iceberg")
pytest.importorskip("deltalake", reason="extra delta")

from deltalake import DeltaTable
from pyiceberg.catalog import load_catalog

import pipeline.output.lake.iceberg  # noqa: F401  urllib3 opens a socket when it is imported

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("COMMAND_SEQUENCES_SEED", "0"))
N_STEPS = 14
Content = Counter[tuple[str, str]]
"""Documents by id and text."""


class Killed(Exception):
    """Stands for a process that ended in the middle of a command."""


class World:
    """An output, its input, and what must be in it."""

    def __init__(self, root: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.draw = random.Random(seed)
        self.monkeypatch = monkeypatch
        self.n_names = 0
        self.steps: list[str] = []
        self.output = root / "out"
        self.shards: dict[str, list[dict[str, Any]]] = {}
        self.snapshots: dict[int, Content] = {}
        self.delta: Content | None = None
        self.iceberg: Content | None = None
        self.backups: list[tuple[Path, Any]] = []
        self.partition_by = self.draw.choice([[], ["lang"]])
        for _ in range(3):
            self.add_shard()

    # the input

    def add_shard(self) -> None:
        self.n_names += 1
        self._write(f"shard-{self.n_names:03d}.jsonl")

    def change_shard(self) -> None:
        self._write(self.draw.choice(sorted(self.shards)))

    def remove_shard(self) -> None:
        if len(self.shards) > 1:
            name = self.draw.choice(sorted(self.shards))
            del self.shards[name]
            (self.root / "in" / name).unlink()
            for link in (self.root / "in").iterdir():
                if link.is_symlink() and not link.exists():
                    link.unlink()

    def rename_shard(self) -> None:
        old = self.draw.choice(sorted(self.shards))
        self.n_names += 1
        new = f"renamed-{self.n_names:03d}.jsonl"
        self.shards[new] = self.shards.pop(old)
        (self.root / "in" / old).rename(self.root / "in" / new)
        for link in (self.root / "in").iterdir():
            if link.is_symlink() and not link.exists():
                link.unlink()

    def link_shard(self) -> None:
        """A second name of one object, which is one shard."""
        name = self.draw.choice(sorted(self.shards))
        link = self.root / f"in/z-{name}"
        if not link.is_symlink():
            link.symlink_to(name)

    def _write(self, name: str) -> None:
        count = self.draw.choice([1, 3, 30])
        self.shards[name] = [
            {
                "id": f"{name.split('-')[-1]}-{number}",
                "text": f"text {self.draw.randrange(40)} " * 3,
                "lang": self.draw.choice(["en", "ja", "a/b"]),
            }
            for number in range(count)
        ]
        write_shard(self.root / "in" / name, self.shards[name])

    @property
    def content(self) -> Content:
        documents = [doc for docs in self.shards.values() for doc in docs]
        return Counter((doc["id"], doc["text"].strip()) for doc in documents)

    # the commands

    @property
    def store(self) -> Store:
        return Store(str(self.output))

    def run(self, publish: PublishSpec | None = None) -> None:
        spec = make_spec(
            self.root / "in",
            self.output,
            input={"keep_columns": ["lang"]},
            output={"partition_by": self.partition_by, "card": {}},
            runtime={"part_bytes": 1024},
            publish=(publish or PublishSpec()).model_dump(),
        )
        snapshot = run(spec)
        assert snapshot is not None
        self.snapshots[snapshot.number] = self.content
        if publish:
            self._note_tables(publish)

    def run_and_publish(self) -> None:
        self.run(self._any_tables())

    def killed_run(self) -> None:
        with self._killed_at_a_failpoint():
            self.run()
        self._forget_unsure()

    def compact(self) -> None:
        before = max(self.snapshots)
        snapshot = compact(str(self.output), target_bytes=self.draw.choice([4096, 1 << 27]))
        self.snapshots[snapshot.snapshot] = self.snapshots[before]

    def killed_compact(self) -> None:
        with self._killed_at_a_failpoint():
            self.compact()
        self._forget_unsure()

    def publish(self) -> None:
        tables = self._any_tables()
        assert set(lake.publish(self.store, tables).values()) == {max(self.snapshots)}
        self._note_tables(tables)

    def publish_recorded(self) -> None:
        assert lake.publish_recorded(self.store)[1] == []
        self._note_recorded()

    def vacuum(self) -> None:
        keep = self.draw.choice([1, 1, 2, 3])
        grace = self.draw.choice([0, 0, 0, 3600])
        plan = vacuum(
            str(self.output),
            keep_snapshots=keep,
            older_than=datetime.timedelta(seconds=grace),
            delete=True,
        )
        assert plan.tables_behind == ()
        assert not plan.work_under_way
        if grace == 0:
            self.snapshots = {number: self.snapshots[number] for number in plan.kept_snapshots}
        self._note_recorded()

    def killed_vacuum(self) -> None:
        n_allowed = self.draw.randrange(12)
        real = Store.delete

        def delete(store: Store, relative: str) -> None:
            nonlocal n_allowed
            location = layout.locate(relative)
            if location and location.kind not in ("work", "probe", "table"):
                n_allowed -= 1
                if n_allowed < 0:
                    raise Killed
            real(store, relative)

        with self.monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(Store, "delete", delete)
            vacuum(
                str(self.output),
                keep_snapshots=1,
                older_than=datetime.timedelta(0),
                delete=True,
            )
        self._forget_unsure()
        self._note_recorded()

    # what operators do

    def move(self) -> None:
        self.n_names += 1
        moved = self.root / f"out-{self.n_names}"
        self.output.rename(moved)
        self.output = moved
        self.iceberg = None  # its locations lead to where it lay, until it is published again

    def back_up(self) -> None:
        self.n_names += 1
        copy = self.root / f"backup-{self.n_names}"
        shutil.copytree(self.output, copy)
        model = (dict(self.snapshots), self.delta, self.iceberg, self.output)
        self.backups.append((copy, model))

    def restore(self) -> None:
        if self.backups:
            copy, (snapshots, delta, iceberg, place) = self.draw.choice(self.backups)
            shutil.rmtree(self.output)
            shutil.copytree(copy, self.output)
            self.snapshots = dict(snapshots)
            self.delta = delta
            self.iceberg = iceberg if place == self.output else None

    def roll_back(self) -> None:
        numbers = sorted(self.snapshots)
        for number in numbers[self.draw.randrange(1, len(numbers) + 1) :]:
            (self.output / layout.snapshot(number)).unlink()
            del self.snapshots[number]

    def foreign_files(self) -> None:
        for name in (
            "README.md",
            "data/.nfs0001",
            "data/foreign.parquet",
            "_meta/snapshots/copy of it.json",
            "_meta/manifests/notes.txt",
            "_meta/work/readme",
            "_meta/leases/x/y",
        ):
            path = self.output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("of somebody else")

    # helpers

    def _any_tables(self) -> PublishSpec:
        both = {"iceberg": {"table": "db.docs"}, "delta": True}
        kinds = self.draw.choice([["delta"], ["delta"], ["iceberg"], ["delta", "iceberg"]])
        return PublishSpec.model_validate({kind: both[kind] for kind in kinds})

    def _note_tables(self, tables: PublishSpec) -> None:
        head = self.snapshots[max(self.snapshots)]
        if tables.delta:
            self.delta = head
        if tables.iceberg:
            self.iceberg = head

    def _note_recorded(self) -> None:
        names = {path.name for path in (self.output / layout.PUBLICATIONS).glob("*.json")}
        head = self.snapshots[max(self.snapshots)]
        if any(name.startswith("delta") for name in names):
            self.delta = head
        if any(name.startswith("iceberg") for name in names):
            self.iceberg = head

    @contextlib.contextmanager
    def _killed_at_a_failpoint(self) -> Iterator[None]:
        self.n_names += 1
        folder = self.root / f"failpoint-{self.n_names}"
        folder.mkdir()
        with self.monkeypatch.context() as patch, contextlib.suppress(CorpusEmbedError):
            patch.setenv("CORPUS_EMBED_FAILPOINT", f"{self.draw.choice(NAMES)}:raise")
            patch.setenv("CORPUS_EMBED_FAILPOINT_DIR", str(folder))
            yield

    def _forget_unsure(self) -> None:
        """After a kill: snapshots can be gone, and one can be there whose command got no answer."""
        listed = self.listed()
        head = self.snapshots[max(self.snapshots)]
        for number in listed:
            if number not in self.snapshots:
                self.snapshots[number] = self.content if self._last == "killed_run" else head
        self.snapshots = {number: self.snapshots[number] for number in listed}

    @property
    def _last(self) -> str:
        return self.steps[-1]

    # the oracles

    def listed(self) -> list[int]:
        folder = self.output / layout.SNAPSHOTS
        return sorted(int(path.stem) for path in folder.glob("0*.json"))

    def snapshot_content(self, number: int) -> Content:
        record = json.loads((self.output / layout.snapshot(number)).read_text())
        paths = pq.read_table(self.output / record["file_list"], columns=["paths"])["paths"]
        rows: Content = Counter()
        for path in [path for part in paths.to_pylist() for path in part]:
            table = pq.ParquetFile(self.output / path).read(["doc_id", "text"])
            rows.update((row["doc_id"], row["text"].strip()) for row in table.to_pylist())
        return rows

    def check(self) -> None:
        assert self.listed() == sorted(self.snapshots)
        for number, content in self.snapshots.items():
            assert self.snapshot_content(number) == content, number
        if self.delta is not None:
            table = DeltaTable(str(self.output)).to_pyarrow_table(columns=["doc_id", "text"])
            assert self._counted(table) == self.delta
        if self.iceberg is not None:
            catalog = load_catalog(
                "corpus-embed", type="sql", uri=f"sqlite:///{self.output}/_meta/iceberg/catalog.db"
            )
            table = catalog.load_table("db.docs").scan().to_arrow().select(["doc_id", "text"])
            assert self._counted(table) == self.iceberg

    def check_feed(self) -> None:
        first, last = min(self.snapshots), max(self.snapshots)
        feed = changes(str(self.output), first, last)
        upserts = [row for batch in feed.upserts(["doc_id", "text"]) for row in batch.to_pylist()]
        deletes = {row["doc_id"] for batch in feed.deletes() for row in batch.to_pylist()}
        store = {doc_id: text for doc_id, text in self.snapshots[first] if doc_id not in deletes}
        store.update({row["doc_id"]: row["text"].strip() for row in upserts})
        assert Counter(store.items()) == self.snapshots[last]

    @staticmethod
    def _counted(table: Any) -> Content:
        return Counter((row["doc_id"], row["text"].strip()) for row in table.to_pylist())


STEPS: dict[str, int] = {
    "add_shard": 2,
    "change_shard": 3,
    "remove_shard": 2,
    "rename_shard": 1,
    "link_shard": 1,
    "run": 5,
    "run_and_publish": 2,
    "killed_run": 3,
    "compact": 3,
    "killed_compact": 2,
    "publish": 3,
    "publish_recorded": 1,
    "vacuum": 4,
    "killed_vacuum": 3,
    "move": 1,
    "back_up": 2,
    "restore": 2,
    "roll_back": 2,
    "foreign_files": 1,
}
"""How often each step is drawn, in relation to the others."""


def play(root: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(root, seed, monkeypatch)
    names = list(STEPS)
    chosen = ["run", *world.draw.choices(names, [STEPS[name] for name in names], k=N_STEPS)]
    for name in [*chosen, "run", "publish_recorded", "check_feed"]:
        world.steps.append(name)
        step: Callable[[], None] = getattr(world, name)
        try:
            step()
            world.check()
        except Exception as error:
            raise AssertionError(f"seed {seed}, after {world.steps}: {error}") from error


@pytest.mark.parametrize("number", range(20))
def test_any_sequence_of_commands_leaves_what_the_model_says(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(tmp_path, SEED + number, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20, 200))
def test_any_of_many_sequences_of_commands_leaves_what_the_model_says(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(tmp_path, SEED + number, monkeypatch)


def test_the_model_sees_a_table_that_shows_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, 0, monkeypatch)
    world.run()
    lake.publish(world.store, PublishSpec(delta=True))
    world.delta = Counter([("another", "one")])
    with pytest.raises(AssertionError):
        world.check()
    with pytest.raises(OutputError):
        changes(str(world.output), 7)
