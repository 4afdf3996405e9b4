"""Arrow columns without what only says how their values are stored: dictionaries, extension types,
views, large offsets. A UUID, which is stored as 16 bytes, becomes its text.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipeline.read.records import Rejects, reject_all, rows_where, utf8_column

_HEX_DIGITS = np.array([list(b"%02x" % byte) for byte in range(256)], np.uint8)
_UUID_DIGITS = [place for place in range(36) if place not in (8, 13, 18, 23)]

_CONTROL = r"[\x00-\x1f\x7f]"


def plain(array: pa.Array) -> pa.Array:
    """The array without dictionary, extension, view and large encodings. Strings become binary that
    is not checked for UTF-8, and UUIDs their canonical text."""
    while isinstance(array, pa.ExtensionArray) or pat.is_dictionary(array.type):
        if isinstance(array.type, pa.UuidType):
            array = _uuid_text(cast(pa.ExtensionArray, array).storage)
        elif isinstance(array, pa.ExtensionArray):
            array = array.storage
        else:
            array = array.dictionary_decode()
    type_ = array.type
    is_text = pat.is_string(type_) or pat.is_large_string(type_) or pat.is_string_view(type_)
    is_bytes = (
        pat.is_large_binary(type_) or pat.is_binary_view(type_) or pat.is_fixed_size_binary(type_)
    )
    return array.cast(pa.binary()) if is_text or is_bytes else array


def strings_of(column: pa.Array, name: str, rejects: Rejects, reason: str) -> pa.Array:
    """(N,) column that `plain` makes binary as (N,) string; null and rejected where it is no text.
    Bytes of a fixed size that no logical type calls text can be UTF-8 by chance, so there control
    characters are a reject too."""
    strings = utf8_column(plain(column), rejects, reason, f"{name}: not UTF-8")
    if _is_raw(column.type):
        is_raw = pc.match_substring_regex(strings, _CONTROL)
        reject_all(rejects, rows_where(is_raw), reason, f"{name}: bytes and no text")
        strings = pc.if_else(is_raw, pa.scalar(None, pa.string()), strings)
    return strings


def _is_raw(type_: pa.DataType) -> bool:
    if pat.is_dictionary(type_):
        return _is_raw(type_.value_type)
    return bool(pat.is_fixed_size_binary(type_))


def _uuid_text(storage: pa.Array) -> pa.Array:
    """(N,) fixed_size_binary(16) as (N,) binary of 36 characters. Source: RFC 9562, section 4."""
    values = pc.fill_null(storage, pa.scalar(bytes(16), storage.type))
    data = np.frombuffer(values.buffers()[1], np.uint8)[values.offset * 16 :][: len(values) * 16]
    text = np.full((len(values), 36), ord("-"), np.uint8)
    text[:, _UUID_DIGITS] = _HEX_DIGITS[data].reshape(-1, 32)
    buffers = [None, pa.py_buffer(text.tobytes())]
    ids = pa.Array.from_buffers(pa.binary(36), len(values), buffers).cast(pa.binary())
    return pc.if_else(storage.is_valid(), ids, pa.scalar(None, pa.binary()))
