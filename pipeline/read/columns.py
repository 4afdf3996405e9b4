"""Kept columns: the values of records become Arrow arrays of the declared type, and rows whose
value does not fit are rejected.

A value is cast exactly or not at all: 3.0 is the integer 3, and 3.5 is rejected. A number never
becomes a date, because its unit is unknown, and a boolean never becomes a number. In a string
column every other value becomes compact JSON. A batch is cast in one Arrow call; only a batch that
fails is halved until the rows at fault are alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipeline.read.records import Rejects, reject
from pipeline.read.values.encodings import plain, strings_of
from pipeline.read.values.json_values import BeyondFloat64, floats_in
from pipeline.storage import schema

_JSON_TYPES: dict[pa.DataType, set[type]] = {
    pa.int64(): {int, float, str},
    pa.float64(): {int, float, str},
    pa.bool_(): {bool, str},
    pa.date32(): {str},
    pa.timestamp("us", tz="UTC"): {str},
}
"""The Python types of JSON values that a declared type accepts; string accepts all."""

_ARROW_TYPES: dict[pa.DataType, Callable[[pa.DataType], bool]] = {
    pa.int64(): lambda t: pat.is_integer(t) or pat.is_floating(t) or pat.is_decimal(t),
    pa.float64(): lambda t: pat.is_integer(t) or pat.is_floating(t) or pat.is_decimal(t),
    pa.bool_(): pat.is_boolean,
    pa.date32(): lambda t: pat.is_date(t) or pat.is_timestamp(t),
    pa.timestamp("us", tz="UTC"): lambda t: pat.is_date(t) or pat.is_timestamp(t),
}
"""The Arrow types that a declared type accepts besides strings; string accepts all."""

_CAST_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError)


def column_from_values(
    name: str, values: list[Any], type_: pa.DataType, rejects: Rejects
) -> pa.Array:
    """(N,) Python values as JSON has them, None where absent, as an array (N,) of `type_`; null
    where a row is rejected. `values` is changed in place."""
    python_types = {type(value) for value in values} - {type(None)}
    if pa.types.is_string(type_):
        try:
            if python_types <= {str}:
                return pa.array(values, pa.string())
        except UnicodeEncodeError:
            pass
        bad_rows = _stringify(values)
    else:
        accepted = _JSON_TYPES[type_]
        bad_rows = [
            row
            for row, value in enumerate(values)
            if value is not None and type(value) not in accepted
        ]
    for row in bad_rows:
        detail = f"{name}: {_shown(values[row])} is not of type {type_}"
        reject(rejects, row, "invalid_column", detail)
        values[row] = None
    if len(python_types) > 1:
        # One array would need one type: next to a float, an integer would become a float.
        single_values = [
            _cast(name, _array(name, [value], rejects, row), type_, rejects, row)
            for row, value in enumerate(values)
        ]
        return pa.concat_arrays(single_values)
    return _cast(name, _array(name, values, rejects), type_, rejects)


def column_from_array(name: str, array: pa.Array, type_: pa.DataType, rejects: Rejects) -> pa.Array:
    """(N,) Arrow column of a type that `fits` as an array (N,) of `type_`; null where a row is
    rejected."""
    column = array
    array = plain(column)
    if pat.is_null(array.type):
        return pa.nulls(len(array), type_)
    if pat.is_binary(array.type):
        array = strings_of(column, name, rejects, "invalid_column")
    if pat.is_nested(array.type):
        array = pa.array(
            [_json_of(name, value, rejects, row) for row, value in enumerate(array)], pa.string()
        )
    if pat.is_date32(type_) and pat.is_timestamp(array.type) and array.type.unit in ("s", "ms"):
        # Arrow's cast to days overflows silently; this one fails.
        array = _cast(name, array, pa.timestamp("us", array.type.tz), rejects)
    return _cast(name, array, type_, rejects)


def fits(type_: pa.DataType, declared: pa.DataType) -> bool:
    """Whether a column of `type_` can hold values of the declared type."""
    while pat.is_dictionary(type_) or isinstance(type_, pa.BaseExtensionType):
        type_ = type_.value_type if pat.is_dictionary(type_) else type_.storage_type
    if pat.is_string(declared):
        return not schema.has_extension(type_)
    is_text = pat.is_string(type_) or pat.is_large_string(type_) or pat.is_string_view(type_)
    is_bytes = pat.is_binary(type_) or pat.is_large_binary(type_) or pat.is_binary_view(type_)
    accepts = _ARROW_TYPES[declared]
    return is_text or is_bytes or pat.is_null(type_) or bool(accepts(type_))


def _json_of(name: str, value: pa.Scalar, rejects: Rejects, row: int) -> str | None:
    """A nested value as compact JSON. Rejected where Python cannot hold it: a struct with the same
    name twice, bytes that are not UTF-8, dates outside of the years 1 to 9999."""
    try:
        return _json(value.as_py()) if value.is_valid else None
    except (TypeError, ValueError, OverflowError) as error:
        reject(rejects, row, "invalid_column", f"{name}: {error}")
        return None


def _stringify(values: list[Any]) -> list[int]:
    """Replace each value that is not a string by its compact JSON, in place. Returns the rows whose
    value has no JSON."""
    bad_rows = []
    for row, value in enumerate(values):
        try:
            if type(value) is str:
                value.encode()
            elif value is not None:
                values[row] = _json(value)
        except (TypeError, ValueError):
            bad_rows.append(row)
    return bad_rows


def _json(value: Any) -> str:
    """Compact JSON. Raises TypeError or ValueError where the value has none."""
    try:
        data = orjson.dumps(value, default=_json_default, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
        # orjson refuses larger integers
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if b"null" in data and not all(map(math.isfinite, floats_in(value))):
        raise ValueError("NaN and Infinity have no JSON")  # orjson writes null for them
    return data.decode()


def _json_default(value: Any) -> str:
    if isinstance(value, BeyondFloat64):
        raise TypeError(repr(value))
    return str(value)


def _array(name: str, values: list[Any], rejects: Rejects, first_row: int = 0) -> pa.Array:
    """Values of one Python type as an Arrow array of the matching type."""
    try:
        return pa.array(values)
    # an integer over 64 bits, a lone surrogate
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
        for row, value in enumerate(values):
            try:
                pa.array([value])
            except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError) as error:
                detail = f"{name}: {_shown(value)}: {error}"
                reject(rejects, first_row + row, "invalid_column", detail)
                values[row] = None
        return pa.array(values)


def _cast(
    name: str, array: pa.Array, type_: pa.DataType, rejects: Rejects, first_row: int = 0
) -> pa.Array:
    """Cast safely; a row that cannot be cast is rejected and becomes null."""
    try:
        return array.cast(type_)
    except _CAST_ERRORS:
        failures = _uncastable(array, type_, 0)
    for row, error in failures:
        reject(rejects, first_row + row, "invalid_column", f"{name}: {error}")
    mask = np.isin(np.arange(len(array)), [row for row, _ in failures])
    return pc.if_else(pa.array(mask), pa.scalar(None, array.type), array).cast(type_)


def _uncastable(array: pa.Array, type_: pa.DataType, first_row: int) -> list[tuple[int, str]]:
    """(row, error) for each row that cannot be cast, by halving: at most log2(N) casts for each."""
    try:
        array.cast(type_)
    except _CAST_ERRORS as error:
        if len(array) == 1:
            return [(first_row, str(error))]
        half = len(array) // 2
        failures = _uncastable(array[:half], type_, first_row)
        return failures + _uncastable(array[half:], type_, first_row + half)
    return []


def _shown(value: Any) -> str:
    return repr(value)[:60]
