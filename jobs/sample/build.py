"""Build the sample corpus of this folder from larger jsonl.gz shards of help pages and manuals.

Reads a directory of `*.jsonl.gz` files with id, lang, source and text, where `source` is the path
at which a Debian package installs the page. Writes four shards next to this file with id, lang,
title, text and source. Navigation is removed, whole lines are kept up to `MAX_CHARS`, documents are
chosen by the hash of their source, and gzip stores no time: the same input gives the same bytes.
Run it with `python jobs/sample/build.py DIRECTORY`; it takes seconds.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_CHARS = 2_000
MIN_CHARS = 200
N_SHARDS = 4
# source prefix -> (documents to take, minimum share of kana and kanji: half of the Japanese help
# is still in English)
SOURCES = {
    "usr/share/libreoffice/help/ja/": (220, 0.45),
    "usr/share/doc/python3.11/html/": (120, 0.0),
}
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
# Pages that are lists of links rather than text.
SKIPPED = re.compile(r"/(genindex|whatsnew/changelog|search|contents|py-modindex)")


def body_lines(text: str) -> list[str]:
    """The lines of a page without navigation above it and footer below it."""
    lines = [line.strip() for line in text.split("\n")]
    if lines[:1] == ["Navigation"]:
        start = lines.index("|") + 1
        lines = lines[start:]
        if "Table of Contents" in lines:
            lines = lines[: lines.index("Table of Contents")]
        if "Navigation" in lines:
            lines = lines[: lines.index("Navigation")]
        return [line.replace("¶", "") for line in lines if line]
    start = next((i + 1 for i, line in enumerate(lines) if line.startswith("索引")), 0)
    if "Help content debug info:" in lines:
        lines = lines[: lines.index("Help content debug info:")]
    return [line for line in lines[start:] if line]


def cut(lines: list[str]) -> str:
    """As many whole lines from the top as fit into MAX_CHARS characters; if lines are cut off, the
    text ends at the end of a sentence."""
    kept: list[str] = []
    n_chars = 0
    for line in lines:
        n_chars += len(line) + 1
        if n_chars > MAX_CHARS:
            while len(kept) > 1 and not kept[-1].endswith((".", "。", ")", "）", "!", "?")):
                kept.pop()
            break
        kept.append(line)
    return "\n".join(kept)


def documents(directory: Path) -> Iterator[dict[str, str]]:
    """Every usable page below `directory` as a row of the sample, in no particular order."""
    for shard in sorted(directory.glob("*.jsonl.gz")):
        with gzip.open(shard, "rt", encoding="utf-8") as rows:
            for row in map(json.loads, rows):
                prefix = next((p for p in SOURCES if row["source"].startswith(p)), None)
                if prefix is None or SKIPPED.search(row["source"]):
                    continue
                text = cut(body_lines(row["text"]))
                japanese = len(JAPANESE.findall(text)) / max(1, len(text))
                title = text.split("\n", 1)[0]
                if len(text) < MIN_CHARS or japanese < SOURCES[prefix][1] or len(title) < 2:
                    continue
                yield {
                    "id": row["id"],
                    "lang": row["lang"],
                    "title": title,
                    "text": text,
                    "source": row["source"],
                }


def choose(rows: Iterator[dict[str, str]]) -> list[dict[str, str]]:
    """The number of documents that each source contributes, one per distinct text, ordered by the
    SHA-256 of the source path."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(row["source"].encode()).hexdigest())
    n_missing = {prefix: n_documents for prefix, (n_documents, _) in SOURCES.items()}
    seen: set[str] = set()
    chosen = []
    for row in ordered:
        prefix = next(p for p in SOURCES if row["source"].startswith(p))
        if n_missing[prefix] and row["text"] not in seen:
            n_missing[prefix] -= 1
            seen.add(row["text"])
            chosen.append(row)
    return chosen


def main(directory: str) -> None:
    """Write the four shards next to this file."""
    chosen = choose(documents(Path(directory)))
    for shard in range(N_SHARDS):
        lines = "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in chosen[shard::N_SHARDS]
        )
        out = Path(__file__).with_name(f"docs-{shard:05d}.jsonl.gz")
        out.write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main(sys.argv[1])
