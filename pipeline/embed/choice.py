"""Which engine serves a model, and why: packed for the families that it knows, static for a
StaticEmbedding table, padded for everything else.

In: a `ModelDir` and `EngineOptions`. Out: a `Choice`, which a plan shows and `load_engine` follows.
Cost: the headers of the weights. No torch: a plan does without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.embed.families import FAMILIES, Family, own_name
from pipeline.embed.rotary import Unsupported
from pipeline.embed.sizes import Sizes
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir
from pipeline.job.model.weight_files import tensor_shapes

__all__ = ["Choice", "Shape", "choose"]

MAX_HEAD_DIM = 256
"""The widest head that flash attention on a GPU takes; its width must be a multiple of eight."""


class Shape(NamedTuple):
    """What a packed forward is built from."""

    family: Family
    sizes: Sizes


@dataclass(frozen=True)
class Choice:
    """engine: packed | static | padded. shape: of a packed one."""

    engine: str
    reason: str
    shape: Shape | None = None


def choose(model: ModelDir, options: EngineOptions) -> Choice:
    """Raises ModelError for options that this model cannot follow."""
    if model.is_static:
        if options.pooling != "mean" or options.dtype == "int8" or options.engine != "auto":
            raise ModelError(
                f"{model.path}: a StaticEmbedding model takes the mean of its tokens, in a "
                "floating dtype and an engine of its own; the job asks for pooling "
                f"{options.pooling!r}, dtype {options.dtype!r} and engine {options.engine!r}. "
                "Set model.pooling, model.dtype and runtime.engine to 'auto'."
            )
        return Choice("static", "a StaticEmbedding model is a table of its tokens' vectors")
    if options.dtype == "int8" and (options.device != "cpu" or options.engine == "padded"):
        raise ModelError(
            "dtype 'int8' runs in the packed engine on a CPU only; the device is "
            f"{options.device!r}, the engine {options.engine!r}. Set model.dtype to 'auto'."
        )
    if options.engine == "padded":
        return Choice("padded", "runtime.engine asks for it")
    try:
        shape = _shape(model, options)
    except Unsupported as reason:
        return unpacked(model, options, str(reason))
    return Choice("packed", f"model_type {model.config['model_type']!r}", shape)


def unpacked(model: ModelDir, options: EngineOptions, reason: str) -> Choice:
    """The choice where a packed engine is ruled out for a reason. Raises ModelError where the
    options admit no other one."""
    if options.engine == "packed" or options.dtype == "int8":
        asked = f"engine {options.engine!r}" if options.engine == "packed" else "dtype 'int8'"
        raise ModelError(
            f"{model.path}: {asked} was asked for, but the packed engine cannot run this model: "
            f"{reason}. Set runtime.engine and model.dtype to 'auto'."
        )
    return Choice("padded", reason)


def _shape(model: ModelDir, options: EngineOptions) -> Shape:
    """What a packed forward is built from. Raises Unsupported where there is none for this model
    with these options."""
    config = model.config
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise Unsupported(f"model_type {kind!r} has no packed forward")
    is_gpu = options.device != "cpu"
    if is_gpu and options.dtype == "float32":
        raise Unsupported(
            "packed attention on a GPU needs bfloat16 or float16, and the dtype is float32"
        )
    modules = [module.kind for module in model.modules]
    if before := modules[1 : modules.index("Pooling")] if model.pooling else []:
        raise Unsupported(f"modules stand between transformer and pooling: {', '.join(before)}")
    if names := ", ".join(model.forward_settings):
        raise Unsupported(f"sentence-transformers' config file sets {names}")
    adapter = model.transformer_path / "adapter_config.json"
    if config.get("quantization_config") or adapter.is_file():
        raise Unsupported("its weights are quantized or come with an adapter")
    family = FAMILIES[kind]
    try:
        sizes = family.read(config)
        if sizes.heads % sizes.kv_heads:
            raise ValueError(f"{sizes.heads} heads of queries for {sizes.kv_heads} of keys")
    except KeyError as name:
        raise Unsupported(f"config.json does not say {name}") from name
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{model.path}: config.json has a value that no {kind} model can have: {error}. "
            "Restore it from its source."
        ) from error
    if is_gpu and (sizes.head_dim % 8 or sizes.head_dim > MAX_HEAD_DIM):
        raise Unsupported(
            f"packed attention on a GPU needs heads of 8, 16, … {MAX_HEAD_DIM} numbers, and those "
            f"of this model have {sizes.head_dim}"
        )
    shapes = tensor_shapes(model.transformer_path)
    stored = {own_name(name, family.prefix): shape for name, shape in shapes.items()}
    needed = family.shapes(sizes)
    if needed.keys().isdisjoint(stored):
        raise Unsupported(f"its weights have other names than those of model_type {kind!r}")
    wrong = [name for name, shape in needed.items() if stored.get(name) != shape]
    if wrong:
        shown = ", ".join(f"{name} {needed[name]}, not {stored.get(name)}" for name in wrong[:3])
        raise ModelError(
            f"{model.path}: {len(wrong)} of {len(needed)} tensors that config.json asks for are "
            f"missing from the weights or have another shape: {shown}. Restore config.json and "
            "the weights from their source."
        )
    return Shape(family, sizes)
