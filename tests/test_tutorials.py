"""Every tutorial works as it stands there: its files are written, its commands and code run from
top to bottom in an empty folder, and what it says about the result is true.

The only differences to what a reader does: models of the Hub are folders of this machine, `run` and
`refresh` work in this process, without Ray, and `plan` does not ask Ray for a GPU. Oracle: a check
for each page.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

import pipeline
from pipeline.cli.commands import invoke
from pipeline.job.spec import load_spec
from tests import ROOT
from tests.support.outputs import run_without_ray

PAGES = sorted((ROOT / "docs/tutorials").glob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


class Walk:
    """A reader of one page. text: what it is told to type; printed: by all commands so far."""

    def __init__(self, models: dict[str, Path], printed: Callable[[], str]) -> None:
        self._models = models
        self._read_printed = printed
        self.names: dict[str, Any] = {"__name__": "tutorial"}
        self.database = duckdb.connect()
        self.answers: list[list[tuple[Any, ...]]] = []
        self.printed: list[tuple[str, str]] = []

    def follow(self, page: Path) -> None:
        for language, title, block in BLOCK.findall(page.read_text(encoding="utf-8")):
            text = block
            for name, folder in self._models.items():
                text = text.replace(name, str(folder))
            if title:
                Path(title).write_text(text, encoding="utf-8")
            elif language == "python":
                exec(compile(text, page.name, "exec"), self.names)
                self.printed.append(("", self._read_printed()))
            elif language == "sql":
                for statement in text.split(";\n"):
                    if statement.strip():
                        self.answers.append(self.database.execute(statement).fetchall())
            elif language == "sh":
                for line in text.splitlines():
                    self.type(line)
            else:
                pytest.fail(f"{page.name}: nobody runs blocks of {language}")

    def type(self, line: str) -> None:
        program, *arguments = shlex.split(line)
        self._read_printed()
        if program == "python":
            runpy.run_path(arguments[0], run_name="__main__")
        elif arguments[0] in ("run", "refresh"):
            overrides = [value for flag, value in itertools.pairwise(arguments) if flag == "--set"]
            assert run_without_ray(load_spec(arguments[1], overrides))
        else:
            assert program == "corpus-embed"
            arguments += ["--set", "runtime.device=cpu"] if arguments[0] == "plan" else []
            assert invoke(arguments) == 0, line
        self.printed.append((line, self._read_printed()))

    def output_of(self, beginning: str) -> list[str]:
        """What each command that begins so has printed."""
        return [text for line, text in self.printed if line.startswith(beginning)]


def check_warehouse(walk: Walk) -> None:
    out = "vectors/tickets"
    (rejects,) = walk.output_of("corpus-embed rejects")
    assert "null_text" in rejects
    assert "id 6" in rejects
    pairs = {row[0]: row[2] for row in walk.answers[-1]}
    assert (pairs[2], pairs[5], pairs[1], pairs[4]) == (5, 2, 4, 1)
    table = pipeline.open_dataset(out).to_table(columns=["doc_id", "country", "opened"])
    rows = {row["doc_id"]: row for row in table.to_pylist()}
    assert set(rows) == {"1", "2", "3", "4", "5", "7"}
    assert (rows["1"]["country"], rows["5"]["country"]) == ("jp", None)
    assert rows["7"]["opened"] == datetime.date(2026, 11, 5)
    (diff,) = walk.output_of("corpus-embed diff")
    assert diff.split("\n")[:2] == ["1 upsert, 0 deletes", "+ 7 0"]
    (lines,) = walk.output_of("corpus-embed files")
    assert 'hive_types = {"country": VARCHAR}' in lines
    hits = [text for line, text in walk.printed if not line and "0." in text]
    assert hits[0].split()[1] == "4"


def check_nightly(walk: Walk) -> None:
    import lance

    assert [text.strip().splitlines()[-1] for text in walk.output_of("python nightly.py")] == [
        "40 rows put, 0 deleted",
        "2 rows put, 1 deleted",
        "0 rows put, 0 deleted",
    ]
    out = "vectors/articles"
    truth = pipeline.open_dataset(out).to_table(columns=["doc_id", "chunk", "text", "embedding"])
    table = lance.dataset("articles.lance").to_table()
    for rows in (truth, table):
        assert rows.num_rows == 40
    key = [("doc_id", "ascending")]
    assert table.sort_by(key).to_pylist() == truth.sort_by(key).to_pylist()
    manifests = [json.loads(p.read_text()) for p in Path(out, "_meta/manifests").rglob("*.json")]
    assert sum(manifest["n_embedded"] for manifest in manifests) == 40 + 2


def check_common_crawl(walk: Walk) -> None:
    pages = walk.names["PAGES"]
    for name in ("wet", "warc"):
        columns = ["doc_id", "chunk", "text", "WARC-Date"]
        rows = pipeline.open_dataset(f"vectors/{name}").to_table(columns=columns).to_pylist()
        assert {row["doc_id"] for row in rows} == set(pages)
        assert all(pages[row["doc_id"]] in row["text"] for row in rows)
        assert all(isinstance(row["WARC-Date"], datetime.datetime) for row in rows)
    (rejects,) = walk.output_of("corpus-embed rejects")
    assert "text_not_a_string" in rejects
    assert "https://example.jp/a.png" in rejects
    (trace,) = walk.output_of("corpus-embed trace")
    assert ": same" in trace


def check_choosing(walk: Walk) -> None:
    lines = "".join(text for command, text in walk.printed if not command).splitlines()
    measured = dict(line.rsplit(" ", 1) for line in lines if not line.endswith("neighbours"))
    assert float(measured["float32"]) == 1
    assert float(measured["chunks of 32 tokens"]) == 1
    # int8 rounds each value to 1/254 of the largest; bits keep a sign of each
    assert walk.names["kept"]["int8"] > 0.9 > walk.names["kept"]["ubinary"] > 0.2
    (plan,) = walk.output_of("corpus-embed plan prompt.yaml")
    assert "'document: '" in plan
    widths = {
        name: pipeline.open_dataset(f"vectors/{name}").schema.field("embedding").type
        for name in ("float32", "int8", "ubinary")
    }
    n_bytes = {
        name: type_.list_size * type_.value_type.bit_width // 8 for name, type_ in widths.items()
    }
    assert n_bytes == {"float32": 1536, "int8": 384, "ubinary": 48}


CHECKS = {
    "choosing.md": check_choosing,
    "common-crawl.md": check_common_crawl,
    "nightly.md": check_nightly,
    "warehouse.md": check_warehouse,
}


def test_every_tutorial_has_a_check() -> None:
    assert {page.name for page in PAGES} == CHECKS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_of_a_tutorial_resolve(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    assert targets
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_works_from_top_to_bottom(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    minilm_dir: Path,
    bert_japanese_dir: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    models = {
        "sentence-transformers/all-MiniLM-L6-v2": minilm_dir,
        "cl-nagoya/ruri-v3-310m": bert_japanese_dir,
    }
    walk = Walk(models, lambda: capsys.readouterr().out)
    with walk.database:
        walk.follow(page)
    CHECKS[page.name](walk)
