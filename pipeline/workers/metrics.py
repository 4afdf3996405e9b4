"""What one finished part adds to the figures of a run. Every figure comes from a manifest, so a run
counts exactly what is already safe."""

from __future__ import annotations

from pipeline.storage.lineage import Manifest

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


def increments(manifest: Manifest) -> dict[str, float]:
    """What one finished part adds to the totals: counts, stage seconds (`seconds.embed` …) and
    `parts`."""
    amounts: dict[str, float] = {name: getattr(manifest, name) for name in _SUMMED}
    amounts |= {f"seconds.{stage}": seconds for stage, seconds in manifest.seconds.items()}
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
