"""The headers of a model's safetensors files: names and shapes of tensors, without their values.

A directory comes in; the files that hold its weights, and the shape of each tensor, come out. The
format (huggingface/safetensors, README): eight bytes with the length of the header, the header as
JSON, then the tensors at the offsets that it states. Cost: two small reads a file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.job.model.files import load_json

__all__ = ["learned_positions", "tensor_shapes", "weight_files"]

_MAX_HEADER_BYTES = 100_000_000
"""safetensors itself refuses longer headers."""

_POSITION_TABLES = ("position_embeddings.weight", "wpe.weight", "embed_positions.weight")
"""How the names of tables of learned positions end."""

_COUNTED_FROM_PADDING = {
    *("camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}
"""Values of `model_type` whose positions start behind that of the padding token."""


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers reads: `model.safetensors`, or else those that
    `model.safetensors.index.json` lists. Raises ModelError without either, and for an index that
    names anything else than a file of the directory."""
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    if not (directory / "model.safetensors.index.json").is_file():
        raise ModelError(
            f"{directory}: no model.safetensors, and no model.safetensors.index.json that would "
            "list its parts. Restore them from their source."
        )
    index = load_json(directory / "model.safetensors.index.json", str(directory))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise ModelError(
                f"{directory}: model.safetensors.index.json names {name!r}, which is no file of "
                "the directory. Restore the files from their source."
            )
    return [directory / name for name in names]


def tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Tensor → shape for all weights of a directory.

    Raises ModelError for a file that is not safetensors, or is shorter or longer than its header
    says.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(directory):
        for name, tensor in _header(file).items():
            shapes[name] = tuple(tensor["shape"])
    return shapes


def learned_positions(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> int | None:
    """How many tokens of a text have a position of their own in a table of the weights; None for
    models without such a table, whose positions are computed. Raises ModelError where config.json
    counts them from no number."""
    rows = [
        shape[0]
        for name, shape in shapes.items()
        if name.endswith(_POSITION_TABLES) and len(shape) == 2
    ]
    if not rows:
        return None
    model_type = config.get("model_type")
    if model_type == "mpnet":
        return min(rows) - 2  # its padding token is 1 whatever config.json says
    if model_type in _COUNTED_FROM_PADDING:
        padding_id = config.get("pad_token_id")
        if padding_id is not None and type(padding_id) is not int:
            raise ModelError(
                f"config.json of a {model_type} model has pad_token_id {padding_id!r}, from which "
                "its positions are counted. Restore it from its source."
            )
        return min(rows) - 1 - (1 if padding_id is None else padding_id)
    return min(rows)


def _header(file: Path) -> dict[str, Any]:
    n_bytes = file.stat().st_size
    try:
        with file.open("rb") as opened:
            n_header = int.from_bytes(opened.read(8), "little")
            if n_header > min(_MAX_HEADER_BYTES, n_bytes):
                raise ValueError(f"a header of {n_header} bytes in a file of {n_bytes}")
            entries = json.loads(opened.read(n_header))
        # one entry holds free text about the file and describes no tensor
        tensors = {name: entry for name, entry in entries.items() if "data_offsets" in entry}
        n_stated = 8 + n_header + max((t["data_offsets"][1] for t in tensors.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{file}: not a safetensors file: {error}. Restore it from its source."
        ) from error
    if n_bytes != n_stated:
        raise ModelError(
            f"{file}: {n_bytes} bytes, but its header describes {n_stated}. The file is not whole: "
            "restore it from its source."
        )
    return tensors
