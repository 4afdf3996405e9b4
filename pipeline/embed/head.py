"""What follows pooling: the directory's own Dense, LayerNorm and Normalize modules, truncation and
normalization.

In: pooled (n, D) in float32. Out: (n, dim) float32. The modules are sentence-transformers' own
classes with their own weights, always run in float32: they are a thousandth of the
work.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir
from pipeline.job.model.modules import STATIC

__all__ = ["Head", "load_head"]


class Head(nn.Module):
    """Modules of `modules.json` behind Pooling, then truncation, then normalization.

    Normalization comes once and last, so a truncated vector of a normalizing model has length 1
    (sentence-transformers leaves it shorter unless `normalize_embeddings=True`; the direction is
    the same).
    """

    def __init__(self, modules: list[nn.Module], normalize: bool, truncate_dim: int | None) -> None:
        super().__init__()
        self.steps = nn.ModuleList(modules).float()
        self.normalize = normalize
        self.truncate_dim = truncate_dim

    def forward(self, pooled: Tensor) -> Tensor:
        features = {"sentence_embedding": pooled}
        for step in self.steps:
            features = step(features)
        vectors = features["sentence_embedding"][:, : self.truncate_dim]  # (n, dim)
        return nn.functional.normalize(vectors, p=2, dim=-1) if self.normalize else vectors


def load_head(model: ModelDir, options: EngineOptions) -> Head:
    """On the device of `options`. Raises ModelError when a module's files cannot be loaded."""
    kinds = [module.kind for module in model.modules]
    pooled_by = next((i for i, kind in enumerate(kinds) if kind in ("Pooling", STATIC)), len(kinds))
    behind = list(model.modules[pooled_by + 1 :])
    # `Head` replaces those at the end; one in the middle, before a Dense, stays
    while behind and behind[-1].kind == "Normalize":
        behind.pop()
    loaded: list[nn.Module] = []
    for module in behind:
        # imported here: 6 s, only for models that have such modules
        from sentence_transformers.util import import_from_string

        try:
            kind: Any = import_from_string(module.type)
            loaded.append(kind.load(str(model.path), subfolder=module.path, local_files_only=True))
        except Exception as error:
            raise ModelError(
                f"{model.path}: module {module.path} ({module.type}) could not be loaded: "
                f"{type(error).__name__}: {error}. Restore its files from their source."
            ) from error
    return Head(loaded, options.normalize, options.truncate_dim).to(options.device).eval()
