"""Ctrl-C: a word at once, what is kept, exit code 130, and no process left behind.

Oracle: the real command in a process group of its own, as a terminal starts it; /proc for what is
left of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.cli.stopping import LAST_WORDS, Stopping
from pipeline.driver import interrupts
from tests import ROOT
from tests.support.outputs import make_spec, write_shard
from tests.support.processes import status_of

ANNOUNCEMENT = "Stopping … (Ctrl-C again to stop now)\n"
COMMAND = "from pipeline.cli.main import main; main()"


class Command:
    """`corpus-embed run` in a process group of its own."""

    def __init__(self, spec: Path, folder: Path, *options: str) -> None:
        self._tag = uuid.uuid4().hex
        self._log = folder / f"stderr-{self._tag}"
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "run", str(spec), *options],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**environment, "TAG": self._tag, "CORPUS_EMBED_LOG_DIR": str(folder)},
                start_new_session=True,
            )

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for(self, text: str, deadline_s: float = 120) -> None:
        deadline = time.monotonic() + deadline_s
        while True:
            is_over = self.process.poll() is not None
            if text in (stderr := self.stderr()):
                return
            assert not is_over, stderr
            assert time.monotonic() < deadline, stderr
            time.sleep(0.05)

    def wait_for_handlers(self, deadline_s: float = 60) -> None:
        """Until a signal is the command's to handle: SIGTERM is what Python leaves alone."""
        deadline = time.monotonic() + deadline_s
        while not int(status_of(self.process.pid)["SigCgt"], 16) >> signal.SIGTERM - 1 & 1:
            assert time.monotonic() < deadline, self.stderr()
            time.sleep(0.01)

    def stderr(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def left_behind(self, deadline_s: float = 100) -> list[str]:
        """Command lines of processes that still live after `deadline_s`."""
        deadline = time.monotonic() + deadline_s
        while (titles := list(self._alive())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return titles

    def _alive(self) -> Iterator[str]:
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self._tag in (folder / "environ").read_text(
                    encoding="utf-8", errors="replace"
                ):
                    yield (folder / "cmdline").read_text(encoding="utf-8", errors="replace")
            except OSError:  # it ended while we looked
                continue


@pytest.fixture
def spec(tmp_path: Path, bert_mean_dir: Path) -> Path:
    for shard in range(3):
        documents = [{"id": f"{shard}-{n}", "text": f"Document {n}. " * 40} for n in range(60)]
        write_shard(tmp_path / f"in/{shard}.jsonl", documents)
    spec = make_spec(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        bert_mean_dir,
        input={"keep_columns": []},
        runtime={"part_bytes": "1KiB"},
    )
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    return path


def stopped_in_order(command: Command) -> None:
    code = command.process.wait(timeout=120)
    stderr = command.stderr()
    assert code == 130, stderr
    announcement, _, rest = stderr.rpartition(ANNOUNCEMENT)
    assert announcement is not None
    assert rest.startswith("Stopped"), stderr
    assert len(rest.splitlines()) == 1
    assert not command.left_behind()


@pytest.mark.ray
@pytest.mark.parametrize("seed", [1])
def test_one_interruption_at_a_random_moment_of_the_start_ends_in_order(
    spec: Path, tmp_path: Path, seed: int
) -> None:
    command = Command(spec, tmp_path)
    command.wait_for("fingerprint ")  # the plan has been shown: Ray starts now
    time.sleep(random.Random(seed).uniform(0, 4))
    command.interrupt()
    stopped_in_order(command)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_interruptions_at_random_moments_end_in_order(spec: Path, tmp_path: Path) -> None:
    """Moments are drawn from the length of an undisturbed run, which differs from one machine, and
    from one hour, to another."""
    undisturbed = Command(spec, tmp_path)
    undisturbed.wait_for_handlers()
    start_s = time.monotonic()
    assert undisturbed.process.wait(timeout=600) == 0, undisturbed.stderr()
    run_s = time.monotonic() - start_s
    chance = random.Random(7)
    n_stopped = 0
    for _ in range(20):
        command = Command(spec, tmp_path, "--set", f"output.uri={tmp_path}/{uuid.uuid4().hex}")
        command.wait_for_handlers()
        time.sleep(chance.uniform(0, run_s))
        command.interrupt()
        if command.process.wait(timeout=120) != 0:  # else it was over before
            stopped_in_order(command)
            n_stopped += 1
    assert n_stopped >= 10


@pytest.mark.ray
def test_what_is_kept_is_counted_and_the_next_run_takes_it(spec: Path, tmp_path: Path) -> None:
    command = Command(spec, tmp_path)
    manifests = tmp_path / "out/_meta/manifests"
    deadline = time.monotonic() + 120
    while len(list(manifests.rglob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    command.interrupt()
    stopped_in_order(command)
    parts = [json.loads(path.read_text()) for path in manifests.rglob("*.json")]
    n_documents = sum(part["n_documents"] for part in parts)
    assert command.stderr().endswith(
        f"Stopped: {len(parts)} parts, {n_documents} documents are kept. "
        "Run the same command again to resume.\n"
    )


@pytest.mark.ray
def test_two_interruptions_end_at_once_and_quietly(spec: Path, tmp_path: Path) -> None:
    command = Command(spec, tmp_path)
    command.wait_for("starting workers")
    command.interrupt()
    command.wait_for(ANNOUNCEMENT)
    if command.process.poll() is None:
        command.interrupt()
    assert command.process.wait(timeout=100) == 130
    assert "Traceback" not in command.stderr()
    assert "Exception" not in command.stderr()
    assert not command.left_behind()


@pytest.mark.parametrize("delay_s", [0.15, 0.4, 0.8])
def test_an_interruption_of_the_imports_leaves_no_trace(
    tmp_path: Path, delay_s: float, spec: Path
) -> None:
    command = Command(spec, tmp_path)
    time.sleep(delay_s)
    command.interrupt()
    code = command.process.wait(timeout=60)
    # before the handler stands, which is Python's own start, it dies of the signal
    assert code in (130, -signal.SIGINT)
    assert not command.left_behind()
    if code == 130:
        assert "Traceback" not in command.stderr()


def test_the_first_signal_is_announced_and_the_second_one_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr("pipeline.cli.stopping._below", lambda _: iter(()))
    stopping = Stopping()
    with pytest.raises(KeyboardInterrupt):
        stopping._on_signal(signal.SIGINT, None)
    assert capfd.readouterr().err == ANNOUNCEMENT
    with pytest.raises(SystemExit, match="130"):
        stopping._on_signal(signal.SIGINT, None)
    assert capfd.readouterr().err == ""


def test_a_command_that_does_not_end_after_sigterm_is_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr("pipeline.cli.stopping._below", lambda _: iter(()))
    monkeypatch.setattr("pipeline.cli.stopping.TERMINATION_S", 0.05)
    with pytest.raises(SystemExit, match="143"):
        Stopping()._on_signal(signal.SIGTERM, None)
    assert ended.wait(10)
    assert (codes, capfd.readouterr().err) == ([143], f"{LAST_WORDS}\n")


def test_an_interruption_by_the_watch_of_a_run_is_not_announced(
    capfd: pytest.CaptureFixture[str],
) -> None:
    stopping = Stopping()
    interrupts._is_ours.set()
    with pytest.raises(KeyboardInterrupt):
        stopping._on_signal(signal.SIGINT, None)
    assert capfd.readouterr().err == ""
    assert not interrupts.is_ours()


def test_a_signal_that_is_held_back_is_handled_at_once_and_raised_after_the_block() -> None:
    steps: list[str] = []

    def handler(*_: object) -> None:
        steps.append("handled")
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handler)

    def interrupted() -> None:
        with interrupts.held_back():
            signal.raise_signal(signal.SIGINT)
            steps.append("finished")

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert steps == ["handled", "finished"]
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, previous)
