"""The names of datasets: URIs in, namespace and name by OpenLineage's naming rules out.

    s3://bucket/a/b.jsonl ─► s3://bucket, a/b.jsonl
    /data/in/*.jsonl      ─► file, /data/in

A pattern stands for the folder above its first wildcard, since a dataset is a place and not a
selection. Source: https://openlineage.io/docs/spec/naming.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pipeline.storage.addresses import normalized, shown
from pipeline.storage.lineage import Shard

_WILDCARD = re.compile(r"[*?\[]")


class Place(NamedTuple):
    """A dataset by its names."""

    namespace: str
    name: str

    def holds(self, other: Place) -> bool:
        """Whether another place is this one or below it."""
        below = other.name == self.name or other.name.startswith(f"{self.name.rstrip('/')}/")
        return self.namespace == other.namespace and (below or self.name == "/")


def place_of(uri: str) -> Place:
    """The dataset that a URI or path names, without password and query."""
    protocol, mark, rest = normalized(uri).partition("://")
    if not mark:
        return Place("file", protocol)
    user, at, _ = rest.partition("/")[0].rpartition("@")
    # abfss://container@account names a place, and a password always stands behind a colon
    is_named = at and ":" not in user and protocol not in ("http", "https")
    host, _, key = shown(f"{protocol}://{rest}").partition("://")[2].partition("/")
    name = key.strip("/") or "/"
    if protocol in ("hdfs", "webhdfs") and name != "/":
        name = f"/{name}"
    return Place(f"{protocol}://{user}@{host}" if is_named else f"{protocol}://{host}", name)


def folder_of(uri: str) -> str:
    """A pattern's folder above its first wildcard; any other URI as it is."""
    match = _WILDCARD.search(uri)
    return uri if match is None else uri[: match.start()].rpartition("/")[0]


def input_places(uris: Iterable[str]) -> list[Place]:
    """The datasets that the URIs of an input name, each once, in their order."""
    return list(dict.fromkeys(place_of(folder_of(uri)) for uri in uris))


def by_place(places: Iterable[Place], shards: Iterable[Shard]) -> dict[Place, list[Shard]]:
    """The shards of each dataset; one that lies in two of them belongs to the first."""
    held: dict[Place, list[Shard]] = {place: [] for place in places}
    for shard in shards:
        place = place_of(shard.uri)
        home = next((home for home in held if home.holds(place)), None)
        if home is not None:
            held[home].append(shard)
    return held
