"""What a run shows while it works: on a terminal of 80 and of 140 columns, as plain lines, and as
JSON lines.

Oracle: a terminal emulator (pyte) that reads what a process writes to its terminal, and figures
that the test sets.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.console import Console

from pipeline.cli.live import Watcher, in_lines
from pipeline.cli.terminal import Terminal
from pipeline.errors import SpecError
from pipeline.observe.progress import COMMITTING, DONE, EMBEDDING, LOADING, STARTING, Progress
from pipeline.observe.rate import PlannedSplit, Remaining
from tests import ROOT

SCRIPT = """
import sys
from pipeline.cli.live import Watcher
from pipeline.cli.terminal import Terminal
from tests.cli.test_live import half_done
from pipeline.observe.progress import Progress

with Watcher(Terminal(stderr=True)) as watch:
    progress = Progress() if sys.argv[1] == "starting" else half_done()[0]
    if sys.argv[1] == "starting":
        progress.enter("starting workers")
    watch(progress, ["s3://lake/a[/b].jsonl: changed while it was read [red]"])
    if watch._view:
        watch._view.refresh()
    print("captured", flush=True)
    sys.stdin.readline()
print("after", file=sys.stderr)
"""


def half_done() -> tuple[Progress, list[float]]:
    """A run of which half is embedded after 100 s, and its clock."""
    now_s = [0.0]
    progress = Progress(clock=lambda: now_s[0])
    progress.remaining = Remaining([PlannedSplit("s", "", 1_000_000)])
    progress.enter(STARTING)
    now_s[0] += 10
    progress.enter(EMBEDDING)
    now_s[0] += 90
    progress.finish_part(
        "a",
        {
            "n_documents": 1200,
            "n_tokens": 180_000,
            "n_embedded_tokens": 180_000,
            "n_padded_tokens": 180_000,
            "n_rejects": 3,
            "rejects.empty_text": 2,
            "rejects.[red]": 1,
            "record_bytes": 450_000,
            "parts": 1,
            "seconds.read": 0.5,
            "seconds.tokenize": 2.0,
            "seconds.tokenizers_blocked": 80.0,
            "seconds.embed": 89.0,
            "seconds.embedders_starved": 1.0,
            "seconds.write": 0.4,
        },
    )
    progress.advance("b", {"n_documents": 130, "n_embedded_tokens": 9_000, "record_bytes": 50_000})
    progress.workers = {"embedding": 2, "reading": 1}
    progress.read_clock()
    return progress, now_s


def screen_of(columns: int, state: str, **environment: str) -> tuple[list[str], list[str], bytes]:
    """(lines while it runs, lines after it, what was written) on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**variables, **environment},
        cwd=ROOT,
    ) as process:
        os.close(theirs)
        assert process.stdin is not None
        assert process.stdout is not None
        screen = pyte.Screen(columns, 24)
        stream = pyte.ByteStream(screen)
        process.stdout.readline()
        written = b""
        while select.select([ours], [], [], 0.1)[0] and len(written) < 1 << 16:
            written += os.read(ours, 1 << 16)
        stream.feed(written)
        during = [line.rstrip() for line in screen.display if line.strip()]
        process.stdin.close()
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            written += data
            stream.feed(data)
        assert process.wait() == 0, written.decode()
    os.close(ours)
    return during, [line.rstrip() for line in screen.display if line.strip()], written


@pytest.mark.parametrize(("columns", "most_lines"), [(80, 6), (140, 4)])
def test_a_terminal_shows_phase_bar_estimate_figures_and_who_waits(
    columns: int, most_lines: int
) -> None:
    during, after, _ = screen_of(columns, "half")
    note = "s3://lake/a[/b].jsonl: changed while it was read [red]"
    assert during[0] == note
    bar, *figures = during[1:]
    assert bar.startswith("embedding ━")
    assert bar.endswith("50% 1:40, 1:30 left")
    assert len(during) <= 1 + most_lines
    text = " · ".join(line.strip() for line in figures)
    for words in (
        "1,330 documents · 189k tokens · 2.1k tokens/s · 1 part",
        "3 rejects (1 [red], 2 empty_text)",
        "tokenizers wait for embedders",
        "workers: 2 embedding, 1 reading",
        "tokens/s of a worker: read 360k, tokenize 90.0k, embed 2.0k, write 450k",
    ):
        assert words in text
    assert all(len(line) <= columns for line in during)
    assert not any("…" in line for line in figures), "nothing is cut off"
    assert after == [note, "after"]


def test_a_narrow_terminal_cuts_lines_and_wraps_none() -> None:
    during, after, _ = screen_of(40, "half")
    assert all(len(line) <= 40 for line in during)
    assert any(line.startswith("embedding") for line in during)
    assert after[-1] == "after"


def test_before_the_first_bucket_the_phase_has_its_name_and_no_estimate() -> None:
    during, _, _ = screen_of(80, "starting")
    assert during[-1].startswith("starting workers ━")
    assert during[-1].endswith("0:00")


def test_no_color_shows_no_colour() -> None:
    _, _, coloured = screen_of(80, "half")
    _, _, plain = screen_of(80, "half", NO_COLOR="1")
    assert b"\x1b[33m" in coloured
    assert b"\x1b[33m" not in plain


@pytest.mark.parametrize("environment", [{"CI": "true"}, {"TERM": "dumb"}])
def test_nothing_is_drawn_again_where_nobody_looks(environment: dict[str, str]) -> None:
    _, after, written = screen_of(80, "half", **environment)
    assert "embedding, 1:40: 50% · 1:30 left · 1,330 documents" in " ".join(after)
    assert b"\x1b[2K" not in written


def lines_of(progress: Progress, mode: str, *changes: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=300)
    with Watcher(console, mode) as watch:
        watch(progress, [])
        for change in changes:
            change()
            watch(progress, ["a [note]"] if change is changes[-1] else [])
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_plain_lines_come_with_each_phase_and_nothing_between_them() -> None:
    progress = Progress(clock=lambda: 5.0)
    steps = [lambda phase=phase: progress.enter(phase) for phase in (STARTING, STARTING, LOADING)]
    assert lines_of(progress, "plain", *steps, lambda: progress.enter(COMMITTING)) == [
        "planning, 0:00 …",
        "starting workers, 0:00 …",
        "loading the model, 0:00 …",
        "a [note]",
        "committing, 0:00 …",
    ]


def test_json_lines_parse_and_their_counts_never_fall() -> None:
    progress, now_s = half_done()

    def finish() -> None:
        now_s[0] += 60
        progress.advance("b", {"n_documents": 10, "n_embedded_tokens": 900, "record_bytes": 500})
        progress.finish_part("b", {"n_documents": 130, "n_embedded_tokens": 9_000, "parts": 1})
        progress.enter(COMMITTING)

    lines = lines_of(progress, "json", finish, lambda: progress.enter(DONE))
    records = [json.loads(line) for line in lines]
    assert [record["phase"] for record in records] == [EMBEDDING, COMMITTING, DONE]
    assert records[0]["fraction"] == 0.5
    assert records[0]["eta_s"] == 90
    assert records[0]["reject_reasons"] == {"empty_text": 2, "[red]": 1}
    assert records[-1]["notes"] == ["a [note]"]
    for name in ("elapsed_s", "fraction", "documents", "tokens", "parts", "time", "embedding_s"):
        values = [record[name] for record in records]
        assert values == sorted(values), name
    assert {tuple(record) for record in records} == {tuple(records[0])}


def test_json_lines_go_to_a_file_beside_the_display(tmp_path: Path) -> None:
    progress, _ = half_done()
    shown = lines_of(progress, f"json:{tmp_path / 'progress.jsonl'}")
    assert shown[0].startswith("embedding, 1:40: 50%")
    assert json.loads((tmp_path / "progress.jsonl").read_text())["documents"] == 1330


@pytest.mark.parametrize("mode", ["xml", "plain:file", "json:/nowhere/at/all"])
def test_an_unknown_way_to_show_progress_is_a_mistake_of_the_command_line(mode: str) -> None:
    with pytest.raises(SpecError, match="--progress"):
        Watcher(Terminal(stderr=True), mode)


def test_lines_hold_as_many_words_as_fit() -> None:
    words = ["aaaa", "bbbb", "cccc"]
    assert in_lines(words, 11) == ["aaaa · bbbb", "cccc"]
    assert in_lines(words, 4) == words
    assert in_lines(words, 40) == ["aaaa · bbbb · cccc"]
