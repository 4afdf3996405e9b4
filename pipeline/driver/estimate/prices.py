"""What an hour of a device costs and what the device can do, from a table that its user can
replace.

In: the name of a device. Out: a `Device`. The table is prices.yaml beside this file, or the file
that CORPUS_EMBED_PRICES names. Cost: one small file, read once.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import pydantic

from pipeline.errors import SpecError
from pipeline.job.field_types import Section
from pipeline.job.spec_mistakes import explain_all
from pipeline.storage.closed_yaml import YamlMistake, load_yaml

__all__ = [
    "CPU_CORE",
    "VARIABLE",
    "Device",
    "device_named",
    "devices",
    "price_per_hour",
    "prices_from",
]

CPU_CORE = "cpu core"
"""The name under which the table has one CPU core."""

VARIABLE = "CORPUS_EMBED_PRICES"

_Amount = Annotated[float, pydantic.Field(ge=0)]


class Device(Section):
    """One device. Prices are of an hour; `peak_tflops` by dtype, dense."""

    price_per_hour: _Amount
    currency: str = "USD"
    source: str = ""
    as_of: str = ""
    memory_gib: _Amount | None = None
    peak_tflops: dict[str, _Amount] = {}  # noqa: RUF012 - pydantic copies it


def devices() -> Mapping[str, Device]:
    """The table, by name. Raises SpecError for one that cannot be read."""
    return _table(os.environ.get(VARIABLE) or str(Path(__file__).with_name("prices.yaml")))


def device_named(device_name: str) -> tuple[str, Device] | None:
    """(name in the table, entry) of a device; None where the table has none for it."""
    name = device_name.lower()
    return next(((key, device) for key, device in devices().items() if key.lower() in name), None)


def price_per_hour(device_name: str) -> float | None:
    """What an hour of a device costs; None where the table does not have it. Raises SpecError for a
    table that cannot be read."""
    entry = device_named(device_name)
    return entry[1].price_per_hour if entry else None


@contextlib.contextmanager
def prices_from(path: str | None) -> Iterator[None]:
    """The table at `path` is the one that counts while the block runs; None changes nothing."""
    before = os.environ.get(VARIABLE)
    if path is not None:
        os.environ[VARIABLE] = path
    try:
        yield
    finally:
        if path is not None:
            os.environ.pop(VARIABLE)
            os.environ.update({VARIABLE: before} if before is not None else {})


@functools.cache
def _table(path: str) -> dict[str, Device]:
    try:
        fields = load_yaml(Path(path).expanduser().read_bytes())
    except (OSError, YamlMistake) as error:
        raise SpecError(f"{path}: the prices cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise SpecError(f"{path}: {_EXPECTED}")
    return {str(name): _device(path, str(name), entry) for name, entry in fields.items()}


_EXPECTED = (
    "prices are a mapping of names of devices to entries, for instance "
    "H100: {price_per_hour: 6.0, currency: USD}"
)


def _device(path: str, name: str, entry: object) -> Device:
    if not isinstance(entry, dict):
        raise SpecError(f"{path}: {name}: found {entry!r}; {_EXPECTED}")
    try:
        return Device.model_validate(entry)
    except pydantic.ValidationError as error:
        mistakes = "; ".join(explain_all(error, Device))
        raise SpecError(f"{path}: {name}: {mistakes}") from None
