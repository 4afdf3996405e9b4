"""What commands print of texts, ids and paths that others chose: exact as JSON, harmless on a
terminal. Oracle: the bytes that come out of the process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.cli.terminal import Terminal
from tests import ROOT
from tests.support.outputs import make_spec, run_without_ray, write_shard

ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\r\n[/INST] [red] :smile: 文"
OBEYED = {chr(code) for code in [*range(32), *range(0x7F, 0xA0), 0x202E]} - {"\n"}


def run_command(*arguments: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        capture_output=True,
        env=environment,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, bert_mean_dir: Path) -> str:
    root = tmp_path_factory.mktemp("terminal")
    documents = [{"id": ATTACK, "text": f"a text with {ATTACK}", "lang": "en"}]
    write_shard(root / "in/a.jsonl", documents)
    assert run_without_ray(make_spec(str(root / "in"), str(root / "out"), bert_mean_dir))
    return str(root / "out")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize(
    "command",
    [
        ["search", "{output}", "a text"],
        ["trace", "{output}", ATTACK],
        ["trace", "{output}", f"not {ATTACK}"],
        ["diff", "{output}", "0", "1", "--rows"],
        ["status", f"nowhere{ATTACK}"],
    ],
    ids=["search", "trace", "trace of nothing", "diff", "status of nothing"],
)
def test_no_control_character_of_the_data_reaches_a_terminal(
    output: str, command: list[str], encoding: str
) -> None:
    done = run_command(*(word.format(output=output) for word in command), encoding=encoding)
    printed = (done.stdout + done.stderr).decode(encoding)
    assert not OBEYED & {*printed}, printed
    assert "Traceback" not in printed
    assert "[/INST] [red] :smile:" in printed


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_json_holds_the_id_exactly(output: str, encoding: str) -> None:
    done = run_command("trace", output, ATTACK, "--json", encoding=encoding)
    assert json.loads(done.stdout)["rows"][0]["doc_id"] == ATTACK
    assert not OBEYED & {*done.stdout.decode(encoding)}


def test_a_terminal_keeps_its_own_colours_and_escapes_those_of_the_data() -> None:
    sink = io.StringIO()
    terminal = Terminal(force_terminal=True, color_system="standard", force_interactive=True)
    terminal.file = sink
    table = Table()
    table.add_column("id")
    table.add_row(Text(ATTACK))
    terminal.print("ok", style="green")
    terminal.print(ATTACK, markup=False)
    terminal.print(table)
    with Live(ATTACK.replace("[/INST]", ""), console=terminal):
        pass
    printed = sink.getvalue()
    assert "\x1b[32mok\x1b[0m" in printed
    assert "\x1b]0" not in printed
    assert "\x1b[2J" not in printed
    assert "\x9b" not in printed
    assert "\u202e" not in printed
    assert ":smile:" in printed


def test_a_table_has_no_blanks_at_the_end_of_its_lines_where_no_terminal_shows_it() -> None:
    table = Table(show_header=False, box=None)
    table.add_row("a", Text("a long fact"))
    table.add_row("b", Text("fact"))
    terminal = Terminal(file=io.StringIO(), force_terminal=False)
    terminal.print(table)
    assert terminal.file.getvalue().splitlines() == [" a  a long fact", " b  fact"]  # type: ignore[attr-defined]
