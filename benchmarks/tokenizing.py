"""Tokens per second of Japanese text on one core: MeCab alone, BertJapaneseTokenizer, and
pipeline.tokenize.

    python -m benchmarks.tokenizing --corpus DIR [--model DIR] [--docs 400] [--repeats 5]

(Not named tokenize.py: beside a running script that would hide the standard library's module.)

In: `*.jsonl.gz` with "text" in DIR; a model directory with a BertJapaneseTokenizer, or none: then a
vocabulary of 32,768 pieces is learned from the corpus. Out: one table. All paths run interleaved in
one thread, timed in CPU seconds, on the same texts with the same max_tokens; a figure is the median
of the repeats with the least and the most. A token is a content token of the reference's output,
before truncation in the paragraph table and after it in the document tables. "MeCab alone" parses
(-Owakati) and splits the same texts, NFKC already done: the floor of any exact method that reads
the whole text. Ids are compared on every document of the corpus, not only on those that are timed;
documents of more than 60,000 characters are left out there because the reference's MeCab can crash
the process on them.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import os
import random
import statistics
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import fugashi
import numpy as np
import unidic_lite
from tokenizers.trainers import WordPieceTrainer

from benchmarks.machine import cpu_name
from pipeline.tokenize.cuts import next_cut
from pipeline.tokenize.mecab import MecabTokenizer

MAX_REFERENCE_CHARS = 60_000
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class Case:
    name: str
    texts: list[str]
    max_tokens: int


def read_texts(corpus: Path) -> list[str]:
    shards = sorted(corpus.glob("*.jsonl.gz"))
    return [
        json.loads(line)["text"]
        for shard in shards
        for line in gzip.open(shard, "rt", encoding="utf-8")
    ]


def wakati() -> fugashi.GenericTagger:
    return fugashi.GenericTagger(
        f'-d "{unidic_lite.DICDIR}" -r "{unidic_lite.DICDIR}/mecabrc" -Owakati'
    )


def make_model(texts: Sequence[str], directory: Path, vocab_size: int) -> Path:
    """vocab.txt and tokenizer_config.json of a BertJapaneseTokenizer over the corpus' own words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    parse = wakati().parse
    words = (parse(unicodedata.normalize("NFKC", text)) for text in texts)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(
        words, WordPieceTrainer(vocab_size=vocab_size, special_tokens=SPECIALS, show_progress=False)
    )
    ranked = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (directory / "vocab.txt").write_text(
        "".join(f"{piece}\n" for piece, _ in ranked), encoding="utf-8"
    )
    config = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "mecab",
        "subword_tokenizer_type": "wordpiece",
        "mecab_kwargs": {"mecab_dic": "unidic_lite"},
        "model_max_length": 512,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return directory


def paragraphs(texts: Iterable[str], chars: int = 120) -> list[str]:
    """Sentences and short groups of them, none of which 512 tokens truncate: about what a sentence
    model is fed."""
    pieces = []
    for text in texts:
        start = 0
        exact = True
        while start < len(text):
            end, exact = next_cut(text, start, chars, exact, 480)
            pieces.append(text[start:end].strip())
            start = end
            exact = True
    return [piece for piece in pieces if piece]


def interleaved(paths: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each call of each path: every path once a round, garbage collected between."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, path in paths.items():
            gc.collect()
            start = time.process_time()
            path()
            seconds[name].append(time.process_time() - start)
    return seconds


def measure(case: Case, reference: Any, repeats: int) -> tuple[int, dict[str, list[float]]]:
    """Tokens after truncation, and seconds by path."""
    normalized = [unicodedata.normalize("NFKC", text) for text in case.texts]
    parse = wakati().parse
    warm = MecabTokenizer(reference, max_tokens=case.max_tokens, prompt=None)
    n_tokens = len(warm.encode(case.texts).ids) - 2 * len(case.texts)
    paths: dict[str, Callable[[], Any]] = {
        "MeCab alone": lambda: [parse(text).split() for text in normalized],
        "ours, warm": lambda: warm.encode(case.texts),
        "ours, cold": lambda: MecabTokenizer(
            reference, max_tokens=case.max_tokens, prompt=None
        ).encode(case.texts),
        "BertJapaneseTokenizer": lambda: reference(
            case.texts, truncation=True, max_length=case.max_tokens
        ),
    }
    return n_tokens, interleaved(paths, repeats)


def differing(reference: Any, texts: Sequence[str], limits: Sequence[int]) -> dict[int, list[int]]:
    """max_tokens → positions of the texts whose ids or truncated flags are not the reference's."""
    positions: dict[int, list[int]] = {limit: [] for limit in limits}
    ours = {
        limit: MecabTokenizer(reference, max_tokens=limit, prompt=None).encode(texts)
        for limit in limits
    }
    for i, text in enumerate(texts):
        whole = reference(text, add_special_tokens=False)["input_ids"]
        for limit, tokens in ours.items():
            expected = [reference.cls_token_id, *whole[: limit - 2], reference.sep_token_id]
            ids = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]]
            if not np.array_equal(ids, expected) or tokens.truncated[i] != (len(whole) > limit - 2):
                positions[limit].append(i)
    return positions


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def growth(reference: Any, texts: Sequence[str], rounds: int, cache_words: int) -> list[str]:
    """Resident memory after each round of new words over a cache that is far too small for them."""
    tokenizer = MecabTokenizer(reference, max_tokens=512, prompt=None, cache_words=cache_words)
    rows = []
    for i in range(rounds):
        tokenizer.encode(texts)
        gc.collect()
        rows.append(f"round {i}: {resident_mib():.0f} MiB, {len(tokenizer._ids_of):,} words kept")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--docs", type=int, default=400, help="documents timed, drawn with seed 0")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-identity", action="store_true")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = read_texts(arguments.corpus)
    with tempfile.TemporaryDirectory() as temporary:
        model = arguments.model or make_model(paragraphs(texts), Path(temporary), 32_768)
        from transformers import AutoTokenizer

        reference = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    usable = [text for text in texts if len(text) <= MAX_REFERENCE_CHARS]
    sample = random.Random(0).sample(usable, min(arguments.docs, len(usable)))
    cut = paragraphs(sample)
    cases = [
        Case("paragraphs, nothing truncated", cut, 512),
        Case("documents, max_tokens 512", sample, 512),
        Case("documents, max_tokens 64", sample, 64),
    ]
    print(cpu_name())
    print(
        f"{len(texts):,} documents, {sum(map(len, texts)):,} characters; "
        f"vocabulary {len(reference):,}; one core"
    )
    print("| texts | path | tokens/s | least-most | ratio to reference | share of MeCab alone |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        n_tokens, seconds = measure(case, reference, arguments.repeats)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        for name, values in seconds.items():
            spread = f"{n_tokens / max(values):,.0f}-{n_tokens / min(values):,.0f}"
            ratio = median["BertJapaneseTokenizer"] / median[name]
            share = median["MeCab alone"] / median[name]
            label = f"{case.name} ({len(case.texts):,}; {n_tokens:,} tokens)"
            print(
                f"| {label} | {name} | {n_tokens / median[name]:,.0f} | {spread} | {ratio:.2f} "
                f"| {share:.2f} |"
            )
    if not arguments.skip_identity:
        differing_texts = differing(reference, usable, (512, 64))
        for limit, positions in differing_texts.items():
            print(
                f"identity at max_tokens {limit}: {len(usable) - len(positions):,} of "
                f"{len(usable):,} documents equal"
            )
            lengths = Counter(len(usable[i]) for i in positions)
            if lengths:
                print(f"  differing documents have {min(lengths):,} to {max(lengths):,} characters")
        long = [text for text in texts if len(text) > MAX_REFERENCE_CHARS]
        start = time.perf_counter()
        counts = MecabTokenizer(reference, max_tokens=512, prompt=None).count(long)
        print(
            f"not compared: {len(long)} longer documents; counted {counts.sum():,} tokens in them, "
            f"{time.perf_counter() - start:.1f} s"
        )
    print(*growth(reference, cut, 5, 10_000), *growth(reference, cut, 3, 1_000_000), sep="\n")


if __name__ == "__main__":
    main()
