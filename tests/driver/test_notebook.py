"""A run shows a bar in a notebook and stays silent in a script.

Oracle: what tqdm has written, for a `Progress` that is advanced by hand.
"""

from __future__ import annotations

import io
import sys
import types

import pytest

from pipeline.driver.notebook import default_watch, in_notebook, tqdm_bar
from pipeline.driver.showing import log_notes
from pipeline.observe.progress import DONE, EMBEDDING, LOADING, Progress


def test_a_script_has_no_bar() -> None:
    assert not in_notebook()
    assert default_watch() is log_notes


@pytest.mark.parametrize(("shell", "expected"), [("terminal", False), ("kernel", True)])
def test_only_a_kernel_is_a_notebook(
    monkeypatch: pytest.MonkeyPatch, shell: str, expected: bool
) -> None:
    """What IPython answers: its shell, which has a `kernel` in Jupyter alone."""
    ipython = types.ModuleType("IPython")
    instance = types.SimpleNamespace(**({"kernel": object()} if shell == "kernel" else {}))
    ipython.get_ipython = lambda: instance  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert in_notebook() is expected


def test_the_bar_shows_phase_figures_and_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = Progress(started=0.0, clock=lambda: now[0])
    lines = io.StringIO()
    watch = tqdm_bar(file=lines, ncols=140, mininterval=0)
    progress.enter(LOADING)
    watch(progress, ["waiting for workers"])
    assert "waiting for workers" in capsys.readouterr().err
    now[0] = 5.0
    progress.enter(EMBEDDING)
    progress.advance("p", {"n_documents": 1200, "n_embedded_tokens": 90_000, "n_rejects": 2})
    now[0] = 15.0
    progress.read_clock()
    watch(progress, [])
    progress.enter(DONE)
    watch(progress, [])
    shown = lines.getvalue().split("\r")
    assert any(line.startswith("  0%|") and "| loading the model, 0:00" in line for line in shown)
    figures = "| embedding, 0:15, 1,200 documents, 9.0k tokens/s, 2 rejects"
    assert any(figures in line for line in shown)
    assert shown[-1].startswith("100%|")
    assert "| done, 0:15, 1,200 documents" in shown[-1]
    assert shown[-1].endswith("\n")
