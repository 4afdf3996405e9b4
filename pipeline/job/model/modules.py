"""The entries of `modules.json`, in which sentence-transformers lists the steps of a model.

A model directory comes in; its modules come out, each of which can run. Cost: one small file a
module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import ModelError
from pipeline.job.model.files import load_json, reading

__all__ = ["STATIC", "Module", "read_modules"]

STATIC = "StaticEmbedding"
"""The kind of module that replaces transformer and pooling: a table of tokens whose rows are
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
        """The class name alone: Transformer, Pooling, Dense, Normalize, …"""
        return self.type.rsplit(".", 1)[-1]


_RUNNABLE = {
    *("Transformer", "StaticEmbedding", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout"),
    *("CNN", "WordWeights", "WeightedLayerPooling"),
}
"""Modules that work behind a Transformer. LSTM needs sentence lengths that no Transformer gives,
and sentence-transformers itself fails on it."""


def read_modules(path: Path, source: str) -> tuple[Module, ...]:
    """The entries of modules.json, without one none. Raises ModelError for a module that is not
    sentence-transformers' own or lies outside the directory."""
    entries = load_json(path / "modules.json", source, default=[])
    with reading(source, "modules.json"):
        modules = tuple(
            Module(str(entry["name"]), str(entry["path"]), str(entry["type"])) for entry in entries
        )
    for module in modules:
        if not module.type.startswith("sentence_transformers."):
            raise ModelError(
                f"{source}: modules.json names custom code ({module.type}), which is never run."
            )
        module_path = PurePosixPath(module.path)
        if module_path.is_absolute() or ".." in module_path.parts:
            raise ModelError(f"{source}: modules.json leaves the directory ({module.path!r}).")
    if modules and modules[0].kind not in ("Transformer", STATIC):
        raise ModelError(
            f"{source}: the first module is {modules[0].kind}; only Transformer and {STATIC} are "
            "supported."
        )
    _check(path, modules, source)
    return modules


def _check(path: Path, modules: Sequence[Module], source: str) -> None:
    """Raises ModelError for a module that cannot run, and for a Dense whose activation function
    sentence-transformers replaces by Tanh."""
    for module in modules:
        if module.kind not in _RUNNABLE:
            raise ModelError(
                f"{source}: module {module.path or module.name} of modules.json is "
                f"{module.kind}, which is not supported; supported are "
                f"{', '.join(sorted(_RUNNABLE))}. Use another model."
            )
        if module.kind == "Dense":
            file = path / module.path / "config.json"
            activation = str(load_json(file, source).get("activation_function", "torch."))
            if not activation.startswith("torch."):
                raise ModelError(
                    f"{source}: {module.path}/config.json names the activation function "
                    f"{activation}, which is not one of torch: sentence-transformers runs Tanh in "
                    "its place, and the vectors are not those of the model. Name the function of "
                    "torch that is meant, such as torch.nn.modules.activation.GELU, in a copy of "
                    "the directory."
                )
