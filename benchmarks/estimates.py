"""Estimates against the truth: is what `plan` foretells what a run then does?

    python -m benchmarks.estimates --corpus DIR [--formats jsonl.gz parquet csv] [--documents 0]
        [--model DIR]

In: jsonl.gz shards with `id`, `lang`, `text`. The corpus is written in each format, planned with
nothing recorded (a fresh cache, so that the speed is measured) and then run on Ray, by the command
line as a person would. `--documents` takes the first so many; 0 all. Out: a line for each format
with documents, tokens and seconds, foretold and true, and an error where tokens are off by more
than 20 % or the time by more than 30 %.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import cpu_name
from tests.support.model_dirs import minilm

SHARDS = 8
TOKENS_OFF = 0.2
TIME_OFF = 0.3


def documents_of(corpus: Path) -> list[dict[str, Any]]:
    lines = (
        line
        for path in sorted(corpus.glob("*.jsonl.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    )
    return [{name: row[name] for name in ("id", "lang", "text")} for row in map(json.loads, lines)]


def write(path: Path, documents: Sequence[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(documents)), path, row_group_size=100)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(documents[0]))
            writer.writeheader()
            writer.writerows(documents)
    elif path.suffix == ".txt":
        texts = (" ".join(document["text"].split()) + "\n" for document in documents)
        path.write_text("".join(texts), encoding="utf-8")
    else:
        lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def command(*arguments: str, cache: Path) -> dict[str, Any]:
    environment = {**os.environ, "CORPUS_EMBED_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments, "--json"],
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", default=["jsonl.gz", "parquet", "csv"])
    parser.add_argument("--documents", type=int, default=0)
    parser.add_argument("--model", type=Path, default=None)
    options = parser.parse_args()
    print(cpu_name())
    documents = documents_of(options.corpus)[: options.documents or None]
    model = options.model or minilm()
    problems = []
    for format in options.formats:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "in").mkdir()
            step = -(-len(documents) // SHARDS)
            for start in range(0, len(documents), step):
                write(place / f"in/{start:06}.{format}", documents[start : start + step])
            has_ids = format != "txt"
            spec = {
                "name": "estimates",
                "input": {"uri": str(place / "in"), **({"id_column": "id"} if has_ids else {})},
                "model": {"path": str(model)},
                "output": {"uri": str(place / "out")},
                "runtime": {"device": "cpu"},
            }
            (place / "job.yaml").write_text(json.dumps(spec))
            cache = place / "cache"
            plan = command("plan", str(place / "job.yaml"), cache=cache)["estimate"]
            truth = command("run", str(place / "job.yaml"), cache=cache)["truth"]
            foretold = {
                "documents": plan["documents"]["value"],
                "tokens": plan["embedded_tokens"]["value"],
                "seconds": plan["here"]["seconds"],
            }
            came = {**truth, "tokens": truth["embedded_tokens"]}
            off = {name: foretold[name] / came[name] - 1 for name in foretold}
            words = ", ".join(
                f"{name} {foretold[name]:,.0f} for {came[name]:,.0f} ({off[name]:+.1%})"
                for name in foretold
            )
            print(f"{format}: {words}; speed {plan['here']['rate_source']}", flush=True)
            if abs(off["tokens"]) > TOKENS_OFF or abs(off["seconds"]) > TIME_OFF:
                problems.append(format)
    if problems:
        sys.exit(f"the estimate was too far off: {', '.join(problems)}")


if __name__ == "__main__":
    main()
