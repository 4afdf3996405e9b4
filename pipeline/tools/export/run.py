"""Export one snapshot to another format: `export`.

In: an output and a destination. Out: an `Export`, and files at the destination. The snapshot is
pinned, so a run that commits meanwhile changes nothing. An export that fails removes what it has
written. Cost: one read of the vectors; the target's module says what it holds in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import SpecError
from pipeline.output.run_folder import package_versions
from pipeline.tools.export.faiss import export_faiss
from pipeline.tools.export.lance import export_lance
from pipeline.tools.export.npy import export_npy
from pipeline.tools.export.place import Place
from pipeline.tools.export.rows import open_source

TARGETS = {"npy": "numpy", "faiss": "faiss", "lance": "lance"}
"""Targets, and the module that each needs."""
_PACKAGES = {"faiss": "faiss-cpu", "lance": "pylance"}


@dataclasses.dataclass(frozen=True)
class Export:
    """What was exported. facts: the content of `export.json`, or of Lance's metadata."""

    to: str
    destination: str
    snapshot: int
    n_rows: int
    facts: dict[str, Any]


def export(
    uri: str,
    destination: str,
    *,
    to: str,
    columns: Sequence[str] = (),
    index: str | None = None,
    snapshot: int | None = None,
    destination_options: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Export:
    """Write the vectors and keys of a snapshot (the newest by default) in another format.

    to: "npy", "faiss" or "lance". destination: a new folder on a disk or a store, with fsspec's
    `destination_options`. columns: what else goes along with doc_id and chunk. index: the kind of a
    FAISS index, see `export_faiss`. int8 is decoded to float32; bits stay packed. Raises SpecError
    when the destination is not free, the target or its library is unknown, or a column is not
    there; OutputError when there is no such snapshot or it is damaged; StorageError when the
    destination refuses.
    """
    if to not in TARGETS:
        raise SpecError(f"--to {to}: it takes one of {', '.join(TARGETS)}")
    if index is not None and to != "faiss":
        raise SpecError(f"--index {index}: only --to faiss has an index")
    _check_library(to)
    source = open_source(uri, columns, snapshot, storage_options)
    place = Place(destination, destination_options)
    if f"{place.uri}/".startswith(f"{source.store.uri}/"):
        raise SpecError(f"-o {place.shown_uri}: lies inside the output. Name a folder elsewhere.")
    place.check_is_free()
    facts: dict[str, Any] = {"format_version": 1, "to": to, "columns": list(source.columns)}
    facts |= source.provenance() | {
        "versions": {"corpus-embed": package_versions()["corpus-embed"]}
    }
    try:
        if to == "lance":
            facts |= export_lance(source, place)
        else:
            place.create()
            target = (
                export_npy(source, place) if to == "npy" else export_faiss(source, place, index)
            )
            facts |= target
            place.finish(facts)
    except BaseException:
        place.discard()
        raise
    return Export(to, place.shown_uri, source.snapshot.number, source.n_rows, facts)


def _check_library(to: str) -> None:
    try:
        __import__(TARGETS[to])
    except ImportError as error:
        raise SpecError(
            f"--to {to}: {error}. Install what it needs: pip install {_PACKAGES[to]}, or "
            f"pip install '.[{to}]' in a clone of this package."
        ) from error
