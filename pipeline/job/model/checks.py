"""Where a model directory contradicts itself, or holds what no engine can run: found by its files
alone, before anything is loaded.

Parsed config files come in; a ModelError is raised, or sentences come out that `plan` shows. Cost:
one small file and one header a module, and tokenizer.json where a config file says which tokens
end a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.job.model.files import load_json
from pipeline.job.model.modules import Module
from pipeline.job.model.plain_files import frame_of
from pipeline.job.model.weight_files import tensor_shapes

__all__ = ["contradictions", "frame_contradictions", "max_dimension", "missing_main_file"]

_WIDTHS = ("hidden_size", "d_model", "dim", "n_embd")
"""Names in config.json of the width of a token's vector."""


def missing_main_file(file: Path, source: str) -> ModelError:
    """The error for a directory without config.json (or tokenizer.json of a StaticEmbedding)."""
    if (file.parent / "adapter_config.json").is_file():
        config = load_json(file.parent / "adapter_config.json", source)
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
        return ModelError(
            f"{source}: an adapter (adapter_config.json) without its base model {base}. Merge the "
            "two first: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
            ".save_pretrained(directory), and name that directory."
        )
    return ModelError(
        f"{source}: {file.name} not found in {file.parent}. It is not a transformers model."
    )


def max_dimension(
    path: Path,
    modules: Sequence[Module],
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    pooling: str | None,
    source: str,
) -> int | None:
    """The most dimensions that a vector can have, by config.json and the last Dense, never by
    `word_embedding_dimension`; None where these do not say. The engine measures the true number.

    Raises ModelError for a Dense that takes another width than comes in, or whose weights are not
    those that its config.json asks for.
    """
    if config:
        width = next((config[name] for name in _WIDTHS if isinstance(config.get(name), int)), None)
        width = width and width * len((pooling or "mean").split("+"))
    else:
        width = next((shape[1] for shape in shapes.values() if len(shape) == 2), None)
    pooled = [module.kind for module in modules[1:2]] == ["Pooling"]
    for module in modules:
        if module.kind == "Dense":
            dense = load_json(path / module.path / "config.json", source)
            _check_dense(dense, path / module.path, width if pooled else None, source)
            width = dense["out_features"]
    return width


def _check_dense(config: dict[str, Any], folder: Path, width: int | None, source: str) -> None:
    """width: of what comes in, where it is known."""
    out = config.get("out_features")
    needed: dict[str, tuple[Any, ...]]
    needed = {"linear.weight": (out, width or config.get("in_features"))}
    if config.get("bias", True):
        needed["linear.bias"] = (out,)
    stored = tensor_shapes(folder)
    if stored != needed or needed["linear.weight"][1] != config.get("in_features"):
        raise ModelError(
            f"{source}: {folder.name}/config.json says {config.get('in_features')} → {out} "
            f"dimensions and bias {config.get('bias', True)}, the modules before it give "
            f"{width or 'an unknown number'}, and the weights beside it are {stored or 'missing'}. "
            "Restore the directory from its source."
        )


def contradictions(prompts: Mapping[str, str], default_prompt_name: str | None) -> Iterator[str]:
    """A sentence where the default prompt is none of the prompts."""
    if default_prompt_name is not None and default_prompt_name not in prompts:
        yield (
            f"config_sentence_transformers.json names the default prompt {default_prompt_name!r}, "
            f"and the prompts are {sorted(prompts)}: no prompt is used by default"
        )


def frame_contradictions(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """add_bos_token and add_eos_token of tokenizer_config.json against what tokenizer.json puts
    round a text: transformers 4 followed the former, transformers 5 follows the latter."""
    file = folder / "tokenizer.json"
    asked = [name for name in ("bos_token", "eos_token") if f"add_{name}" in config]
    if not asked or not file.is_file():
        return
    stored = load_json(file, str(folder))
    frame = frame_of(stored) if stored.get("post_processor") else []
    for name in asked:
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and bool(config[f"add_{name}"]) != (token in frame):
            does = "puts" if token in frame else "does not put"
            yield (
                f"tokenizer_config.json says add_{name}: {str(config[f'add_{name}']).lower()}, and "
                f"tokenizer.json {does} {token} round a text. tokenizer.json is followed, as "
                "transformers 5 does; transformers 4 followed tokenizer_config.json. Compare with "
                "the model card"
            )
