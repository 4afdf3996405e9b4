"""The command line without a cluster: exit codes, what goes to which stream, JSON for machines."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import typer
import yaml

from pipeline.cli.main import main
from pipeline.errors import SpecError, TooManyRejects
from pipeline.job.spec import load_spec
from tests.support.outputs import DOCUMENTS, make_spec, run_without_ray, write_shard

FIRST_TEXT = DOCUMENTS[0]["text"][:50]


@pytest.fixture
def spec_path(tmp_path: Path, bert_mean_dir: Path) -> Path:
    write_shard(tmp_path / "in/a.jsonl", DOCUMENTS)
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    return path


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts Ray, or connects to it, fails."""
    import ray

    monkeypatch.setattr(ray, "init", None)


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["corpus-embed", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ending:
        main()
    return int(ending.value.code or 0)


def test_plan_prints_what_is_to_do_and_writes_nothing(
    spec_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert called(monkeypatch, "plan", str(spec_path), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["shards"], facts["parts_done"], facts["nothing_to_do"], facts["head"]) == (
        1,
        0,
        False,
        None,
    )
    assert not (tmp_path / "out").exists()
    run_without_ray(load_spec(spec_path))
    assert called(monkeypatch, "plan", str(spec_path)) == 0
    printed = capsys.readouterr().out
    assert "1 part, 8 documents" in printed
    assert "to do nothing" in " ".join(printed.split())
    assert "stale" not in printed


@pytest.mark.usefixtures("no_cluster")
def test_run_with_nothing_new_needs_no_cluster_and_says_so(
    spec_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_without_ray(load_spec(spec_path))
    assert called(monkeypatch, "run", str(spec_path)) == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.usefixtures("no_cluster")
def test_quiet_leaves_the_last_line_of_a_run_and_errors(
    spec_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_without_ray(load_spec(spec_path))
    for arguments in (["run", str(spec_path), "--quiet"], ["--quiet", "run", str(spec_path)]):
        assert called(monkeypatch, *arguments) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("snapshot 1 of ")
    assert called(monkeypatch, "--quiet", "plan", "no-such.yaml") == 2
    assert "no-such.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.usefixtures("no_cluster")
def test_submit_passes_a_budget_on_and_refuses_one_that_cannot_be_read(
    spec_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[list[str]] = []

    def submit(*_: object, options: list[str], **__: object) -> int:
        passed.append(options)
        return 0

    monkeypatch.setattr("pipeline.driver.cluster.submit.submit", submit)
    assert called(monkeypatch, "submit", str(spec_path)) == 0
    budget = ["--max-time", "2h", "--max-cost", "40"]
    assert called(monkeypatch, "submit", str(spec_path), "--full-refresh", *budget) == 0
    assert passed == [[], ["--full-refresh", "--max-time", "2h", "--max-cost", "40.0"]]
    assert called(monkeypatch, "submit", str(spec_path), "--max-time", "soon") == 2
    assert called(monkeypatch, "submit", str(spec_path), "--max-cost", "0") == 2


def test_what_stands_behind_two_dashes_is_no_option_of_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    def search(_output: str, text: str, **_: object) -> list[str]:
        seen.append(text)
        return []

    monkeypatch.setattr("pipeline.tools.search.search", search)
    for option in ("--debug", "--quiet"):
        assert called(monkeypatch, "search", str(tmp_path), "--", option) == 0
    assert seen == ["--debug", "--quiet"]


def test_plan_shows_the_first_record_of_each_format(
    spec_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "in/b.csv").write_text("id,text,lang\n1,hello there,en\n")
    assert called(monkeypatch, "plan", str(spec_path)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f'jsonl: 1 document a line, fields id, text, lang; first: "{FIRST_TEXT}' in shown
    assert 'csv: 1 document a row, fields id, text, lang; first: "hello there"' in shown
    assert called(monkeypatch, "plan", str(spec_path), "--json") == 0
    entries = json.loads(capsys.readouterr().out)["first_records"]
    assert [(entry["format"], entry["text"]) for entry in entries] == [
        ("jsonl", DOCUMENTS[0]["text"]),
        ("csv", "hello there"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", '{"id": "1", "body": "a", "lang": "en"}\n', "has id, body, lang and no 'text'"),
        ("a.csv", "id,body,lang\n1,a,en\n", "'text' not found; columns are id, body, lang. Set"),
        ("a.txt", "a line\n", "plain text has no columns, and the spec names id, lang"),
    ],
)
def test_a_spec_that_does_not_fit_its_input_is_exit_code_2_of_plan(
    spec_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    data: str,
    words: str,
) -> None:
    (tmp_path / "in/a.jsonl").unlink()
    (tmp_path / "in" / name).write_text(data)
    limit = "runtime.max_reject_fraction=0.5"
    assert called(monkeypatch, "plan", str(spec_path), "--set", limit) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    if name == "a.jsonl":  # a share of rejects is no mistake where every share is allowed
        assert called(monkeypatch, "plan", str(spec_path)) == 0
        assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["plan", "no-such.yaml"], 2, "cannot be read"),
        (["plan", "SPEC", "--set", "runtime.part_byts=1"], 2, "did you mean 'part_bytes'"),
        (["plan", "SPEC", "--set", "input.uri=/no/such/folder"], 2, "cannot be listed"),
        (["plan", "SPEC", "--set", "model.path=/no/such/model"], 2, "model directory not found"),
        (["run", "--no-such-option"], 2, "No such option"),
        (["status", "OUT", "--storage-options", "[1]"], 2, "JSON object"),
        (
            ["status", "OUT", "--storage-options", "endpoint_url=http://x"],
            2,
            "--storage-options: this is no JSON object; write it as --storage-options '{",
        ),
        (["publish", "OUT", "--iceberg", "vectors"], 2, "--iceberg: found 'vectors'; it takes"),
        (
            ["publish", "OUT", "--iceberg", "a.b", "--location", "foo://x"],
            2,
            "--location: protocol",
        ),
        (["search", "OUT", "x", "-k", "many"], 2, "-k: found 'many'; it takes a whole number"),
        (["search", "OUT", "x", "-k", "0"], 2, "-k: found '0'; it takes a number from 1"),
        (["verify", "OUT", "--sample", "-3"], 2, "--sample: found '-3'; it takes a number from 0"),
        (["diff", "OUT", "a", "2"], 2, "A: found 'a'; it takes a whole number"),
        (["vacuum", "OUT", "--older-than", "10"], 2, "write it as 90min, 24h or 7d"),
        (["vacuum", "OUT", "--older-than", "99999999999d"], 2, "write it as 90min, 24h or 7d"),
        (["compact", "OUT", "--target-bytes", "lots"], 2, "write it as 128MiB"),
        (["run", "SPEC", "--nominal-time", "soon"], 2, "write it as 2026-11-23T04:00:00+09:00"),
        (["search", "OUT", "text"], 1, "has no snapshot yet"),
    ],
)
def test_every_failure_has_its_exit_code_and_a_message_on_standard_error(
    arguments: list[str],
    code: int,
    message: str,
    spec_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replaced = [
        {"SPEC": str(spec_path), "OUT": str(tmp_path / "empty")}.get(argument, argument)
        for argument in arguments
    ]
    assert called(monkeypatch, *replaced) == code
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("ending", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "Stopped. Run the same command again."),
        (typer.Abort(), 130, "Stopped. Run the same command again."),
        (
            SystemExit(143),
            143,
            "Terminated. Finished parts are kept; run the same command again to resume.",
        ),
        (
            TypeError("request() got an unexpected keyword argument\nand more"),
            1,
            "InternalError: TypeError: request() got an unexpected keyword argument. This is a "
            "fault of this program. Run again with --debug for the trace, and report it.",
        ),
        (ValueError(), 1, "InternalError: ValueError: no message."),
        (
            ModuleNotFoundError("No module named 'ray'", name="ray"),
            1,
            "InternalError: the Python package 'ray' is missing. Install this package again.",
        ),
        (SpecError("a [bold] word"), 2, "SpecError: a [bold] word"),
        (TooManyRejects("60 of 60"), 3, "TooManyRejects: 60 of 60"),
    ],
)
def test_whatever_ends_a_command_is_a_sentence_a_code_and_with_json_an_object(
    ending: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def plan_job(*_: object, **__: object) -> None:
        raise ending

    monkeypatch.setattr("pipeline.cli.jobs.plan_job", plan_job)
    monkeypatch.setattr("pipeline.cli.jobs.load_spec", lambda *_: None)
    assert called(monkeypatch, "plan", "SPEC") == code
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)
    assert called(monkeypatch, "plan", "SPEC", "--json") == code
    answer = json.loads(capsys.readouterr().out)
    assert (answer["exit_code"], set(answer)) == (code, {"error", "type", "exit_code"})
    assert answer["error"] in captured.err
    for arguments in (["--debug", "plan", "SPEC"], ["plan", "SPEC", "--debug"]):
        assert called(monkeypatch, *arguments) == code
        assert "in plan_job" in capsys.readouterr().err


def test_an_interruption_while_the_program_loads_is_a_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def invoke(_arguments: list[str], **_: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.cli.commands.invoke", invoke)
    assert called(monkeypatch, "plan") == 130
    assert capsys.readouterr().err == "Stopped. Run the same command again.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument 'SPEC'.\nUsage: corpus-embed run [OPTIONS] {SPEC}\n"),
        (["runn"], "No such command 'runn'. Did you mean 'run'?\n"),
        (["plan", "SPEC", "--dry"], "No such option: --dry\n"),
    ],
)
def test_a_mistake_on_the_command_line_shows_the_usage_and_where_help_is(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert called(monkeypatch, *arguments, "--json") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert "--help' for help." in captured.err
    assert json.loads(captured.out)["type"] == "UsageError"


def test_status_and_verify_and_trace_and_search_speak_json(
    spec_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    run_without_ray(load_spec(spec_path))
    out = str(tmp_path / "out")
    assert called(monkeypatch, "status", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["head"]["n_rows"] == 8
    assert called(monkeypatch, "verify", out, "--sample", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert called(monkeypatch, "trace", out, "doc-3", "--json") == 0
    assert DOCUMENTS[3]["text"] in capsys.readouterr().out
    assert called(monkeypatch, "search", out, str(DOCUMENTS[5]["text"]), "-k", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["doc_id"] == "doc-5"
    assert called(monkeypatch, "vacuum", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["paths"] == {}


def test_verify_of_a_damaged_output_exits_with_1(
    spec_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    run_without_ray(load_spec(spec_path))
    next((tmp_path / "out/data").rglob("*.parquet")).unlink()
    assert called(monkeypatch, "verify", str(tmp_path / "out"), "--sample", "0") == 1
    assert "FAIL" in capsys.readouterr().out


def test_the_json_schema_of_a_spec_names_every_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "schema", "--json") == 0
    assert {"input", "prepare", "model", "output", "runtime"} <= json.loads(
        capsys.readouterr().out
    )["properties"].keys()


@pytest.mark.parametrize(
    ("front", "shown", "restricted"),
    [
        (
            "license_name: sarahina-non-commercial-license\nlicense_link: LICENSE",
            "sarahina-non-commercial-license",
            True,
        ),
        ("license: other\nlicense_name: NonCommercial-1.0", "NonCommercial-1.0", True),
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0", True),
        ("license:\n- cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0", True),
        ("license: cc-by-sa-4.0", "cc-by-sa-4.0", False),
        ("language: ja", "no licence stated", False),
    ],
)
def test_plan_shows_the_licence_and_says_so_when_it_forbids_commercial_use(
    spec_path: Path,
    bert_mean_dir: Path,
    tmp_path: Path,
    front: str,
    shown: str,
    restricted: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = licensed_model(bert_mean_dir, tmp_path, front)
    assert called(monkeypatch, "plan", str(spec_path), "--set", f"model.path={model}") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"({shown})" in printed
    assert ("restricts its use" in printed) is restricted


@pytest.mark.usefixtures("no_cluster")
def test_run_shows_a_licence_that_forbids_commercial_use_even_with_nothing_to_do(
    spec_path: Path,
    bert_mean_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = licensed_model(bert_mean_dir, tmp_path, "license: cc-by-nc-4.0")
    run_without_ray(load_spec(spec_path, [f"model.path={model}"]))
    assert called(monkeypatch, "run", str(spec_path), "--set", f"model.path={model}") == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "(cc-by-nc-4.0)" in printed
    assert "licence (cc-by-nc-4.0) restricts its use" in printed


def licensed_model(source: Path, folder: Path, front: str) -> Path:
    """A copy of a model directory whose model card begins with `front`."""
    model = folder / "model"
    shutil.copytree(source, model)
    (model / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    return model
