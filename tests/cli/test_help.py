"""`--help` and the options before a command: every command shows an example that parses and its
exit codes, in lines that the terminal breaks.

Oracle: the parser itself for the examples, the classes of pipeline/errors.py for the codes, a
terminal's width for the lines.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest

from pipeline import errors
from pipeline.cli import commands, help
from tests import ROOT
from tests.cli.test_main import called

NAMES = list(commands.commands().commands)


def shown_help(
    *arguments: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert called(monkeypatch, *arguments) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_an_example_that_parses(name: str) -> None:
    group: Any = commands.commands()
    examples = re.findall(r"Example: (corpus-embed .+)", group.commands[name].epilog)
    assert examples
    for example in examples:
        program, command, *arguments = shlex.split(example.partition(" > ")[0])
        assert (program, command) == ("corpus-embed", name)
        with group.make_context(program, [command, *arguments]) as context:
            assert group.commands[name].make_context(name, arguments, parent=context)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_words_and_no_python_type(name: str) -> None:
    group: Any = commands.commands()
    with group.make_context("corpus-embed", [name], resilient_parsing=True) as context:
        parameters = group.commands[name].get_params(context)
        for parameter in (entry for entry in parameters if not getattr(entry, "hidden", False)):
            assert parameter.help, parameter.name
            shown = parameter.display_type_rich(ctx=context) or ""
            assert "<" not in shown, parameter.name
            assert shown == shown.upper() or parameter.metavar in ("KEY=VALUE",), parameter.name
            if getattr(parameter, "is_flag", False):
                assert shown == ""


def test_exit_codes_in_help_are_those_of_the_errors_and_of_signals() -> None:
    codes = {getattr(errors, name).exit_code for name in errors.__all__}
    assert set(help.EXIT_CODES) == codes | {0, 130, 143}


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_lines_of_help_are_broken_by_the_terminal_alone(
    columns: int,
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown_help(option, columns=columns, monkeypatch=monkeypatch, capsys=capsys)
    lines = [line.strip("│ \n") for line in text.splitlines() if line.startswith("│")]
    names = [line.split()[0] for line in lines if line.split()[0] in NAMES]
    assert names == NAMES == sorted(NAMES, key=help.ORDER.index)
    for line, following in itertools.pairwise(lines):
        is_broken = following.split()[0] not in NAMES and not following.startswith("-")
        if is_broken and line.split()[0] in NAMES:  # its next word had no room
            assert len(line) + 1 + len(following.split()[0]) > columns - 15, line


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"corpus-embed {importlib.metadata.version('corpus-embed')}\n"


@pytest.mark.parametrize("arguments", [("init", "--models"), ("schema",), ("schema", "--markdown")])
def test_a_reader_that_has_all_it_wants_ends_a_command_without_a_word(
    arguments: tuple[str, ...],
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write_end)
    assert (process.returncode, process.stderr) == (1, "")


def test_a_shell_gets_its_completion_script_and_completions() -> None:
    def output(*arguments: str, **variables: str) -> str:
        command = [sys.executable, "-m", "pipeline", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert "complete -o default" in output(
        "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    words = {"COMP_WORDS": "corpus-embed re", "COMP_CWORD": "1"}
    assert "refresh" in output(_CORPUS_EMBED_COMPLETE="complete_bash", **words).split()
