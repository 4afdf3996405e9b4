"""What one part adds to the figures of a run: once it is finished, from its manifest, so that a run
counts exactly what is already safe; before that, by how far its embedder has come."""

from __future__ import annotations

import pyarrow.compute as pc

from pipeline.storage.lineage import Manifest
from pipeline.workers.finished import FinishedPart
from pipeline.workers.steps import PreparedPart

_SUMMED = (
    "n_records",
    "n_documents",
    "n_rejects",
    "n_rows",
    "n_tokens",
    "n_embedded_tokens",
    "n_padded_tokens",
    "n_truncated",
    "n_embedded",
    "n_reused",
    "record_bytes",
    "n_oom_halvings",
)


def finished_part(manifest: Manifest, write_s: float) -> FinishedPart:
    amounts = {**increments(manifest), "seconds.write": write_s}
    split_id = manifest.split.split_id
    return FinishedPart(manifest.part_id, split_id, manifest.index, manifest.last, amounts)


def whole_part(part: PreparedPart) -> dict[str, float]:
    """What a part that is being embedded will have done at its end, as far as it is known."""
    last_document = pc.max(part.rows["document"]).as_py()
    n_texts = part.tokens.num_rows
    offsets = part.tokens["ids"].combine_chunks().offsets if n_texts else None
    return {
        "n_documents": 0 if last_document is None else last_document + 1,
        "n_embedded_tokens": (offsets[-1].as_py() - offsets[0].as_py()) if offsets else 0,
        "record_bytes": part.facts.record_bytes,
    }


def increments(manifest: Manifest) -> dict[str, float]:
    """What one finished part adds to the totals: counts, stage seconds (`seconds.embed` …), rejects
    by reason (`rejects.empty_text` …) and `parts`."""
    amounts: dict[str, float] = {name: getattr(manifest, name) for name in _SUMMED}
    amounts |= {f"seconds.{stage}": seconds for stage, seconds in manifest.seconds.items()}
    amounts |= {f"rejects.{reason}": number for reason, number in manifest.reject_reasons.items()}
    amounts["n_crashed_records"] = sum(
        manifest.reject_reasons.get(name, 0) for name in ("crashed_worker", "out_of_memory")
    )
    amounts["n_replaced"] = sum(source.n_replaced for source in manifest.sources)
    amounts["lost_bytes"] = lost_bytes(manifest)
    amounts["n_files"] = len(manifest.data_files)
    amounts["data_bytes"] = sum(file.size_bytes for file in manifest.data_files)
    amounts["parts"] = 1
    return amounts


def lost_bytes(manifest: Manifest) -> int:
    """Stored bytes of its shards that a part could not read."""
    return sum(source.lost_bytes for source in manifest.sources)
