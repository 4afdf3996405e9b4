"""Identifiers as text: what the source says, and nothing that only looks like it.

A string stays as it is ("0012" is "0012"), an integer becomes its digits, a UUID its canonical
form, a date or timestamp ISO 8601. A float or decimal that is whole becomes the digits of the
integer: columns of integers with a gap are floats in pandas, and warehouses have DECIMAL(38,0).
Beyond the integers that a float holds exactly (2^53) it may be another number than the one that was
written, so it is rejected, as is everything without an exact text.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipeline.read.records import (
    Rejects,
    reject,
    reject_all,
    rows_where,
    string_column,
)
from pipeline.read.values.encodings import plain, strings_of
from pipeline.read.values.json_values import MISSING, absence, json_type

_WHOLE_BITS = {16: 11, 32: 24, 64: 53}
"""Bits of a float -> n, where all integers up to 2^n are exact."""


def is_id_type(type_: pa.DataType) -> bool:
    """Whether a column of this Arrow type can hold identifiers."""
    if pat.is_dictionary(type_):
        return is_id_type(type_.value_type)
    if isinstance(type_, pa.BaseExtensionType):
        return is_id_type(type_.storage_type)
    refused = (pat.is_nested, pat.is_boolean, pat.is_time, pat.is_duration, pat.is_interval)
    return not any(is_refused(type_) for is_refused in refused)


def ids_of_column(column: pa.Array, name: str, rejects: Rejects) -> pa.Array:
    """(N,) column of a type that `is_id_type` accepts as (N,) string; null and rejected where there
    is no identifier."""
    array = plain(column)
    type_ = array.type
    if pat.is_null(type_):
        ids = pa.nulls(len(array), pa.string())
    elif pat.is_binary(type_):
        ids = strings_of(column, name, rejects, "invalid_id")
    elif pat.is_floating(type_) or pat.is_decimal(type_):
        ids = _whole(array, name, rejects)
    elif pat.is_timestamp(type_) and type_.tz is not None:
        ids = array.cast(pa.timestamp(type_.unit, "UTC")).cast(pa.string())
    else:
        ids = array.cast(pa.string())
    reject_all(rejects, rows_where(ids.is_null()), "invalid_id", f"{name}: null")
    return ids


def ids_of_values(
    values: list[Any], records: list[dict[str, Any]], name: str, rejects: Rejects
) -> pa.Array:
    """(N,) string: the values that JSON has for the field `name`; null and rejected where there is
    no identifier. `values` is changed in place; numbers with a fraction are decimals."""
    if set(map(type, values)) == {int}:
        return pa.array(map(str, values), pa.string(), size=len(values))
    for row, value in enumerate(values):
        if type(value) is int:
            values[row] = str(value)
        elif type(value) is Decimal and abs(value) <= 2**53 and value == int(value):
            values[row] = str(int(value))
        elif type(value) is not str:
            cause = f"{name}: a JSON {json_type(value)}"
            if value is MISSING:
                cause = absence(records[row], (name,), "id_column")
            elif type(value) is Decimal:
                cause = f"{name}: {str(value)[:40]} is no whole number up to 2^53"
            reject(rejects, row, "invalid_id", cause)
            values[row] = None
    return string_column(values, rejects, "invalid_id", f"{name}: a lone surrogate")


def _whole(array: pa.Array, name: str, rejects: Rejects) -> pa.Array:
    """Floats or decimals as the digits of the integers that they are."""
    if pat.is_floating(array.type):
        limit = float(2 ** _WHOLE_BITS[array.type.bit_width])
        array = array.cast(pa.float64())
        is_whole = pc.and_(
            pc.equal(pc.floor(array), array), pc.less_equal(pc.abs(array), limit)
        ).fill_null(True)
        integer: pa.DataType = pa.int64()
    else:
        integer = pa.decimal256(76, 0) if pat.is_decimal256(array.type) else pa.decimal128(38, 0)
        if array.type.bit_width < 128:
            array = array.cast(pa.decimal128(38, array.type.scale))
        is_whole = pc.equal(pc.floor(array), array).fill_null(True)
    for row in rows_where(pc.invert(is_whole)):
        cause = f"{name}: {array[row].as_py()} is no whole number that is known exactly"
        reject(rejects, row, "invalid_id", cause)
    return pc.if_else(is_whole, array, pa.scalar(None, array.type)).cast(integer).cast(pa.string())
