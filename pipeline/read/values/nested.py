"""Columns of a Parquet shard by name or path: a spec names one, an Arrow column comes out.

A name means the column of that very name. Where there is none, `a.b` means the field `b` of the
struct column `a`, or of each struct in the list column `a`, at any depth. Only the leaves that are
needed are read from the file. Method: Arrow kernels, no value becomes a Python object.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

_MAX_DEPTH = 8
_MAX_NAMES = 200
"""How many paths are listed: for messages, so that a lying schema makes none of megabytes."""


def is_list_type(type_: pa.DataType) -> bool:
    return pat.is_list(type_) or pat.is_large_list(type_) or pat.is_fixed_size_list(type_)


def nested_names(schema: pa.Schema) -> list[str]:
    """The paths of the leaves inside of columns, without those that are the name of a column."""
    names: list[str] = []
    for field in schema:
        for path in _leaves(field.type, field.name, 0):
            if path not in schema.names and len(names) < _MAX_NAMES:
                names.append(path)
    return names


def _leaves(type_: pa.DataType, path: str, depth: int) -> Iterator[str]:
    while is_list_type(type_):
        type_ = type_.value_type
    if pat.is_struct(type_) and depth < _MAX_DEPTH:
        for child in type_.fields:
            yield from _leaves(child.type, f"{path}.{child.name}", depth + 1)
    elif depth:
        yield path


def type_at(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type of what `name` leads to: a list of it for each list on the way. None for nothing, or
    for a name that two columns have."""
    if name in schema.names:
        return schema.field(name).type if schema.names.count(name) == 1 else None
    root, *steps = name.split(".")
    if not steps or schema.names.count(root) != 1:
        return None
    return _type_at(schema.field(root).type, steps)


def _type_at(type_: pa.DataType, steps: list[str]) -> pa.DataType | None:
    if not steps:
        return type_
    if is_list_type(type_):
        inner = _type_at(type_.value_type, steps)
        return None if inner is None else pa.list_(inner)
    if not pat.is_struct(type_) or [child.name for child in type_.fields].count(steps[0]) != 1:
        return None
    return _type_at(type_.field(steps[0]).type, steps[1:])


def column_to_read(schema: pa.Schema, name: str) -> str:
    """What to ask a Parquet reader for: the leaf, or the whole column with lists on the way."""
    root, *steps = name.split(".")
    if name in schema.names:
        return name
    type_ = schema.field(root).type
    for step in steps:
        if not pat.is_struct(type_):
            return root
        type_ = type_.field(step).type
    return name


def array_at(batch: pa.RecordBatch, name: str) -> pa.Array:
    """(N,) column that `name` leads to, null where a struct or list on the way is null."""
    if name in batch.schema.names:
        return batch.column(name)
    root, *steps = name.split(".")
    return _array_at(batch.column(root), steps)


def _array_at(array: pa.Array, steps: list[str]) -> pa.Array:
    if not steps:
        return array
    if is_list_type(array.type):
        return listed(array, _array_at(array.flatten(), steps))
    return _array_at(pc.struct_field(array, [steps[0]]), steps[1:])


def listed(lists: pa.Array, values: pa.Array, keep: pa.BooleanArray | None = None) -> pa.Array:
    """The lists (N,) with other values, null where they are null.

    values: one for each value of `lists.flatten()`; with a mask `keep` over them, the values
    without those where it is false.
    """
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    if keep is not None:
        parents = np.repeat(np.arange(len(lists)), counts)
        kept_parents = parents[keep.to_numpy(zero_copy_only=False)]
        counts = np.bincount(kept_parents, minlength=len(lists))
        values = values.filter(keep)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=lists.is_null())
