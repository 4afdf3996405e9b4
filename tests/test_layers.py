"""The layers of the design hold: imports point down, heavy libraries stay in their rooms, files stay short.

Oracle: the abstract syntax tree of every module, and `sys.modules` of a fresh interpreter.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 250

SIBLINGS = {"read", "prepare", "tokenize", "embed", "write"}
# Which layer a module is in, by its first name below `pipeline`. A module may import its own layer and those below.
LAYERS = {
    **dict.fromkeys(
        [
            "addresses",
            "errors",
            "lineage",
            "schema",
            "storage",
            "retry",
            "metrics",
            "data_files",
            "model_dir",
            "model_hashes",
            "model_store",
            "failpoints",
            "uploads",
        ],
        0,
    ),
    **dict.fromkeys(SIBLINGS, 1),
    **dict.fromkeys(["spec", "spec_types"], 2),
    **dict.fromkeys(
        [
            "job",
            "splits",
            "origin",
            "invariants",
            "plan",
            "parts",
            "cutting",
            "careful",
            "quarantine",
            "shards",
            "commit",
            "publish",
            "refresh",
            "reuse",
            "text_index",
            "dataset",
            "feed",
            "compact",
            "lake",
            "vacuum",
            "verify",
            "verify_records",
            "verify_rows",
            "verify_sample",
            "recorded",
            "lease",
            "record",
            "trace",
            "search",
        ],
        3,
    ),
    **dict.fromkeys(["run", "watch", "stages", "cluster"], 4),
    **dict.fromkeys(["cli", "cli_outputs", "cli_options", "submit", "display", "__main__", "__init__"], 5),
}
# library -> the only places that may import it
ROOMS = {
    "torch": ("embed/",),
    "fugashi": ("tokenize/mecab.py",),
    "pyiceberg": ("lake/iceberg.py",),
    "deltalake": ("lake/delta.py",),
    "ray": ("run.py", "watch.py", "stages.py", "cluster.py", "submit.py"),
}


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    """The first name below `pipeline`: a package or a module."""
    return place(path).split("/")[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every dotted name a module imports, at the top or inside functions, except for types only."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
                base = ".".join([*parents, base]).rstrip(".")
            found.add(base)
            # `from pipeline import storage` names a module, `from pipeline.storage import read` does not
            found.update(f"{base}.{alias.name}" for alias in node.names if base == "pipeline")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def own(path: Path) -> set[str]:
    """First names below `pipeline` that a module imports, those that are modules."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_every_module_has_a_layer(path: Path) -> None:
    assert room(path) in LAYERS, (
        f"{place(path)}: give '{room(path)}' a layer in tests/test_layers.py (and in docs/design.md)"
    )


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_imports_point_down(path: Path) -> None:
    up = {name for name in own(path) if LAYERS.get(name, 0) > LAYERS.get(room(path), 0)}
    assert not up, f"{place(path)} (layer {LAYERS[room(path)]}) imports from above: {sorted(up)}"


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) in SIBLINGS], ids=place)
def test_siblings_never_import_each_other(path: Path) -> None:
    others = own(path) & (SIBLINGS - {room(path)})
    assert not others, f"{place(path)} imports its siblings {sorted(others)}; move what is shared to layer 0"


@pytest.mark.parametrize("library", ROOMS)
def test_a_heavy_library_is_imported_only_in_its_room(library: str) -> None:
    users = {place(path) for path in MODULES for name in imports(path) if name.split(".")[0] == library}
    strangers = {user for user in users if not user.startswith(ROOMS[library])}
    assert not strangers, f"{library} belongs in {ROOMS[library]} only"


def test_no_module_is_called_utils_core_or_common() -> None:
    assert not {place(path) for path in MODULES} & {f"{name}.py" for name in ("utils", "core", "common", "helpers")}


@pytest.mark.parametrize("folder", ["pipeline", "jobs"])
def test_files_stay_readable_in_one_sitting(folder: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    long = {str(path.relative_to(ROOT)): n_lines for path, n_lines in lengths.items() if n_lines > MAX_LINES}
    assert not long


@pytest.mark.parametrize("module", ["pipeline", "pipeline.cli", "pipeline.plan", "pipeline.spec"])
def test_planning_and_help_start_without_heavy_libraries(module: str) -> None:
    """`plan` runs on a login node in a second: what it imports must not pull in torch, ray or transformers."""
    if module != "pipeline" and find_spec(module) is None:
        pytest.skip(f"{module} does not exist yet")
    heavy = ["torch", "ray", "transformers", "sentence_transformers", "fugashi"]
    code = f"import {module}, json, sys; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
