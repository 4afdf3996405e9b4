"""Which formats of an input have texts that the fingerprint must say more about: WARC records that
can be pages of HTML (WET has plain text), and CSV, which 0.1.0 read in another way. Cost: none
where the names of the input tell, and else a listing of it, which a plan then takes."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.job.input_spec import InputSpec
from pipeline.read import EXTENSIONS, format_of
from pipeline.read.compression import without_compression_suffix
from pipeline.read.input.shards import Listing


def text_formats(spec: InputSpec, listing: Listing) -> frozenset[str]:
    """Of "pages" and "csv", those that the input holds. listing: of this input, which is made only
    if the names in the spec do not tell. Raises what `list_shards` raises."""
    if spec.format not in ("auto", "warc", "csv"):
        return frozenset()
    if spec.format == "csv":
        return frozenset({"csv"})
    names = [uri.rstrip("/").rpartition("/")[2].lower() for uri in spec.uri]
    if all(without_compression_suffix(name).endswith(tuple(EXTENSIONS)) for name in names):
        return _formats(names, spec.format)
    return _formats([shard.uri.lower() for shard in listing.shards], spec.format)


def _formats(names: Iterable[str], format: str) -> frozenset[str]:
    formats = {
        "pages" if kind == "warc" else kind
        for name in names
        if (kind := format_of(name, format)) == "csv" or (kind == "warc" and ".wet" not in name)
    }
    return frozenset(formats)
