"""Whether a job reads WARC records that can be pages of HTML: their text is made by software that
belongs in the fingerprint. WET has plain text. Cost: none where the names of the input tell, and
else a listing."""

from __future__ import annotations

from pipeline.job.input_spec import InputSpec
from pipeline.read import EXTENSIONS, format_of
from pipeline.read.compression import without_compression_suffix
from pipeline.read.shards import list_shards


def reads_pages(spec: InputSpec) -> bool:
    """Raises what `list_shards` raises."""
    if spec.format not in ("auto", "warc"):
        return False
    names = [uri.rstrip("/").rpartition("/")[2].lower() for uri in spec.uri]
    if any(".warc" in name and ".wet" not in name for name in names):
        return True
    if all(without_compression_suffix(name).endswith(tuple(EXTENSIONS)) for name in names):
        return False
    shards = list_shards(spec.uri, spec.storage_options, spec.format)
    return any(
        format_of(shard.uri, spec.format) == "warc" and ".wet" not in shard.uri.lower()
        for shard in shards
    )
