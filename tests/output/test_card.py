"""The dataset card and the Croissant metadata of an output: what they say, whose files they
replace, and that nothing in them breaks out of its place.

Oracles: huggingface_hub's card reader, markdown-it's parser, mlcroissant's validation and records,
the documents that the test wrote, and the tools that a card's snippets are about.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import mlcroissant
import pyarrow as pa
import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from pipeline.driver.commits import commit_finished
from pipeline.driver.planning.plan import make_plan
from pipeline.errors import StorageError
from pipeline.output.card import update_card
from pipeline.output.card.readme import size_category
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import live_parts, load_manifests, load_snapshot
from pipeline.storage.store import Store
from pipeline.tools.compact import compact
from pipeline.tools.vacuum import vacuum
from tests.support import stand_in
from tests.support.outputs import write_shard
from tests.support.stand_in import make_spec, store_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:rdflib.*"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index"),
]

LANGUAGES = ("en", "ja", None, "a b%[x]*?", "__HIVE_DEFAULT_PARTITION__")


def documents(start: int = 0, stop: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "id": f"doc {n}",
            "text": f"text {n} 語",
            "lang": LANGUAGES[n % len(LANGUAGES)],
            "year": 2000 + n,
        }
        for n in range(start, stop)
    ]


def spec_of(root: Path, **output: Any) -> Any:
    return make_spec(
        root / "in",
        root / "out",
        input={"keep_columns": {"lang": "string", "year": "int64"}},
        output={"card": {}, **output},
    )


def made(root: Path, **output: Any) -> Store:
    write_shard(root / "in/a.jsonl", documents())
    spec = spec_of(root, **output)
    assert stand_in.run(spec)
    return store_of(spec)


def card_of(store: Store) -> DatasetCard:
    return DatasetCard.load(Path(store.root) / "README.md")


def croissant_of(store: Store) -> Any:
    return json.loads(store.read("croissant.json"))


def live_files(store: Store) -> list[str]:
    parts = live_parts(store, load_snapshot(store))
    return sorted(file.path for part in parts for file in part.data_files)


def front_files(store: Store) -> list[str]:
    (config,) = card_of(store).data.to_dict()["configs"]
    (split,) = config["data_files"]
    return split["path"]


@pytest.mark.parametrize("partition_by", [[], ["lang"], ["lang", "year"]])
def test_a_card_names_the_live_files_and_what_a_person_has_said(
    tmp_path: Path, partition_by: list[str]
) -> None:
    settings = {"license": "CC-BY-4.0", "languages": "ja", "description": "From *our* wiki."}
    store = made(tmp_path, partition_by=partition_by, card=settings)
    card = card_of(store)
    data = card.data.to_dict()
    assert front_files(store) == live_files(store)
    assert (data["license"], data["language"]) == ("cc-by-4.0", ["ja"])
    assert data["size_categories"] == ["n<1K"]
    assert "From *our* wiki." in card.text
    assert "| `year` | `int64` |" in card.text


@pytest.mark.parametrize(
    ("n_rows", "category"),
    [
        *((0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (9999, "1K<n<10K")),
        *((10**5, "100K<n<1M"), (10**9, "1B<n<10B"), (10**12, "n>1T"), (10**15, "n>1T")),
    ],
)
def test_a_number_of_rows_has_the_hubs_name(n_rows: int, category: str) -> None:
    assert size_category(n_rows) == category


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        (None, {"license": "unknown"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("my: own #terms", {"license": "other", "license_name": "my: own #terms"}),
        ("https://x.example/l", {"license": "other", "license_link": "https://x.example/l"}),
    ],
)
def test_a_licence_has_the_keys_that_the_hub_reads(
    tmp_path: Path, licence: str | None, fields: dict[str, str]
) -> None:
    data = card_of(made(tmp_path, card={"license": licence})).data.to_dict()
    assert {key: data[key] for key in data if key.startswith("license")} == fields


def issues_of(store: Store) -> tuple[mlcroissant.Dataset, str]:
    dataset = mlcroissant.Dataset(jsonld=Path(store.root) / "croissant.json")
    return dataset, dataset.metadata.ctx.issues.report()


@pytest.mark.parametrize("precision", ["float32", "int8", "ubinary"])
def test_mlcroissant_finds_no_fault_and_reads_every_row(tmp_path: Path, precision: str) -> None:
    store = made(
        tmp_path,
        partition_by=["lang"],
        vector_precision=precision,
        card={"license": "mit", "languages": ["ja"]},
    )
    dataset, report = issues_of(store)
    assert report == ""
    rows = {row["rows/doc_id"].decode(): row for row in dataset.records("rows")}
    expected = open_dataset(store.uri).to_table().to_pylist()
    assert rows.keys() == {row["doc_id"] for row in expected}
    for row in expected:
        assert list(rows[row["doc_id"]]["rows/embedding"]) == row["embedding"]
        assert rows[row["doc_id"]]["rows/year"] == row["year"]
    assert {row["rows/lang"].decode() for row in rows.values()} == {
        *("en", "ja", "a%20b%25%5Bx%5D%2A%3F"),
        *("__HIVE_DEFAULT_PARTITION__", "%5F_HIVE_DEFAULT_PARTITION__"),
    }


def test_without_a_licence_that_is_all_mlcroissant_misses(tmp_path: Path) -> None:
    _, report = issues_of(made(tmp_path))
    assert re.findall(r"- .*", report) and all("license" in line for line in report.split("\n")[1:])


@pytest.mark.parametrize("partition_by", [[], ["lang"], ["year", "lang"]])
def test_the_snippets_of_a_card_read_the_newest_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition_by: list[str]
) -> None:
    store = made(tmp_path, partition_by=partition_by)
    (tmp_path / "in/a.jsonl").unlink()
    write_shard(tmp_path / "in/b.jsonl", documents(5, 30))
    stand_in.run(spec_of(tmp_path, partition_by=partition_by))
    assert load_snapshot(store).number == 2
    text = card_of(store).text
    files, *snippets = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(store.root)
    expected = {row["doc_id"]: row for row in open_dataset(store.uri).to_table().to_pylist()}
    assert len(expected) == 25
    names = {"dataset = ": "pyarrow", "rows = duckdb": "DuckDB", "pl.": "Polars", "pd.": "pandas"}
    seen = set()
    for snippet in snippets:
        tool = next((tool for word, tool in names.items() if word in snippet), "Spark")
        seen.add(tool)
        if tool == "Spark":
            compile(snippet, "card", "exec")  # tests/output/test_spark.py runs it
            continue
        scope: dict[str, Any] = {}
        exec(files + snippet, scope)
        if tool == "pyarrow":
            rows = scope["dataset"].to_table().to_pylist()
        elif tool == "DuckDB":
            rows = [dict(zip(scope["rows"].columns, row, strict=True)) for row in _all(scope)]
        elif tool == "Polars":
            rows = scope["frame"].to_dicts()
        else:
            rows = pa.Table.from_pandas(scope["frame"]).to_pylist()
        assert {row["doc_id"] for row in rows} == expected.keys()
        for row in rows:
            wanted = expected[row["doc_id"]]
            assert list(row["embedding"]) == pytest.approx(wanted["embedding"])
            assert row["year"] == wanted["year"]
            # the others take this very text for null
            if wanted["lang"] != "__HIVE_DEFAULT_PARTITION__" or tool == "DuckDB":
                assert row["lang"] == wanted["lang"], tool
    assert seen == {"pyarrow", "DuckDB", "Polars", "pandas", "Spark"}


def _all(scope: dict[str, Any]) -> list[tuple[Any, ...]]:
    return scope["rows"].fetchall()


HOSTILE = [
    "a|b",
    "`x`",
    "``` ",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a\n---\nlicense: mit",
    'corpus" }, "@id": "x',
    "*?[x]",
    "[link](http://evil.example)",
    "-->\n# Title",
    "\u202eevil\x1b[2J",
    "'; DROP TABLE x; --",
    " ",
    "名前",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_strangers_stays_text(tmp_path: Path, text: str) -> None:
    columns = {text: "string", f"{text}2": "int64"}
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "t", text: "v", f"{text}2": 1}])
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": columns},
        output={"partition_by": [text], "card": {"license": f"L {text}"}},
    )
    changes = {"model_license": text}
    assert stand_in.run(spec, **changes)
    store = store_of(spec)
    data = card_of(store).data.to_dict()
    assert data["license_name"] == f"L {text}"
    assert data["configs"][0]["data_files"][0]["path"] == live_files(store)
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card_of(store).text)
    plain = MarkdownIt("commonmark", {"html": True}).enable("table")
    headings = [
        tokens.content
        for before, tokens in zip(
            plain.parse(card_of(store).text), plain.parse(card_of(store).text)[1:], strict=False
        )
        if before.type == "heading_open"
    ]
    assert headings[0] == "stand-in" and len(headings) == 9
    assert "<script" not in html and "<img" not in html and 'evil.example"' not in html
    cells = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    assert {row.count("<td") for row in cells} <= {0, 2, 3}
    assert "\x1b" not in card_of(store).text and "\u202e" not in card_of(store).text
    dataset, _ = issues_of(store)
    names = {field.name for field in dataset.metadata.record_sets[0].fields}
    assert {text, f"{text}2"} <= names
    assert "</script" not in store.read("croissant.json").decode()
    (row,) = dataset.records("rows")
    assert row["rows/doc_id"] == b"1"


def test_the_file_of_somebody_else_is_never_touched(tmp_path: Path) -> None:
    for name, text in {
        "README.md": "# Mine\n",
        "croissant.json": '{"@type": "sc:Dataset"}',
    }.items():
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text(text)
    store = made(tmp_path)
    assert store.read("README.md") == b"# Mine\n"
    assert store.read("croissant.json") == b'{"@type": "sc:Dataset"}'


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[]", b"1", b"{", b"", b'{"corpusEmbed:stamp": 1}'])
def test_what_is_no_card_is_somebody_elses(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "out").mkdir()
    for name in ("README.md", "croissant.json"):
        (tmp_path / "out" / name).write_bytes(data)
    store = made(tmp_path)
    assert store.read("README.md") == store.read("croissant.json") == data


def test_whoever_removes_the_mark_keeps_the_file(tmp_path: Path) -> None:
    store = made(tmp_path)
    own = re.sub("<!-- corpus-embed card .*\n", "", store.read("README.md").decode())
    (tmp_path / "out/README.md").write_text(own)
    write_shard(tmp_path / "in/b.jsonl", documents(20, 22))
    stand_in.run(spec_of(tmp_path))
    assert store.read("README.md").decode() == own
    assert croissant_of(store)["version"] == "2.0.0"


def test_each_snapshot_has_its_card(tmp_path: Path) -> None:
    store = made(tmp_path)
    assert croissant_of(store)["version"] == "1.0.0"
    write_shard(tmp_path / "in/b.jsonl", documents(20, 30))
    stand_in.run(spec_of(tmp_path))
    assert croissant_of(store)["version"] == "2.0.0"
    assert front_files(store) == live_files(store)
    assert compact(store.uri).snapshot == 3
    assert croissant_of(store)["version"] == "3.0.0"
    assert front_files(store) == live_files(store) and len(live_files(store)) == 1
    assert croissant_of(store)["distribution"][0]["includes"] == live_files(store)


def test_a_partial_snapshot_says_that_it_is_one(tmp_path: Path) -> None:
    for name in "abc":
        write_shard(tmp_path / f"in/{name}.jsonl", documents())
    spec = make_spec(
        tmp_path / "in", tmp_path / "out", output={"card": {}}, runtime={"part_bytes": 1024}
    )
    assert stand_in.run(spec, stop_after=1) is None
    store = store_of(spec)
    plan = make_plan(stand_in.job_of(spec), store)
    commit_finished(plan, store, load_manifests(store, plan.job.fingerprint))
    assert "A part of the whole" in card_of(store).text
    stand_in.run(spec)
    assert "A part of the whole" not in card_of(store).text


def test_a_run_with_nothing_to_do_writes_a_lost_card_again_and_no_card_twice(
    tmp_path: Path,
) -> None:
    store = made(tmp_path)
    before = store.read("README.md")
    changed_at = os.stat(tmp_path / "out/croissant.json").st_mtime_ns
    (tmp_path / "out/README.md").unlink()
    stand_in.run(spec_of(tmp_path))
    assert store.read("README.md") == before
    assert os.stat(tmp_path / "out/croissant.json").st_mtime_ns == changed_at


def test_settings_that_change_alone_are_kept_by_a_compaction(tmp_path: Path) -> None:
    store = made(tmp_path)
    fingerprint = load_snapshot(store).fingerprint
    write_shard(tmp_path / "in/b.jsonl", documents(20, 30))
    stand_in.run(spec_of(tmp_path))
    stand_in.run(spec_of(tmp_path, card={"license": "mit", "description": "a --> b"}))
    head = load_snapshot(store)
    assert (head.number, head.fingerprint) == (2, fingerprint)
    assert compact(store.uri).snapshot == 3
    assert card_of(store).data.to_dict()["license"] == "mit"
    assert "a --> b" in card_of(store).text


def test_what_a_card_says_is_no_part_of_the_identity(tmp_path: Path) -> None:
    plain = make_spec(tmp_path / "in", tmp_path / "out")
    said = make_spec(tmp_path / "in", tmp_path / "out", output={"card": {"license": "mit"}})
    none = make_spec(tmp_path / "in", tmp_path / "out", output={"card": None})
    assert plain.output.identity() == said.output.identity() == none.output.identity()
    assert "card" not in plain.output.identity()


def test_null_removes_the_card_and_nothing_else(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "out/croissant.json").write_text("{}")
    stand_in.run(spec_of(tmp_path, card=None))
    assert not (tmp_path / "out/README.md").exists()
    assert (tmp_path / "out/croissant.json").read_text() == "{}"


def test_a_card_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out/README.md").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        store = made(tmp_path)
    assert load_snapshot(store).complete
    (record,) = [r for r in caplog.records if "dataset card" in r.getMessage()]
    assert "README.md" in record.getMessage() and "\n" not in record.getMessage()
    (tmp_path / "out/README.md").rmdir()
    stand_in.run(spec_of(tmp_path))
    assert front_files(store) == live_files(store)


def test_a_later_snapshot_wins_over_a_slow_writer(tmp_path: Path) -> None:
    store = made(tmp_path)

    class Slow(Store):
        """Another run commits, and writes its card, while this one writes."""

        is_waiting = True

        def replace(self, relative: str, data: bytes) -> None:
            if self.is_waiting:
                self.is_waiting = False
                write_shard(tmp_path / "in/c.jsonl", documents(40, 50))
                assert stand_in.run(spec_of(tmp_path))
            super().replace(relative, data)

    job = spec_of(tmp_path)
    without_card = spec_of(tmp_path, card=None)
    write_shard(tmp_path / "in/b.jsonl", documents(20, 30))
    card = {name: store.read(name) for name in ("README.md", "croissant.json")}
    stand_in.run(without_card)
    for name, data in card.items():  # that of the first snapshot
        store.replace(name, data)
    slow = Slow(store.uri)
    update_card(slow, job)
    assert not slow.is_waiting
    assert load_snapshot(store).number == 3
    assert front_files(store) == live_files(store)
    assert croissant_of(store)["version"] == "3.0.0"


def test_a_snapshot_that_was_taken_back_takes_its_card_along(tmp_path: Path) -> None:
    store = made(tmp_path)
    first = store.read("README.md")
    write_shard(tmp_path / "in/b.jsonl", documents(20, 30))
    stand_in.run(spec_of(tmp_path))
    store.delete(f"_meta/snapshots/{2:020d}.json")
    update_card(store, spec_of(tmp_path))
    assert store.read("README.md") == first


def test_vacuum_leaves_the_card_alone(tmp_path: Path) -> None:
    store = made(tmp_path)
    vacuum(store.uri, older_than=datetime.timedelta(0), delete=True)
    assert front_files(store) == live_files(store)
    assert store.read("croissant.json")


def test_an_output_without_rows_has_a_card_without_files(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": ""}])
    spec = spec_of(tmp_path)
    stand_in.run(spec)
    store = store_of(spec)
    assert "configs" not in card_of(store).data.to_dict()
    assert "| `empty_text` | 1 |" in card_of(store).text
    issues_of(store)


def test_beyond_a_thousand_files_a_card_gives_the_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("readme", "croissant"):
        monkeypatch.setattr(f"pipeline.output.card.{room}.MAX_FILES", 1)
    store = made(tmp_path, partition_by=["lang"])
    assert front_files(store) == "data/**/*.parquet"
    assert croissant_of(store)["distribution"][0]["includes"] == "data/**/*.parquet"
    assert "5 files are too many" in card_of(store).text


def test_a_link_in_place_of_the_card_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("x")
    (tmp_path / "out/README.md").symlink_to(tmp_path / "precious")
    store = made(tmp_path)
    assert (tmp_path / "precious").read_text() == "x"
    assert load_snapshot(store).complete
    with pytest.raises(StorageError, match="link"):
        store.read("README.md")


@pytest.mark.parametrize("languages", ["japanese!", "JA", ["ja", "x y"]])
def test_what_is_no_language_code_is_refused(tmp_path: Path, languages: Any) -> None:
    with pytest.raises(Exception, match="languages"):
        spec_of(tmp_path, card={"languages": languages})


def test_a_card_on_a_store_is_replaced_as_on_a_disk(tmp_path: Path, s3: Any) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents())
    spec = make_spec(
        tmp_path / "in",
        f"{s3.uri}/out",
        output={"storage_options": s3.storage_options, "card": {}},
    )
    stand_in.run(spec)
    store = store_of(spec)
    first = store.read("README.md")
    write_shard(tmp_path / "in/b.jsonl", documents(20, 30))
    stand_in.run(spec)
    assert store.read("README.md") != first
    assert croissant_of(store)["version"] == "2.0.0"
    assert croissant_of(store)["distribution"][0]["includes"] == live_files(store)


def test_a_card_that_grew_beyond_bounds_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = made(tmp_path)
    with (tmp_path / "out/README.md").open("ab") as file:
        file.truncate(17 << 20)
    write_shard(tmp_path / "in/b.jsonl", documents(20, 22))
    with caplog.at_level(logging.WARNING):
        stand_in.run(spec_of(tmp_path))
    assert load_snapshot(store).number == 2
    assert any("dataset card" in record.getMessage() for record in caplog.records)
