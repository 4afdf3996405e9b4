"""The weights of a model directory, read without transformers, whose import costs a process 3 s of
CPU.

In: a directory with safetensors, and the names and shapes that a forward needs. Out: tensors by
those names, on the requested device and in the requested dtype. Method: as in transformers,
`model.safetensors` or else the files that `model.safetensors.index.json` lists; a task model's
prefix ("bert.", "model.") and the names of old checkpoints (gamma, beta) are understood; other
tensors (pooler, language model head) are not read. Cost: one read of the needed tensors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pipeline.embed.families import Shapes, own_name
from pipeline.errors import ModelError
from pipeline.job.model.weight_files import weight_files

__all__ = ["read_weights"]


def read_weights(
    directory: Path, shapes: Shapes, prefix: str, dtype: torch.dtype, device: str
) -> dict[str, torch.Tensor]:
    """Tensors by the names of `shapes`, which the directory has (see `choice`). Raises ModelError
    where one is unreadable."""
    tensors: dict[str, torch.Tensor] = {}
    try:
        for file in weight_files(directory):
            with safe_open(file, framework="pt", device="cpu") as stored:
                for name in stored.keys():  # noqa: SIM118 (safe_open is no mapping)
                    own = own_name(name, prefix)
                    if own in shapes:
                        # copied: a tensor of safe_open is the mapped file itself
                        tensors[own] = stored.get_tensor(name).to(device, dtype, copy=True)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{directory}: the weights could not be read: {type(error).__name__}: {error}. "
            "Restore the files from their source."
        ) from error
    return tensors
