"""What a model directory says about itself, read without torch: layout, pooling, limits, prompts,
licence, hashes.

In: a local directory (`pipeline/job/model_store.py` brings it there). Out: a `ModelDir`, which the
tokenizer, the engine, the plan and the fingerprint all read. The rules are those of
sentence-transformers 6.2 when it loads a directory (`modules.json`, `1_Pooling/config.json` in both
spellings, `sentence_bert_config.json`, `config_sentence_transformers.json`). The dimension is left
out on purpose: `word_embedding_dimension` is wrong in published models
(cl-nagoya/sup-simcse-ja-large says 768, its hidden size is 1024); the engine measures it. Cost:
milliseconds, and the hashes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import ModelError
from pipeline.job.model_files import hashes

__all__ = ["NO_LIMIT", "POOLINGS", "STATIC", "ModelDir", "Module", "read_model"]

POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}
"""sentence-transformers' name of a pooling → ours, in the order in which it concatenates several.
"""

_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
}
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
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
"""Arguments after which the forward is still that of config.json and the weights."""
_SAME_IDS = {"pad_to_multiple_of", "padding", "padding_side", "return_tensors"}
_PLAIN_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
_PLAIN = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": _PLAIN_TEXT,
}
NO_LIMIT = 1 << 30  # tokens; no published model gets there
STATIC = "StaticEmbedding"
"""Kind of the one module that stands for transformer and pooling: a table of tokens whose rows are
averaged."""


@dataclass(frozen=True)
class Module:
    """One entry of `modules.json`; `path` is relative to the directory that holds it, `type` a
    dotted class name."""

    name: str
    path: str
    type: str

    @property
    def kind(self) -> str:
        return self.type.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class ModelDir:
    """A model on local disk, as its own files describe it."""

    path: Path
    transformer_path: Path
    modules: tuple[Module, ...]
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    tokenizer_arguments: dict[str, Any]
    """What sentence-transformers' own config file passes on to the tokenizer."""
    forward_settings: tuple[str, ...]
    """What that file says about the forward beyond config.json, if anything."""
    max_tokens: int
    do_lower_case: bool
    pooling: str | None
    """cls | mean | max | last_token | weighted_mean | mean_sqrt_len, several joined by "+"; None
    without a Pooling."""
    include_prompt: bool
    normalize: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    truncate_dim: int | None
    license: str | None
    commit: str | None
    """The commit of a model from the Hub, 40 hex digits."""
    is_static: bool
    """Is there a StaticEmbedding instead of a transformer?"""
    files: dict[str, str]
    """Relative POSIX path → SHA-256 of every file that can change a vector, sorted."""


def read_model(path: Path, where: str) -> ModelDir:
    """Read a local model directory; `where` is what messages call it. Raises ModelError when it
    cannot be used."""
    modules = tuple(
        Module(str(m["name"]), str(m["path"]), str(m["type"]))
        for m in _load_json(path / "modules.json", where, default=[])
    )
    _check_modules(path, modules, where)
    transformer_path = path / modules[0].path if modules else path
    is_static = bool(modules) and modules[0].kind == STATIC
    needed = transformer_path / ("tokenizer.json" if is_static else "config.json")
    if not needed.is_file():
        raise ModelError(
            f"{where}: {needed.name} not found in {transformer_path}. It is not a transformers model."
        )
    config = {} if is_static else _load_json(needed, where)
    tokenizer = _load_json(transformer_path / "tokenizer_config.json", where, default={})
    for directory in {path, transformer_path, *(path / module.path for module in modules)}:
        for file in sorted(directory.glob("*config*.json")):
            _check_no_code(_load_json(file, where), f"{where}: {file.relative_to(path)}")
        if directory != path or path == transformer_path:
            _check_weights(directory, directory == transformer_path, where)
    candidates = (
        _load_json(transformer_path / name, where, default={}) for name in _TRANSFORMER_CONFIGS
    )
    sentence: dict[str, Any] = (
        {} if is_static else next((found for found in candidates if found), {})
    )
    settings = _load_json(path / "config_sentence_transformers.json", where, default={})
    pooling = next((m for m in modules if m.kind == "Pooling"), None)
    pooling_config = _load_json(path / pooling.path / "config.json", where) if pooling else {}
    return ModelDir(
        path=path,
        transformer_path=transformer_path,
        modules=modules,
        config=config,
        tokenizer_config=tokenizer,
        tokenizer_arguments=_tokenizer_arguments(sentence, where),
        forward_settings=_forward_settings(sentence),
        max_tokens=_static_max_tokens(needed, where)
        if is_static
        else _max_tokens(sentence, tokenizer, config),
        do_lower_case=bool(sentence.get("do_lower_case", False)),
        pooling="mean" if is_static else _pooling_of(pooling_config, where) if pooling else None,
        include_prompt=bool(pooling_config.get("include_prompt", True)),
        normalize=any(module.kind == "Normalize" for module in modules),
        prompts={k: v for k, v in (settings.get("prompts") or {}).items() if v is not None},
        default_prompt_name=settings.get("default_prompt_name"),
        truncate_dim=settings.get("truncate_dim"),
        license=_license_of(path / "README.md"),
        commit=path.name
        if path.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", path.name)
        else None,
        is_static=is_static,
        files=hashes(path),
    )


def _load_json(path: Path, where: str, default: Any = None) -> Any:
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{where}: {path} could not be read as JSON: {error}. Restore it from its source."
        ) from error


def _check_modules(path: Path, modules: tuple[Module, ...], where: str) -> None:
    for module in modules:
        if not module.type.startswith("sentence_transformers."):
            raise ModelError(
                f"{where}: modules.json names custom code ({module.type}), which is never run."
            )
        if PurePosixPath(module.path).is_absolute() or ".." in PurePosixPath(module.path).parts:
            raise ModelError(f"{where}: modules.json leaves the directory ({module.path!r}).")
    if modules and modules[0].kind not in ("Transformer", STATIC):
        raise ModelError(
            f"{where}: the first module is {modules[0].kind}; only Transformer and {STATIC} are supported."
        )


def _check_no_code(config: Any, where: str) -> None:
    """No setting, at any depth, that makes transformers load Python code or a compiled kernel from
    a repository."""
    for key, value in config.items() if isinstance(config, dict) else ():
        kernel = key.endswith("attn_implementation") and "/" in str(value)
        if value and (kernel or key in ("auto_map", "use_kernels", "kernel_config")):
            raise ModelError(
                f"{where} names custom code ({key}: {value!r:.100}), which is never run. "
                "Use a model whose architecture transformers has itself."
            )
        _check_no_code(value, where)


def _check_weights(directory: Path, required: bool, where: str) -> None:
    # other names are not loaded: a pickle beside them would be
    if any(directory.glob("model*.safetensors")):
        return
    pickles = (
        sorted(p.name for p in directory.glob("pytorch_model*.bin")) if directory.is_dir() else []
    )
    if pickles or required:
        raise ModelError(
            f"{where}: no model*.safetensors in {directory}, found {pickles or 'no weights'}. Pickle files can run code and "
            "are never loaded. Convert once where you trust the source: "
            "SentenceTransformer(model).save_pretrained(directory), and name that directory."
        )


def _forward_settings(sentence: dict[str, Any]) -> tuple[str, ...]:
    arguments = {
        key for name in _ARGUMENTS for key in (sentence.get(name) or {}).keys() - _SAME_FORWARD
    }
    settings = {
        **sentence,
        "modality_config": (sentence.get("modality_config") or {}).get("text", _PLAIN_TEXT),
    }
    return tuple(
        sorted(
            arguments | {key for key, value in _PLAIN.items() if settings.get(key, value) != value}
        )
    )


def _tokenizer_arguments(sentence: dict[str, Any], where: str) -> dict[str, Any]:
    """Raises ModelError for settings that change ids in ways only sentence-transformers' own
    preprocessing knows."""
    calls = sentence.get("processing_kwargs") or {}
    strange = {
        key for name in ("common", "text") for key in (calls.get(name) or {}).keys() - _SAME_IDS
    }
    strange |= {"chat_template"} if calls.get("chat_template") else set()
    strange |= (
        {"modality_config"}
        if "text" not in (sentence.get("modality_config") or {"text": 0})
        else set()
    )
    if strange:
        raise ModelError(
            f"{where}: sentence-transformers' config file sets {sorted(strange)} for text, which is not supported."
        )
    found = sentence.get("processor_kwargs") or sentence.get("tokenizer_args") or {}
    return {name: value for name, value in found.items() if name != "trust_remote_code"}


def _max_tokens(sentence: dict[str, Any], tokenizer: dict[str, Any], config: dict[str, Any]) -> int:
    """As sentence-transformers: a stated length stands as it is; else the tokenizer's, capped by
    the positions."""
    for key in ("processor_kwargs", "tokenizer_args", "tokenizer_kwargs"):
        if (sentence.get(key) or {}).get("model_max_length") is not None:
            return int(sentence[key]["model_max_length"])
    if sentence.get("max_seq_length") is not None:
        return int(sentence["max_seq_length"])
    limits = [tokenizer.get("model_max_length"), config.get("max_position_embeddings")]
    return int(min([NO_LIMIT, *(limit for limit in limits if limit is not None and limit != -1)]))


def _static_max_tokens(tokenizer_json: Path, where: str) -> int:
    """Only what tokenizer.json itself cuts: sentence-transformers gives these models no limit."""
    return int(
        (_load_json(tokenizer_json, where).get("truncation") or {}).get("max_length", NO_LIMIT)
    )


def _pooling_of(config: dict[str, Any], where: str) -> str:
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        modes = [named] if isinstance(named, str) else list(named)
        if not modes or set(modes) - set(POOLINGS):
            raise ModelError(
                f"{where}: pooling mode {named!r} is unknown; known are {sorted(POOLINGS)}."
            )
        return "+".join(POOLINGS[mode] for mode in modes)
    return "+".join(ours for key, ours in _LEGACY_POOLING.items() if config.get(key)) or "mean"


def _license_of(readme: Path) -> str | None:
    """`license_name` where `license` is missing or "other", from the front matter of the model
    card."""
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = {
        key: match[1].strip().strip("\"'")
        for key in ("license", "license_name")
        if front
        and (
            match := re.search(
                rf"^{key}:[ \t]*(?:\n\s*-[ \t]*)?(\S[^\n]*)$", front[1], re.MULTILINE
            )
        )
    }
    plain = found.get("license")
    return plain if plain and plain != "other" else found.get("license_name", plain)
