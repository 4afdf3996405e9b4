"""Loading a model directory never runs code that came with it: what could is refused here.

The directories of a model come in; ModelError is raised for a setting that makes transformers load
Python code or a compiled kernel from a repository, and for pickled weights, which can run code when
they are loaded. Cost: every config file is read once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.job.model.files import load_json
from pipeline.storage.addresses import is_local, normalized

__all__ = ["check_configs", "check_weights"]


_AUTO_MAPPED = ("config.json", "tokenizer_config.json")


def check_configs(path: Path, directories: Iterable[Path], source: str) -> None:
    """Raises ModelError for a config file that names code; `path` is the model directory, `source`
    what messages call it.

    `auto_map` of config.json and tokenizer_config.json is no danger where transformers has a class
    of its own for the `model_type`: without trust_remote_code it takes that one.
    """
    for directory in directories:
        for file in sorted(directory.glob("*config*.json")):
            config = load_json(file, source)
            if isinstance(config, dict) and "auto_map" in config and file.name in _AUTO_MAPPED:
                own = load_json(directory / "config.json", source, default={})
                if _is_known(own.get("model_type")):
                    config = {key: value for key, value in config.items() if key != "auto_map"}
            _check_names_no_code(config, f"{source}: {file.relative_to(path)}")


def check_weights(directory: Path, is_required: bool, source: str) -> None:
    """Raises ModelError for pickled weights without safetensors next to them, and for no weights at
    all where they are required."""
    # only these names are loaded: next to other safetensors, a pickle would be
    if any(directory.glob("model*.safetensors")):
        return
    pickles = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    if not pickles and not is_required:
        return
    is_url = not is_local(source)
    is_here = not is_url and Path(normalized(source)).is_dir()
    if is_here and not pickles:
        raise ModelError(
            f"{source}: no weights (model.safetensors, or its parts and their index) in "
            f"{directory}. Restore them from their source."
        )
    # of other places, pickles are not even fetched
    holds = "pickled weights only" if pickles else "no safetensors, so perhaps pickled weights only"
    copy = " (COPY is a folder with all of its files)" if is_url else ""
    loaded = "COPY" if is_url else normalized(source) if is_here else source
    raise ModelError(
        f"{source}: {holds} ({', '.join(pickles) or 'pytorch_model.bin'}) in {directory}. Pickle "
        "files can run code and are never loaded. Name a revision that has safetensors "
        "(model.revision; on the Hub it is often a pull request, refs/pr/N), or convert it once "
        f"where you trust the source, and set model.path to the new directory{copy}:\n"
        "  from sentence_transformers import SentenceTransformer\n"
        f"  SentenceTransformer({loaded!r}).save_pretrained('converted')"
    )


def _is_known(model_type: Any) -> bool:
    """Whether transformers has a class of its own. Its import takes seconds, and few directories
    need the answer."""
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _check_names_no_code(config: Any, file: str) -> None:
    """At any depth."""
    for key, value in config.items() if isinstance(config, dict) else ():
        is_kernel = key.endswith("attn_implementation") and "/" in str(value)
        if value and (is_kernel or key in ("auto_map", "use_kernels", "kernel_config")):
            raise ModelError(
                f"{file} names custom code ({key}: {value!r:.100}), which is never run. "
                "Use a model whose architecture is part of transformers itself."
            )
        _check_names_no_code(value, file)
