"""What an hour of a device costs, from a table that its user can replace.

In: the name of a device. Out: dollars an hour. The table is prices.yaml beside this file, or the
file that CORPUS_EMBED_PRICES names. Cost: one small file, read once.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from pipeline.errors import SpecError
from pipeline.storage.closed_yaml import YamlMistake, load_yaml

CPU_CORE = "cpu core"
"""The name under which the table has one CPU core."""

VARIABLE = "CORPUS_EMBED_PRICES"


def price_per_hour(device_name: str) -> float | None:
    """Dollars an hour of one device; None where the table has no price for it. Raises SpecError
    for a table that cannot be read."""
    table = _table(os.environ.get(VARIABLE) or str(Path(__file__).with_name("prices.yaml")))
    name = device_name.lower()
    return next((price for key, price in table.items() if key.lower() in name), None)


@functools.cache
def _table(path: str) -> dict[str, float]:
    try:
        fields = load_yaml(Path(path).read_bytes())
    except (OSError, YamlMistake) as error:
        raise SpecError(f"{path}: the prices cannot be read: {error}") from error
    if not isinstance(fields, dict) or not all(
        isinstance(price, int | float) and price >= 0 for price in fields.values()
    ):
        raise SpecError(
            f"{path}: prices are a mapping of names of devices to dollars an hour, for instance "
            "H100: 6.0"
        )
    return {str(key): float(price) for key, price in fields.items()}
