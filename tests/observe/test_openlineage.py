"""OpenLineage events of real runs round a stand-in model: what they say, and that no receiver,
setting or error of theirs changes, stops or delays a run.

Oracles: an HTTP receiver and files that the client's own transports write; the classes of
openlineage-python, which check what they are made of; the JSON Schema of our facets; the documents
that the test wrote.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipeline.driver.run import run_job
from pipeline.errors import InputError
from pipeline.observe.openlineage import environment, naming, sender
from pipeline.observe.progress import Progress
from pipeline.output.snapshots import load_snapshot
from pipeline.storage.lineage import Shard
from tests import ROOT
from tests.support import stand_in
from tests.support.http_server import QuietHandler, serving
from tests.support.outputs import write_shard
from tests.support.stand_in import Stopped, job_of, make_spec, store_of

PARENT_RUN = "0197b3f0-9c1a-7c33-8b43-3f7b2f1f0a11"


def be_patient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Runs wait so long for the last delivery."""
    monkeypatch.setattr(sender.Sender.__init__, "__defaults__", (seconds,))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The client writes into the environment, too: all of it is put back."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("OPENLINEAGE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    be_patient(monkeypatch, 100.0)
    yield
    for thread in threading.enumerate():
        if thread.name == "openlineage":
            thread.join(20)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads the events that the file transport has written."""
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(path))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def corpus(root: Path, stop: int = 6) -> Any:
    documents = [
        {"id": f"d{n}", "text": f"text {n}" if n else "", "lang": "en"} for n in range(stop)
    ]
    write_shard(root / "in/a.jsonl", documents[:3])
    write_shard(root / "in/b.jsonl", documents[3:])
    return make_spec(
        [f"{root}/in/*.jsonl"],
        root / "out",
        input={"keep_columns": ["lang"]},
        model={"revision": "abc"},
    )


def states(events: list[Any]) -> list[str]:
    return [event["eventType"] for event in events]


def test_a_run_tells_start_plan_and_end_with_versions_and_numbers(
    tmp_path: Path, events: Any
) -> None:
    spec = corpus(tmp_path)
    stand_in.run(spec, model_license="mit")
    start, running, complete = events()
    assert states(events()) == ["START", "RUNNING", "COMPLETE"]
    run_ids = {event["run"]["runId"] for event in events()}
    assert len(run_ids) == 1 and uuid.UUID(run_ids.pop())
    for event in events():
        assert event["schemaURL"].startswith("https://openlineage.io/spec/")
        assert event["producer"].startswith("urn:corpus-embed:")
        assert datetime.datetime.fromisoformat(event["eventTime"]).tzinfo
        assert (event["job"]["namespace"], event["job"]["name"]) == ("corpus-embed", "stand-in")
        (read,) = event["inputs"]
        (made,) = event["outputs"]
        assert (read["namespace"], read["name"]) == ("file", f"{tmp_path}/in")
        assert (made["namespace"], made["name"]) == ("file", f"{tmp_path}/out")
    assert "version" not in start["inputs"][0]["facets"]
    assert running["inputs"][0]["inputFacets"]["inputStatistics"]["fileCount"] == 2
    head = load_snapshot(store_of(spec))
    (read,), (made,) = complete["inputs"], complete["outputs"]
    size = sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    statistics = read["inputFacets"]["inputStatistics"]
    assert (statistics["rowCount"], statistics["size"], statistics["fileCount"]) == (6, size, 2)
    assert made["facets"]["version"]["datasetVersion"] == str(head.number)
    assert made["outputFacets"]["outputStatistics"]["rowCount"] == 5
    assert made["outputFacets"]["outputStatistics"]["size"] == head.size_bytes
    counts = made["outputFacets"]["corpusEmbed_counts"]
    assert (counts["records"], counts["rejects"]) == (6, 1)
    assert counts["rejectReasons"] == {"empty_text": 1}
    assert counts["rows"] == {
        "carried": 0,
        "reused": 0,
        "embedded": 5,
        "removed": 0,
        "rejected": 1,
    }
    assert complete["run"]["facets"]["corpusEmbed_run"]["snapshot"] == 1
    model = complete["job"]["facets"]["corpusEmbed_model"]
    assert (model["name"], model["revision"], model["license"]) == ("stand-in", "abc", "mit")
    assert complete["job"]["facets"]["sourceCode"]["sourceCode"] == spec.to_yaml()
    assert complete["job"]["facets"]["jobType"]["processingType"] == "BATCH"


def test_every_column_of_a_text_comes_from_the_text(tmp_path: Path, events: Any) -> None:
    stand_in.run(corpus(tmp_path))
    facets = events()[-1]["outputs"][0]["facets"]
    columns = {field["name"] for field in facets["schema"]["fields"]}
    origins = {
        name: [field["field"] for field in origin["inputFields"]]
        for name, origin in facets["columnLineage"]["fields"].items()
    }
    assert origins["embedding"] == origins["text"] == origins["text_sha256"] == ["text"]
    assert (origins["doc_id"], origins["lang"]) == (["id"], ["lang"])
    of_the_source = {"source_uri", "source_etag", "source_record", "part_id", "run_id"}
    assert columns - origins.keys() == {*of_the_source, "fingerprint"}
    hashed = facets["columnLineage"]["fields"]["text_sha256"]["inputFields"][0]
    assert hashed["transformations"][0]["masking"] is True


def test_a_template_makes_the_vector_come_from_its_fields(tmp_path: Path, events: Any) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "title": "t", "body": "b"}])
    spec = make_spec(tmp_path / "in", tmp_path / "out", input={"text_template": "{title}\n{body}"})
    stand_in.run(spec)
    lineage = events()[-1]["outputs"][0]["facets"]["columnLineage"]["fields"]
    assert [field["field"] for field in lineage["embedding"]["inputFields"]] == ["title", "body"]


def test_the_version_of_an_input_changes_with_its_objects_alone(
    tmp_path: Path, events: Any
) -> None:
    spec = corpus(tmp_path)
    stand_in.run(spec)
    stand_in.run(spec)
    write_shard(tmp_path / "in/c.jsonl", [{"id": "c", "text": "c"}])
    stand_in.run(spec)
    versions = [
        event["inputs"][0]["facets"]["version"]["datasetVersion"]
        for event in events()
        if event["eventType"] == "COMPLETE"
    ]
    assert versions[0] == versions[1] != versions[2]
    ends = [event for event in events() if event["eventType"] == "COMPLETE"]
    assert [end["run"]["facets"]["corpusEmbed_run"]["embedded"] for end in ends] == [
        True,
        False,
        True,
    ]


def test_our_facets_fit_their_schema_and_only_they_are_ours(tmp_path: Path, events: Any) -> None:
    stand_in.run(corpus(tmp_path))
    schema = json.loads((ROOT / "docs/openlineage-facets.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    names = set()
    for event in events():
        for place in (event["run"], event["job"], *event["inputs"], *event["outputs"]):
            for kind in ("facets", "inputFacets", "outputFacets"):
                for name, facet in place.get(kind, {}).items():
                    if not name.startswith("corpusEmbed_"):
                        assert facet["_schemaURL"].startswith("https://openlineage.io/spec/")
                        continue
                    names.add(name)
                    base, _, definition = facet["_schemaURL"].partition("#")
                    assert base == schema["$id"]
                    jsonschema.validate(facet, {**schema, "$ref": f"#/$defs/{definition}"})
    assert names == {"corpusEmbed_run", "corpusEmbed_model", "corpusEmbed_counts"}
    page = (ROOT / "docs/openlineage.md").read_text()
    assert all(f"`{name}`" in page for name in names)


def test_a_run_that_fails_says_why_and_is_raised_as_it_is(tmp_path: Path, events: Any) -> None:
    spec = corpus(tmp_path)

    def execute(plan: Any) -> dict[str, float]:
        raise InputError("https://me:secret@x.example/a.jsonl?sig=secret: cannot be read\x1b[2J.")

    with pytest.raises(InputError, match="me:secret"):
        run_job(job_of(spec), store_of(spec), execute, Progress())
    assert states(events()) == ["START", "RUNNING", "FAIL"]
    error = events()[-1]["run"]["facets"]["errorMessage"]
    assert error["message"].startswith("InputError: https://x.example/a.jsonl")
    assert error["programmingLanguage"] == "Python"
    assert "secret" not in json.dumps(events()) and "\\u001b" not in json.dumps(events())


def test_a_run_that_is_stopped_is_aborted(tmp_path: Path, events: Any) -> None:
    spec = corpus(tmp_path)

    def execute(plan: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job_of(spec), store_of(spec), execute, Progress())
    assert states(events()) == ["START", "RUNNING", "ABORT"]


def test_the_scheduler_above_is_the_parent(
    tmp_path: Path, events: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "lake")
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", f"airflow://prod/nightly.embed/{PARENT_RUN}")
    monkeypatch.setenv("OPENLINEAGE_ROOT_PARENT_ID", f"airflow://prod/nightly/{PARENT_RUN}")
    spec = corpus(tmp_path)
    nominal = datetime.datetime(2026, 11, 26, 3, tzinfo=datetime.UTC)
    with contextlib.suppress(Stopped):
        run_job(job_of(spec), store_of(spec), _stops, Progress(), nominal_time=nominal)
    facets = events()[0]["run"]["facets"]
    assert facets["parent"]["run"]["runId"] == PARENT_RUN
    assert facets["parent"]["job"] == {
        "namespace": "airflow://prod",
        "name": "nightly.embed",
        "facets": {},
    }
    assert facets["parent"]["root"]["job"]["name"] == "nightly"
    assert facets["nominalTime"]["nominalStartTime"] == "2026-11-26T03:00:00+00:00"
    assert events()[0]["job"]["namespace"] == "lake"


def _stops(plan: Any) -> dict[str, float]:
    raise Stopped


def test_a_trial_is_nobodys_lineage(tmp_path: Path, events: Any) -> None:
    spec = corpus(tmp_path)
    with contextlib.suppress(Stopped):
        run_job(job_of(spec), store_of(spec), _stops, Progress(), limit=1)
    assert not (tmp_path / "events.jsonl").exists()


@pytest.mark.parametrize("value", ["x", "a/b", f"a/{PARENT_RUN}", "a/b/c", f"//{PARENT_RUN}"])
def test_a_parent_of_another_form_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    events: Any,
    value: str,
) -> None:
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", value)
    assert stand_in.run(corpus(tmp_path))
    (warning,) = warnings_of(caplog)
    assert "OPENLINEAGE_PARENT_ID" in warning


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Receiver:
    """Keeps what is posted to it."""

    def __init__(self, status: int) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.bodies.append((self.path, json.loads(body)))
                receiver.headers.append(dict(self.headers))
                self.send_response(status)
                self.end_headers()

        self.handler = Handler


@contextlib.contextmanager
def receiving(status: int = 200) -> Iterator[tuple[Receiver, str]]:
    receiver = Receiver(status)
    with serving(receiver.handler) as url:
        yield receiver, url


@pytest.mark.process
def test_a_receiver_over_http_gets_every_event_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving() as (receiver, url):
        monkeypatch.setenv("OPENLINEAGE_URL", url)
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "hush")
        stand_in.run(corpus(tmp_path))
    assert [path for path, _ in receiver.bodies] == ["/api/v1/lineage"] * 3
    assert states([body for _, body in receiver.bodies]) == ["START", "RUNNING", "COMPLETE"]
    assert receiver.headers[0]["Authorization"] == "Bearer hush"
    assert "hush" not in json.dumps(receiver.bodies)
    assert warnings_of(caplog) == []


@pytest.mark.process
def test_a_receiver_that_answers_500_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving(500) as (_, url):
        monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "http")
        monkeypatch.setenv("OPENLINEAGE__TRANSPORT__URL", url)
        monkeypatch.setenv("OPENLINEAGE__TRANSPORT__RETRY", '{"total": 0}')
        assert stand_in.run(corpus(tmp_path)).number == 1
    (warning,) = warnings_of(caplog)
    assert "500" in warning and "The run continues." in warning


@pytest.mark.process
def test_a_receiver_that_never_answers_delays_the_end_by_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    be_patient(monkeypatch, 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "http")
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OPENLINEAGE__TRANSPORT__URL", url)
        monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TIMEOUT", "100")
        monkeypatch.setenv("OPENLINEAGE__TRANSPORT__RETRY", '{"total": 0}')
        assert stand_in.run(corpus(tmp_path)).number == 1
        (warning,) = warnings_of(caplog)
        assert "within 0.5 s" in warning


def test_a_delivery_that_hangs_is_given_up_after_the_patience() -> None:
    release = threading.Event()
    hanging = sender.Sender(lambda event: release.wait(60) and None, patience_s=0.2)
    seconds = time.monotonic()
    for number in range(1000):
        hanging.send(number)
    hanging.close()
    assert time.monotonic() - seconds < 50  # and not 60
    release.set()
    assert sender.PATIENCE_S == 5  # as docs/openlineage.md says


@pytest.mark.process
def test_nobody_at_the_address_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "http")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__RETRY", '{"total": 1}')
    assert stand_in.run(corpus(tmp_path)).number == 1
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OPENLINEAGE_NAMESPACE": "x"},
        {"OPENLINEAGE_URL": ""},
        {"OPENLINEAGE_URL": "http://127.0.0.1:9", "OPENLINEAGE_DISABLED": "True"},
    ],
)
def test_without_a_receiver_nothing_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "openlineage.client", None)
    (tmp_path / "openlineage.yml").write_text("transport: {type: console}")
    monkeypatch.chdir(tmp_path)
    assert not environment.is_on()
    assert stand_in.run(corpus(tmp_path))


def test_a_missing_extra_is_a_warning_that_says_how_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "openlineage.client", None)
    monkeypatch.delitem(sys.modules, "pipeline.observe.openlineage.client", raising=False)
    assert stand_in.run(corpus(tmp_path)).number == 1
    (warning,) = warnings_of(caplog)
    assert "pip install '.[openlineage]'" in warning


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OPENLINEAGE__TRANSPORT__TYPE", "nonsense"),
        ("OPENLINEAGE__TRANSPORT", "[1]"),
        ("OPENLINEAGE_URL", "no url"),
    ],
)
def test_a_wrong_setting_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv(variable, value)
    assert stand_in.run(corpus(tmp_path)).number == 1
    assert "OpenLineage" in warnings_of(caplog)[-1]


def test_no_file_and_no_repository_of_the_working_folder_is_read(
    tmp_path: Path, events: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = corpus(tmp_path)
    folder = tmp_path / "work"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git/config").write_text(
        '[remote "origin"]\n\turl = https://me:secret@x.example/r.git\n'
    )
    (folder / "openlineage.yml").write_text("facets: {environment_variables: [MY_SECRET]}\n")
    monkeypatch.setenv("MY_SECRET", "hush")
    monkeypatch.chdir(folder)
    stand_in.run(spec)
    text = json.dumps(events())
    assert "secret" not in text and "hush" not in text
    assert "sourceCodeLocation" not in events()[0]["job"]["facets"]


def test_the_file_that_the_environment_names_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(f"transport: {{type: file, log_file_path: {tmp_path}/e.jsonl, append: true}}\n")
    monkeypatch.setenv("OPENLINEAGE_CONFIG", str(path))
    stand_in.run(corpus(tmp_path))
    assert len((tmp_path / "e.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://bucket/a/b.jsonl", ("s3://bucket", "a/b.jsonl")),
        ("S3A://bucket/a/", ("s3://bucket", "a")),
        ("s3://bucket", ("s3://bucket", "/")),
        ("gcs://b/x", ("gs://b", "x")),
        (
            "abfss://c@account.dfs.core.windows.net/p/q",
            ("abfss://c@account.dfs.core.windows.net", "p/q"),
        ),
        ("hdfs://node:8020/data/x", ("hdfs://node:8020", "/data/x")),
        ("https://me:pw@x.example/a/b?sig=1", ("https://x.example", "a/b")),
        ("hf://datasets/org/name", ("hf://datasets", "org/name")),
        ("/data/in", ("file", "/data/in")),
        ("file:///data/a%20b", ("file", "/data/a b")),
    ],
)
def test_places_are_named_by_the_rules(uri: str, place: tuple[str, str]) -> None:
    assert naming.place_of(uri) == place


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["s3://b/in/*.jsonl", "s3://b/in/**"], ["in"]),
        (["s3://b/in/a*/b?.json", "s3://b/x/y.parquet"], ["in", "x/y.parquet"]),
        (["s3://b/*.json"], ["/"]),
        (["s3://b/in[0-9]/x"], ["/"]),
    ],
)
def test_a_pattern_names_the_folder_above_it(uris: list[str], names: list[str]) -> None:
    assert [place.name for place in naming.input_places(uris)] == names


def test_a_shard_belongs_to_the_first_place_that_holds_it() -> None:
    places = naming.input_places(["s3://b/in/*", "s3://b/in2", "s3://c"])
    shards = [
        Shard(uri=uri, etag="e", size_bytes=1)
        for uri in ("s3://b/in/x", "s3://b/in2/x", "s3://b/inx", "s3://c/x")
    ]
    held = naming.by_place(places, shards)
    assert [[shard.uri for shard in of_place] for of_place in held.values()] == [
        ["s3://b/in/x"],
        ["s3://b/in2/x"],
        ["s3://c/x"],
    ]
