"""Known vulnerabilities of the pinned versions, by pip-audit in an environment of its own.

In: the folder of that environment, and `--required` where an answer is needed. Out: exit code 1
for a vulnerability, 0 for none. Where the database cannot be asked, which is every machine without
a network, the audit is skipped with a word, and that is a failure with `--required` only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "2.10.1"
INSTALL_TIMEOUT_S = 180
AUDIT_TIMEOUT_S = 600


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"))
    parser.add_argument("--required", action="store_true")
    options = parser.parse_args()
    try:
        problems = audit(options.folder, options.constraints)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        print(f"audit: skipped, the database of vulnerabilities cannot be asked: {cause(error)}")
        return int(options.required)
    for problem in problems:
        print(f"audit: {problem}")
    if not problems:
        print(f"audit: no known vulnerability in {options.constraints}")
    return int(bool(problems))


def audit(folder: Path, constraints: Path) -> list[str]:
    """One line for each known vulnerability. Raises when there is no complete answer."""
    python = folder / "bin/python"
    if not (folder / "bin/pip-audit").exists():
        run([sys.executable, "-m", "venv", str(folder)], INSTALL_TIMEOUT_S)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        run([*pip, "--retries", "1", f"pip-audit=={VERSION}"], INSTALL_TIMEOUT_S)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        command = [str(folder / "bin/pip-audit"), "--strict", "--no-deps", "--disable-pip"]
        command += ["--progress-spinner", "off", "--format", "json", "--output", str(report)]
        done = subprocess.run(
            [*command, "--requirement", str(constraints)],
            capture_output=True,
            text=True,
            timeout=AUDIT_TIMEOUT_S,
            check=False,
        )
        if not report.exists():
            raise ValueError(done.stderr.strip() or f"pip-audit ended with {done.returncode}")
        return known(json.loads(report.read_text(encoding="utf-8")))


def known(report: dict[str, list[dict[str, object]]]) -> list[str]:
    """The vulnerabilities of pip-audit's report. Raises ValueError for a package that was left
    out."""
    lines = []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            raise ValueError(f"{package['name']}: {package['skip_reason']}")
        for entry in package["vulns"]:
            fixes = ", ".join(entry["fix_versions"]) or "no version yet"
            lines.append(
                f"{package['name']} {package['version']} has {entry['id']}; mended in {fixes}"
            )
    return lines


def run(command: list[str], timeout_s: float) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout_s)


def cause(error: Exception) -> str:
    """The last line of what a program said, or the error itself."""
    text = getattr(error, "stderr", None) or str(error)
    return next((line for line in reversed(str(text).splitlines()) if line.strip()), "no answer")


if __name__ == "__main__":
    sys.exit(main())
