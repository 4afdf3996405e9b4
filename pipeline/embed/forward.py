"""One forward over packed tokens for every family whose layer is attention and an MLP, with norms
before, behind and after each half:

    hidden = after(hidden + behind(half(before(hidden))))

In: a `PackedBatch`. Out: hidden states (T, D), or (n, D) of one token of each row. Sources: Devlin
et al. 2019 (norms after), Touvron et al. 2023 (before), Gemma Team 2025 (before and behind), Su et
al. 2021 (rotary positions), Shazeer 2020 (gated MLP); results are those of transformers' models.
Cost for T tokens: 2 T D (2 Dh (H + Hkv) + (2 or 3) F) flops a layer, and attention; the last layer
costs 4 T D Dh Hkv where one token of each row is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding

from pipeline.embed.attention import Attention, PackedBatch
from pipeline.embed.families import Family
from pipeline.embed.layers import Half, Layer, Weights, layers_of, norm_of
from pipeline.embed.linear import GatedLinear, Linear
from pipeline.embed.sizes import ACTIVATIONS, Sizes
from pipeline.embed.steps import Steps, rotation

__all__ = ["Forward"]

Angles = Sequence[tuple[Tensor, ...]]
"""Of the tokens, for each kind of layer: rows of the tables of `rotation`, (T, 1, Dh / 2) each."""

FIRST_ANGLES = 8192
"""Positions whose angles are computed at loading."""

SMALL_FLOPS = 1e9
"""Of the products for a token; below it a GPU is only full with a larger bucket."""


class Forward:
    """single_token_poolings: those for which the last layer is computed for one token a row, which
    is exact where that token sees what it would see: the last one of a causal model, any one
    otherwise, none beside a window. is_tuned: whether steps may be compiled."""

    def __init__(
        self,
        family: Family,
        sizes: Sizes,
        weights: Weights,
        linear: Callable[..., Linear] = Linear,
        *,
        is_tuned: bool = False,
    ) -> None:
        self._s = sizes
        self._layers = layers_of(family, sizes, weights, linear)
        self._first_norm = norm_of(family.first_norm, weights, sizes)
        self._last_norm = norm_of(family.last_norm, weights, sizes)
        self._activation = ACTIVATIONS[sizes.activation]
        self.vocab_size = sizes.vocab
        poolings = ("last_token",) if sizes.is_causal else ("cls", "last_token")
        self.single_token_poolings = () if self._layers[-1].is_windowed else poolings
        self._words = weights[f"{family.words}.weight"]
        if sizes.word_scale != 1:  # transformers rounds it to the dtype of the table
            self._words = self._words * torch.tensor(sizes.word_scale).to(self._words)
        learned = [weights[f"{family.positions}.weight"]] if sizes.positions else []
        # every token is of the first type, so its row is added once and for all
        learned += [weights[f"{family.types}.weight"][0]] if sizes.types else []
        self._learned = torch.stack(torch.broadcast_tensors(*learned)).sum(0) if learned else None
        self._angles: Angles = []
        self._extend(FIRST_ANGLES)
        self._steps = Steps(sizes, self._layers[0], self._words, self._angles, is_tuned)

    @property
    def compiled_steps(self) -> list[str]:
        """Names of the steps that are one kernel: compiled ones, and GELU inside its product."""
        up = self._layers[0].up
        # layers in int8 have an activation of their own
        is_inside = type(up) is Linear and up.has_gelu_inside(self._activation)
        return [*self._steps.compiled, *(["gelu"] if is_inside and not self._s.is_gated else [])]

    def _extend(self, n_tokens: int) -> None:
        """Makes the tables of angles long enough for texts of `n_tokens` tokens."""
        self._angles = [
            rotation(*kind.frequencies(), n_tokens, self._words) for kind in self._s.rotary
        ]

    @property
    def default_budget_tokens(self) -> dict[str, int]:
        """Tokens of a bucket by device: a CPU is fastest while activations stay in its cache."""
        s = self._s
        weights = 2 * s.head_dim * (s.heads + s.kv_heads) + (2 + s.is_gated) * s.inner
        is_small = 2 * s.layers * s.hidden * weights < SMALL_FLOPS
        return {"cpu": 2048, "cuda": 32768 if is_small else 16384}

    def forward(self, batch: PackedBatch, attention: Attention, pooled: Tensor | None) -> Tensor:
        """Hidden states of all tokens, (T, D), or of one a row, (n, D). pooled: (n,) the packed
        token of each row that is returned alone, or None for all."""
        s = self._s
        if self._angles and batch.longest > len(self._angles[0][0]):
            self._extend(1 << batch.longest.bit_length())
        hidden = embedding(batch.ids, self._words)  # (T, D)
        if self._learned is not None:
            hidden = hidden + (
                embedding(self._places(batch), self._learned) if s.positions else self._learned
            )
        hidden = self._steps.normed(hidden, self._first_norm)
        angles = [
            tuple(table.index_select(0, batch.positions)[:, None] for table in tables)
            for tables in self._angles
        ]
        growth = self._growth(batch)
        for layer in self._layers:
            is_trimmed = pooled is not None and layer is self._layers[-1]
            at = pooled if is_trimmed else slice(None)
            turns = angles[-1 if layer.is_windowed else 0] if angles else ()
            normed = self._steps.normed(hidden, layer.attention.before)
            if layer.q is None:
                q, kv = self._heads(layer.kv, normed).tensor_split([s.heads], dim=1)
            else:
                q, kv = self._heads(layer.q, normed[at]), self._heads(layer.kv, normed)
            q = self._turned(q, [table[at] for table in turns], layer.q_norm)
            k = self._turned(kv[:, : s.kv_heads], turns, layer.k_norm)  # (T, Hkv, Dh)
            v = kv[:, s.kv_heads :]
            q = q if growth is None else q * growth[at]
            window = s.window if layer.is_windowed else None
            mixed = attention(q, k, v, batch, s.is_causal, window, pooled=is_trimmed)
            hidden = self._finish(layer, hidden[at], mixed)
        return self._steps.normed(hidden, self._last_norm)

    def _heads(self, projection: Linear, x: Tensor) -> Tensor:
        return projection(x).unflatten(1, (-1, self._s.head_dim))

    def _turned(self, heads: Tensor, turns: Sequence[Tensor], norm: Tensor | None) -> Tensor:
        """Queries or keys, normed by head and rotated where the family does so."""
        norms = [] if norm is None else [norm]
        return self._steps.turn(heads, *turns, *norms) if turns else heads

    def _finish(self, layer: Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
        hidden = self._added(layer.attention, mixed.flatten(1), hidden)
        x = self._steps.normed(hidden, layer.mlp.before)
        if self._s.is_gated and not isinstance(layer.up, GatedLinear):
            inner = self._steps.gate(layer.up(x))
        else:
            inner = layer.up.activated(x, self._activation)  # (T, F)
        return self._added(layer.mlp, inner, hidden)

    def _added(self, half: Half, x: Tensor, residual: Tensor) -> Tensor:
        """after(residual + behind(out(x))). The sum shares a kernel with the product on a CPU, and
        with the norm after it on a GPU."""
        if half.behind is not None:
            total = self._steps.normed(half.out(x), half.behind).add_(residual)
            return self._steps.normed(total, half.after)
        if half.after is None or half.out.takes_residual:
            return self._steps.normed(half.out.plus(x, residual), half.after)
        return self._steps.summed_norm(half.out(x), residual, *half.after)

    def _places(self, batch: PackedBatch) -> Tensor:
        """(T,) the row of the position table for each token. RoBERTa counts positions from the
        padding id on, and a literal padding token stands at that very position."""
        padding_id = self._s.padding_id
        if padding_id is None:
            return batch.positions
        is_real = (batch.ids != padding_id).int()  # (T,)
        counted = is_real.cumsum(0, dtype=torch.int32)
        first = batch.starts[:-1].long()
        before = torch.repeat_interleave(
            counted[first] - is_real[first], batch.lengths, output_size=batch.ids.shape[0]
        )
        return (counted - before) * is_real + padding_id

    def _growth(self, batch: PackedBatch) -> Tensor | None:
        """(T, 1, 1) factors of queries."""
        if self._s.query_growth is None:
            return None
        beta, n_tokens = self._s.query_growth
        steps = torch.floor(batch.positions.float() / n_tokens)
        return (1 + beta * torch.log(1 + steps)).to(self._words)[:, None, None]
