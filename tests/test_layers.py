"""The rooms of the package stand in one order, and each imports only from rooms below it.

Oracle: the abstract syntax tree of every module, and `sys.modules` of a fresh interpreter.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 320  # 250 once every room has been rewritten

# A room imports only from rooms on lines below its own. Rooms on one line never import each other.
ROOMS = """
    cli
    driver
    tools
    workers
    output
    read prepare tokenize embed write
    job
    storage
"""
FLOORS = [line.split() for line in ROOMS.split("\n") if line.strip()]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
AT_THE_ROOT = {"__init__.py", "__main__.py", "errors.py"}
OWNERS = {
    "torch": ("embed/",),
    "fugashi": ("tokenize/mecab.py",),
    "pyiceberg": ("output/lake/iceberg.py", "output/lake/file_io.py"),
    "deltalake": ("output/lake/delta.py",),
    "ray": ("driver/", "workers/stages.py", "workers/reports.py"),
}
"""Libraries that only some modules may import: those that are heavy, and those that are extras."""


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, at its top or inside functions, except for types only."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{place(path)}: import by the full name"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def test_the_package_is_its_rooms_and_three_files() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert entries - {"py.typed"} == {*FLOOR_OF, *AT_THE_ROOT}


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != PACKAGE], ids=place)
def test_a_room_imports_only_from_rooms_below_it(path: Path) -> None:
    room = place(path).split("/")[0]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")} - {
        room,
        "errors",
    }
    assert used <= FLOOR_OF.keys(), f"{place(path)} imports the public names of the package"
    above = {name for name in used if FLOOR_OF[name] <= FLOOR_OF[room]}
    assert not above, f"{place(path)} imports from {sorted(above)}, which are not below {room}"


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_only_by_its_owners(library: str) -> None:
    users = {
        place(path) for path in MODULES for name in imports(path) if name.split(".")[0] == library
    }
    strangers = {user for user in users if not user.startswith(OWNERS[library])}
    assert not strangers, f"{library} belongs in {OWNERS[library]} only"


def test_only_the_layout_spells_out_the_metadata_folder() -> None:
    """Every path of an output is made and recognised in one file; docstrings may name the folder."""
    spelled = []
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and "_meta" in str(node.value)
                and id(node) not in docstrings
            ):
                spelled.append(f"{place(path)}:{node.lineno}")
    assert {name.split(":")[0] for name in spelled} == {"storage/layout.py"}


@pytest.mark.parametrize("folder", ["pipeline", "jobs"])
def test_files_stay_readable_in_one_sitting(folder: str) -> None:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    long = {
        str(path.relative_to(ROOT)): n_lines
        for path, n_lines in lengths.items()
        if n_lines > MAX_LINES
    }
    assert not long


@pytest.mark.parametrize(
    "module", ["pipeline", "pipeline.cli.main", "pipeline.driver.plan", "pipeline.job.spec"]
)
def test_planning_and_help_start_without_heavy_libraries(module: str) -> None:
    """`plan` runs on a login node in a second: what it imports must not pull in torch, ray or
    transformers."""
    heavy = ["torch", "ray", "transformers", "sentence_transformers", "fugashi"]
    code = f"import {module}, json, sys; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
