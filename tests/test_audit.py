"""The audit of the pinned versions: what counts as an answer.

Oracle: reports in the format that pip-audit writes.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import ROOT


@pytest.fixture
def audit() -> ModuleType:
    description = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
    assert description is not None
    assert description.loader is not None
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return module


def package(**fields: Any) -> dict[str, Any]:
    return {"name": "pyyaml", "version": "5.3", "vulns": [], **fields}


def test_a_vulnerability_is_a_line_with_the_version_that_mends_it(audit: ModuleType) -> None:
    vulns = [
        {"id": "PYSEC-2021-142", "fix_versions": ["5.4"]},
        {"id": "GHSA-x", "fix_versions": []},
    ]
    assert audit.known({"dependencies": [package(), package(vulns=vulns)]}) == [
        "pyyaml 5.3 has PYSEC-2021-142; mended in 5.4",
        "pyyaml 5.3 has GHSA-x; mended in no version yet",
    ]


def test_a_package_that_was_left_out_is_no_answer(audit: ModuleType) -> None:
    with pytest.raises(ValueError, match="pyyaml: not found"):
        audit.known({"dependencies": [package(skip_reason="not found")]})


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 0),
        (["--required"], 1),
    ],
)
def test_without_an_answer_the_audit_is_skipped_unless_it_is_required(
    audit: ModuleType,
    options: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unreachable(*_: object) -> None:
        raise subprocess.CalledProcessError(1, ["pip"], stderr="x\nERROR: no route to host\n")

    monkeypatch.setattr(audit, "run", unreachable)
    monkeypatch.setattr(sys, "argv", ["audit.py", str(tmp_path / "venv"), *options])
    assert audit.main() == code
    assert capsys.readouterr().out.strip().endswith("cannot be asked: ERROR: no route to host")
