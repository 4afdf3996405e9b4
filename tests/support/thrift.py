"""Parquet that lies: other numbers in the footer and in page headers, in Thrift's compact encoding.

`lie` walks the encoded structs, picks some of their integers (row counts, sizes, offsets,
encodings, types), and writes other values of any length, with the footer's length made to fit.
Source: Thrift compact protocol specification.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

VALUES = [
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    100,
    4096,
    2**15,
    2**31 - 1,
    -(2**31),
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
]
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(
    13
)


def lie(dice: random.Random, data: bytes) -> bytes:
    """The Parquet file with one to three integers of its footer or of one page header changed."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    if dice.random() < 0.6:
        footer = _changed(dice, data[start:-8])
        return data[:start] + footer + len(footer).to_bytes(4, "little") + data[-4:]
    metadata = pq.read_metadata(pa.BufferReader(data))
    chunks = [
        metadata.row_group(g).column(c)
        for g in range(metadata.num_row_groups)
        for c in range(metadata.num_columns)
    ]
    if not chunks:
        return data
    chunk = dice.choice(chunks)
    at = dice.choice(
        [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
    )
    header = data[at : _end(data, at)]
    changed = _changed(dice, header)
    # offsets stay right: what follows is overwritten
    if len(changed) != len(header) and dice.random() < 0.8:
        return data[:at] + changed + data[at + len(changed) :]
    return data[:at] + changed + data[at + len(header) :]


def _changed(dice: random.Random, struct: bytes) -> bytes:
    for _ in range(dice.choice([1, 1, 2, 3])):
        places = list(_integers(io.BytesIO(struct)))
        if not places:
            return struct
        start, end, old = dice.choice(places)
        new = dice.choice([*VALUES, old + 1, old - 1, old * 2, old * 10])
        struct = struct[:start] + _varint((new << 1) ^ (new >> 63)) + struct[end:]
    return struct


def _end(data: bytes, at: int) -> int:
    stream = io.BytesIO(data[at : at + (1 << 16)])
    for _ in _integers(stream):
        pass
    return at + stream.tell()


def _integers(stream: io.BytesIO) -> Iterator[tuple[int, int, int]]:
    """(start, end, value) of each integer of the struct that begins here."""
    while (head := stream.read(1)) and head[0] & 15 != _STOP:
        if not head[0] >> 4:
            _read_varint(stream)
        if head[0] & 15 not in (_TRUE, _FALSE):
            yield from _value(stream, head[0] & 15)


def _value(stream: io.BytesIO, kind: int) -> Iterator[tuple[int, int, int]]:
    start = stream.tell()
    if kind in (_I16, _I32, _I64):
        raw = _read_varint(stream)
        yield start, stream.tell(), (raw >> 1) ^ -(raw & 1)
    elif kind == _BINARY:
        stream.seek(_read_varint(stream), 1)
    elif kind == _STRUCT:
        yield from _integers(stream)
    elif kind in (_LIST, _SET):
        head = stream.read(1)[0]
        n_values = head >> 4 if head >> 4 != 15 else _read_varint(stream)
        for _ in range(n_values):
            yield from _value(stream, head & 15)
    else:
        stream.seek({_DOUBLE: 8}.get(kind, 1), 1)


def _read_varint(stream: io.BytesIO) -> int:
    value = shift = 0
    while byte := stream.read(1):
        value |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            break
    return value


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
