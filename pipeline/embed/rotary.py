"""Rotary positions (Su et al. 2021): the frequencies that a config.json asks for.

In: a parsed config.json of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`,
nested by kind of layer where a model has two). Out: frequencies and the factor of cosine and sine.
Kinds that stretch positions are computed by transformers, whose import takes 3 s; frequencies that
depend on the length of the text are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError

if TYPE_CHECKING:
    import torch

__all__ = ["Rotary", "Unsupported", "depends_on_length", "rotary", "rotary_of"]

_FIXED_KINDS = ("default", "linear", "llama3", "yarn")
_OF_MINISTRAL = ("llama_4_scaling_beta", "max_position_embeddings")
_GROWING_KINDS = ("dynamic", "longrope")
_GEOMETRY = ("hidden_size", "num_attention_heads", "max_position_embeddings")
_OPTIONAL_GEOMETRY = ("original_max_position_embeddings",)


class Unsupported(Exception):
    """Why the packed forward would not compute what the model computes."""


@dataclass(frozen=True)
class Rotary:
    """The angle of pair i at position p is p times frequency i."""

    head_dim: int
    settings: dict[str, Any]
    """`rope_theta`, and what a kind that stretches positions needs."""
    geometry: dict[str, Any]
    """What such a kind asks of the rest of config.json."""

    def frequencies(self) -> tuple[torch.Tensor, float]:
        """(Dh / 2,) float32, and the factor of cosine and sine."""
        import torch

        if self.settings["rope_type"] == "default":
            halves = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
            return 1.0 / self.settings["rope_theta"] ** halves, 1.0
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        # transformers warns of settings that belong to one family
        settings = {k: v for k, v in self.settings.items() if k not in _OF_MINISTRAL}
        config = {**self.geometry, "head_dim": self.head_dim, "rope_parameters": settings}
        try:
            computed = LlamaRotaryEmbedding(LlamaConfig.from_dict(config))
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"transformers cannot compute rotary positions of {self.settings}: "
                f"{type(error).__name__}: {error}. Restore config.json from its source."
            ) from error
        return computed.inv_freq.float(), float(computed.attention_scaling)


def depends_on_length(config: dict[str, Any]) -> bool:
    """Whether transformers takes frequencies by the longest text of a batch."""
    stated = [config.get("rope_scaling"), config.get("rope_parameters")]
    settings = [s for flat in stated if isinstance(flat, dict) for s in (flat, *flat.values())]
    kinds = [s.get("rope_type", s.get("type")) for s in settings if isinstance(s, dict)]
    return any(kind in _GROWING_KINDS for kind in kinds)


def rotary(config: dict[str, Any], head_dim: int, theta: float = 10_000.0) -> Rotary:
    """Of a model with one kind of layer. theta: where config.json has none. Raises Unsupported."""
    settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in settings.values()):
        raise Unsupported("its rotary settings differ between layers")
    return _rotary(config, head_dim, {"rope_theta": config.get("rope_theta", theta), **settings})


def rotary_of(
    kind: str, config: dict[str, Any], head_dim: int, theta: float, scaling: dict[str, Any] | None
) -> Rotary:
    """Of the layers of a kind, "full_attention" or "sliding_attention". theta and scaling: what
    transformers 4 wrote next to each other. Raises Unsupported."""
    settings = (config.get("rope_parameters") or {}).get(kind) or {}
    settings = {"rope_theta": theta, **settings, **(scaling or {})}
    if "truncate" in settings:
        raise Unsupported("transformers reads 'truncate' of rotary settings beside them")
    return _rotary(config, head_dim, settings)


def _rotary(config: dict[str, Any], head_dim: int, settings: dict[str, Any]) -> Rotary:
    kind = settings.get("rope_type", settings.get("type", "default"))
    share = settings.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if kind not in _FIXED_KINDS:
        does = "depend on the text's length" if kind in _GROWING_KINDS else "are not known"
        raise Unsupported(f"rotary positions of type {kind!r} {does}")
    if share not in (None, 1, 1.0):
        raise Unsupported(f"it rotates {share} of each head")
    theta = settings["rope_theta"]
    if not isinstance(theta, float | int) or theta <= 0 or head_dim % 2:
        raise ValueError(f"heads of {head_dim!r} numbers rotate with rope_theta {theta!r}")
    geometry = {}
    if kind != "default":
        geometry = {name: config[name] for name in _GEOMETRY}
        geometry |= {name: config[name] for name in _OPTIONAL_GEOMETRY if name in config}
    return Rotary(head_dim, {**settings, "rope_type": kind}, geometry)
