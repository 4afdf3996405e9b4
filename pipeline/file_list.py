"""The immutable list of live parts that a snapshot names: what is in it, and the name that follows from it.

In: manifests. Out: `_meta/files/<hash>.parquet`, one row a part: its id, its data files (for engines that read a list of
paths), and the whole manifest. Cost: a few hundred bytes a part.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.lineage import Manifest, content_hash


def path_of(parts: Sequence[Manifest]) -> str:
    """The name of the list of some parts, in order: a hash of their ids and of the SHA-256 of their files."""
    content = [[part.part_id, [file.sha256 for file in part.data_files]] for part in parts]
    return f"_meta/files/{content_hash(content, 64)}.parquet"


def table_of(parts: Sequence[Manifest]) -> pa.Table:
    return pa.table({
        "part_id": pa.array([part.part_id for part in parts], pa.string()),
        "paths": pa.array([[file.path for file in part.data_files] for part in parts], pa.list_(pa.string())),
        "n_rows": pa.array([part.n_rows for part in parts], pa.int64()),
        "manifest": pa.array([part.model_dump_json() for part in parts], pa.string()),
    })  # fmt: skip
