"""How fast workers embed: recorded by each run in the record of its attempt and in the cache of its
user, and read by later plans.

In: manifests, or records of earlier runs. Out: one `Rate` for each kind of device. Tokens of a
worker-second are what the model computed while a worker was embedding, so a rate holds however many
workers there are. Cost: one small file for each model, device and dtype.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.job.resolve import Job
from pipeline.output.run_folder import read_attempts
from pipeline.storage.caches import keep, usable_folders
from pipeline.storage.lineage import Manifest, Snapshot, content_hash
from pipeline.storage.store import Store

__all__ = ["Rate", "known_rates", "model_hash", "rates_of", "remember"]

_CACHE = "rates"


@dataclasses.dataclass(frozen=True)
class Rate:
    """The speed of one worker on one kind of device.

    tokens_per_s: embedded tokens of a worker-second. n_tokens: how many it was measured on. model:
    `model_hash`. source: "run" (what a run did), "measured" (by a plan, in a child process) or
    "calculated" (from the peak of the device). date: ISO 8601. overhead_s: how long the run took
    beyond the embedding of its workers; None where nobody knows.
    """

    device: str
    device_name: str
    dtype: str
    model: str
    tokens_per_s: float
    n_tokens: int
    source: str
    date: str
    overhead_s: float | None = None


def model_hash(job: Job) -> str:
    """What a rate holds for: the hash of the model's files, and how many dimensions do not
    matter."""
    return content_hash(job.identity["model"]["files"], 16)


def rates_of(parts: Iterable[Manifest], job: Job) -> list[Rate]:
    """The rates of finished parts, one for each kind of device; none where nothing was embedded."""
    tokens: dict[tuple[str, str, str], int] = defaultdict(int)
    seconds: dict[tuple[str, str, str], float] = defaultdict(float)
    for part in parts:
        engine = part.engine
        # parts of releases that recorded no name of the device
        key = (engine.get("device", ""), engine.get("device_name", ""), engine.get("dtype", ""))
        if all(key) and part.n_embedded_tokens and part.seconds.get("embed"):
            tokens[key] += part.n_embedded_tokens
            seconds[key] += part.seconds["embed"]
    return [
        Rate(*key, model_hash(job), round(tokens[key] / seconds[key], 1), tokens[key], "run", now())
        for key in sorted(tokens)
    ]


def now() -> str:
    """The date of a rate."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def remember(rates: Sequence[Rate]) -> None:
    """Keep rates for later plans of this user. A measured one does not take the place of one that a
    run recorded. A cache that cannot be written costs a note."""
    kept = {_key(rate): rate for rate in _remembered()}
    for rate in rates:
        earlier = kept.get(_key(rate))
        if earlier is None or rate.source == "run" or earlier.source != "run":
            keep(_CACHE, f"{_key(rate)}.json", json.dumps(dataclasses.asdict(rate)).encode())


def known_rates(job: Job, store: Store, head: Snapshot | None) -> list[Rate]:
    """The rates of this model and dtype that the runs of the head and this user recorded, one for
    each device: the newest run's, else what a plan measured."""
    rates = [*_remembered(), *(_recorded(store, head) if head else ())]
    fitting = [
        rate for rate in rates if (rate.model, rate.dtype) == (model_hash(job), job.engine.dtype)
    ]
    best = {
        rate.device_name: rate
        for rate in sorted(fitting, key=lambda rate: (rate.source == "run", rate.date))
    }
    return list(best.values())


def _key(rate: Rate) -> str:
    return content_hash([rate.model, rate.device_name, rate.dtype], 32)


def _remembered() -> Iterator[Rate]:
    for folder in usable_folders(_CACHE):
        with contextlib.suppress(OSError):
            for path in sorted(folder.glob("*.json")):
                with contextlib.suppress(OSError, ValueError):
                    yield from _rates_in([json.loads(path.read_bytes())])


def _recorded(store: Store, head: Snapshot) -> Iterator[Rate]:
    for record in read_attempts(store, head.run_id):
        yield from _rates_in(record.get("rates") or [])


def _rates_in(records: Any) -> Iterator[Rate]:
    """The rates of records that somebody may have edited: others are left out."""
    for record in records if isinstance(records, list) else []:
        if isinstance(record, Mapping) and _is_rate(record):
            yield Rate(**record)


def _is_rate(record: Mapping[str, Any]) -> bool:
    number = (int, float)
    kinds: dict[str, Any] = {"str": str, "int": int, "float": number}
    kinds["float | None"] = (*number, type(None))
    fields = {field.name: kinds[str(field.type)] for field in dataclasses.fields(Rate)}
    required = fields.keys() - {"overhead_s"}
    return required <= record.keys() <= fields.keys() and all(
        isinstance(value, fields[name]) for name, value in record.items()
    )
