"""Which part of an identity decides the vector of a text, and whether stored vectors serve a job.

Comes in: the identity of a job, and that of a generation of an output. Goes out: the part of it
that vectors depend on: all but `input` and `text`, which decide which texts there are, and
`output`, which decides how rows are stored; each row has a hash of its text, by which its vector is
found again.
What this release does not know counts as deciding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DECIDES_ROWS = {"input", "text", "output"}


def vector_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the vector of a given text: the model, its settings and software, and how texts
    are prepared."""
    return {name: value for name, value in identity.items() if name not in _DECIDES_ROWS}


def has_same_vectors(stored: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether two identities give a text the same float32 vector, before it is rounded."""
    return vector_identity(stored) == vector_identity(identity)


def serves(stored_precision: str, precision: str) -> bool:
    """Whether vectors stored with one `output.vector_precision` give exactly what another one
    would store. A rounded vector that is rounded once more is not that."""
    return stored_precision in ("float32", precision)
