"""The base of everything that is stored as JSON under `_meta/`, and how it is read: closed and
bounded, since anybody who can write to the output can change it.

Bytes of an object come in; a record comes out whose keys are all known, whose values have their
types, and whose counts and names are what this package could have written. Whatever differs is one
sentence. Nothing is built from a nested value that the record has no field for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Self

import pydantic

from pipeline.errors import OutputError
from pipeline.storage.accepted import first_mistake
from pipeline.storage.printable import printable

FORMAT_VERSION = 1
"""The version of everything under `_meta/`. A reader refuses a newer one than its own."""

RESTORE = "Restore it from a backup."
MAX_SHOWN = 300
"""How many characters of a mistake are shown: it repeats what stands in the record."""

Count = Annotated[int, pydantic.Field(ge=0, lt=1 << 63)]
"""A number of things, or a position: what a column of 64 bits holds."""

_VERSION = re.compile(rb'"format_version":\s*(\d{1,9})[,\s}]')
_NAME = re.compile(r"[0-9A-Za-z-]{1,100}")


class StoredRecord(pydantic.BaseModel):
    """The base of everything that is stored as JSON: immutable, closed, equal by value."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """The content of the stored object, UTF-8."""
        return self.model_dump_json(indent=1).encode()

    def mistakes(self) -> Iterator[str]:
        """What no record of this package says, although its type allows it: names and paths that
        lead somewhere else. Only what is read from storage is asked."""
        yield from ()

    @classmethod
    def from_json(cls, data: bytes, path: str, remedy: str = RESTORE) -> Self:
        """Parse the object at `path`. Raises OutputError when it is broken, which ends with the
        `remedy`, or of a newer format."""
        try:
            record = cls.model_validate_json(data)
            problem = next(record.mistakes(), None)
            version = getattr(record, "format_version", 0)
        except ValueError as error:
            problem = _explained(error, cls)
            version = _version_of(data)
        if version > FORMAT_VERSION:
            raise OutputError(
                f"{path}: format version {version} is newer than {FORMAT_VERSION}, the newest that "
                "this release reads. Use a newer release of corpus-embed."
            )
        if problem:
            kind = cls.__name__.lower()
            shown = printable(problem)[:MAX_SHOWN]
            raise OutputError(f"{path}: not a valid {kind} record: {shown}. {remedy}")
        return record


def is_name(text: str) -> bool:
    """Whether an id can stand in a path without leading anywhere else."""
    return _NAME.fullmatch(text) is not None


def _version_of(data: bytes) -> int:
    """The format version of a record that could not be read; 0 when it names none."""
    match = _VERSION.search(data)
    return int(match[1]) if match else 0


def _explained(error: ValueError, model: type[StoredRecord]) -> str:
    """The first mistake in one line: the place in the record, and what is wrong there."""
    if isinstance(error, pydantic.ValidationError):
        return first_mistake(error, model)
    return str(error)
