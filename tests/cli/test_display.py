"""What a person reads at the end of a run.

Oracle: the figures of a snapshot and of a `Progress` that the test fills itself.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli.display import report, show_plan
from pipeline.cli.live import Watcher
from pipeline.cli.terminal import Terminal
from pipeline.driver.planning.plan import make_plan
from pipeline.observe.progress import Progress
from tests.support.outputs import write_shard
from tests.support.stand_in import job_of, make_spec, run, store_of


def test_a_report_says_what_the_snapshot_holds_and_what_the_bottleneck_was(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "a", "text": "text"}, {"id": "b", "text": None}])
    snapshot = run(make_spec(tmp_path / "in", tmp_path / "out"))
    assert snapshot is not None
    progress = Progress()
    progress.add({"n_documents": 1, "n_embedded_tokens": 3, "parts": 1})
    progress.add({"seconds.embed": 95.0, "seconds.embedders_starved": 5.0})
    console = Console(file=io.StringIO(), width=300)
    report(console, progress, "out", snapshot, {"embedded": 1, "rejected": 1})
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("snapshot 1 of out: 1 row from 1 document in 1 file (")
    assert lines[0].endswith("1 reject (1 null_text)")
    assert lines[1] == "rows: 1 embedded, 1 rejected"
    assert lines[2].startswith("this run: 1 document and 3 tokens embedded in 0:0")
    assert lines[3].startswith("  start-up 0.0 s")
    assert lines[4] == "  worker seconds: embed 95.0, embedders_starved 5.0"
    assert lines[5].startswith("  embedders busy 95% of their time; bottleneck: start-up")


def test_data_is_never_taken_for_markup(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "hello"}])
    console = Console(file=io.StringIO(), width=400)
    spec = make_spec(tmp_path / "in", tmp_path / "emb[v1][/b]")
    job = job_of(spec, prompt="[INST] what answers: [/INST] ", model_license="cc-by-nc [red]")
    show_plan(console, make_plan(job, store_of(spec)))
    Watcher(console)(Progress(), ["s3://lake/a[/b].jsonl: changed while it was read [red]"])
    snapshot = run(spec)
    assert snapshot is not None
    report(console, Progress(), str(tmp_path / "emb[v1][/b]"), snapshot, {"embedded [red]": 1})
    shown = console.file.getvalue()
    for text in (
        "emb[v1][/b], new",
        "emb[v1][/b]: 1 row ",
        "[INST] what answers: [/INST] ",
        "(cc-by-nc [red]) restricts",
        "s3://lake/a[/b].jsonl: changed while it was read [red]",
        "1 embedded [red]",
    ):
        assert text in shown


def test_a_long_fact_of_a_plan_folds_beside_its_name_on_a_terminal_and_stays_one_line_in_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "hello"}])
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    plan = make_plan(job_of(spec, prompt="word " * 60), store_of(spec))
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    show_plan(terminal, plan)
    lines = terminal.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    names = {line[:12].strip() for line in lines if "word" in line}
    assert names <= {"model", ""}
    show_plan(Terminal(), plan)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("model ")]
    assert line.count("word ") == 60


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space")])
def test_a_message_that_standard_error_does_not_take_is_lost_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    class Refusing(io.StringIO):
        refuses = True

        def write(self, text: str) -> int:
            if self.refuses:
                raise error
            return super().write(text)

    stream = Refusing()
    monkeypatch.setattr("sys.stderr", stream)
    console = Terminal(stderr=True)
    console.print("lost")
    with Watcher(console) as watch:
        watch(Progress(), ["lost, too"])
    stream.refuses = False
    console.print("shown again")
    assert stream.getvalue() == "shown again\n"


def test_an_answer_that_standard_output_does_not_take_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stdout", stream)
    with pytest.raises(ValueError, match="closed file"):
        Terminal().print("an answer")
