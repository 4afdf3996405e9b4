"""NumPy: `vectors.npy`, which `numpy.load(…, mmap_mode="r")` opens without reading it, and the
keys of its rows in `keys.parquet`.

Written from the first byte to the last, so that a store takes it as a disk does. Memory: a row
group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.tools.export.place import KEYS, Place
from pipeline.tools.export.rows import Source

VECTORS = "vectors.npy"


def export_npy(source: Source, place: Place) -> dict[str, Any]:
    """Write vectors (N, width), float32 or packed bits as uint8, and the keys, row by row alike."""
    header = {
        "descr": np.lib.format.dtype_to_descr(source.element),
        "fortran_order": False,
        "shape": (source.n_rows, source.width),
    }
    with (
        place.writing(VECTORS) as file,
        place.writing_table(KEYS, source.column_schema()) as keys,
    ):
        np.lib.format.write_array_header_2_0(file, header)
        for rows, vectors in source.batches():
            file.write(vectors.data.cast("B"))
            keys.write_table(pa.Table.from_batches([rows]).cast(source.column_schema()))
    return {"files": [VECTORS, KEYS], "dtype": str(source.element)}
