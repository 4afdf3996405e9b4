"""Poison for real processes: texts on which the reader, the tokenizer or the engine of whoever
meets them breaks.

`poison(folder)` gives environment variables; every Python process started with them (drivers, Ray's
workers, children) loads the `sitecustomize` written to `folder`, which wraps one method each of
`read.jsonl`, `tokenize.fast`, `embed.engine` and `embed.packed` as they are imported. The
engine sees no text, so it is poisoned by numbers of tokens. Each death adds a line to
`folder/deaths`. A process without the variables never meets any of it.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests import ROOT

KILLS_READER = "kill the reader"
RAISES_IN_READER = "raise in the reader"
KILLS_TOKENIZER = "kill the tokenizer"
RAISES_IN_TOKENIZER = "raise in the tokenizer"
KILLS_ENGINE, RAISES_IN_ENGINE, BREAKS_CUDA, NEEDS_MEMORY = 91, 92, 93, 94
"""Numbers of tokens, special tokens included."""

CODE = f"""
import ctypes, importlib.machinery, os, sys

def die():
    with open({{folder!r}} + "/deaths", "a") as file:
        file.write(f"{{{{os.getpid()}}}}\\n")
    ctypes.string_at(0)

def poison_reader(module):
    records = module.JsonlReader.records
    def poisoned(self, *args):
        for table in records(self, *args):
            if any({KILLS_READER!r} in (text or "") for text in table["text"].to_pylist()):
                die()
            if any({RAISES_IN_READER!r} in (text or "") for text in table["text"].to_pylist()):
                raise RuntimeError("this record cannot be read")
            yield table
    module.JsonlReader.records = poisoned

def poison_tokenizer(module):
    encode = module.FastTokenizer.encode
    def poisoned(self, texts):
        if any({KILLS_TOKENIZER!r} in text for text in texts):
            die()
        if any({RAISES_IN_TOKENIZER!r} in text for text in texts):
            raise RuntimeError("this text cannot be tokenized")
        return encode(self, texts)
    module.FastTokenizer.encode = poisoned

def poison_engine(module):
    embed = module.Engine.embed
    def poisoned(self, ids, offsets, *stats):
        lengths = set((offsets[1:] - offsets[:-1]).tolist())
        if {KILLS_ENGINE} in lengths:
            die()
        if {RAISES_IN_ENGINE} in lengths:
            raise RuntimeError("this text cannot be embedded")
        if {BREAKS_CUDA} in lengths:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return embed(self, ids, offsets, *stats)
    module.Engine.embed = poisoned

def poison_memory(module):
    forward = module.PackedEngine._forward
    def poisoned(self, ids, offsets, rows):
        if {NEEDS_MEMORY} in (offsets[rows + 1] - offsets[rows]).tolist():
            raise module.torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids, offsets, rows)
    module.PackedEngine._forward = poisoned

PATCHES = {{{{
    "pipeline.read.jsonl": poison_reader,
    "pipeline.tokenize.fast": poison_tokenizer,
    "pipeline.embed.engine": poison_engine,
    "pipeline.embed.packed": poison_memory,
}}}}

class Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            PATCHES[name](module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder)
"""


def poison(folder: Path) -> dict[str, str]:
    """Environment variables that poison every Python process started with them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(CODE.format(folder=str(folder)))
    path = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(entry for entry in path if entry)}


def n_deaths(folder: Path) -> int:
    deaths = folder / "deaths"
    return len(deaths.read_text().splitlines()) if deaths.exists() else 0
