"""`Sizes`: everything about a packed forward but names and weights, in one vocabulary for all
families. `configs` reads them from config.json."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.embed.rotary import Rotary

__all__ = ["ACTIVATIONS", "Sizes"]

_TANH = ("gelu", "tanh")
ACTIVATIONS: dict[str, tuple[str, str]] = {
    "gelu": ("gelu", "none"),
    "gelu_new": _TANH,
    "gelu_pytorch_tanh": _TANH,
    "gelu_fast": _TANH,
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "swish": ("swish", ""),
}
"""transformers' name in config.json → oneDNN's name and algorithm."""


@dataclass(frozen=True)
class Sizes:
    """Everything about a forward but names and weights."""

    vocab: int
    hidden: int
    inner: int
    """Width of the MLP between its products."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    activation: str
    eps: float
    is_rms: bool = False
    """RMSNorm in place of LayerNorm."""
    is_gated: bool = False
    """The MLP multiplies its activation by a second projection."""
    is_causal: bool = False
    has_norm_bias: bool = True
    biases: frozenset[str] = frozenset()
    """Which of the products "qkv", "out", "up" and "down" have a bias."""
    positions: int = 0
    """Rows of a table of learned positions."""
    padding_id: int | None = None
    """The id behind which learned positions are counted, as RoBERTa does."""
    types: int = 0
    """Rows of the table of token types; every token is of the first."""
    window: int | None = None
    """A token sees none that are `window` or more away."""
    windowed: tuple[bool, ...] = ()
    """For each layer, whether `window` holds. Empty: for none."""
    rotary: tuple[Rotary, ...] = ()
    """Of the layers without a window, then of those with one where it differs."""
    word_scale: float = 1.0
    norm_offset: float = 0.0
    """Added to the stored weights of norms, which Gemma stores less one."""
    query_scale: float = 1.0
    """Factor of queries beyond 1 / √head_dim."""
    query_growth: tuple[float, int] | None = None
    """(β, n) of Llama 4: the query at position p grows by 1 + β ln(1 + ⌊p / n⌋)."""

    def __post_init__(self) -> None:
        """Raises ValueError for what a damaged config.json says."""
        least = dict.fromkeys(("vocab", "hidden", "inner", "layers", "heads", "kv_heads"), 1)
        least |= {"head_dim": 1, "positions": 0, "types": 0}
        if self.window is not None:
            least["window"] = 1
        for name, at_least in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < at_least:
                raise ValueError(f"{name} is {value!r}")
        if type(self.is_causal) is not bool:
            raise ValueError(f"is_causal is {self.is_causal!r}")
        if not isinstance(self.eps, float | int):
            raise ValueError(f"eps is {self.eps!r}")
