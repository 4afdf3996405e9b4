"""The families of models with a packed forward: where their weights are, and who reads their
config.json. A new family is a line in FAMILIES, and ten to thirty lines where its names or its
config are new."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.embed.configs import bert, decoder, distilbert, gemma3, modernbert, nomic_bert
from pipeline.embed.sizes import Sizes

__all__ = ["FAMILIES", "Family", "Shapes", "own_name"]

Shapes = Mapping[str, tuple[int, ...]]
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}

Pair = tuple[str | None, str | None]
NOWHERE: Pair = (None, None)


@dataclass(frozen=True)
class Family:
    """Names of modules, without ".weight". Those of a layer follow `layer`, whose {} is its
    number; stacked ones stand in the order in which they are stacked. Pairs: attention, MLP."""

    prefix: str
    """What task models put before every name."""
    read: Callable[[dict[str, Any]], Sizes]
    layer: str
    words: str
    qkv: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    """The projection into the MLP; of a gated one the gate first."""
    down: str
    positions: str | None = None
    types: str | None = None
    first_norm: str | None = None
    last_norm: str | None = None
    before: Pair = NOWHERE
    """Norms of what goes into each half of a layer."""
    behind: Pair = NOWHERE
    """Norms of what comes out of it, before it is added to the residual."""
    after: Pair = NOWHERE
    """Norms of the sum."""
    head_norms: tuple[str, ...] = ()
    """Of each head of queries and of keys."""
    is_first_bare: bool = False
    """The first attention has no norm before it."""

    def shapes(self, s: Sizes) -> Shapes:
        """Every weight of the forward."""
        return dict(self._shapes(s))

    def _shapes(self, s: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
        tables = ((self.words, s.vocab), (self.positions, s.positions), (self.types, s.types))
        for table, n_rows in tables:
            if table and n_rows:
                yield f"{table}.weight", (n_rows, s.hidden)
        yield from _norms((self.first_norm, self.last_norm), s)
        queries = s.heads * s.head_dim
        keys = s.kv_heads * s.head_dim
        for i in range(s.layers):
            layer = self.layer.format(i)
            for kind, names, outs, width in (
                ("qkv", self.qkv, (queries, keys, keys), s.hidden),
                ("out", (self.out,), (s.hidden,), queries),
                ("up", self.up, (s.inner,) * (1 + s.is_gated), s.hidden),
                ("down", (self.down,), (s.hidden,), s.inner),
            ):
                heights = outs if len(names) == len(outs) else (sum(outs),)
                for name, height in zip(names, heights, strict=True):
                    yield f"{layer}{name}.weight", (height, width)
                    if kind in s.biases:
                        yield f"{layer}{name}.bias", (height,)
            norms = (*self.norms_before(i), *self.behind, *self.after)
            yield from _norms((name and layer + name for name in norms), s)
            for name in self.head_norms:
                yield f"{layer}{name}.weight", (s.head_dim,)

    def norms_before(self, layer: int) -> Pair:
        return (None, self.before[1]) if self.is_first_bare and layer == 0 else self.before


def _norms(names: Iterable[str | None], s: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    kinds = ("weight", "bias") if s.has_norm_bias and not s.is_rms else ("weight",)
    return ((f"{name}.{kind}", (s.hidden,)) for name in names if name for kind in kinds)


def _at(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names.split())


def own_name(name: str, prefix: str) -> str:
    """A stored name without the prefix of a task model and the endings of old checkpoints."""
    module, _, kind = name.removeprefix(prefix).rpartition(".")
    return f"{module}.{_OLD_NAMES.get(kind, kind)}"


BERT = Family(
    prefix="bert.",
    read=bert,
    layer="encoder.layer.{}.",
    words="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    types="embeddings.token_type_embeddings",
    first_norm="embeddings.LayerNorm",
    qkv=_at("attention.self", "query key value"),
    out="attention.output.dense",
    up=("intermediate.dense",),
    down="output.dense",
    after=("attention.output.LayerNorm", "output.LayerNorm"),
)
ROBERTA = replace(BERT, prefix="roberta.")
DISTILBERT = replace(
    BERT,
    prefix="distilbert.",
    read=distilbert,
    layer="transformer.layer.{}.",
    types=None,
    qkv=_at("attention", "q_lin k_lin v_lin"),
    out="attention.out_lin",
    up=("ffn.lin1",),
    down="ffn.lin2",
    after=("sa_layer_norm", "output_layer_norm"),
)
LLAMA = Family(
    prefix="model.",
    read=decoder,
    layer="layers.{}.",
    words="embed_tokens",
    last_norm="norm",
    qkv=_at("self_attn", "q_proj k_proj v_proj"),
    out="self_attn.o_proj",
    up=_at("mlp", "gate_proj up_proj"),
    down="mlp.down_proj",
    before=("input_layernorm", "post_attention_layernorm"),
)
QWEN3 = replace(LLAMA, head_norms=_at("self_attn", "q_norm k_norm"))
GEMMA3 = replace(
    QWEN3,
    read=gemma3,
    before=("input_layernorm", "pre_feedforward_layernorm"),
    behind=("post_attention_layernorm", "post_feedforward_layernorm"),
)
MODERNBERT = Family(
    prefix="model.",
    read=modernbert,
    layer="layers.{}.",
    words="embeddings.tok_embeddings",
    first_norm="embeddings.norm",
    last_norm="final_norm",
    qkv=("attn.Wqkv",),
    out="attn.Wo",
    up=("mlp.Wi",),
    down="mlp.Wo",
    before=("attn_norm", "mlp_norm"),
    is_first_bare=True,
)
NOMIC_BERT = Family(
    prefix="nomic_bert.",
    read=nomic_bert,
    layer="encoder.layers.{}.",
    words="embeddings.word_embeddings",
    types="embeddings.token_type_embeddings",
    first_norm="emb_ln",
    qkv=("attn.Wqkv",),
    out="attn.out_proj",
    up=_at("mlp", "fc12 fc11"),
    down="mlp.fc2",
    after=("norm1", "norm2"),
)
FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
    "eurobert": LLAMA,
    "gemma3_text": GEMMA3,
    "llama": LLAMA,
    "luke": replace(BERT, prefix="luke."),
    "ministral3": LLAMA,
    "mistral": LLAMA,
    "modernbert": MODERNBERT,
    "nomic_bert": NOMIC_BERT,
    "qwen2": LLAMA,
    "qwen3": QWEN3,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
}
"""`model_type` of config.json → its family."""
