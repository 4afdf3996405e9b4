"""Where every object of an output lies: each path is made and recognised here, and nowhere else.

    data/<column>=<value>/…/part-<part_id>.parquet      rows and vectors of one part
    _meta/manifests/<fingerprint>/<part_id>.json        the receipt of a finished part
    _meta/rejects/<run_id>/part-<part_id>.parquet       its rejected records
    _meta/snapshots/<number>.json                       one version of the output
    _meta/files/<sha256>.parquet                        the live parts that a snapshot names
    _meta/current/manifest                              the newest snapshot's data files, as URIs
    _meta/generations/<fingerprint>.json                what all data of one fingerprint shares
    _meta/runs/<run_id>/…                               spec, plan and records of a run
    _meta/index/<fingerprint>/<name>.arrow and .json    texts that have a vector
    _meta/ids/<fingerprint>/<name>.parquet              hashes of document ids
    _meta/leases/<number>/…                             the refresh that is under way
    _meta/work/<activity>-<fingerprint>-<nonce>-<beat>  who works on the output now
    _meta/live/<run_id>-<nonce>-<number>.json           how far a run has come that works now
    _meta/publications/, _meta/iceberg/                 tables that snapshots are published to
    _meta/tables/<key>/<number>.json                    what a table shows, as last seen
    _meta/probes/, _meta/tmp/                           short-lived objects
    README.md, croissant.json                           what the newest snapshot is, for people

Paths are relative to the output's root and use "/". Formats are in docs/output-format.md.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

META = "_meta"
MANIFESTS = "_meta/manifests"
REJECTS = "_meta/rejects"
DATA = "data"
SNAPSHOTS = "_meta/snapshots"
LEASES = "_meta/leases"
WORK = "_meta/work"
LIVE = "_meta/live"
PUBLICATIONS = "_meta/publications"
ICEBERG = "_meta/iceberg"
DELTA_LOG = "_delta_log"
CARD = "README.md"
CROISSANT = "croissant.json"
_TABLES = "_meta/tables"
STAGING = "_meta/tmp"
_FILE_LISTS = "_meta/files"
CURRENT = "_meta/current/manifest"
"""The one object that is replaced: the file list for readers that cannot open a snapshot, alone in
its folder, as the symlink manifests of Presto, Trino and Athena are."""
_GENERATIONS = "_meta/generations"
RUNS = "_meta/runs"
_INDEX = "_meta/index"
_IDS = "_meta/ids"
_PROBES = "_meta/probes"

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""The value in a Hive folder's name that stands for null."""

MAX_PARTITION_STEP = 255
"""The longest name of a `name=value` folder, in bytes: the limit of local file systems."""


class Location(NamedTuple):
    """The facts in a path; None for those that it does not hold. kind: a key of KINDS."""

    kind: str
    fingerprint: str | None = None
    part_id: str | None = None
    run_id: str | None = None
    number: int | None = None
    name: str | None = None

    @property
    def is_attempt(self) -> bool:
        """Whether the object is the record of one attempt at a run."""
        return self.kind == "run record" and (self.name or "").startswith("attempt-")


_RUN_NAMES = r"spec\.yaml|plan\.parquet|attempt-\d{4,}\.json"
_LEASE_NAMES = r"holder\.json|beat-\d+|released"

KINDS = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "manifest": rf"{MANIFESTS}/(?P<fingerprint>[0-9a-f]+)/(?P<part_id>[0-9a-f]+)\.json",
        "data": rf"{DATA}/(?:[^/]+=[^/]*/)*part-(?P<part_id>[0-9a-f]+)\.parquet",
        "rejects": rf"{REJECTS}/(?P<run_id>[0-9a-f]+)/part-(?P<part_id>[0-9a-f]+)\.parquet",
        "snapshot": rf"{SNAPSHOTS}/(?P<number>\d{{20}})\.json",
        "file list": rf"{_FILE_LISTS}/(?P<name>[0-9a-f]{{64}})\.parquet",
        "current list": re.escape(CURRENT),
        "index": rf"{_INDEX}/(?P<fingerprint>[0-9a-f]+)/(?P<name>[0-9a-f]+)\.(?:arrow|json)",
        "ids": rf"{_IDS}/(?P<fingerprint>[0-9a-f]+)/(?P<name>[0-9a-f]+)\.parquet",
        "generation": rf"{_GENERATIONS}/(?P<fingerprint>[0-9a-f]+)\.json",
        "run record": rf"{RUNS}/(?P<run_id>[0-9a-f]+)/(?P<name>{_RUN_NAMES})",
        "lease": rf"{LEASES}/(?P<number>\d{{20}})/(?P<name>{_LEASE_NAMES})",
        "table": rf"{_TABLES}/(?P<name>[a-z]+-[0-9a-f]+)/(?P<number>\d{{20}})\.json",
        "work": rf"{WORK}/(?P<name>[a-z]+)-(?P<fingerprint>[0-9a-f]*)-[0-9a-f]+-\d+",
        "live record": rf"{LIVE}/(?P<run_id>[0-9a-f]+)-[0-9a-f]+-(?P<number>\d+)\.json",
        "probe": rf"{_PROBES}/(?P<name>[0-9a-f]+)(?:-[^/]+)?",
        "temporary": rf"{STAGING}/(?P<name>tmp[0-9a-z_]+)",
    }.items()
}
"""The pattern of each kind of name that this package gives."""


def locate(path: str) -> Location | None:
    """The facts in a relative path, or None for a name that this package does not give."""
    for kind, pattern in KINDS.items():
        if match := pattern.fullmatch(path):
            fields = match.groupdict()
            number = fields.pop("number", None)
            return Location(kind, number=None if number is None else int(number), **fields)
    return None


def is_at(path: str, kind: str) -> bool:
    """Whether a path that a record names is one of a kind, and stays inside the output."""
    match = KINDS[kind].fullmatch(path)
    return match is not None and not {".", ".."} & {*path.split("/")} and path.isprintable()


def data_file(folder: str, part_id: str) -> str:
    """folder: the Hive folders of the file's partition, "" without partitions."""
    return "/".join(step for step in (DATA, folder, f"part-{part_id}.parquet") if step)


def partition_folder(path: str) -> str:
    """The Hive folders of a data file: the `folder` that `data_file` made its path from."""
    return path.rpartition("/")[0].removeprefix(DATA).removeprefix("/")


def partition_step(name: str, value: str | None) -> str:
    """One Hive folder `name=value`, percent-encoded: no value can leave the folder above it."""
    escaped = NULL_PARTITION if value is None else _quoted(value)
    if value == NULL_PARTITION:
        escaped = "%5F" + NULL_PARTITION[1:]
    return f"{_quoted(name)}={escaped}"


def partition_values(path: str) -> dict[str, str | None]:
    """The value of each Hive folder `name=value` on the way to a file, in any folder, whoever wrote
    it. Of a name that occurs twice, the value nearest to the file."""
    values: dict[str, str | None] = {}
    for step in path.split("/")[:-1]:
        name, mark, value = step.partition("=")
        if mark and name:
            values[unquote(name)] = None if value == NULL_PARTITION else unquote(value)
    return values


def _quoted(text: str) -> str:
    """Percent-encoded, except for printable characters outside ASCII: Spark 4.3 decodes %E6%BC%A2
    into three characters."""
    return "".join(
        char if char > "\x7f" and char.isprintable() else quote(char, safe="") for char in text
    )


def rejects(run_id: str, part_id: str) -> str:
    return f"{REJECTS}/{run_id}/part-{part_id}.parquet"


def sibling(path: str, part_id: str, suffix: str) -> str:
    """The path of another data file or file of rejects for the same part. suffix: hexadecimal
    digits that are appended to the part's id."""
    return path.replace(f"part-{part_id}.", f"part-{part_id}{suffix}.")


def manifests(fingerprint: str) -> str:
    return f"{MANIFESTS}/{fingerprint}"


def manifest(fingerprint: str, part_id: str) -> str:
    return f"{manifests(fingerprint)}/{part_id}.json"


def snapshot(number: int) -> str:
    return f"{SNAPSHOTS}/{number:020d}.json"


def file_list(digest: str) -> str:
    """digest: 64 hexadecimal digits, a hash of what the list names."""
    return f"{_FILE_LISTS}/{digest}.parquet"


def generation(fingerprint: str) -> str:
    return f"{_GENERATIONS}/{fingerprint}.json"


def run_spec(run_id: str) -> str:
    return f"{RUNS}/{run_id}/spec.yaml"


def run_plan(run_id: str) -> str:
    return f"{RUNS}/{run_id}/plan.parquet"


def run_attempt(run_id: str, number: int) -> str:
    return f"{RUNS}/{run_id}/attempt-{number:04d}.json"


def index(fingerprint: str) -> str:
    """The folder of the index of texts under one fingerprint."""
    return f"{_INDEX}/{fingerprint}"


def index_segment(fingerprint: str, name: str, suffix: str) -> str:
    """suffix: "arrow" for the entries, "json" for the record of what they cover."""
    return f"{index(fingerprint)}/{name}.{suffix}"


def ids(fingerprint: str) -> str:
    """The folder of the hashes of document ids under one fingerprint."""
    return f"{_IDS}/{fingerprint}"


def ids_segment(fingerprint: str, name: str) -> str:
    return f"{ids(fingerprint)}/{name}.parquet"


def lease(number: int, name: str = "") -> str:
    """One object of a lease; without a name, the lease's folder."""
    return f"{LEASES}/{number:020d}/{name}".rstrip("/")


def work(mark: str, beat: int) -> str:
    """One sign of life. mark: `<activity>-<fingerprint>-<nonce>`; some have no fingerprint."""
    return f"{WORK}/{mark}-{beat}"


def live_record(run_id: str, nonce: str, number: int) -> str:
    return f"{LIVE}/{run_id}-{nonce}-{number}.json"


def publication(kind: str, digest: str) -> str:
    """kind: "iceberg" or "delta". digest: a hash of the record."""
    return f"{PUBLICATIONS}/{kind}-{digest}.json"


def table_states(key: str) -> str:
    """The folder of what was seen of one table. key: its publication, without folder and suffix."""
    return f"{_TABLES}/{key}"


def table_state(key: str, number: int) -> str:
    return f"{table_states(key)}/{number:020d}.json"


def probe(nonce: str, step: str = "") -> str:
    """nonce: hexadecimal digits. step: a `partition_step` of which the name is tried."""
    return f"{_PROBES}/{nonce}{step and '-' + step}"
