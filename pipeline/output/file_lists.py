"""The immutable list of live parts that a snapshot names.

Manifests come in; a Parquet table with one row for each part comes out, under a path from their
content, so that the same content has one list. `pipeline/output/snapshots.py` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.storage import layout
from pipeline.storage.lineage import Manifest, content_hash


def file_list(parts: Sequence[Manifest]) -> tuple[str, pa.Table]:
    """The immutable list of live parts that a snapshot names, as (path, table with one row for each
    part).

    The path is `file_list_path`. The column `paths` is for engines that read a list of files.
    """
    paths = [[file.path for file in part.data_files] for part in parts]
    table = pa.table(
        {
            "part_id": pa.array([part.part_id for part in parts], pa.string()),
            "paths": pa.array(paths, pa.list_(pa.string())),
            "n_rows": pa.array([part.n_rows for part in parts], pa.int64()),
            "manifest": pa.array([part.model_dump_json() for part in parts], pa.string()),
        }
    )
    return file_list_path(parts), table


def file_list_path(parts: Sequence[Manifest], *, with_siblings: bool = True) -> str:
    """The path of the list of some parts: a hash of their ids, of the SHA-256 of their files, and
    of the paths of files that do not have the first name of their part, since a file that was
    damaged is made again with the same bytes under a sibling name.

    with_siblings: False gives the path in outputs of releases before 2026-11-26, which hashed no
    path.
    """
    content: list[list[Any]] = []
    for part in parts:
        content.append([part.part_id, [file.sha256 for file in part.data_files]])
        paths = [file.path for file in part.data_files]
        siblings = [path for path in paths if not path.endswith(f"/part-{part.part_id}.parquet")]
        if siblings and with_siblings:
            content[-1].append(siblings)
    return layout.file_list(content_hash(content, 64))
