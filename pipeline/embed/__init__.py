"""Token ids in, vectors out. The only package that imports torch.

engine    the interface, `load_engine`, the loop over buckets    buckets   which rows share a forward pass
padded    any sentence-transformers directory                    pooling   rows of hidden states → one vector
packed    unpadded forward: the loop of the two engines below    head      Dense, Normalize, truncation
packed_bert, packed_llama   the forwards                         attention attention over packed rows
"""

from pipeline.embed.engine import Engine, EngineStats
from pipeline.embed.loading import load_engine

__all__ = ["Engine", "EngineStats", "load_engine"]
