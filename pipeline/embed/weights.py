"""The weights of a model directory, read without transformers, whose import costs a process 3 s of
CPU.

In: a model whose safetensors `choice` has compared with its config.json. Out: tensors by the names
of its family, on the device and in the dtype of the options. Method: as in transformers,
`model.safetensors` or else the files that `model.safetensors.index.json` lists; a task model's
prefix ("bert.", "model.") and the names of old checkpoints (gamma, beta) are understood; other
tensors (pooler, language model head) are not read. Cost: one read of the needed tensors.
"""

from __future__ import annotations

from safetensors import SafetensorError, safe_open

from pipeline.embed.choice import Shape
from pipeline.embed.engine import DTYPES
from pipeline.embed.families import own_name
from pipeline.embed.layers import Weights
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir
from pipeline.job.model.weight_files import weight_files

__all__ = ["read_weights"]


def read_weights(model: ModelDir, shape: Shape, options: EngineOptions) -> Weights:
    """Every weight of the forward that `choice` has found. Raises ModelError where one is
    unreadable."""
    names = shape.family.shapes(shape.sizes)
    dtype = DTYPES[options.dtype]
    tensors: Weights = {}
    try:
        for file in weight_files(model.transformer_path):
            with safe_open(file, framework="pt", device="cpu") as stored:
                for name in stored.keys():  # noqa: SIM118 (safe_open is no mapping)
                    own = own_name(name, shape.family.prefix)
                    if own in names:
                        # copied: a tensor of safe_open is the mapped file itself
                        tensor = stored.get_tensor(name)
                        tensors[own] = tensor.to(options.device, dtype, copy=True)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{model.transformer_path}: the weights could not be read: {type(error).__name__}: "
            f"{error}. Restore the files from their source."
        ) from error
    return tensors
