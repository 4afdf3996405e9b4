"""Which servers trace, verify and search ask for sources and models: those that the operator named.

Oracle: servers that write down every request that they get.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import CorpusEmbedError, ModelError
from pipeline.storage import layout
from pipeline.storage.options import server_of
from pipeline.storage.store import Store
from pipeline.tools.search import search
from pipeline.tools.source_places import options_to_read
from pipeline.tools.trace import trace
from pipeline.tools.verify.verification import Check, verify
from tests.cli.test_main import called
from tests.support import outputs
from tests.support.http_server import serving


class Site:
    """A web server of the files of a folder, and the requests that it got."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.url = ""
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                site.requests.append(f"{self.command} {self.path}")

        self.handler = functools.partial(Handler, directory=str(folder))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    with serving(site.handler) as site.url:
        yield site


def sample_check(output: Any, storage_options: Any, **options: Any) -> Check:
    verification = verify(output, storage_options=storage_options, **options)
    assert verification.ok
    return verification.checks[-1]


@pytest.mark.process
def test_a_web_server_that_only_the_output_names_is_asked_where_the_operator_says_so(
    tmp_path: Path,
    bert_mean_dir: Path,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shard = outputs.write_shard(tmp_path / "site" / "a.jsonl", outputs.DOCUMENTS)
    outputs.write_shard(tmp_path / "in" / "b.jsonl", [{"id": "b", "text": "mine", "lang": "en"}])
    output = str(tmp_path / "out")
    uris = [f"{site.url}/a.jsonl", str(tmp_path / "in")]
    outputs.run_without_ray(outputs.make_spec(uris, output, bert_mean_dir))
    assert site.requests
    site.requests.clear()

    assert trace(output, "b").ok
    traced = trace(output, "doc-3").rows[0]
    assert not traced.ok
    assert traced.verdict == (
        f"source not asked: it is on {site.url}, which only the output names; "
        "give --source-options to read it"
    )
    assert (traced.source_uri, traced.source_text) == (f"{site.url}/a.jsonl", None)
    check = sample_check(output, None)
    assert (check.figures["source_not_asked"], check.figures["embedded_again"]) == (8, 1)
    assert check.detail.endswith(
        f"8 rows not compared: their sources are on {site.url}, which only the output names; "
        "give --source-options to read them"
    )
    assert called(monkeypatch, "verify", output) == 0
    assert called(monkeypatch, "trace", output, "doc-3") == 1
    assert site.requests == []
    assert called(monkeypatch, "trace", output, "doc-3", "--source-options", "[]") == 2
    assert "--source-options: this is no JSON object" in " ".join(capsys.readouterr().err.split())

    assert trace(output, "doc-3", source_options={}).rows[0].verdict == "same"
    assert sample_check(output, None, source_options={}).figures["embedded_again"] == 9
    assert called(monkeypatch, "verify", output, "--source-options", "{}") == 0
    capsys.readouterr()
    assert called(monkeypatch, "trace", output, "doc-3", "--source-options", "{}", "--json") == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["source_text"] == json.loads(shard.read_text().splitlines()[3])["text"]
    assert site.requests


def test_an_s3_endpoint_that_only_the_output_names_gets_no_request(
    tmp_path: Path, bert_mean_dir: Path, s3: Any, site: Site
) -> None:
    shard = outputs.write_shard(tmp_path / "a.jsonl", outputs.DOCUMENTS)
    s3.filesystem.put_file(str(shard), f"{s3.key}/in/a.jsonl")
    options = {"storage_options": s3.storage_options}
    spec = outputs.make_spec(
        f"{s3.uri}/in", f"{s3.uri}/out", bert_mean_dir, input=options, output=options
    )
    run_id = outputs.run_without_ray(spec).run_id
    operator = s3.storage_options
    assert sample_check(spec.output.uri, operator).figures["embedded_again"] == 8

    path = f"{s3.key}/out/{layout.run_spec(run_id)}"
    stored = yaml.safe_load(s3.filesystem.cat_file(path))
    for hostile in (
        {"endpoint_url": site.url},
        {"client_kwargs": {"endpoint_url": site.url}},
        {**operator, "config_kwargs": {"proxies": {"http": site.url}}},
    ):
        stored["input"]["storage_options"] = hostile
        s3.filesystem.pipe_file(path, yaml.safe_dump(stored).encode())
        assert sample_check(spec.output.uri, operator).figures["source_not_asked"] == 8
        assert (
            "source not asked"
            in trace(spec.output.uri, "doc-3", storage_options=operator).rows[0].verdict
        )
        assert site.requests == []
        # the operator's options are read with, not those that lie in the output
        assert trace(spec.output.uri, "doc-3", source_options=operator, storage_options=operator).ok
        assert site.requests == []


def change_stored_spec(output: Path, section: str, **settings: Any) -> None:
    """Settings of the spec that is stored with the only run of an output."""
    (path,) = output.glob("_meta/runs/*/spec.yaml")
    stored = yaml.safe_load(path.read_text())
    stored[section] |= settings
    path.write_text(yaml.safe_dump(stored))


@pytest.mark.process
def test_a_model_on_a_server_that_only_the_output_names_is_not_fetched(
    tmp_path: Path, bert_mean_dir: Path, site: Site
) -> None:
    outputs.write_shard(tmp_path / "in" / "a.jsonl", outputs.DOCUMENTS)
    output = tmp_path / "out"
    outputs.run_without_ray(outputs.make_spec(str(tmp_path / "in"), str(output), bert_mean_dir))
    for path, options in (
        (f"{site.url}/model", {}),
        ("s3://models/m", {"endpoint_url": site.url}),
        ("s3://models/m", {"client_kwargs": {"endpoint_url": site.url}}),
    ):
        change_stored_spec(output, "model", path=path)
        change_stored_spec(output, "input", storage_options=options)
        with pytest.raises(ModelError, match=r"only the output names the server .* --model"):
            search(str(output), "text")
        # the options for the sources say nothing of the model
        with pytest.raises(ModelError, match="only the output names the server"):
            verify(str(output), source_options={"endpoint_url": site.url})
        assert search(str(output), "text", model_path=str(bert_mean_dir))
        assert site.requests == []
    with pytest.raises(CorpusEmbedError):
        search(str(output), "text", model_path=f"{site.url}/model")
    assert site.requests


def test_a_model_on_the_store_of_the_output_is_fetched_with_the_options_of_the_operator(
    tmp_path: Path, bert_mean_dir: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    s3.filesystem.put(f"{bert_mean_dir}/", f"{s3.key}/m/", recursive=True)
    outputs.write_shard(tmp_path / "in" / "a.jsonl", outputs.DOCUMENTS)
    options = {"storage_options": s3.storage_options}
    spec = outputs.make_spec(
        str(tmp_path / "in"), f"{s3.uri}/out", bert_mean_dir, input=options, output=options
    )
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"path": f"{s3.uri}/m"})})
    outputs.run_without_ray(spec)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    query = outputs.DOCUMENTS[3]["text"]
    for model_path in (None, f"{s3.uri}/m"):
        hit = search(
            spec.output.uri, query, k=1, model_path=model_path, storage_options=s3.storage_options
        )[0]
        assert hit.doc_id == "doc-3"


@pytest.mark.process
def test_a_model_of_the_hub_is_taken_from_the_cache_and_fetched_where_the_operator_names_it(
    tmp_path: Path, bert_mean_dir: Path, site: Site
) -> None:
    outputs.write_shard(tmp_path / "in" / "a.jsonl", outputs.DOCUMENTS)
    output = tmp_path / "out"
    outputs.run_without_ray(outputs.make_spec(str(tmp_path / "in"), str(output), bert_mean_dir))
    commit = "0123456789abcdef0123456789abcdef01234567"
    change_stored_spec(output, "model", path="org/tiny", revision=commit)
    code = (
        "import sys; from pipeline.errors import ModelError\n"
        "from pipeline.tools.loaded_snapshot import load_snapshot_with_lineage as load\n"
        "try: print(load(sys.argv[1], model_path=(sys.argv[2:] or [None])[0]).model.commit)\n"
        "except ModelError as error: print(error)"
    )

    def loaded(*arguments: str) -> str:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": site.url,
            "CORPUS_EMBED_CACHE": str(tmp_path / "cache"),
        }
        command = [sys.executable, "-c", code, str(output), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        return done.stdout.strip() or done.stderr

    assert "name the model with --model" in loaded()
    shutil.copytree(bert_mean_dir, tmp_path / f"hf/hub/models--org--tiny/snapshots/{commit}")
    assert loaded() == commit
    assert site.requests == []
    loaded("org/tiny")
    assert any(commit in request for request in site.requests)


S3 = {"endpoint_url": "https://minio:9000"}


@pytest.mark.parametrize(
    ("uri", "stored", "output", "operator", "options"),
    [
        ("file:///in/a", {}, "s3://lake/out", {}, {}),
        ("/in/a", S3, "s3://lake/out", {}, {}),
        ("memory://in/a", {}, "s3://lake/out", {}, {}),
        ("s3://in/a", {}, "s3://lake/out", {}, {}),
        ("s3a://in/a", {}, "s3://lake/out", {}, {}),
        ("s3://in/a", {"anon": True}, "s3://lake/out", {}, {"anon": True}),
        ("s3://in/a", {"anon": False}, "s3://lake/out", {"anon": True}, {"anon": True}),
        ("s3://in/a", {"client_kwargs": {"region_name": "x"}}, "s3://lake/out", {}, {}),
        ("s3://in/a", S3, "s3://lake/out", S3, S3),
        ("s3://in/a", {"client_kwargs": S3}, "s3://lake/out", S3, S3),
        ("s3://in/a", S3, "s3://lake/out", {}, None),
        ("s3://in/a", {"client_kwargs": S3}, "s3://lake/out", {}, None),
        ("s3://in/a", {}, "s3://lake/out", S3, None),
        ("s3://in/a", {}, "/out", {}, None),
        ("s3://in/a", {"profile": "admin"}, "s3://lake/out", {}, None),
        ("s3://in/a", {"requester_pays": True}, "s3://lake/out", {}, None),
        ("s3://in/a", {"client_kwargs": {"verify": False}}, "s3://lake/out", {}, None),
        ("https://host/a", {}, "s3://lake/out", {}, None),
        ("ftp://host/a", {}, "/out", {}, None),
        ("sftp://host/a", {}, "/out", {}, None),
        ("hf://datasets/a/b", {}, "/out", {}, None),
        ("gs://in/a", {}, "s3://lake/out", {}, None),
        ("FILE://in/a", {}, "/out", {}, {}),
        ("simplecache::https://host/a", {}, "/out", {}, None),
    ],
)
def test_what_is_stored_can_only_agree_with_the_operator(
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    stored: Mapping[str, Any],
    output: str,
    operator: Mapping[str, Any],
    options: Mapping[str, Any] | None,
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    store = Store(output, operator)
    assert options_to_read(uri, stored, store, None) == options
    is_local = options == {} and not uri.startswith("s3")
    named = {"anon": True}
    assert options_to_read(uri, stored, store, named) == ({} if is_local else named)


def test_the_environment_of_the_operator_names_an_endpoint_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", S3["endpoint_url"])
    other = {"endpoint_url": "https://elsewhere"}
    for store in (Store("s3://lake/out"), Store("s3://lake/out", other), Store("/out")):
        for stored in ({}, S3):
            assert options_to_read("s3://in/a", stored, store, None) == {}
    for store in (Store("s3://lake/out"), Store("/out")):
        assert options_to_read("s3://in/a", other, store, None) is None
    assert options_to_read("s3://in/a", {"profile": "admin"}, Store("/out"), None) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("gs://a/x", "gs://b/x", True),
        ("abfs://c@account/x", "abfss://d@account/x", True),
        ("abfs://c@account/x", "abfs://c@another/x", False),
        ("hdfs://node:8020/x", "hdfs://node:8020/y", True),
        ("hdfs://node:8020/x", "hdfs://evil:8020/x", False),
        ("sftp://me@host/x", "sftp://you@host/x", True),
        ("sftp://host/x", "sftp://host:2222/x", False),
        ("abfs://c@account/x", "abfs://c/x", False),
        ("oss://one/x", "oss://oss.evil/x", False),
        ("gs://a/x", "s3://a/x", False),
        *(
            (f"{p}://good/x", f"{p}://{authority}/x", False)
            for p in ("https", "sftp", "hdfs", "abfs")
            for authority in (
                "evil?@good",
                "evil#@good",
                "evil\\@good",
                "good\\@evil",
                "good@evil",
                "good:80@evil",
                "a@good@evil",
                "evil%2f@good",
                "evil;@good",
            )
        ),
    ],
)
def test_servers_are_compared_and_not_buckets(one: str, other: str, same: bool) -> None:
    assert (server_of(one, {}) == server_of(other, {})) is same
