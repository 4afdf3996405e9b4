"""The walk of a new user: from a folder of unknown JSON Lines to a search, by commands alone.

Oracle: the documents that the test wrote. CPU seconds stand for minutes on two cores, since other
work may run beside the test.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.outputs import write_shard

N = 240
MAX_CPU_S = 2 * 180
"""Two cores for three minutes."""

TOPICS = {
    "tea": "Green tea is grown in the hills, and its leaves are steamed, rolled and dried.",
    "rail": "The night train leaves the terminal at ten and reaches the coast in the morning.",
    "law": "The court decided that the contract was void because nobody had signed it.",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for shard in range(3):
        records = [
            {
                "ref": {"key": f"{topic}-{shard}-{n}", "lng": "en"},
                "kind": topic,
                "story": f"{sentence} Report {shard} {n}. " * (1 + n % 4),
            }
            for n in range(N // 9 + 1)
            for topic, sentence in TOPICS.items()
        ][: N // 3]
        write_shard(tmp_path / f"crawl/part-{shard}.jsonl.gz", records)
    return tmp_path


def corpus_embed(folder: Path, *arguments: str) -> tuple[str, str]:
    """What a command prints on standard output and standard error."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    code = "from pipeline.cli.main import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**environment, "CORPUS_EMBED_LOG_DIR": str(folder / "log"), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout, process.stderr


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_folder_of_unknown_lines_becomes_an_output_that_is_searched_in_three_minutes(
    data: Path, minilm_dir: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, said = corpus_embed(data, "init", "crawl", "--model", str(minilm_dir))
    assert "corpus-embed run crawl.yaml --limit 100" in said

    facts: dict[str, Any] = json.loads(corpus_embed(data, "plan", "crawl.yaml", "--json")[0])
    assert (facts["shards"], facts["head"]) == (3, None)
    assert not (data / "out").exists()

    shown, said = corpus_embed(data, "run", "crawl.yaml", "--limit", "20", "--json")
    assert "Warning" not in said  # of Ray, that one part is less than two embedders could take
    trial = json.loads(shown)
    assert (trial["snapshot"]["n_documents"], (data / "out").exists()) == (20, False)
    shutil.rmtree(trial["output"])

    _, said = corpus_embed(data, "run", "crawl.yaml", "--quiet")
    (line,) = said.splitlines()
    assert re.match(rf"snapshot 1 of .*\b{N} documents", line), line
    assert [path.name for path in (data / "out/crawl/data").iterdir()] == ["ref.lng=en"]

    corpus_embed(data, "report", "out/crawl")
    words = "when does the train go to the sea"
    hits = json.loads(corpus_embed(data, "search", "out/crawl", words, "-k", "5", "--json")[0])
    assert {hit["doc_id"].split("-")[0] for hit in hits["hits"]} == {"rail"}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MAX_CPU_S
