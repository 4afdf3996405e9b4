"""Makes sentence-transformers directories of the RoBERTa families, with seeded random weights.

In: a directory. Out: the same directory as `model_dirs` makes it: XLM-RoBERTa with a Unigram
tokenizer, or RoBERTa with byte-level BPE.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.support.model_dirs import make_once, sample_texts
from tests.support.model_files import (
    save_spread,
    write_json,
    write_modules,
    write_readme,
    write_unigram,
)

ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def xlm_roberta(
    directory: str | Path, *, hidden: int = 64, max_tokens: int = 128, seed: int = 0
) -> Path:
    """Layout of the multilingual encoders: XLM-RoBERTa with a Unigram tokenizer, <s> … </s> round a
    text, mean pooling.

    Positions are counted from the padding id on (3 here), so the table has four rows more than a
    text can have tokens.
    """

    def build(path: Path) -> None:
        from transformers import XLMRobertaConfig, XLMRobertaModel

        n_tokens = write_unigram(
            path, sample_texts("ja") + sample_texts("en"), 3_000, max_tokens, "right", True
        )
        config = XLMRobertaConfig(
            vocab_size=n_tokens,
            hidden_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=max_tokens + 4,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
            type_vocab_size=1,
        )
        save_spread(XLMRobertaModel(config), path, seed)
        write_modules(path, [("pooling", hidden, "mean")], max_tokens, None)
        write_readme(path, "license: mit", "multilingual")

    return make_once(directory, ["xlm_roberta", hidden, max_tokens, seed], build)


def roberta(directory: str | Path, *, hidden: int = 64, max_tokens: int = 128) -> Path:
    """Layout of the English encoders: RoBERTa with byte-level BPE, <s> … </s> round a text, mean
    pooling.

    Positions are counted from the padding id on (1 here), so the table has two rows more than a
    text can have tokens.
    """

    def build(path: Path) -> None:
        from transformers import RobertaConfig, RobertaModel

        n_tokens = write_byte_bpe(path, sample_texts("en"), 2_000, max_tokens)
        config = RobertaConfig(
            vocab_size=n_tokens,
            hidden_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=max_tokens + 2,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
            type_vocab_size=1,
        )
        save_spread(RobertaModel(config), path, seed=0)
        write_modules(path, [("pooling", hidden, "mean")], max_tokens, None)
        write_readme(path, "license: mit", "en")

    return make_once(directory, ["roberta", hidden, max_tokens], build)


def write_byte_bpe(path: Path, texts: Iterable[str], vocab_size: int, max_tokens: int) -> int:
    """Writes tokenizer.json and tokenizer_config.json of a byte-level BPE vocabulary that is
    learned from `texts`. Returns the vocabulary's size.

    The post-processor is RoBERTa's own. The stored class is the one that takes tokenizer.json as it
    is.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=ROBERTA_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
    }
    write_json(path / "tokenizer_config.json", config)
    return tokenizer.get_vocab_size()
