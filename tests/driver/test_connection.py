"""Where a Ray of our own puts its sockets and its shared memory.

Oracle: the 107 bytes that Linux takes for the name of a socket.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.driver.cluster import connection
from pipeline.errors import ClusterError
from tests import ROOT

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="the limits of Linux")]
LONG = "/tmp/" + "é" * 30
"""30 characters, 60 bytes."""


def test_the_defaults_of_ray_are_left_alone_where_they_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "e" * 30)
    assert connection._places() == {}


def test_a_temporary_folder_with_too_long_a_name_is_replaced_and_a_chosen_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", LONG)
    assert connection._places() == {"_temp_dir": "/tmp/ray"}
    monkeypatch.setenv("RAY_TMPDIR", LONG)
    with pytest.raises(ClusterError, match="Set RAY_TMPDIR to a folder with a shorter name"):
        connection._places()


def test_without_shared_memory_the_store_of_objects_is_in_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr(connection, "_SHARED_MEMORY", str(tmp_path / "shm"))
    assert connection._places() == {
        "_plasma_directory": connection.tempfile.gettempdir(),
        "object_store_memory": 1 << 30,
    }


@pytest.mark.ray
def test_workers_are_told_where_the_package_is() -> None:
    (place,) = connection._own_path()._py_driver_sys_path
    assert (Path(place) / "pipeline" / "driver" / "cluster" / "connection.py").is_file()


@pytest.mark.ray
@pytest.mark.slow
def test_workers_import_the_package_that_the_driver_imports(tmp_path: Path) -> None:
    """Also where it is not the one that is installed, and the user's folder has a module of the
    same name."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "pipeline", copy / "pipeline")
    (tmp_path / "pipeline.py").write_text("raise SystemExit('a stranger')")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "sys.path[0] = sys.argv[1]\n"
        "import pipeline, ray\n"
        "from pipeline.driver.cluster.connection import connect, disconnect\n"
        "connect(None)\n"
        "def place():\n"
        "    import pipeline\n"
        "    return pipeline.__file__\n"
        "print(ray.get(ray.remote(place).remote()) == pipeline.__file__)\n"
        "disconnect()\n"
    )
    # -I: no path of the environment, only what the driver hands over
    done = subprocess.run(
        [sys.executable, "-I", str(program), str(copy)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr
