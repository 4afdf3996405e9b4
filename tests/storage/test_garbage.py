"""Blocks without collections, and a process that exits with all its objects.

Oracle: the collector's own state, and what a fresh interpreter does at its exit.
"""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from pipeline.storage.garbage import uncollected


def test_the_collector_is_off_in_the_block_and_as_before_behind_it_whatever_is_raised() -> None:
    assert gc.isenabled()
    with uncollected(), uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()


def test_exit_handlers_run_and_files_are_written_where_nothing_is_collected(tmp_path) -> None:
    code = (
        "import atexit, sys, tempfile; from pipeline.storage.garbage import leave_all\n"
        "atexit.register(print, 'handler')\n"
        f"folder = tempfile.TemporaryDirectory(dir={str(tmp_path)!r})\n"
        f"file = open({str(tmp_path / 'text')!r}, 'w'); file.write('written')\n"
        "leave_all(); sys.exit(3)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "handler\n")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert (tmp_path / "text").read_text() == "written"
