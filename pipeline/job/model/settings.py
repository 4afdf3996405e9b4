"""What sentence-transformers' own config file of a model (`sentence_bert_config.json` and its
siblings) settles beyond transformers' files.

The parsed file comes in; limits, tokenizer arguments and the settings of the forward come out. The
rules are those of sentence-transformers 6.2. Settings that would change ids in a way this package
does not follow are refused. Cost: none.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import ModelError

__all__ = ["NO_LIMIT", "SETTINGS_FILES", "forward_settings", "max_tokens", "tokenizer_arguments"]

SETTINGS_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names of that file, in the order in which sentence-transformers looks for them."""

NO_LIMIT = 1 << 30
"""The `max_tokens` of a model without a limit; no published model reaches it."""

_ARGUMENTS = ("model_kwargs", "model_args", "config_kwargs", "config_args")

_SAME_FORWARD = {
    "attn_implementation",
    "cache_dir",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "revision",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_cache",
    "use_safetensors",
}
"""Arguments that leave the forward as config.json and the weights define it."""

_SAME_IDS = {"pad_to_multiple_of", "padding", "padding_side", "return_tensors"}
"""Arguments of the tokenizer's call that change no id."""

_PLAIN_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
_PLAIN = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": _PLAIN_TEXT,
}
"""Settings of a model whose token vectors are the last hidden state of a plain forward."""


def forward_settings(settings: dict[str, Any]) -> tuple[str, ...]:
    """Names of the settings that change the forward beyond config.json, sorted."""
    arguments = {
        key for name in _ARGUMENTS for key in (settings.get(name) or {}).keys() - _SAME_FORWARD
    }
    text = (settings.get("modality_config") or {}).get("text", _PLAIN_TEXT)
    stated = {**settings, "modality_config": text}
    changed = {key for key, plain in _PLAIN.items() if stated.get(key, plain) != plain}
    return tuple(sorted(arguments | changed))


def tokenizer_arguments(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """What the file passes on to the tokenizer's constructor.

    Raises ModelError for settings that change ids in ways that only sentence-transformers' own
    preprocessing knows; `source` is what the message calls the model.
    """
    calls = settings.get("processing_kwargs") or {}
    unsupported = {
        key for name in ("common", "text") for key in (calls.get(name) or {}).keys() - _SAME_IDS
    }
    if calls.get("chat_template"):
        unsupported.add("chat_template")
    modalities = settings.get("modality_config")
    if modalities and "text" not in modalities:
        unsupported.add("modality_config")
    if unsupported:
        raise ModelError(
            f"{source}: sentence-transformers' config file sets {sorted(unsupported)} for text, "
            "which is not supported. Use another model."
        )
    arguments = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    return {name: value for name, value in arguments.items() if name != "trust_remote_code"}


def max_tokens(
    settings: dict[str, Any],
    tokenizer_config: dict[str, Any],
    config: dict[str, Any],
    positions: int | None,
) -> int:
    """The number of tokens that a text is cut to.

    As in sentence-transformers, a length that the file states stands; otherwise it is the
    tokenizer's, capped by config.json. Both are capped by `positions`, the number of learned ones:
    sentence-transformers leaves that to the forward, which fails at the first longer text.
    """
    stated = [
        (settings.get(key) or {}).get("model_max_length")
        for key in ("processor_kwargs", "tokenizer_args", "tokenizer_kwargs")
    ]
    limit = next((n for n in [*stated, settings.get("max_seq_length")] if n is not None), None)
    if limit is None:
        limits = [tokenizer_config.get("model_max_length"), config.get("max_position_embeddings")]
        limit = min([NO_LIMIT, *(n for n in limits if n is not None and n != -1)])
    return int(limit if positions is None else min(limit, positions))
