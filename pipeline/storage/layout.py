"""Where every object of an output lies. Each path is made here, and recognised here, and nowhere else.

    data/<column>=<value>/…/part-<part_id>.parquet      rows and vectors of one part
    _meta/manifests/<fingerprint>/<part_id>.json        the receipt of a finished part
    _meta/rejects/<run_id>/part-<part_id>.parquet       its rejected records
    _meta/snapshots/<number>.json                       one version of the output
    _meta/files/<sha256>.parquet                        the live parts that a snapshot names
    _meta/generations/<fingerprint>.json                what all data of one fingerprint shares
    _meta/runs/<run_id>/…                               spec, plan and records of a run
    _meta/index/<fingerprint>/<name>.arrow and .json    texts that have a vector
    _meta/leases/<number>/…                             which refresh is under way
    _meta/publications, _meta/iceberg                   tables of other catalogs
    _meta/probes, _meta/tmp                             short-lived objects

Paths are relative to the output's root and use "/". The format of each object is in docs/output-format.md.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote

META = "_meta"
DATA = "data"
SNAPSHOTS = f"{META}/snapshots"
LEASES = f"{META}/leases"
PUBLICATIONS = f"{META}/publications"
ICEBERG = f"{META}/iceberg"
STAGING = f"{META}/tmp"
_MANIFESTS = f"{META}/manifests"
_REJECTS = f"{META}/rejects"
_FILE_LISTS = f"{META}/files"
_GENERATIONS = f"{META}/generations"
_RUNS = f"{META}/runs"
_INDEX = f"{META}/index"
_PROBES = f"{META}/probes"

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
MAX_PARTITION_STEP = 255
"""Most bytes of one `name=value` folder: what local file systems allow for a name."""


class Location(NamedTuple):
    """What a path says about its object. `kind` is a key of KINDS; the other fields are None where it has none."""

    kind: str
    fingerprint: str | None = None
    part_id: str | None = None
    run_id: str | None = None
    number: int | None = None
    name: str | None = None


KINDS = {
    "manifest": rf"{_MANIFESTS}/(?P<fingerprint>[0-9a-f]+)/(?P<part_id>[0-9a-f]+)\.json",
    "data": rf"{DATA}/(?:[^/]+/)*part-(?P<part_id>[0-9a-f]+)\.parquet",
    "rejects": rf"{_REJECTS}/(?P<run_id>[0-9a-f]+)/part-(?P<part_id>[0-9a-f]+)\.parquet",
    "snapshot": rf"{SNAPSHOTS}/(?P<number>\d{{20}})\.json",
    "file list": rf"{_FILE_LISTS}/(?P<name>[0-9a-f]{{64}})\.parquet",
    "index": rf"{_INDEX}/(?P<fingerprint>[0-9a-f]+)/(?P<name>[0-9a-f]+)\.(?:arrow|json)",
    "generation": rf"{_GENERATIONS}/(?P<fingerprint>[0-9a-f]+)\.json",
    "run record": rf"{_RUNS}/(?P<run_id>[0-9a-f]+)/(?P<name>.+)",
    "lease": rf"{LEASES}/(?P<number>\d{{20}})/(?P<name>[^/]+)",
    "probe": rf"{_PROBES}/(?P<name>[0-9a-f]+)",
    "temporary": rf"{STAGING}/(?P<name>[^/]+)",
}
"""Patterns of the names that this package gives, by kind, in the order in which vacuum deletes them."""

_PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}


def locate(path: str) -> Location | None:
    """What a relative path is, or None for a name that this package does not give."""
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(path):
            fields = match.groupdict()
            number = fields.pop("number", None)
            return Location(kind, number=None if number is None else int(number), **fields)
    return None


def data_file(folder: str, part_id: str) -> str:
    """folder: the Hive folders of a partition, "" without partitions."""
    return "/".join(step for step in (DATA, folder, f"part-{part_id}.parquet") if step)


def partition_folder(path: str) -> str:
    """The Hive folders of a data file: the `folder` that `data_file` made its path from."""
    return path.rpartition("/")[0].removeprefix(DATA).removeprefix("/")


def manifests(fingerprint: str) -> str:
    """The folder of all manifests under one fingerprint."""
    return f"{_MANIFESTS}/{fingerprint}"


def manifest(fingerprint: str, part_id: str) -> str:
    return f"{manifests(fingerprint)}/{part_id}.json"


def all_manifests() -> str:
    """The folder above `manifests` of every fingerprint."""
    return _MANIFESTS


def rejects(run_id: str, part_id: str) -> str:
    return f"{_REJECTS}/{run_id}/part-{part_id}.parquet"


def all_rejects() -> str:
    """The folder of all rejects, for people."""
    return _REJECTS


def beside(path: str, part_id: str, suffix: str) -> str:
    """The path of another object of the same part, told from `path` by a hexadecimal suffix of the part's id."""
    return path.replace(f"part-{part_id}.", f"part-{part_id}{suffix}.")


def snapshot(number: int) -> str:
    return f"{SNAPSHOTS}/{number:020d}.json"


def file_list(digest: str) -> str:
    """digest: 64 hexadecimal digits, a hash of what the list names."""
    return f"{_FILE_LISTS}/{digest}.parquet"


def generation(fingerprint: str) -> str:
    return f"{_GENERATIONS}/{fingerprint}.json"


def run_spec(run_id: str) -> str:
    return f"{_RUNS}/{run_id}/spec.yaml"


def run_plan(run_id: str) -> str:
    return f"{_RUNS}/{run_id}/plan.parquet"


def run_attempt(run_id: str, number: int) -> str:
    return f"{_RUNS}/{run_id}/attempt-{number:04d}.json"


def is_attempt(location: Location) -> bool:
    """Whether a location of kind "run record" is the record of an attempt."""
    return location.kind == "run record" and (location.name or "").startswith("attempt-")


def index(fingerprint: str) -> str:
    """The folder of the index of texts under one fingerprint."""
    return f"{_INDEX}/{fingerprint}"


def index_segment(fingerprint: str, name: str, suffix: str) -> str:
    """suffix: "arrow" for the entries, "json" for what they cover."""
    return f"{index(fingerprint)}/{name}.{suffix}"


def lease(number: int, name: str = "") -> str:
    """The folder of a lease, or one object in it."""
    return f"{LEASES}/{number:020d}" + (f"/{name}" if name else "")


def publication(kind: str, digest: str) -> str:
    return f"{PUBLICATIONS}/{kind}-{digest}.json"


def probe(nonce: str) -> str:
    return f"{_PROBES}/{nonce}"


def partition_step(name: str, value: str | None) -> str:
    """One Hive folder `name=value`, percent-encoded, so that no value can leave the folder above it."""
    escaped = NULL_PARTITION if value is None else _quoted(value)
    if value == NULL_PARTITION:
        escaped = "%5F" + NULL_PARTITION[1:]
    return f"{_quoted(name)}={escaped}"


def _quoted(text: str) -> str:
    """Percent-encoded, except for printable characters outside ASCII: Spark 4.3 decodes %E6%BC%A2 into three characters."""
    return "".join(
        char if char > "\x7f" and char.isprintable() else quote(char, safe="") for char in text
    )
