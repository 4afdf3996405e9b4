"""Model directories of the exact configuration of published models, with random weights and a
synthetic vocabulary: words "w0", "w1", … are one token each."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.model_files import save_spread, write_modules, write_readme, write_vocab

N_WORDS = 32_000
TINY = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "intermediate_size": 512,
    "num_attention_heads": 4,
}
TINY_DECODER = {**TINY, "num_key_value_heads": 2, "head_dim": 112}


@dataclass(frozen=True)
class Published:
    """A model whose speed is measured. build: config of transformers and model class by name."""

    name: str
    sizes: dict[str, Any]
    tiny: dict[str, Any]
    positions: int
    pooling: str
    lengths: str
    n_tokens: int
    """Of a measurement: about a second of the target's speed."""
    build: Callable[[dict[str, Any]], Any]


def _bert(sizes: dict[str, Any]) -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**sizes), add_pooling_layer=False)


def _llama(sizes: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(LlamaConfig(**sizes, pad_token_id=0))


def _qwen3(sizes: dict[str, Any]) -> Any:
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(Qwen3Config(**sizes, pad_token_id=0))


def _modernbert(sizes: dict[str, Any]) -> Any:
    from transformers import ModernBertConfig, ModernBertModel

    return ModernBertModel(ModernBertConfig(**sizes, pad_token_id=0, local_attention=128))


MODELS = {
    "bert": Published(
        name="sup-simcse-ja-large",
        sizes={
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
        },
        tiny=TINY,
        positions=512,
        pooling="cls",
        lengths="32,128,512,mix",
        n_tokens=1_000_000,
        build=_bert,
    ),
    "llama": Published(
        name="sarashina-embedding-v1-1b",
        sizes={
            "hidden_size": 1792,
            "num_hidden_layers": 24,
            "intermediate_size": 6272,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 112,
        },
        tiny=TINY_DECODER,
        positions=8192,
        pooling="lasttoken",
        lengths="128,512,8192,mix",
        n_tokens=300_000,
        build=_llama,
    ),
    "modernbert": Published(
        name="ruri-v3-310m",
        sizes={
            "hidden_size": 768,
            "num_hidden_layers": 25,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
        tiny=TINY,
        positions=8192,
        pooling="mean",
        lengths="128,512,8192,mix",
        n_tokens=1_000_000,
        build=_modernbert,
    ),
    "qwen3": Published(
        name="Qwen3-Embedding-0.6B",
        sizes={
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        tiny=TINY_DECODER,
        positions=8192,
        pooling="lasttoken",
        lengths="128,512,8192,mix",
        n_tokens=500_000,
        build=_qwen3,
    ),
}


@contextlib.contextmanager
def model_folder(folder: Path | None) -> Iterator[Path]:
    """Where models are made: a folder that stays, or one for this run alone."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def make_model(folder: Path, family: str, tiny: bool) -> Path:
    """A directory of the family's configuration below `folder`, where it may lie already."""
    from transformers import BertTokenizerFast

    path = folder / f"{family}{'-tiny' if tiny else ''}"
    if (path / "README.md").is_file():  # it is written last
        return path
    shutil.rmtree(path, ignore_errors=True)
    model = MODELS[family]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = [*specials, *(f"w{i}" for i in range(500 if tiny else N_WORDS))]
    path.mkdir(parents=True)
    write_vocab(path, vocab)
    ids = {word: i for i, word in enumerate(vocab)}
    BertTokenizerFast(
        vocab=ids,
        model_max_length=model.positions,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(path)
    sizes = model.tiny if tiny else model.sizes
    others = {"vocab_size": len(vocab), "max_position_embeddings": model.positions}
    save_spread(model.build({**sizes, **others}), path, 0)
    write_modules(path, [("pooling", sizes["hidden_size"], model.pooling)], model.positions, None)
    write_readme(path, "license: cc0-1.0", "en")
    return path
