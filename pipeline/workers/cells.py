"""A part as one row of a Ray Dataset, and back.

In: a PreparedPart or an EmbeddedPart. Out: a table of one row with a cell for each of its fields:
facts as JSON, a table as one Arrow IPC stream, vectors as their bytes. Streams and vectors lie in
large_binary cells, which Ray never splits or merges inside. Cost: each table is copied once when it
is packed; vectors are not, and nothing is copied when a cell is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.storage.lineage import PartFacts
from pipeline.workers.steps import PreparedPart
from pipeline.write.part import EmbeddedPart

T = TypeVar("T", PreparedPart, EmbeddedPart)


def pack(part: PreparedPart | EmbeddedPart) -> pa.Table:
    """One row that holds the whole part."""
    columns: dict[str, pa.Array] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, PartFacts):
            columns[field.name] = pa.array([value.model_dump_json()])
        elif isinstance(value, pa.Table):
            columns[field.name] = _binary(_stream(value))
        else:  # (N, D) vectors
            columns[field.name] = _binary(pa.py_buffer(value))
            columns["dimension"] = pa.array([value.shape[1]])
    return pa.table(columns)


def unpack(kind: type[T], batch: pa.Table) -> T:
    """The part in a batch of one row."""
    return kind(**{field.name: _value(batch, field.name) for field in dataclasses.fields(kind)})


def _value(batch: pa.Table, name: str) -> Any:
    if name == "facts":
        return PartFacts.model_validate_json(batch[name][0].as_py())
    if name == "vectors":
        return _vectors(batch)
    return pa.ipc.open_stream(_bytes(batch, name)).read_all()


def _vectors(batch: pa.Table) -> npt.NDArray[np.float32]:
    flat = np.frombuffer(_bytes(batch, "vectors"), np.float32)
    return flat.reshape(-1, batch["dimension"][0].as_py())  # (N, D)


def _stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def _binary(data: pa.Buffer) -> pa.LargeBinaryArray:
    """One cell over the data itself, not over a copy."""
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _bytes(batch: pa.Table, name: str) -> pa.Buffer:
    """The data of the cell itself; a scalar's `as_buffer` is over a copy."""
    (array,) = (chunk for chunk in batch[name].chunks if len(chunk))
    _, offsets, data = array.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[array.offset : array.offset + 2].tolist()
    return data.slice(start, stop - start)
