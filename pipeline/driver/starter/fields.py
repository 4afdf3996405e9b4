"""The fields of unknown records: their names, values and types.

In: the first records of an input, as `read.peek` gives them. Out: a `Field` for each name.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Field:
    """What was seen of one name. n_records: how many records were looked at; values: those that are
    not null. kind: the type of a kept column that takes all of them ("string", "int64", …), "list"
    for lists of strings, "other" for what no column can hold."""

    name: str
    n_records: int
    values: Sequence[Any]
    kind: str

    @property
    def share(self) -> float:
        """Share of the records that have a value."""
        return len(self.values) / max(1, self.n_records)

    @property
    def texts(self) -> list[str]:
        return [as_text(value) for value in self.values]

    @property
    def n_distinct(self) -> int:
        return len(set(self.texts))

    @property
    def example(self) -> str:
        """The start of the first value, on one line."""
        line = " ".join(as_text(self.values[0])[:200].split()) if self.values else "null"
        return line if len(line) <= 60 else f"{line[:60]}…"

    def is_called(self, names: Sequence[str]) -> bool:
        last = self.name.rsplit(".", 1)[-1].lower()
        return self.name.lower() in names or last in names


def fields_of(records: Sequence[Mapping[str, Any]]) -> list[Field]:
    """One field for each name of the records, in the order in which they first occur."""
    names = dict.fromkeys(name for record in records for name in record)
    values = {
        name: [record[name] for record in records if record.get(name) is not None] for name in names
    }
    return [Field(name, len(records), values[name], _kind(values[name])) for name in names]


def as_text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(str(item) for item in value if item is not None)
    return str(value)


def _kind(values: Sequence[Any]) -> str:
    """The one type of a kept column that takes all values."""
    kinds = {_kind_of(value) for value in values}
    if kinds == {"int64", "float64"}:
        return "float64"
    return kinds.pop() if len(kinds) == 1 else "other"


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if abs(value) < 1 << 63 else "other"
    if isinstance(value, list):
        is_text = bool(value) and all(isinstance(item, str) for item in value)
        return "list" if is_text else "other"
    if isinstance(value, datetime.datetime):
        return "timestamp"
    kinds = {str: "string", float: "float64", datetime.date: "date"}
    return next((name for type_, name in kinds.items() if isinstance(value, type_)), "other")
