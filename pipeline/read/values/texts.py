"""The text of a record from its fields: one string, a list of paragraphs, or several by a template.

Paragraphs are joined by line feeds, without those that are null. In a template a field can also be
an integer; one that is absent, null or empty leaves its place empty, and a record where all of them
are absent or null is rejected. Method: Arrow kernels over a batch; values of JSON are Python
objects already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipeline.job.text_template import TextTemplate
from pipeline.read.records import (
    Rejects,
    reject,
    reject_all,
    rows_where,
    string_column,
    utf8_column,
)
from pipeline.read.values.encodings import plain
from pipeline.read.values.json_values import MISSING, absence, column_of, json_type
from pipeline.read.values.nested import is_list_type, listed

PARAGRAPH_END = "\n"
"""What stands between the paragraphs of a list."""


def is_text_type(type_: pa.DataType, *, in_template: bool = False) -> bool:
    """Whether a column of this Arrow type can be a text (or a field of a template)."""
    if pat.is_dictionary(type_):
        return is_text_type(type_.value_type, in_template=in_template)
    if isinstance(type_, pa.BaseExtensionType):
        return is_text_type(type_.storage_type, in_template=in_template)
    if is_list_type(type_):
        return is_text_type(type_.value_type) and not is_list_type(type_.value_type)
    is_string = pat.is_string(type_) or pat.is_large_string(type_) or pat.is_string_view(type_)
    is_bytes = pat.is_binary(type_) or pat.is_large_binary(type_) or pat.is_binary_view(type_)
    is_known = is_string or is_bytes or pat.is_fixed_size_binary(type_) or pat.is_null(type_)
    return is_known or (in_template and pat.is_integer(type_))


def bytes_of(array: pa.Array) -> pa.Array:
    """(N,) column of a text type as (N,) binary, not checked for UTF-8."""
    array = plain(array)
    if pat.is_integer(array.type):
        return array.cast(pa.string()).cast(pa.binary())
    if pat.is_null(array.type):
        return pa.nulls(len(array), pa.binary())
    if not is_list_type(array.type):
        return array
    paragraphs = plain(array.flatten())
    if pat.is_null(paragraphs.type):
        paragraphs = paragraphs.cast(pa.binary())
    lists = listed(array, paragraphs, paragraphs.is_valid())
    return pc.binary_join(lists, PARAGRAPH_END.encode())


def text_of_column(data: pa.Array, rejects: Rejects) -> pa.Array:
    """(N,) binary as (N,) string; null and rejected where there is no text."""
    reject_all(rejects, rows_where(data.is_null()), "null_text", "the text is null")
    return utf8_column(data, rejects, "invalid_utf8", "the text is not UTF-8")


def filled(template: TextTemplate, columns: list[pa.Array], rejects: Rejects) -> pa.Array:
    """(N,) string: the template with the values of its fields.

    columns: (N,) string for each field, null where the record has none; rows without any value are
    rejected.
    """
    pieces: list[pa.Array | pa.Scalar] = [pa.scalar(template.literals[0])]
    for literal, column in zip(template.literals[1:], columns, strict=True):
        pieces += [column, pa.scalar(literal)]
    detail = f"none of {', '.join(repr(name) for name in template.fields)} holds a text"
    reject_all(rejects, rows_where(~_has_any(columns)), "missing_text", detail)
    return pc.binary_join_element_wise(*pieces, "", null_handling="replace", null_replacement="")


def _has_any(columns: Sequence[pa.Array]) -> npt.NDArray[np.bool_]:
    """(N,) whether any of the columns has a value."""
    valid = [column.is_valid().to_numpy(zero_copy_only=False) for column in columns]
    return np.logical_or.reduce(valid)


def text_of_values(records: list[dict[str, Any]], name: str, rejects: Rejects) -> pa.Array:
    """(N,) string: the field `name` of JSON objects; null and rejected where it is no text."""
    values = column_of(records, name)
    for row, value in () if set(map(type, values)) <= {str} else enumerate(values):
        if type(value) is str:
            continue
        if value is MISSING:
            reject(rejects, row, "missing_text", absence(records[row], (name,), "text_column"))
        elif value is None:
            reject(rejects, row, "null_text", f"'{name}' is null")
        values[row] = _string_of(value, row, name, rejects)
    detail = f"half of a surrogate pair in '{name}'"
    return string_column(values, rejects, "lone_surrogate", detail)


def text_by_template(
    records: list[dict[str, Any]], template: TextTemplate, rejects: Rejects
) -> pa.Array:
    """(N,) string: the template with the fields of JSON objects."""
    columns = []
    for name in template.fields:
        values = column_of(records, name)
        if not set(map(type, values)) <= {str}:
            values = [
                str(value) if type(value) is int else _string_of(value, row, name, rejects)
                for row, value in enumerate(values)
            ]
        detail = f"half of a surrogate pair in '{name}'"
        columns.append(string_column(values, rejects, "lone_surrogate", detail))
    for row in rows_where(~_has_any(columns)):
        reject(
            rejects, row, "missing_text", absence(records[row], template.fields, "text_template")
        )
    return filled(template, columns, rejects)


def _string_of(value: Any, row: int, name: str, rejects: Rejects) -> str | None:
    """A string or a list of strings as one string; None where it is absent or rejected."""
    if type(value) is str:
        return value
    if value is None or value is MISSING:
        return None
    if type(value) is not list:
        reject(rejects, row, "text_not_a_string", f"'{name}' is a JSON {json_type(value)}")
        return None
    paragraphs = [item for item in value if item is not None]
    for item in paragraphs:
        if type(item) is not str:
            detail = f"'{name}' is a JSON array that holds a JSON {json_type(item)}"
            reject(rejects, row, "text_not_a_string", detail)
            return None
    return PARAGRAPH_END.join(paragraphs)
