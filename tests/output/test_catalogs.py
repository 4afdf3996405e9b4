"""Iceberg tables in catalogs behind HTTP: SeaweedFS' REST catalog, and Glue as moto's server speaks
it, the output on S3.

Oracle: the rows of the snapshot by `open_dataset`; the tables are read through a catalog loaded
anew, by name and environment alone for the secrets. moto keeps no state of AWS' own: what Glue
refuses for other reasons is not tested.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CommitConflict
from pipeline.job.sections import PublishSpec
from pipeline.output import lake
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import live_parts, load_generation, load_snapshot
from pipeline.storage.store import Store
from pipeline.tools.vacuum import vacuum
from tests.cli.test_main import called
from tests.output.test_lake import KEPT, docs, iceberg_ids, plain
from tests.support.outputs import write_shard
from tests.support.stand_in import make_spec, run

pytest.importorskip("pyiceberg", reason="extra iceberg")

from pyiceberg.catalog import load_catalog
from pyiceberg.utils.config import Config

pytestmark = [pytest.mark.slow]


@pytest.fixture(params=["rest", "glue"])
def publications(
    request: pytest.FixtureRequest, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PublishSpec]:
    """`publish` for a table in a fresh catalog. Keys are in the environment."""
    if request.param == "rest":
        warehouse = s3.server.make_table_bucket("warehouse")
        monkeypatch.setenv(
            "PYICEBERG_CATALOG__CORPUS_EMBED__CREDENTIAL",
            f"{s3.server.access_key}:{s3.server.secret_key}",
        )
        # pyiceberg 0.12 derives it from the address of the catalog, and says that 1.0 will not
        monkeypatch.setenv(
            "PYICEBERG_CATALOG__CORPUS_EMBED__OAUTH2_SERVER_URI",
            f"{s3.server.iceberg_url}/v1/oauth/tokens",
        )
        # pyiceberg reads the environment at its import
        monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
        catalog = {"type": "rest", "uri": s3.server.iceberg_url, "warehouse": warehouse}
        configure(monkeypatch, catalog)
        yield PublishSpec(
            iceberg={"table": "db.docs", "catalog": catalog, "location": f"{warehouse}/db/docs"}
        )
        return
    from moto.server import ThreadedMotoServer

    glue = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    glue.start()
    host, port = glue.get_host_and_port()
    catalog = {"type": "glue", "glue.endpoint": f"http://{host}:{port}", "glue.region": "us-east-1"}
    configure(monkeypatch, catalog)
    yield PublishSpec(iceberg={"table": "db.docs", "catalog": catalog})
    glue.stop()


def configure(monkeypatch: pytest.MonkeyPatch, catalog: dict[str, str]) -> None:
    """Name a catalog in the operator's environment: commands that get no spec contact no other."""
    for name, value in catalog.items():
        variable = name.upper().replace(".", "__")
        monkeypatch.setenv(f"PYICEBERG_CATALOG__CORPUS_EMBED__{variable}", value)


def test_tables_of_a_catalog_behind_http_hold_every_snapshot_and_let_one_publisher_win(
    publications: PublishSpec,
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"partition_by": ["lang"], "storage_options": s3.storage_options}
    spec = make_spec(tmp_path / "in", f"{s3.uri}/out", input=KEPT, output=options)
    store = Store(spec.output.uri, s3.storage_options)
    write_shard(tmp_path / "in/a.jsonl", docs(0, 10))
    run(spec)
    lake.publish(store, publications)
    write_shard(tmp_path / "in/b.jsonl", docs(10, 23))
    (tmp_path / "in/a.jsonl").unlink()
    run(spec)

    # two publishers look at the table, then both commit
    ((_, first),), ((_, second),) = (
        lake._tables(store, publications),
        lake._tables(store, publications),
    )
    head = load_snapshot(store)
    generation = load_generation(store, head.fingerprint)
    looked = second._load()
    second._load = lambda: looked
    first.add(head, generation, live_parts(store, head))
    del second._load
    behind = iter([looked])
    load = second._load
    second._load = lambda: next(behind, None) or load()
    # refused by the catalog, and there already
    second.add(head, generation, live_parts(store, head))
    second._load = lambda: looked
    with pytest.raises(CommitConflict, match="publish again"):
        second.add(head.model_copy(update={"number": 9}), generation, live_parts(store, head))

    assert (
        called(
            monkeypatch,
            "publish",
            spec.output.uri,
            "--storage-options",
            f'{{"endpoint_url": "{s3.endpoint_url}"}}',
        )
        == 0
    )
    assert "Iceberg table db.docs: snapshot 2" in capsys.readouterr().out
    table = load_catalog(
        "corpus-embed", **publications.iceberg.catalog, **{"s3.endpoint": s3.endpoint_url}
    ).load_table("db.docs")
    assert [*iceberg_ids(table)] == [1, 2]
    for number, n_rows in ((1, 10), (2, 13)):
        expected = plain(
            open_dataset(spec.output.uri, number, storage_options=s3.storage_options).to_table()
        )
        assert len(expected) == n_rows
        assert plain(table.scan(snapshot_id=iceberg_ids(table)[number]).to_arrow()) == expected

    grace = datetime.timedelta(seconds=-5)
    vacuum(
        spec.output.uri,
        keep_snapshots=1,
        older_than=grace,
        delete=True,
        storage_options=s3.storage_options,
    )
    table.refresh()
    assert [*iceberg_ids(table)] == [2]
    assert plain(table.scan().to_arrow()) == expected
