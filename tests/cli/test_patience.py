"""A command at a prompt says what it waits for, and gives up; a run is as patient as its setting.

Oracle: the clock, and an address where nothing listens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.cli import commands
from pipeline.cli.main import main
from pipeline.storage import notes, retry, waits


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Seconds for what takes ten, in a process that has keys for S3."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr(waits, "_monitor", waits._Monitor(first_note_s=0.3))
    monkeypatch.setattr(waits, "NEXT_NOTE_S", 1.0)
    yield
    notes.listen_to_notes(None)


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["corpus-embed", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ending:
        main()
    return int(ending.value.code or 0)


def test_the_patience_of_a_prompt_is_twenty_seconds() -> None:
    assert (retry.PROMPT_SECONDS, commands.PROMPT_SECONDS) == (20, 20)
    assert waits._Monitor(3.0).first_note_s == 3  # that of a process


def test_a_command_at_a_prompt_names_its_wait_and_gives_up(
    refusing_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "PROMPT_SECONDS", 4.0)
    options = f'{{"endpoint_url": "{refusing_url}"}}'
    start_s = time.monotonic()
    assert called(monkeypatch, "status", "s3://lake/out", "--storage-options", options) == 1
    assert time.monotonic() - start_s < 60  # and not the five minutes of a run
    lines = capsys.readouterr().err.splitlines()
    place = f"cannot reach {refusing_url} (output.storage_options.endpoint_url): connection refused"
    *notes, last = [line for line in lines if place in line]
    assert notes
    assert all("trying until" in note and "Ctrl-C stops" in note for note in notes)
    assert last == lines[-1]
    assert last.startswith("StorageError: list s3://lake/out/_meta/snapshots: still failing")


def test_a_run_keeps_the_patience_of_its_setting(
    tmp_path: Path,
    refusing_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where a person has typed it: its scheduler does the same."""
    monkeypatch.setattr(commands, "PROMPT_SECONDS", 0.1)
    monkeypatch.setattr(retry, "RETRY_SECONDS", 2.0)
    spec = {
        "name": "x",
        "input": {"uri": str(tmp_path / "in")},
        "model": {"path": str(tmp_path / "m")},
        "output": {"uri": "s3://lake/out", "storage_options": {"endpoint_url": refusing_url}},
        "runtime": {"device": "cpu"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    assert called(monkeypatch, "refresh", str(tmp_path / "job.yaml")) == 1
    assert "attempts over 2 s: cannot reach" in capsys.readouterr().err
