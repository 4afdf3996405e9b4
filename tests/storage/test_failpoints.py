"""Failpoints act once, at the place that is named, and nowhere else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage.failpoints import NAMES, failpoint
from tests import ROOT


def arm(monkeypatch: pytest.MonkeyPatch, folder: Path, setting: str) -> None:
    monkeypatch.setenv("CORPUS_EMBED_FAILPOINT", setting)
    monkeypatch.setenv("CORPUS_EMBED_FAILPOINT_DIR", str(folder))


def test_without_a_setting_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORPUS_EMBED_FAILPOINT", raising=False)
    for name in NAMES:
        failpoint(name)


def test_raise_acts_at_its_place_and_once_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arm(monkeypatch, tmp_path, "after_data_put:raise")
    failpoint("before_data_put")
    with pytest.raises(StorageError, match="after_data_put"):
        failpoint("after_data_put")
    failpoint("after_data_put")


def test_kill_is_a_sigkill_to_the_process(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "CORPUS_EMBED_FAILPOINT": "after_plan:kill",
        "CORPUS_EMBED_FAILPOINT_DIR": str(tmp_path),
    }
    code = (
        "from pipeline.storage.failpoints import failpoint; failpoint('after_plan'); print('alive')"
    )
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False
        )
        for _ in range(2)
    ]
    assert [done.returncode for done in runs] == [-signal.SIGKILL, 0]
    assert [done.stdout for done in runs] == [b"", b"alive\n"]


def test_pause_waits_until_it_is_told_to_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arm(monkeypatch, tmp_path, "after_snapshot_put:pause")
    waiter = threading.Thread(target=failpoint, args=["after_snapshot_put"], daemon=True)
    waiter.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "after_snapshot_put.hit").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    waiter.join(0.1)
    assert waiter.is_alive()
    (tmp_path / "after_snapshot_put.go").touch()
    waiter.join(60)
    assert not waiter.is_alive()


@pytest.mark.parametrize(
    "setting", ["after_dataput:kill", "after_data_put", "after_data_put:explode", ":kill"]
)
def test_a_setting_that_could_never_act_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str
) -> None:
    arm(monkeypatch, tmp_path, setting)
    with pytest.raises(StorageError, match="name:action"):
        failpoint("before_data_put")


def test_a_setting_without_a_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS_EMBED_FAILPOINT", "after_plan:kill")
    monkeypatch.delenv("CORPUS_EMBED_FAILPOINT_DIR", raising=False)
    with pytest.raises(StorageError, match="CORPUS_EMBED_FAILPOINT_DIR"):
        failpoint("after_plan")


def test_every_name_is_a_place_in_the_code_and_every_place_has_a_name() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    assert set(re.findall(r'failpoint\("(\w+)"\)', text)) == set(NAMES)
