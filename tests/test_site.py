"""The documentation site knows every document and every room.

Oracle: the files of the repository. That the site builds strictly is shown by `make docs`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests import ROOT

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages(entries: list[Any]) -> set[str]:
    """Every page below some entries of `nav`."""
    names: set[str] = set()
    for entry in entries:
        for value in entry.values():
            names |= {value} if isinstance(value, str) else pages(value)
    return names


def test_every_document_is_a_page() -> None:
    documents = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    documents |= {path.name for path in ROOT.glob("*.md")}
    missing = documents - pages(CONFIG["nav"])
    assert not missing, f"name {sorted(missing)} in the nav of mkdocs.yml"
    assert all((ROOT / page).is_file() for page in pages(CONFIG["nav"]))


def test_every_room_has_a_page_of_its_own() -> None:
    rooms = {
        path.name for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").is_file()
    }
    for room in rooms:
        page = Path(ROOT / "docs/reference" / f"{room}.md").read_text(encoding="utf-8")
        assert f"::: pipeline.{room}\n" in page
        assert f"[{room}]({room}.md)" in (ROOT / "docs/reference/index.md").read_text("utf-8")


def test_the_workflow_calls_targets_of_the_makefile() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    calls = {step["run"].split()[1] for step in steps if step.get("run", "").startswith("make ")}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {"check", "check-lower-bounds", "docs", "audit", "test"} <= calls <= {*targets}
