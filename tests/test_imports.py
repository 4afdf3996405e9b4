"""Heavy libraries stay in their rooms, one module spells out `_meta`, and files stay short.

Oracle: the abstract syntax tree of every module, and `sys.modules` of a fresh interpreter.
"""

from __future__ import annotations

import ast
import json
import re

import pytest

from tests import ROOT
from tests.support.processes import printed_by
from tests.test_layers import MODULES, imports, place

MAX_LINES = 250
OWNERS = {
    "torch": ("embed/",),
    "fugashi": ("tokenize/mecab.py",),
    "pyiceberg": (
        "output/lake/iceberg.py",
        "output/lake/file_io.py",
        "output/lake/catalog_check.py",
    ),
    "deltalake": ("output/lake/delta.py",),
    "bokeh": ("tools/report/plots.py", "tools/report/render.py", "tools/report/blocks.py"),
    "jinja2": ("tools/report/render.py",),
    "sklearn": ("tools/report/geometry.py",),
    "ray": ("driver/cluster/", "workers/stages.py", "workers/reports.py", "observe/prometheus.py"),
}
"""Libraries that only some modules may import: those that are heavy, and those that are extras."""
HEAVY = {"torch", "ray", "transformers", "sentence_transformers", "fugashi", "pandas"}
"""Libraries whose import takes from a fifth of a second to seconds."""
RAY_DATA = {"ray", "pandas"}


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_only_by_its_owners(library: str) -> None:
    users = {
        place(path) for path in MODULES for name in imports(path) if name.split(".")[0] == library
    }
    strangers = {user for user in users if not user.startswith(OWNERS[library])}
    assert not strangers, f"{library} belongs in {OWNERS[library]} only"


def test_only_the_layout_spells_out_the_metadata_folder() -> None:
    """Every path of an output is made in one file; docstrings may name the folder."""
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
    ("module", "unused"),
    [
        ("pipeline", HEAVY),
        ("pipeline.cli.commands", HEAVY),
        ("pipeline.driver.planning.plan", HEAVY),
        ("pipeline.driver.run", HEAVY),
        ("pipeline.driver.cluster.on_ray", HEAVY),
        ("pipeline.job.spec", HEAVY),
        ("pipeline.driver.cluster.execution", HEAVY - RAY_DATA),
        ("pipeline.workers.stages", HEAVY - RAY_DATA),
        ("pipeline.driver.cluster.totals", HEAVY | {"pyarrow", "numpy", "pydantic"}),
    ],
)
def test_a_process_imports_only_what_its_work_needs(module: str, unused: set[str]) -> None:
    """`plan` runs on a login node in a second, a run with nothing to do needs no Ray, processes
    that prepare and write need no torch, and the actor that workers report to needs nothing."""
    code = (
        f"import {module}, json, sys\n"
        f"print(json.dumps([name for name in {sorted(unused)} if name in sys.modules]))"
    )
    assert json.loads(printed_by(code).splitlines()[-1]) == []


def test_programs_for_other_interpreters_import_what_exists() -> None:
    """They are strings, which no linter reads, and some belong to tests that run once a week."""
    imported = re.compile(r"(?:^|[;\n])\s*from (pipeline[\w.]*|tests[\w.]*) import ([\w, ]+)")
    missing = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                missing += [
                    f"{path.relative_to(ROOT)}:{node.lineno}: {module} has no {name}"
                    for module, names in imported.findall(node.value)
                    for name in (word.split()[0] for word in names.split(","))
                    if not exists(module, name)
                ]
    assert not missing, "\n".join(missing)


def exists(module: str, name: str) -> bool:
    """Whether a module names, or a package holds, what is imported from it."""
    place = ROOT.joinpath(*module.split("."))
    if place.is_dir():
        if (place / name).is_dir() or (place / f"{name}.py").is_file():
            return True
        place /= "__init__"
    source = place.with_suffix(".py")
    return source.is_file() and bool(re.search(rf"\b{name}\b", source.read_text(encoding="utf-8")))
