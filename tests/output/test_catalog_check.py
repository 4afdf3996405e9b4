"""The Iceberg catalog of a job is asked before any work: a mistake ends a plan, silence is a note.

Oracle: real servers that count their requests, the clock, and the files that exist afterwards.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import SpecError
from pipeline.job.sections import IcebergSpec, PublishSpec
from pipeline.output import lake
from pipeline.output.table_records import table_statuses
from pipeline.storage import notes
from pipeline.storage.store import Store
from tests.cli.test_main import called
from tests.support.http_server import QuietHandler, serving
from tests.support.outputs import write_shard
from tests.support.stand_in import make_spec, run

pytest.importorskip("pyiceberg", reason="extra iceberg")

from pyiceberg.utils.config import Config

from pipeline.output.lake import catalog_check


class Answers:
    """A server that gives every request the same status and text once it may, and counts them."""

    def __init__(self) -> None:
        self.status = 200
        self.text = "{}"
        self.paths: list[str] = []
        self.tokens: list[str | None] = []
        self.uri = ""
        self.may_answer = threading.Event()
        self.may_answer.set()


@pytest.fixture
def answers() -> Iterator[Answers]:
    answers = Answers()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            answers.paths.append(self.path)
            answers.tokens.append(self.headers.get("Authorization"))
            answers.may_answer.wait(60)
            self.send_response(answers.status)
            self.end_headers()
            self.wfile.write(answers.text.encode())

        do_POST = do_HEAD = do_GET

    with serving(Handler) as answers.uri:
        yield answers
        answers.may_answer.set()


@pytest.fixture
def noted() -> Iterator[list[str]]:
    sentences: list[str] = []
    notes.listen_to_notes(sentences.append)
    yield sentences
    notes.listen_to_notes(None)


def ask(catalog: dict[str, str], *, is_plan: bool = True, is_local: bool = True) -> None:
    spec = IcebergSpec(table="db.docs", catalog=catalog)
    catalog_check.ask(spec, is_local=is_local, is_plan=is_plan)


def test_a_catalog_that_answers_is_asked_once_and_for_little(
    answers: Answers, noted: list[str]
) -> None:
    answers.text = json.dumps({"defaults": {}, "overrides": {}, "namespace": ["db"]})
    ask({"type": "rest", "uri": answers.uri})
    assert answers.paths == ["/v1/config", "/v1/namespaces/db"]
    assert noted == []


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_catalog_that_refuses_ends_a_plan_and_is_a_note_in_a_run(
    answers: Answers, noted: list[str], status: int
) -> None:
    answers.status = status
    catalog = {"type": "rest", "uri": answers.uri}
    with pytest.raises(SpecError, match=f"{answers.uri} cannot be used: it answers {status}"):
        ask(catalog)
    assert noted == []
    ask(catalog, is_plan=False)
    assert f"cannot be used (it answers {status}): the table will be behind" in noted[0]


def test_a_web_page_is_no_catalog(answers: Answers) -> None:
    answers.text = "<html>welcome</html>"
    with pytest.raises(SpecError, match="no answer of an Iceberg catalog") as it:
        ask({"uri": answers.uri})
    assert "pydantic" not in str(it.value)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_catalog_that_is_overloaded_is_a_note(
    answers: Answers, noted: list[str], status: int
) -> None:
    answers.status = status
    ask({"type": "rest", "uri": answers.uri})
    (sentence,) = noted
    assert f"{answers.uri} does not answer (it answers {status}): the table will be b" in sentence


@pytest.mark.parametrize("is_plan", [True, False])
def test_a_catalog_that_refuses_connections_is_a_note(
    refusing_url: str, noted: list[str], is_plan: bool
) -> None:
    ask({"type": "rest", "uri": refusing_url}, is_plan=is_plan)
    assert noted == [
        f"The Iceberg catalog at {refusing_url} does not answer (connection refused): the table "
        "will be behind until it answers and `corpus-embed publish` has run."
    ]


def test_a_catalog_that_never_answers_is_a_note_in_time(
    answers: Answers, noted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catalog_check.ASK_SECONDS == 20
    monkeypatch.setattr(catalog_check, "ASK_SECONDS", 1.0)
    answers.may_answer.clear()
    started_s = time.monotonic()
    ask({"type": "rest", "uri": answers.uri})
    assert 0.9 < time.monotonic() - started_s < 50  # and not 60, which the server takes
    assert "does not answer (no answer in 1 s): the table will be behind" in noted[0]
    answers.may_answer.set()
    for thread in threading.enumerate():
        if thread.name == "publish":  # it has more to ask
            thread.join()


@pytest.mark.parametrize("is_plan", [True, False])
@pytest.mark.parametrize(
    ("catalog", "problem"),
    [
        ({"type": "hvie", "uri": "thrift://h:1"}, "type hvie is none of bigquery, dynamodb, glue"),
        ({"type": "rest"}, "the catalog corpus-embed has no uri"),
        ({"name": "prod"}, "the catalog prod has no uri"),
        ({"uri": "ftp://127.0.0.1/x"}, "ftp://127.0.0.1/x"),
        ({"type": "sql", "uri": "nosuch://127.0.0.1/x"}, "nosuch"),
    ],
)
def test_a_catalog_that_cannot_be_loaded_is_a_mistake_of_the_spec(
    catalog: dict[str, str], problem: str, is_plan: bool
) -> None:
    with pytest.raises(SpecError, match=problem) as it:
        ask(catalog, is_plan=is_plan)
    assert "Nothing was started" in str(it.value)


def test_properties_of_the_operators_configuration_are_used(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.status = 401
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__URI", answers.uri)
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__TOKEN", "the-operators-token")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # read when it is imported
    with pytest.raises(SpecError, match="answers 401") as it:
        ask({"name": "prod"})
    assert answers.tokens[0] == "Bearer the-operators-token"
    assert "the-operators-token" not in str(it.value)


def test_a_password_in_an_address_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__URI", "mysql://me:sesame@127.0.0.1/x")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    with pytest.raises(SpecError, match=r"mysql://127\.0\.0\.1/x") as it:
        ask({"name": "prod"})
    assert "sesame" not in str(it.value)


def test_an_output_on_a_store_needs_a_catalog_by_name() -> None:
    with pytest.raises(SpecError, match="needs a local disk"):
        ask({}, is_local=False)


def test_the_default_catalog_and_sqlite_files_are_not_created(
    tmp_path: Path, noted: list[str]
) -> None:
    store = Store(str(tmp_path / "out"))
    lake.ask_catalog(store, PublishSpec(iceberg={"table": "db.docs"}), is_plan=True)
    ask({"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db"})
    assert list(tmp_path.rglob("*")) == []
    assert noted == []


def test_plan_ends_with_two_where_the_catalog_refuses(
    answers: Answers,
    tmp_path: Path,
    bert_mean_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "one"}])
    fields: dict[str, Any] = {
        "name": "x",
        "input": {"uri": str(tmp_path / "in"), "id_column": "id"},
        "model": {"path": str(bert_mean_dir)},
        "output": {"uri": str(tmp_path / "out")},
        "runtime": {"device": "cpu"},
        "publish": {"iceberg": {"table": "db.docs", "catalog": {"uri": answers.uri}}},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(fields))
    answers.status = 401
    assert called(monkeypatch, "plan", str(tmp_path / "job.yaml")) == 2
    assert "answers 401" in " ".join(capsys.readouterr().err.split())
    answers.status = 503
    assert called(monkeypatch, "plan", str(tmp_path / "job.yaml")) == 0
    assert "the table will be behind" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [401, 503])
def test_a_run_goes_on_beside_a_catalog_that_does_not_serve_it(
    answers: Answers, tmp_path: Path, noted: list[str], status: int
) -> None:
    answers.status = status
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "one"}])
    publish = {"iceberg": {"table": "db.docs", "catalog": {"uri": answers.uri}}}
    spec = make_spec(tmp_path / "in", tmp_path / "out", publish=publish)
    snapshot = run(spec)
    assert snapshot
    assert snapshot.n_rows == 1
    assert "the table will be behind" in noted[0]
    (table,) = table_statuses(Store(str(tmp_path / "out")))
    assert table.behind


def test_a_run_with_a_mistaken_catalog_starts_nothing(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "one"}])
    publish = {"iceberg": {"table": "db.docs", "catalog": {"type": "hvie"}}}
    with pytest.raises(SpecError, match="hvie"):
        run(make_spec(tmp_path / "in", tmp_path / "out", publish=publish))
    assert not (tmp_path / "out").exists()
