"""Workers of a Ray of one run are forks of one process, and agents that nobody asks are stand-ins.

Oracle: what the workers say of themselves, and the processes below the driver as /proc lists them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.driver.cluster.forks import start
from tests import ROOT

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")]

IDS = """
import json, os
from pipeline.driver.cluster.forks import own_state, template

template.import_modules()
before = own_state.differs_in_forks()
import ray
ray.ObjectID.from_random()
print(json.dumps([before, own_state.differs_in_forks()]))
"""

WORKERS = """
import json, os, signal, sys, time, ray
from pipeline.driver.cluster.connection import connect, disconnect
from tests.support.processes import below

connect(None, is_forking=True)

@ray.remote(num_cpus=0.1, max_retries=3)
def facts(seconds):
    time.sleep(seconds)
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "folder": os.getcwd(),
        "setting": os.environ.get("CORPUS_EMBED_CACHE"),
        "raylet": int(os.environ["RAY_RAYLET_PID"]),
        "is_forked": "torch" in sys.modules,
        "object": ray.ObjectID.from_random().hex(),
    }

pair = ray.get([facts.remote(1.0), facts.remote(1.0)])
pids = below(os.getpid())
template = pair[0]["parent"]
os.kill(template, signal.SIGKILL)
while os.path.exists(f"/proc/{pair[0]['pid']}"):
    time.sleep(0.05)
after = ray.get(facts.remote(0.0))
pids |= below(os.getpid())
disconnect()
deadline = time.monotonic() + 20
while (left := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]):
    assert time.monotonic() < deadline, left
    time.sleep(0.05)
print(json.dumps({"pair": pair, "after": after, "lines": pids}))
"""


def output_of(code: str, folder: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CORPUS_EMBED_CACHE": str(folder)}
    env.pop("RAY_enable_metrics_collection", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_forks_draw_ids_of_their_own_and_it_is_seen_where_they_do_not(tmp_path: Path) -> None:
    assert json.loads(output_of(IDS, tmp_path)) == [True, False]


@pytest.mark.ray
def test_workers_are_forks_that_end_with_their_template_and_are_started_without_it(
    tmp_path: Path,
) -> None:
    state = json.loads(output_of(WORKERS, tmp_path))
    first, second = state["pair"]
    lines = state["lines"]
    assert first["pid"] != second["pid"]
    assert first["object"] != second["object"]
    for worker in (first, second):
        assert worker["is_forked"]
        assert worker["parent"] == first["parent"] != worker["raylet"]
        assert worker["group"] == worker["pid"]  # Ray kills the group of a worker that has ended
        assert worker["folder"] == str(tmp_path)
        assert worker["setting"] == str(tmp_path)
        assert "raylet" in lines[str(worker["raylet"])]
    assert not state["after"]["is_forked"]
    programs = [" ".join(line.split()[:4]) for line in lines.values()]
    assert sum("forks/agent.py" in program for program in programs) == 2


def test_without_a_template_a_worker_runs_the_program_of_ray_itself(tmp_path: Path) -> None:
    program = tmp_path / "a program.py"
    program.write_text("import os, sys; print(os.getpid(), sys.argv)")
    command = [sys.executable, start.__file__.replace("start.py", "worker.py")]
    command += [str(tmp_path / "no socket"), str(program), "--port=1", "--name=a b"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=60)
    argv = [str(program), "--port=1", "--name=a b"]
    assert output == f"{process.pid} {argv}\n"


def test_an_agent_says_that_its_services_are_not_there_and_ends_with_its_raylet(
    tmp_path: Path,
) -> None:
    files = [tmp_path / "metrics_agent_port_ab", tmp_path / "metrics_export_port_ab"]
    agent = start.__file__.replace("start.py", "agent.py")
    command = [sys.executable, "-I", "-S", agent, *(f"--file={file}" for file in files), "--more"]
    raylet = f"""
import os, subprocess, time
env = {{"RAY_RAYLET_PID": str(os.getpid())}}
agent = subprocess.Popen({command!r}, env=env, stdout=2)
while not all(map(os.path.exists, {list(map(str, files))!r})):
    time.sleep(0.01)
print(agent.pid)
"""
    done = subprocess.run([sys.executable, "-c", raylet], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == 0
    deadline = time.monotonic() + 30
    while Path(f"/proc/{int(done.stdout)}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert {file.read_text() for file in files} == {"-1"}


def test_only_the_agents_and_the_program_of_workers_are_others_in_the_command_of_a_raylet() -> None:
    program = str(
        importlib.metadata.distribution("ray").locate_file("ray/_private/workers/default_worker.py")
    )
    command = [
        "/ray/raylet",
        "--session_dir=/tmp/ray/session",
        "--node_id=ab12",
        f"--python_worker_command=python setup_worker.py {program} --port=1 --raylet-name=a=b",
        "--num_prestart_python_workers=2",
        "--dashboard_agent_command=python agent.py --grpc-port=1",
        "--runtime_env_agent_command=python main.py",
        "--head",
    ]
    lean = start.lean_command(command, "/tmp/socket")
    kept = [0, 1, 2, 7]
    assert [lean[position] for position in kept] == [command[position] for position in kept]
    assert lean[4] == "--num_prestart_python_workers=0"
    prefix, _, rest = lean[3].partition(" setup_worker.py ")
    words = rest.split()
    assert prefix == "--python_worker_command=python"
    assert Path(words[0]).name == "worker.py"
    assert words[1:] == ["/tmp/socket", program, "--port=1", "--raylet-name=a=b"]
    assert lean[5].endswith(
        "agent.py --file=/tmp/ray/session/metrics_agent_port_ab12"
        " --file=/tmp/ray/session/metrics_export_port_ab12"
        " --file=/tmp/ray/session/dashboard_agent_listen_port_ab12"
    )
    assert lean[6].endswith("agent.py --file=/tmp/ray/session/runtime_env_agent_port_ab12")
    without = start.lean_command(command, None)
    assert without[3:5] == command[3:5]
    assert without[5:7] == lean[5:7]
