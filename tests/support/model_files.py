"""Writes the single files of a sentence-transformers directory; `model_dirs` puts them together.

In: texts, sizes, a seed. Out: files below one directory. Vocabularies come from the trainers of
`tokenizers`, weights from a seeded torch generator. Heavy libraries are imported where they are
used, so that importing this costs nothing.
"""

from __future__ import annotations

import io
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LLAMA_SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last_token": "pooling_mode_lasttoken",
}
# Kana and ASCII are always in the alphabet, so that ordinary text outside the training texts is not
# all [UNK].
ALPHABET = [
    chr(code) for code in (*range(0x21, 0x7F), *range(0x3041, 0x3097), *range(0x30A1, 0x30FD))
]


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented UTF-8 JSON, making the folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_vocab(path: Path, vocab: Sequence[str]) -> None:
    """Writes vocab.txt: one token a line, the line number is the id."""
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")


def mecab_words(texts: Iterable[str]) -> Iterator[str]:
    """NFKC lines of `texts` with spaces between the words MeCab and unidic_lite see."""
    import fugashi
    import unidic_lite

    tagger = fugashi.GenericTagger(f'-d "{unidic_lite.DICDIR}" -r "{unidic_lite.DICDIR}/mecabrc"')
    for text in texts:
        for line in unicodedata.normalize("NFKC", text).split("\n"):
            yield " ".join(word.surface for word in tagger(line))


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> list[str]:
    """A WordPiece vocabulary over space-separated words, BERT's five special tokens first.

    The continuation characters are given ids beforehand: the trainer of tokenizers 0.23 numbers
    them in the order of a randomly seeded hash map, and ties between merges, hence vocabularies,
    would differ from run to run.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    lines = list(texts)
    characters = sorted({*ALPHABET, *"".join(lines)} - set(" \n"))
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        show_progress=False,
        special_tokens=BERT_SPECIALS + ["##" + character for character in characters],
        initial_alphabet=ALPHABET,
    )
    tokenizer.train_from_iterator(lines, trainer)
    ids = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def write_unigram(
    path: Path,
    texts: Iterable[str],
    vocab_size: int,
    max_tokens: int,
    padding_side: str,
    add_eos: bool,
) -> int:
    """Writes tokenizer.model, tokenizer.json and tokenizer_config.json of a converted SentencePiece
    model.

    Unigram with the 256 byte pieces behind the special ones (`byte_fallback`), NFKC, no dummy
    prefix, <s> in front. Returns the vocabulary's size. sentencepiece trains it, with one thread:
    the Unigram trainer of tokenizers 0.23 gives another vocabulary in every process.
    """
    import pytest  # not at the top: benchmarks use this module, too

    sentencepiece = pytest.importorskip("sentencepiece", reason="trains the vocabulary")
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    trained = io.BytesIO()
    lines = (line for text in texts for line in text.split("\n"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=trained,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    (path / "tokenizer.model").write_bytes(trained.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]

    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    end = " </s>" if add_eos else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(LLAMA_SPECIALS)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "add_bos_token": True,
        "add_eos_token": add_eos,
        "padding_side": padding_side,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
    }
    write_json(path / "tokenizer_config.json", config)
    return len(vocab)


def write_bert(
    path: Path,
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int,
    n_tokens: int,
    max_tokens: int,
    seed: int,
) -> None:
    """Writes config.json and model.safetensors of a BertModel without pooler, as the SimCSE model
    is used."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=n_tokens,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=max_tokens,
        pad_token_id=0,
    )
    save_spread(BertModel(config), path, seed)


def save_spread(model: PreTrainedModel, path: Path, seed: int) -> None:
    """Draws new weights that keep texts apart, and saves config.json and model.safetensors.

    Linear layers get 1/sqrt(fan-in), queries and keys twice that (attention that prefers some
    tokens), token embeddings 1, positions 0.3, and norms and biases a little noise, so that
    dropping any of them changes vectors.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
            elif "embed" in name:
                weight.copy_(noise * (1.0 if "word" in name or "tokens" in name else 0.3))
            else:
                gain = (
                    2.0
                    if any(part in name for part in ("query", "key", "q_proj", "k_proj"))
                    else 1.0
                )
                weight.copy_(noise * (gain / math.sqrt(weight.shape[1])))
    model.save_pretrained(path)


def write_modules(
    path: Path,
    modules: Sequence[tuple[Any, ...]],
    max_tokens: int,
    prompts: dict[str, str] | None,
    include_prompt: bool = True,
    seed: int = 0,
) -> None:
    """Writes modules.json, the folders of the modules after the transformer, and the two
    sentence-transformers configs.

    `modules` in order: ("pooling", word_embedding_dimension, mode), ("dense", in_features,
    out_features), ("normalize",).
    """
    listed: list[dict[str, Any]] = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ]
    for index, (kind, *sizes) in enumerate(modules, start=1):
        name = kind.capitalize()
        folder = path / f"{index}_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        type_ = f"sentence_transformers.models.{name}"
        listed.append({"idx": index, "name": str(index), "path": folder.name, "type": type_})
        if kind == "pooling":
            write_json(folder / "config.json", _pooling(sizes[0], sizes[1], include_prompt))
        elif kind == "dense":
            _write_dense(folder, sizes[0], sizes[1], seed)
    write_json(path / "modules.json", listed)
    write_json(
        path / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False}
    )
    versions = {"sentence_transformers": "3.1.0", "transformers": "4.41.2", "pytorch": "2.3.1"}
    prompts = prompts or {}
    similarity = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(path / "config_sentence_transformers.json", {"__version__": versions, **similarity})


def _pooling(word_embedding_dimension: int, mode: str, include_prompt: bool) -> dict[str, Any]:
    flags = {flag: name == mode for name, flag in POOLING_FLAGS.items()}
    return {
        "word_embedding_dimension": word_embedding_dimension,
        **flags,
        "include_prompt": include_prompt,
    }


def _write_dense(folder: Path, in_features: int, out_features: int, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(out_features, in_features, generator=generator) / math.sqrt(in_features)
    bias = torch.randn(out_features, generator=generator) * 0.1
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "model.safetensors")
    config = {"in_features": in_features, "out_features": out_features, "bias": True}
    write_json(
        folder / "config.json",
        {**config, "activation_function": "torch.nn.modules.activation.Tanh"},
    )


def write_readme(path: Path, license_lines: str, language: str) -> None:
    """Writes a model card with licence front matter; the weights are random and it says so."""
    front = (
        f"---\nlanguage:\n- {language}\n{license_lines}\nlibrary_name: sentence-transformers\n---\n"
    )
    (path / "README.md").write_text(
        f"{front}\n# {path.name}\n\nRandom weights for tests.\n", encoding="utf-8"
    )
