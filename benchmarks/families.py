"""Is every family faster packed than padded, on the same weights, ids and cores?

    python -m benchmarks.families [--families bert,qwen3] [--texts 280] [--rounds 3] [--threads 2]

In: nothing; each family gets a directory with random weights (6 layers, hidden 384, 12 heads) and
texts whose lengths spread as those of paragraphs do, so that encode's own order of characters and
batches of 32 pad 27 %. Out: a row a family: tokens a second packed, padded in length buckets, and
by sentence-transformers from ids in batches of 32; medians over rounds in which all three run in
turns; and the lowest cosine of packed to padded. float32 on a CPU. About six minutes on two quiet
cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as t

from benchmarks.machine import cpu_name
from benchmarks.reference import min_cosine
from pipeline.embed import load_engine
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import read_model
from tests.support.model_files import save_spread, write_modules

WORDS = 4000
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}
DECODER = {**SIZES, "num_key_value_heads": 4}
GATED = {"intermediate_size": 1024}
"""A gated MLP has three products where others have two."""
FAMILIES: dict[str, tuple[str, Callable[[], Any]]] = {
    "bert": ("mean", lambda: t.BertModel(t.BertConfig(**SIZES), add_pooling_layer=False)),
    "xlm-roberta": (
        "cls",
        lambda: t.XLMRobertaModel(t.XLMRobertaConfig(**SIZES), add_pooling_layer=False),
    ),
    "distilbert": (
        "mean",
        lambda: t.DistilBertModel(
            t.DistilBertConfig(
                vocab_size=WORDS, dim=384, n_layers=6, n_heads=12, hidden_dim=1536,
                max_position_embeddings=1024,
            )
        ),
    ),
    "modernbert": (
        "mean",
        lambda: t.ModernBertModel(t.ModernBertConfig(**{**SIZES, **GATED}, local_attention=128)),
    ),
    "nomic_bert": ("mean", lambda: t.NomicBertModel(t.NomicBertConfig(**{**SIZES, **GATED}))),
    "eurobert": ("mean", lambda: t.EuroBertModel(t.EuroBertConfig(**{**DECODER, **GATED}))),
    "llama": ("lasttoken", lambda: t.LlamaModel(t.LlamaConfig(**{**DECODER, **GATED}))),
    "mistral": (
        "lasttoken",
        lambda: t.MistralModel(t.MistralConfig(**{**DECODER, **GATED}, sliding_window=128)),
    ),
    "qwen3": (
        "lasttoken",
        lambda: t.Qwen3Model(t.Qwen3Config(**{**DECODER, **GATED}, head_dim=32)),
    ),
    "gemma3_text": (
        "mean",
        lambda: t.Gemma3TextModel(
            t.Gemma3TextConfig(
                **{**DECODER, **GATED}, head_dim=32, sliding_window=128,
                use_bidirectional_attention=True,
            )
        ),
    ),
}  # fmt: skip


def make_ids(n_texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Ragged ids of texts whose lengths are lognormal around 45 tokens, 4 to 500."""
    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(3.8, 0.8, n_texts).astype(int), 4, 500)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return chance.integers(5, WORDS, offsets[-1]).astype(np.int32), offsets


def library(engine: Any, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The forward of sentence-transformers in batches of 32, longest first by a number that stands
    for characters: within a fifth of the tokens."""
    lengths = np.diff(offsets)
    noise = np.random.default_rng(1).uniform(0.8, 1.2, lengths.size)
    order = np.argsort(-lengths * noise, kind="stable")
    vectors = [
        engine._forward(ids, offsets, order[start : start + 32])[0]
        for start in range(0, order.size, 32)
    ]
    result = np.empty((lengths.size, engine.dim), np.float32)
    result[order] = torch.cat(vectors).numpy()
    return result


def compare(name: str, options: argparse.Namespace, folder: Path) -> str:
    pooling, build = FAMILIES[name]
    torch.manual_seed(0)
    write_tokenizer(folder)
    save_spread(build(), folder, 0)
    write_modules(folder, [("pooling", 384, pooling)], 1024, None)
    model = read_model(folder, name)
    ids, offsets = make_ids(options.texts)
    packed, padded = (
        load_engine(model, EngineOptions.of(model, engine=kind), threads=options.threads)
        for kind in ("packed", "padded")
    )
    candidates: dict[str, Callable[[], np.ndarray]] = {
        "packed": lambda: packed.embed(ids, offsets),
        "padded": lambda: padded.embed(ids, offsets),
        "library": lambda: library(padded, ids, offsets),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in candidates}
    vectors = {}
    with torch.inference_mode():
        for number in range(options.rounds + 1):
            for kind, run in candidates.items():
                start_s = time.perf_counter()
                vectors[kind] = run()
                if number:  # the first round warms up
                    seconds[kind].append(time.perf_counter() - start_s)
    median = {kind: statistics.median(each) for kind, each in seconds.items()}
    rate = {kind: ids.size / each for kind, each in median.items()}
    spread = max(max(each) / min(each) for each in seconds.values())
    return (
        f"| {name} | {rate['packed']:,.0f} | {rate['padded']:,.0f} | {rate['library']:,.0f} | "
        f"{rate['packed'] / rate['padded']:.2f} | {rate['packed'] / rate['library']:.2f} | "
        f"{spread:.2f} | {min_cosine(vectors['packed'], vectors['padded']):.7f} |"
    )


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(WORDS)}
    t.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        pad_token="w0",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--texts", type=int, default=280)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(cpu_name(), end="\n\n")
    print("| family | packed | padded | library | packed ÷ padded | ÷ library | spread | cosine |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.families.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(compare(name, options, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
