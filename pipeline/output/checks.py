"""What must be true of any set of parts before a snapshot may name it: the last check before a
commit.

In: manifests. Out: nothing, or the error that keeps a wrong snapshot from being made. Cost: a pass
over the manifests.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection

from pipeline.errors import OutputError
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest, by_split, is_complete


def check_parts(parts: Collection[Manifest], fingerprint: str, complete: bool) -> None:
    """The invariants of every commit. Raises OutputError naming the part or shard that breaks one.

    Each part counts up and belongs to the generation, no record of a shard belongs to two splits,
    and in a complete snapshot every split has all its parts.
    """
    ids = Counter(part.part_id for part in parts)
    for part in parts:
        rows = sum(file.n_rows for file in part.data_files)
        if (
            ids[part.part_id] > 1
            or part.n_records != part.n_documents + part.n_rejects
            or part.n_rows != rows
            or part.fingerprint != fingerprint
        ):
            raise OutputError(
                f"part {part.part_id} of fingerprint {part.fingerprint}: {part.n_records} records, {part.n_documents} "
                f"documents, {part.n_rejects} rejects, {part.n_rows} rows, {rows} rows in its files, listed "
                f"{ids[part.part_id]} times. The output is damaged: do not use it; run `corpus-embed verify`."
            )
    splits = by_split(parts)
    for split_id, found in splits.items():
        if complete and not is_complete(found):
            have = [part.index for part in found]
            raise OutputError(
                f"split {split_id}: a complete snapshot was asked for with only its parts {have}"
            )
    spans = sorted(
        (span.shard.uri, *span.interval)
        for found in splits.values()
        for span in found[0].split.spans
    )
    for (uri, start, stop), (next_uri, next_start, _) in itertools.pairwise(spans):
        if uri == next_uri and next_start < stop:
            raise OutputError(
                f"{shown(uri)}: two splits hold the records from position {next_start} on ({start} to {stop} is one "
                "of them), which would double them. This is a bug: report it with the output's metadata."
            )
