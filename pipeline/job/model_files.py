"""Which files of a model directory can change a vector, and their hashes: what the fingerprint and
the planned run hold on to.

In: a directory. Out: relative POSIX path → SHA-256. Cost: one pass over the weights (about 1 GB/s a
core).
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

__all__ = ["OTHER_BACKENDS", "SUFFIXES", "hashes", "is_wanted"]

SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".spm", ".vocab", ".bpe", ".jinja"}
OTHER_BACKENDS = {"onnx", "openvino"}
_NOT_IN_A_VECTOR = {
    "all_results.json",
    "data_config.json",
    "eval_results.json",
    "generation_config.json",
    "trainer_state.json",
    "train_results.json",
    "requirements.txt",
    "license.txt",
}


def is_wanted(name: str) -> bool:
    """Can this file (relative POSIX path) change a vector? Unknown JSON counts: a re-embed too many
    beats a stale one."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return (
        path.suffix in SUFFIXES
        and not hidden
        and not OTHER_BACKENDS & set(path.parts)
        and path.name.lower() not in _NOT_IN_A_VECTOR
    )


def hashes(path: Path) -> dict[str, str]:
    hashes = {}
    for name in sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()):
        if is_wanted(name):
            with (path / name).open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
