"""How many bytes the data files of a snapshot take, by the precision of the vectors.

In: rows, dimensions, and the bytes of a row without its vector, which a sample measured. Out: bytes
by precision. Method: the shares of raw float32 that docs/design.md reports. Cost: none.
"""

from __future__ import annotations

__all__ = ["SHARES", "output_bytes"]

SHARES = {"float32": 0.845, "float16": 0.44, "bfloat16": 0.345, "int8": 0.25, "ubinary": 1 / 32}
"""Precision -> bytes in a file, as a share of four bytes a number. int8 and ubinary do not become
smaller by compression."""

_SCALE_BYTES = 4
"""int8 has a float32 for each row beside its vector."""


def output_bytes(rows: float, dimension: int, row_bytes: float) -> dict[str, int]:
    """row_bytes: of a row without its vector."""
    return {
        precision: round(
            rows
            * (4 * dimension * share + row_bytes + (_SCALE_BYTES if precision == "int8" else 0))
        )
        for precision, share in SHARES.items()
    }
