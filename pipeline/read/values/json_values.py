"""Lines of JSON become Python values, for `jsonl`: fast where they are clean, exact where not.

orjson decodes a batch. Only the lines that it refuses, and those with numbers that it rounds, are
decoded again by the standard decoder. What is odd about a field costs a record only where the field
is used: half of a surrogate pair, NaN and Infinity (which Python writes), numbers beyond float64,
nesting below 1,024 levels. A fault of the line as a whole is a reject with orjson's words for it.
"""

from __future__ import annotations

import decimal
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from pipeline.job.input_spec import InputSpec
from pipeline.read.lines import BYTE_ORDER_MARK, LineBatch
from pipeline.read.records import Rejects, reject, reject_large

MISSING: Any = object()
"""What a field is that the record does not have."""

_MAX_DIGITS = 4300
"""Python refuses to convert longer integers, in quadratic time, by default."""

_NAMED_KEYS = 8


class BeyondFloat64:
    """A number that neither a float nor an integer of usual length holds."""

    def __repr__(self) -> str:
        return "a number beyond float64"


def decode(lines: list[bytes]) -> list[dict[str, Any]] | None:
    """All lines as objects, or None when one of them is not an object."""
    try:
        values = list(map(orjson.loads, lines))
    except orjson.JSONDecodeError:
        return None
    return values if set(map(type, values)) <= {dict} else None


def decode_each(batch: LineBatch, spec: InputSpec, rejects: Rejects) -> list[dict[str, Any]]:
    """The lines one by one; a rejected line becomes an empty object."""
    reject_large(batch.n_bytes, spec, rejects)
    values = []
    for row, line in enumerate(batch.lines):
        value: Any = {}
        if row not in rejects:
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                value = _decode_refused(line, row, str(error), rejects)
        if not isinstance(value, dict):
            reject(rejects, row, "not_an_object", f"a JSON {json_type(value)}")
            value = {}
        values.append(value)
    return values


def restore(values: list[Any], batch: LineBatch, name: str) -> list[Any]:
    """The values of the field `name`, in place, with all digits: orjson turns integers of more
    than 64 bits into floats."""
    if not {float, dict, list} & set(map(type, values)):
        return values  # no number was rounded
    for row, value in enumerate(values):
        if type(value) is not str and any(abs(number) >= 2**63 for number in floats_in(value)):
            values[row] = field_of(_slow_loads(batch.lines[row]), name)
    return values


def restore_decimals(values: list[Any], batch: LineBatch, name: str) -> list[Any]:
    """The values of the field `name`, in place, with each float as the decimal that was written:
    0.99999999999999999999 is no 1."""
    if float in set(map(type, values)):
        for row, value in enumerate(values):
            if type(value) is float:
                values[row] = field_of(_slow_loads(batch.lines[row], _decimal), name)
    return values


def floats_in(value: Any) -> Iterator[float]:
    """The floats of a JSON value at any depth."""
    if type(value) is float:
        yield value
    elif type(value) is dict or type(value) is list:
        for item in value.values() if type(value) is dict else value:
            yield from floats_in(item)


def column_of(values: list[dict[str, Any]], name: str) -> list[Any]:
    """The field `name` of each object, MISSING where it has none."""
    if "." not in name:
        return [value.get(name, MISSING) for value in values]
    return [field_of(value, name) for value in values]


def field_of(value: dict[str, Any], name: str) -> Any:
    """The field with the very name `name`, else the one that the path `a.b` leads to, through
    objects and lists of objects. A null on the way is the value; without a field, MISSING."""
    if name in value:
        return value[name]
    return _at(value, name.split("."))


def _at(value: Any, steps: list[str]) -> Any:
    for number, step in enumerate(steps):
        if value is None:
            return None
        if type(value) is list:
            items = [_at(item, steps[number:]) for item in value]
            return [item for item in items if item is not MISSING]
        if type(value) is not dict or step not in value:
            return MISSING
        value = value[step]
    return value


def absence(value: dict[str, Any], names: tuple[str, ...], setting: str) -> str:
    """What a record has instead of the fields `names` of a setting of `input`, for a person."""
    keys = [key if len(key) <= 24 else key[:23] + "…" for key in list(value)[:_NAMED_KEYS]]
    if len(value) > _NAMED_KEYS:
        keys.append(f"{len(value) - _NAMED_KEYS} more")
    missing = "no " if len(names) == 1 else "none of "
    missing += ", ".join(f"'{name}'" for name in names)
    return f"the record has {', '.join(keys) or 'no fields'} and {missing} (input.{setting})"


def json_type(value: Any) -> str:
    if type(value) is float and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity"
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _decode_refused(line: bytes, row: int, error: str, rejects: Rejects) -> Any:
    """The value of a line that the standard decoder accepts, else a reject for the reason that
    orjson gave. A byte-order mark, which is where files were joined, begins no JSON.

    error: what orjson reported.
    """
    try:
        text = line.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as decode_error:
        detail = f"byte {decode_error.start} of the record: {decode_error.reason}"
        reject(rejects, row, "invalid_utf8", detail)
        return {}
    try:
        return _slow_loads(text)
    except RecursionError:
        error = "nested too deeply to be decoded"
    except ValueError:
        pass
    reject(rejects, row, "malformed_json", error)
    return {}


def _slow_loads(text: str | bytes, parse_float: Callable[[str], Any] | None = None) -> Any:
    # orjson accepts 1,024 levels of nesting. Python counts levels and stack frames together, and
    # its limit for both is 1,000 by default.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 4000))
    return json.loads(text, parse_int=_integer, parse_float=parse_float or _float)


def _integer(digits: str) -> int | BeyondFloat64:
    return int(digits) if len(digits) <= _MAX_DIGITS else BeyondFloat64()


def _float(digits: str) -> float | BeyondFloat64:
    number = float(digits)
    return number if math.isfinite(number) else BeyondFloat64()


def _decimal(digits: str) -> decimal.Decimal | BeyondFloat64:
    try:
        return decimal.Decimal(digits)
    except ArithmeticError:  # an exponent of more than 18 digits
        return BeyondFloat64()
