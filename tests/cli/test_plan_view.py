"""The estimate of a plan on a terminal of 80 and of 140 columns.

Oracle: the documents that the test wrote, and the width of what is printed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.cli.estimate_lines import brief, compared
from pipeline.cli.plan_view import show_estimate
from pipeline.driver.cluster.job_plan import plan_job
from pipeline.driver.estimate.forecast import Estimate, estimate_of
from tests.support.outputs import make_spec, write_shard
from tests.support.stand_in import store_of


def estimate(folder: Path, model: Path, documents: list[dict[str, Any]]) -> Estimate:
    write_shard(folder / "in/a.jsonl", documents)
    spec = make_spec(str(folder / "in"), str(folder / "out"), model)
    made = estimate_of(plan_job(spec), store_of(spec), is_alone=True, is_measuring=False)
    assert made
    return made


@pytest.mark.parametrize("columns", [80, 140])
def test_an_estimate_fits_the_terminal_and_says_what_is_known(
    tmp_path: Path, bert_mean_dir: Path, columns: int
) -> None:
    texts = ["[/INST] a short text", "word " * 2000, "word " * 2000]
    documents = [{"id": str(n), "text": text, "lang": "en"} for n, text in enumerate(texts)]
    made = estimate(tmp_path, bert_mean_dir, documents)
    stream = io.StringIO()
    show_estimate(Console(file=stream, width=columns), made, 128)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert max(map(len, lines)) <= columns
    printed = " ".join(" ".join(lines).split())
    assert '"[/INST] a short text"' in printed
    assert "the whole document 0" in printed
    assert "documents 3 documents" in printed
    assert "about 67 % of the texts are longer than the model takes: cut off" in printed
    assert "1 of 3 texts (33 %) repeat an earlier one exactly" in printed
    assert "Prices are examples to edit" in printed
    assert "0 rows" not in printed


def test_one_line_foretells_and_one_line_compares(tmp_path: Path, bert_mean_dir: Path) -> None:
    made = estimate(tmp_path, bert_mean_dir, [{"id": "1", "text": "one text", "lang": "en"}])
    assert str(brief(made)).startswith("estimate: 1 document, ")
    foretold = {"embedded_tokens": 1100, "seconds": 90.0}
    came = {"embedded_tokens": 1000, "seconds": 100.0}
    assert str(compared(foretold, came)) == (
        "estimate against truth: tokens 1,000 (foretold 10% more), time 1:40 (foretold 10% less)"
    )
    without_time = compared({"embedded_tokens": 1000, "seconds": None}, came)
    assert str(without_time) == "estimate against truth: tokens 1,000"
