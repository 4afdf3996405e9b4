"""What the engines are compared with: the forward of sentence-transformers from ids, how near two
sets of vectors are, and how much there is to multiply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def encode_from_ids(
    st: Any,
    rows: list[list[int]],
    order: np.ndarray,
    batch: int,
    device: str = "cpu",
    forward: Any = None,
) -> np.ndarray:
    """Do what `encode` does behind its tokenizer, in the same order (by characters) and batches,
    for the rows that `order` names; what is returned for others is undefined.

    `forward` takes the place of the model's own, say a compiled one.
    """
    out = np.empty((len(rows), st[0].get_embedding_dimension()), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            picked = order[start : start + batch]
            width = max(len(rows[i]) for i in picked)
            ids = torch.zeros(len(picked), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for line, i in enumerate(picked):
                ids[line, : len(rows[i])] = torch.tensor(rows[i])
                mask[line, : len(rows[i])] = 1
            features = {
                "input_ids": ids.to(device),
                "attention_mask": mask.to(device),
                "modality": "text",
            }
            out[picked] = (forward or st)(features)["sentence_embedding"].float().cpu().numpy()
    return out


def min_cosine(a: np.ndarray | None, b: np.ndarray | None) -> float:
    if a is None or b is None:
        return float("nan")
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


def gemm_gflops(
    dtype: torch.dtype, clock: Callable[[], float], n: int = 2048, repeats: int = 5
) -> float:
    """The ceiling: the best of a few n³ matrix products of this dtype, GFLOP/s."""
    a = torch.randn(n, n).to(dtype)
    b = torch.randn(n, n).to(dtype)
    best = float("inf")
    for _ in range(repeats + 1):
        started = clock()
        a @ b
        best = min(best, clock() - started)
    return 2 * n**3 / best / 1e9


def bert_gflop(config: dict, n_tokens: np.ndarray, trimmed: bool) -> float:
    """Multiplications and additions of the linear layers and of attention for real tokens, 10⁹."""
    d = config["hidden_size"]
    f = config["intermediate_size"]
    layers = config["num_hidden_layers"]
    tokens = float(n_tokens.sum())
    squares = float((n_tokens.astype(float) ** 2).sum())
    rows = n_tokens.size
    layer = 2 * tokens * (4 * d * d + 2 * d * f) + 4 * d * squares
    last = (
        2 * tokens * 2 * d * d + 2 * rows * (2 * d * d + 2 * d * f) + 4 * d * tokens
        if trimmed
        else layer
    )
    return ((layers - 1) * layer + last) / 1e9
