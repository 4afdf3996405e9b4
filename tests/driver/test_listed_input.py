"""What a plan and a run say of their input: what is passed over, what has no version, and which
shards are still the objects that an output was made of.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.cli.display import show_passed_over, show_plan
from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.errors import SpecError
from pipeline.output.dataset import open_dataset
from pipeline.read.input import shards as shards_module
from pipeline.read.input.shards import list_shards
from pipeline.storage import versions
from tests.support.http_server import QuietHandler, serving
from tests.support.outputs import write_shard
from tests.support.stand_in import HashEngine, job_of, make_spec, run, store_of


def plan_of(spec: Any) -> Plan:
    return make_plan(job_of(spec), store_of(spec))


def printed(show: Any, plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=400)
    show(console, plan)
    return console.file.getvalue()


def texts(output: Path) -> list[str]:
    return sorted(open_dataset(str(output)).to_table(columns=["text"])["text"].to_pylist())


def test_what_is_passed_over_is_in_the_plan_at_the_end_and_in_the_record_of_the_run(
    tmp_path: Path,
) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "one"}])
    for name in ("b.jsonl.lz4", "notes [red].md", "_SUCCESS"):
        (tmp_path / "in" / name).write_text("x")
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    plan = plan_of(spec)
    facts = plan.summary()["passed_over"]
    assert facts["unknown suffix"]["suffixes"] == {".lz4": 1, ".md": 1}
    assert facts["hidden"]["n_objects"] == 1
    for show in (show_plan, show_passed_over):
        words = "2 with an unknown suffix (.lz4 1, .md 1): b.jsonl.lz4, notes [red].md; 1 hidden "
        assert f"objects passed over: {words}by _ or . in the name: _SUCCESS" in printed(show, plan)
    run(spec)
    (record,) = (tmp_path / "out/_meta/runs").glob("*/attempt-0001.json")
    assert json.loads(record.read_text())["shards"]["passed_over"] == json.loads(json.dumps(facts))


def test_a_plan_of_a_clean_input_has_no_line_about_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "one"}])
    plan = plan_of(make_spec(tmp_path / "in", tmp_path / "out"))
    assert plan.summary()["passed_over"] == {}
    assert printed(show_passed_over, plan) == ""


@pytest.mark.parametrize("stop_after", [None, 2])
def test_an_output_of_a_release_that_knew_files_by_time_and_size_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int | None
) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        documents = [{"id": f"{name}{n}", "text": f"{name} {n}" * 30} for n in range(20)]
        write_shard(tmp_path / "in" / name, documents)
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})
    first, second = HashEngine(), HashEngine()
    with monkeypatch.context() as earlier:
        earlier.setattr(versions, "_is_local", lambda info: False)
        run(spec, first, stop_after=stop_after)
        planned = plan_of(spec)
    assert all(shard.etag.count("-") == 1 for shard in planned.shards)
    if stop_after is None:
        assert plan_of(spec).run_id == planned.run_id
        assert plan_of(spec).nothing_to_do
    run(spec, second)
    assert len(first.seen) + len(second.seen) == 40
    assert plan_of(spec).nothing_to_do
    os.utime(tmp_path / "in/a.jsonl", (1_700_000_000, 1_700_000_000))
    changes = plan_of(spec).changes
    assert (changes.unchanged, changes.changed, changes.new, changes.removed) == (1, 1, 0, 0)


@pytest.mark.parametrize("how", ["replaced", "rewritten"])
def test_a_file_whose_time_and_size_were_kept_is_read_again(tmp_path: Path, how: str) -> None:
    shard = write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "before"}])
    os.utime(shard, (1_700_000_000, 1_700_000_000))
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    run(spec)
    target = tmp_path / "new.jsonl" if how == "replaced" else shard
    write_shard(target, [{"id": "1", "text": "after!"}])
    os.utime(target, (1_700_000_000, 1_700_000_000))
    target.replace(shard)
    run(spec)
    assert texts(tmp_path / "out") == ["after!"]


def test_a_restored_copy_is_read_and_not_embedded_again(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "one"}])
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    run(spec)
    content, stat = shard.read_bytes(), shard.stat()
    shard.unlink()
    shard.write_bytes(content)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    engine = HashEngine()
    run(spec, engine)
    assert (engine.seen, texts(tmp_path / "out")) == ([], ["one"])


class Site:
    """An HTTP server of one file with the headers of a test."""

    def __init__(self) -> None:
        self.content = b""
        self.headers: dict[str, str] = {}
        self.url = ""
        site = self

        class Handler(QuietHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                for name, value in site.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(site.content)))
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(site.content)

        self.handler = Handler


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with serving(site.handler) as site.url:
        yield site


@pytest.mark.process
@pytest.mark.parametrize(
    "header", [("ETag", '"{}"'), ("Last-Modified", "Wed, 25 Nov 2026 10:00:0{} GMT")]
)
def test_a_web_shard_of_the_same_size_is_known_by_what_its_server_sends(
    tmp_path: Path, site: Site, header: tuple[str, str]
) -> None:
    spec = make_spec(f"{site.url}/a.jsonl?download=true", tmp_path / "out")
    for number, text in enumerate(["before", "after!", "after!"]):
        site.content = json.dumps({"id": "1", "text": text}).encode()
        site.headers = {header[0]: header[1].format(min(number, 1))}
        plan = plan_of(spec)
        assert plan.nothing_to_do == (number == 2)
        assert "no version" not in printed(show_plan, plan)
        run(spec)
        assert texts(tmp_path / "out") == [text]


@pytest.mark.process
def test_a_plan_says_which_shards_have_no_version(tmp_path: Path, site: Site) -> None:
    site.content = b'{"id": "1", "text": "one"}'
    plan = plan_of(make_spec(f"{site.url}/a.jsonl", tmp_path / "out"))
    assert plan.summary()["unversioned_shards"] == 1
    words = printed(show_plan, plan)
    assert "1 shard has no version, because the server sends neither ETag nor Last-Mod" in words
    assert f"{site.url}/a.jsonl" in words


@pytest.mark.process
@pytest.mark.parametrize("format", ["auto", "jsonl"])
def test_the_suffixes_of_a_web_address_are_those_of_its_path(site: Site, format: str) -> None:
    site.content = b'{"id": "1", "text": "one"}'
    (shard,) = list_shards([f"{site.url}/a[1]*.jsonl?x=*.csv&download=true"], {}, format)
    assert shard.uri == f"{site.url}/a[1]*.jsonl?x=*.csv&download=true"


@pytest.mark.process
def test_a_page_of_links_is_a_folder_and_a_refusal_is_told_as_the_server_words_it(
    tmp_path: Path,
) -> None:
    for name in ("a.jsonl", "sub/b.jsonl", "readme.md"):
        write_shard(tmp_path / name, [{"id": name, "text": name}])
    handler = functools.partial(Folder, directory=str(tmp_path))
    with serving(handler) as url:
        for page in (url, f"{url}/"):
            shards = list_shards([page], {})
            assert [shard.uri for shard in shards] == [f"{url}/a.jsonl", f"{url}/sub/b.jsonl"]
        assert [shard.uri for shard in list_shards([f"{url}/sub"], {})] == [f"{url}/sub/b.jsonl"]
        with pytest.raises(SpecError, match="the server answers 403 Forbidden"):
            list_shards([f"{url}/secret.jsonl"], {})
        with pytest.raises(SpecError, match="nothing has this name"):
            list_shards([f"{url}/nowhere.jsonl"], {})


@pytest.mark.process
@pytest.mark.parametrize("ranges", [None, "none"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_web_server_without_ranges_is_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: str | None, name: str
) -> None:
    """Python's own server is one, and others say so in a header."""
    monkeypatch.setattr(shards_module, "RANGE_BYTES", 1 << 14)
    documents = [
        {"id": f"{n}", "text": hashlib.sha512(str(n).encode()).hexdigest()} for n in range(400)
    ]
    shard = write_shard(tmp_path / "in" / name, documents)
    assert shard.stat().st_size > 1 << 14

    class Plain(Folder):
        def end_headers(self) -> None:
            if ranges:
                self.send_header("Accept-Ranges", ranges)
            super().end_headers()

    handler = functools.partial(Plain, directory=str(tmp_path / "in"))
    with serving(handler) as url:
        run(make_spec(f"{url}/{name}", tmp_path / "out", runtime={"part_bytes": 20_000}))
    assert texts(tmp_path / "out") == sorted(document["text"] for document in documents)


class Folder(QuietHandler, SimpleHTTPRequestHandler):
    def send_head(self) -> Any:
        return self.send_error(403) if "secret" in self.path else super().send_head()
