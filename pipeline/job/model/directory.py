"""What a model directory says about itself, read without torch: layout, pooling, limits, prompts,
licence, hashes.

A local directory comes in (`pipeline/job/model/store.py` brings it to this node); a `ModelDir`
comes out, which the tokenizer, the engine, the plan and the fingerprint all read. The rules are
those of sentence-transformers 6.2 when it loads a directory (`modules.json`,
`1_Pooling/config.json` in both spellings, `sentence_bert_config.json`,
`config_sentence_transformers.json`). The dimension is left out on purpose:
`word_embedding_dimension` is wrong in published models (cl-nagoya/sup-simcse-ja-large says 768, its
hidden size is 1024); the engine measures it. Cost: milliseconds, and the hashes.
"""

from __future__ import annotations

import functools
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.job.model import checks as model_checks
from pipeline.job.model import safety as model_safety
from pipeline.job.model import settings as model_settings
from pipeline.job.model.files import check_fetched, hashes, load_json, reading
from pipeline.job.model.modules import STATIC, Module, read_modules
from pipeline.job.model.plain_files import PlainFiles, plain_files
from pipeline.job.model.weight_files import learned_positions, tensor_shapes

log = logging.getLogger(__name__)

__all__ = ["POOLINGS", "ModelDir", "read_model"]

POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}
"""sentence-transformers' name of a pooling → its name in a job spec, in the order in which
sentence-transformers concatenates several."""

_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
}


TOKENIZER_FILES = "tokenizer.json or tokenizer_config.json"


@dataclass(frozen=True)
class ModelDir:
    """A model on local disk, as its own files describe it."""

    path: Path
    transformer_path: Path
    """The directory of config.json, tokenizer and weights: `path` itself or a folder in it."""
    modules: tuple[Module, ...]
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    tokenizer_arguments: dict[str, Any]
    """Arguments that sentence-transformers' own config file passes on to the tokenizer."""
    forward_settings: tuple[str, ...]
    """Names of the settings in that file that change the forward beyond config.json."""
    max_tokens: int
    """Tokens that a text is cut to, special tokens included, where the job asks for no fewer."""
    positions: int | None
    """Tokens that the model has learned positions for; None where positions are computed."""
    max_dimension: int | None
    """The most dimensions of a vector, where the files say; the engine measures the true number."""
    do_lower_case: bool
    pooling: str | None
    """cls | mean | max | last_token | weighted_mean | mean_sqrt_len, several joined by "+"; None
    without a Pooling module."""
    include_prompt: bool
    """Whether the tokens of the prompt are pooled too."""
    normalize: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    truncate_dim: int | None
    license: str | None
    commit: str | None
    """The commit of a model from the Hub, 40 hexadecimal digits."""
    is_static: bool
    """Whether a StaticEmbedding replaces the transformer."""
    files: dict[str, str]
    """Relative POSIX path → SHA-256 of every file that can change a vector, sorted."""

    @property
    def tokenizer_class(self) -> str | None:
        """The class that a config file names, as AutoTokenizer looks for it."""
        kind = self.tokenizer_config.get("tokenizer_class") or self.config.get("tokenizer_class")
        return None if kind is None else str(kind)

    @functools.cached_property
    def plain_tokenizer(self) -> PlainFiles | None:
        """What the files of the tokenizer say; None where transformers has to build it."""
        if self.is_static or self.tokenizer_arguments:
            return None
        with reading(str(self.path), TOKENIZER_FILES):
            return plain_files(
                self.transformer_path, self.config, self.tokenizer_config, self.tokenizer_class
            )


def read_model(path: Path, source: str) -> ModelDir:
    """Read a local model directory; `source` is what messages call it. What it says twice and
    differently is logged as a warning. Raises ModelError when it cannot be used."""
    check_fetched(path, source)
    modules = read_modules(path, source)
    transformer_path = path / modules[0].path if modules else path
    is_static = bool(modules) and modules[0].kind == STATIC
    main_file = transformer_path / ("tokenizer.json" if is_static else "config.json")
    if not main_file.is_file():
        raise model_checks.missing_main_file(main_file, source)
    directories = {path, transformer_path, *(path / module.path for module in modules)}
    model_safety.check_configs(path, directories, source)
    for directory in directories:
        if directory != path or path == transformer_path:
            model_safety.check_weights(directory, directory == transformer_path, source)
    config: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    shapes = tensor_shapes(transformer_path)
    if not is_static:
        config = load_json(main_file, source)
        files = (transformer_path / name for name in model_settings.SETTINGS_FILES)
        settings = next(filter(None, (load_json(file, source, default={}) for file in files)), {})
    tokenizer_config = load_json(transformer_path / "tokenizer_config.json", source, default={})
    sentence = load_json(path / "config_sentence_transformers.json", source, default={})
    pooling = next((module for module in modules if module.kind == "Pooling"), None)
    pooling_config = load_json(path / pooling.path / "config.json", source) if pooling else {}
    pooling_mode = _pooling_of(pooling_config, source) if pooling else None
    positions = learned_positions(config, shapes)
    with reading(source, "sentence_bert_config.json, or a name like it,"):
        tokenizer_arguments = model_settings.tokenizer_arguments(settings, source)
        forward_settings = model_settings.forward_settings(settings)
        max_tokens = (
            _static_max_tokens(main_file, source)
            if is_static
            else model_settings.max_tokens(settings, tokenizer_config, config, positions)
        )
    with reading(source, "config_sentence_transformers.json"):
        prompts = {k: v for k, v in (sentence.get("prompts") or {}).items() if v is not None}
        default_prompt_name = sentence.get("default_prompt_name")
        contradictions = [*model_checks.contradictions(prompts, default_prompt_name)]
        if odd := [name for name, text in prompts.items() if not isinstance(text, str)]:
            raise TypeError(f"prompt {odd[0]!r} is {prompts[odd[0]]!r}")
    with reading(source, TOKENIZER_FILES):
        contradictions += model_checks.frame_contradictions(transformer_path, tokenizer_config)
    model = ModelDir(
        path=path,
        transformer_path=transformer_path,
        modules=modules,
        config=config,
        tokenizer_config=tokenizer_config,
        tokenizer_arguments=tokenizer_arguments,
        forward_settings=forward_settings,
        max_tokens=max_tokens,
        positions=positions,
        do_lower_case=bool(settings.get("do_lower_case", False)),
        max_dimension=model_checks.max_dimension(
            path, modules, config, shapes, pooling_mode, source
        ),
        pooling="mean" if is_static else pooling_mode,
        include_prompt=bool(pooling_config.get("include_prompt", True)),
        normalize=any(module.kind == "Normalize" for module in modules),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        truncate_dim=sentence.get("truncate_dim"),
        license=_license_of(path / "README.md"),
        commit=_commit_of(path),
        is_static=is_static,
        files=hashes(path),
    )
    for contradiction in contradictions:
        log.warning("%s: %s.", source, contradiction)
    return model


def _static_max_tokens(tokenizer_json: Path, source: str) -> int:
    """The limit in tokenizer.json itself: sentence-transformers gives these models no other."""
    truncation = load_json(tokenizer_json, source).get("truncation") or {}
    return int(truncation.get("max_length", model_settings.NO_LIMIT))


def _pooling_of(config: dict[str, Any], source: str) -> str:
    if "pooling_mode" not in config:
        modes = [name for key, name in _LEGACY_POOLING.items() if config.get(key)]
        return "+".join(modes) or "mean"
    stated = config["pooling_mode"]
    modes = [stated] if isinstance(stated, str) else list(stated)
    if not modes or set(modes) - set(POOLINGS):
        raise ModelError(
            f"{source}: pooling mode {stated!r} is unknown; known are {sorted(POOLINGS)}."
        )
    return "+".join(POOLINGS[mode] for mode in modes)


def _license_of(readme: Path) -> str | None:
    """`license` from the front matter of the model card; `license_name` where it is missing or
    "other"."""
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)

    def entry(key: str) -> str | None:
        pattern = rf"^{key}:[ \t]*(?:\n\s*-[ \t]*)?(\S[^\n]*)$"
        match = re.search(pattern, front[1], re.MULTILINE) if front else None
        return match[1].strip().strip("\"'") if match else None

    license_ = entry("license")
    return license_ if license_ and license_ != "other" else entry("license_name") or license_


def _commit_of(path: Path) -> str | None:
    """The commit of a directory in the Hub client's cache, `snapshots/<commit>`."""
    is_snapshot = path.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", path.name)
    return path.name if is_snapshot else None
