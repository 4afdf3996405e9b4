"""Turns token ids into vectors. The only room that imports torch.

engine      the interface of every engine, and the loop over buckets
loading     `load_engine`, which chooses one of the engines below
packed      the unpadded engine
forward     its forward, from layers and the steps between products
families    names of weights by model_type; sizes and rotary: what config.json says
static      the engine of StaticEmbedding models
padded      the engine of every other sentence-transformers directory
buckets     which rows share a forward pass; budget: how many tokens a GPU takes at once
attention   attention over packed rows
linear      linear layers with oneDNN; int8: the same in 8-bit integers
fused       steps between the products that torch.compile makes faster
weights     safetensors, read without transformers
pooling     rows of hidden states → one vector a row
head        Dense, Normalize and truncation behind pooling
"""

from pipeline.embed.engine import Engine, EngineStats
from pipeline.embed.loading import load_engine

__all__ = ["Engine", "EngineStats", "load_engine"]
