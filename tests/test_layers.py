"""The rooms of the package stand in one order, and each imports only from rooms below it.

Oracle: the abstract syntax tree of every module.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room imports only from rooms on lines below its own. Rooms on one line never import each other.
ROOMS = """
    cli
    driver
    tools
    observe
    workers
    output
    read prepare tokenize embed write
    job
    storage
"""
# The same inside the driver; "run" stands for the files that lie in none of its rooms.
ROOMS_OF_THE_DRIVER = """
    cluster
    run
    estimate starter
    planning
"""


def floors(rooms: str) -> dict[str, int]:
    """The line on which each room stands."""
    lines = [line.split() for line in rooms.split("\n") if line.strip()]
    return {room: floor for floor, line in enumerate(lines) for room in line}


FLOOR_OF = floors(ROOMS)
FLOOR_IN_THE_DRIVER = floors(ROOMS_OF_THE_DRIVER)
AT_THE_ROOT = {"__init__.py", "__main__.py", "errors.py"}


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@functools.cache
def imports(path: Path, *, with_types: bool = False) -> frozenset[str]:
    """Dotted names that a module imports, at its top or inside functions; with_types: also those
    that it imports only to name types."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if is_for_types and not with_types:
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: import by the full name"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(names)


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


@pytest.mark.parametrize(
    "path", [path for path in MODULES if place(path).startswith("driver/")], ids=place
)
def test_a_room_of_the_driver_imports_only_from_its_rooms_below_it(path: Path) -> None:
    def room_of(parts: list[str]) -> str:
        return parts[0] if parts[0] in FLOOR_IN_THE_DRIVER else "run"

    room = room_of(place(path).split("/")[1:])
    used = {
        room_of(name.split(".")[2:])
        for name in imports(path)
        if name.startswith("pipeline.driver.")
    } - {room}
    above = {name for name in used if FLOOR_IN_THE_DRIVER[name] <= FLOOR_IN_THE_DRIVER[room]}
    assert not above, f"{place(path)} imports from {sorted(above)}, which are not below {room}"


def test_no_module_of_the_benchmarks_imports_in_a_circle() -> None:
    uses = {
        path.stem: {name.split(".")[1] for name in imports(path) if name.startswith("benchmarks.")}
        for path in (ROOT / "benchmarks").glob("*.py")
    }
    while leaves := {module for module, used in uses.items() if not used & uses.keys()}:
        uses = {module: used for module, used in uses.items() if module not in leaves}
    assert not uses, f"these import each other: {sorted(uses)}"


def test_no_module_of_a_room_imports_in_a_circle() -> None:
    modules = {
        ".".join(["pipeline", *path.relative_to(PACKAGE).with_suffix("").parts]): path
        for path in MODULES
    }
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    uses = {
        module: imports(path, with_types=True) & modules.keys() - {module}
        for module, path in modules.items()
    }
    while leaves := {module for module, used in uses.items() if not used & uses.keys()}:
        uses = {module: used for module, used in uses.items() if module not in leaves}
    assert not uses, f"these import each other: {sorted(uses)}"
