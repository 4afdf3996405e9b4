"""What lies in an output decides neither which code publishing runs, nor which host is spoken to,
nor which path is read, written or deleted.

Oracle: files that a planted module would leave behind, requests that a planted server would see,
and files outside the output, compared byte for byte.
"""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import OutputError
from pipeline.job.sections import PublishSpec
from pipeline.output import lake
from pipeline.storage.store import Store
from pipeline.tools.vacuum import vacuum
from tests.cli.test_main import called
from tests.output.test_lake import docs, iceberg, iceberg_ids, spec_of, two_snapshots
from tests.support.http_server import QuietHandler, serving
from tests.support.outputs import write_shard
from tests.support.stand_in import run

pytest.importorskip("pyiceberg", reason="extra iceberg")

ICEBERG = PublishSpec(iceberg={"table": "db.docs"})


@pytest.fixture
def published(tmp_path: Path) -> Store:
    """Snapshots 1 and 2 in an Iceberg table, and snapshot 3, which the table lacks."""
    store = two_snapshots(tmp_path)
    lake.publish(store, ICEBERG)
    write_shard(tmp_path / "in/b.jsonl", docs(26, 41))
    run(spec_of(tmp_path))
    return store


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the module `evil` creates when anything imports it."""
    trace = tmp_path / "evil-was-here"
    (tmp_path / "path").mkdir()
    (tmp_path / "path/evil.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    return trace


def database(store: Store) -> sqlite3.Connection:
    return sqlite3.connect(f"{store.root}/_meta/iceberg/catalog.db")


def metadata_file(store: Store) -> Path:
    with database(store) as connection:
        ((location,),) = connection.execute("SELECT metadata_location FROM iceberg_tables")
    return Path(location.removeprefix("file://"))


def tamper(store: Store, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the table's current metadata as somebody who can write the output could."""
    path = metadata_file(store)
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


def commands(monkeypatch: pytest.MonkeyPatch, output: str) -> list[int]:
    """Exit codes of every command that looks at the tables of an output, or could."""
    keep = ["--keep", "1", "--older-than", "0h"]
    return [
        called(monkeypatch, "status", output),
        called(monkeypatch, "publish", output),
        called(monkeypatch, "publish", output, "--iceberg", "db.docs"),
        called(monkeypatch, "vacuum", output, *keep, "--delete"),
    ]


@pytest.mark.parametrize(
    "name",
    ["py-io-impl", "write.py-location-provider.impl", "s3.retry-strategy-impl", "PY-io-impl"],
)
def test_a_property_of_the_table_that_names_code_is_refused_before_a_library_acts_on_it(
    published: Store, evil: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str
) -> None:
    tamper(published, lambda metadata: metadata["properties"].update({name: "evil.Module"}))
    assert commands(monkeypatch, published.root) == [0, 1, 1, 0]
    assert not evil.exists()
    printed = capsys.readouterr()
    assert printed.err.count(f"'{name}'") == 2
    assert printed.out.count(f"'{name}'") == 1
    with pytest.raises(OutputError, match=r"names code|says how storage"):
        lake.publish(published, ICEBERG)
    # the data does not wait for the table
    assert not Path(published.root, "_meta/snapshots", f"{1:020d}.json").exists()


def test_properties_of_the_table_choose_no_host(published: Store) -> None:
    """They would be merged over the operator's own."""
    tamper(
        published, lambda metadata: metadata["properties"].update({"s3.endpoint": "http://evil"})
    )
    with pytest.raises(OutputError, match=r"s3\.endpoint"):
        lake.publish(published, ICEBERG)


def test_the_catalog_of_the_output_leads_to_no_metadata_elsewhere(
    published: Store, evil: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.metadata.json"
    elsewhere.write_bytes(metadata_file(published).read_bytes())
    for location in (
        f"file://{elsewhere}",
        f"file://{published.root}/_meta/iceberg/db.docs/../../../../{elsewhere.name}",
        "hdfs://evil:1/a.metadata.json",
        f"file://{published.root}/_meta/iceberg/db.docs/metadata/00000-a.gz.metadata.json",
    ):
        with database(published) as connection:
            connection.execute("UPDATE iceberg_tables SET metadata_location = ?", (location,))
        with pytest.raises(OutputError, match=r"outside|compressed"):
            lake.publish(published, ICEBERG)


def test_a_link_below_the_table_leads_to_no_metadata_elsewhere(
    published: Store, tmp_path: Path
) -> None:
    path = metadata_file(published)
    path.rename(tmp_path / "moved.json")
    path.symlink_to(tmp_path / "moved.json")
    with pytest.raises(OutputError, match="outside"):
        lake.publish(published, ICEBERG)


def test_metadata_names_no_file_elsewhere_to_read_or_to_write(
    published: Store, tmp_path: Path
) -> None:
    victim = tmp_path / "victim.metadata.json"
    victim.write_text("precious")
    before = sorted(path for path in tmp_path.rglob("*") if "out" not in path.parts)
    whole = metadata_file(published).read_text()
    location = f"file://{tmp_path}/other"
    for change in (
        lambda metadata: metadata.update({"location": location}),
        lambda metadata: metadata["properties"].update({"write.metadata.path": location}),
        lambda metadata: metadata["snapshots"][-1].update({"manifest-list": f"file://{victim}"}),
    ):
        metadata_file(published).write_text(whole)
        tamper(published, change)
        with pytest.raises(OutputError, match="outside"):
            lake.publish(published, ICEBERG)
    assert victim.read_text() == "precious"
    assert before == sorted(path for path in tmp_path.rglob("*") if "out" not in path.parts)


@pytest.mark.filterwarnings("ignore:Failed to delete old metadata")
def test_metadata_names_no_file_elsewhere_to_delete(published: Store, tmp_path: Path) -> None:
    """pyiceberg deletes old metadata files after a commit: those that the metadata lists."""
    victim = tmp_path / "victim.metadata.json"
    victim.write_text("precious")
    entries = [
        {"metadata-file": f"file://{victim}", "timestamp-ms": number} for number in range(1, 4)
    ]
    tamper(published, lambda metadata: metadata.update({"metadata-log": entries}))
    tamper(
        published,
        lambda metadata: metadata["properties"].update(
            {"write.metadata.previous-versions-max": "1"}
        ),
    )
    assert set(lake.publish(published, ICEBERG).values()) == {3}
    assert victim.read_text() == "precious"


def test_metadata_larger_than_any_table_needs_is_not_read(published: Store) -> None:
    with metadata_file(published).open("ab") as file:
        file.truncate(1 << 31)  # sparse
    with pytest.raises(OutputError, match="2147483648 bytes"):
        lake.publish(published, ICEBERG)


@pytest.fixture
def requests() -> Iterator[tuple[str, list[str | None]]]:
    """The address of a server, and the Authorization headers that it was sent."""
    headers: list[str | None] = []

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            headers.append(self.headers.get("Authorization"))
            self.send_response(404)
            self.end_headers()

        do_POST = do_GET

    with serving(Handler) as url:
        yield url, headers


@pytest.mark.parametrize(
    "record",
    [
        {"table": "db.docs", "catalog": {"type": "rest", "uri": "URI"}},
        {"table": "db.docs", "catalog": {"uri": "URI", "name": "mine"}},
        {"table": "db.docs", "location": "s3://other/db/docs"},
    ],
)
def test_a_stored_record_decides_no_host_and_no_place(
    tmp_path: Path,
    requests: tuple[str, list[str | None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    record: dict[str, Any],
) -> None:
    uri, headers = requests
    for name in ("CORPUS_EMBED", "MINE"):
        monkeypatch.setenv(f"PYICEBERG_CATALOG__{name}__TOKEN", "the-operators-token")
    store = two_snapshots(tmp_path)
    stored = Path(store.root, "_meta/publications/iceberg-0123456789abcdef.json")
    stored.parent.mkdir()
    stored.write_text(json.dumps({"iceberg": record}).replace("URI", uri))
    assert called(monkeypatch, "publish", store.root) == 1
    plan = vacuum(store.root, older_than=datetime.timedelta(0), keep_snapshots=1, delete=True)
    assert headers == []
    assert plan.paths
    (sentence,) = plan.tables_behind
    assert "only the output says" in sentence
    assert "only the output says" in " ".join(capsys.readouterr().err.split())


def test_a_stored_record_that_agrees_with_the_operators_configuration_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = two_snapshots(tmp_path)
    uri = f"sqlite:///{tmp_path}/catalog.db"
    lake.publish(
        store,
        PublishSpec(iceberg={"table": "db.docs", "catalog": {"type": "sql", "uri": uri}}),
    )
    write_shard(tmp_path / "in/b.jsonl", docs(26, 41))
    run(spec_of(tmp_path))
    assert len(lake.publish_recorded(store)[1]) == 1
    monkeypatch.setenv("PYICEBERG_CATALOG__CORPUS_EMBED__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__CORPUS_EMBED__URI", uri)
    assert lake.publish_recorded(store) == ({"Iceberg table db.docs": 3}, [])


def test_a_table_that_cannot_be_brought_up_does_not_keep_others_or_vacuum_waiting(
    published: Store, tmp_path: Path, evil: Path
) -> None:
    lake.publish(published, PublishSpec(iceberg={"table": "db.more"}))
    with database(published) as connection:
        connection.execute(
            "UPDATE iceberg_tables SET metadata_location = 'file:///gone/a.metadata.json'"
            " WHERE table_name = 'more'"
        )
    plan = vacuum(published.root, older_than=datetime.timedelta(0), keep_snapshots=1, delete=True)
    assert [*iceberg_ids(iceberg(tmp_path))] == [3]
    (sentence,) = plan.tables_behind
    assert "db.more" in sentence
