"""The tables that pass from room to room and lie in files: columns, types, reject reasons.

`records_schema` describes what readers yield: every record of the input is exactly one row, good or
rejected. `rows_schema` describes the data files, `rejects_schema` the dead letters. The names and
types of columns are declared here; code that works on a single column spells its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

FOOTER_KEY = b"corpus_embed"
"""The key of Parquet's metadata under which a file has its lineage: one JSON object with part,
fingerprint, run, model and format version."""

REASONS = {
    "malformed_json": "the line is not valid JSON",
    "not_an_object": "the JSON value of the line is not an object",
    "missing_text": "the text column, or every field of the template, is absent from the record",
    "null_text": "the text is null",
    "text_not_a_string": "the text is neither a string nor a list of strings",
    "empty_text": "nothing that can be seen is left after cleaning",
    "too_short": "fewer characters than prepare.min_chars after cleaning",
    "invalid_utf8": "the bytes of the record are not UTF-8, or do not fit the charset of a page",
    "lone_surrogate": "the text holds half of a surrogate pair, which is not a character",
    "nul_character": "the text holds U+0000, at which tokenizers in C stop reading",
    "invalid_id": "the id is absent, null, or has no exact text",
    "invalid_column": "a kept column holds a value that does not fit its type",
    "too_many_partitions": "the part has more partitions than output.max_partitions allows",
    "record_too_large": "the record is longer than input.max_record_bytes",
    "damaged_shard": "the shard breaks off or cannot be decoded from this position on",
    "not_finite": "the model gave a vector with NaN or infinity",
    "crashed_worker": "the tokenizer or the model failed on this record, or its process died",
    "out_of_memory": "the record alone does not fit into the memory of the worker or its GPU",
}
"""The closed list of reject reasons, each with what it says about the record;
`docs/output-format.md` explains them."""

RECORD_COLUMNS = {
    # index of the row (Parquet, CSV) or byte offset in the decompressed shard (other formats)
    "source_record": pa.int64(),
    # length of the record in its source, in bytes; the bounds of parts are counted in it. Of a
    # `damaged_shard`: how many stored bytes cannot be read
    "record_bytes": pa.int64(),
    # null where the spec names no id column: the stage fills in "<uri>#<record>"
    "doc_id": pa.string(),
    "text": pa.string(),  # null exactly where `reason` is set
    "reason": pa.string(),  # one of REASONS, or null for a good record
    "detail": pa.string(),  # the content found in the record, for people
}

KEPT_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
"""The types that a column in `input.keep_columns` can have; a name without a type means string."""

LINEAGE_COLUMNS = {
    "n_tokens": pa.int32(),
    "truncated": pa.bool_(),
    "text_sha256": pa.string(),
    "source_uri": pa.string(),
    "source_etag": pa.string(),
    "source_record": pa.int64(),
    "char_start": pa.int64(),
    "char_end": pa.int64(),
    "part_id": pa.string(),
    "run_id": pa.string(),
    "fingerprint": pa.string(),
}

REJECT_COLUMNS = {
    "doc_id": pa.string(),
    "reason": pa.string(),
    "detail": pa.string(),
    "source_uri": pa.string(),
    "source_etag": pa.string(),
    "source_record": pa.int64(),
    "part_id": pa.string(),
    "run_id": pa.string(),
    "fingerprint": pa.string(),
}

RESERVED = {
    "doc_id",
    "chunk",
    "text",
    "embedding",
    "embedding_scale",
    *LINEAGE_COLUMNS,
    *RECORD_COLUMNS,
}
"""The names that a kept column cannot have."""

VECTOR_TYPES = {
    "float32": pa.float32(),
    "float16": pa.float32(),
    "bfloat16": pa.float32(),
    "int8": pa.int8(),
    "ubinary": pa.uint8(),
}
"""The type of an element on disk, by output.vector_precision. Values of float16 and bfloat16 are
rounded to that precision and stored as float32."""


MAX_DIMENSION = 1 << 17
"""The longest vector of a stored record; the widest public models have 16,384 values."""


def records_schema(keep: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of the tables that readers yield: RECORD_COLUMNS, then the kept columns."""
    return pa.schema([*RECORD_COLUMNS.items(), *keep.items()])


def rejects_schema() -> pa.Schema:
    """The schema of the files of rejected records."""
    return pa.schema(list(REJECT_COLUMNS.items()))


def vector_type(precision: str, dimension: int) -> pa.DataType:
    """The Arrow type of the embedding column: a list of fixed size. `dimension` counts values;
    ubinary packs eight of them into a byte and fills the last byte with zero bits."""
    list_size = -(-dimension // 8) if precision == "ubinary" else dimension
    return pa.list_(pa.field("element", VECTOR_TYPES[precision], nullable=False), list_size)


def rows_schema(
    keep: Mapping[str, pa.DataType], *, include_text: bool, precision: str, dimension: int
) -> pa.Schema:
    """The schema of the output as a reader sees it, partition columns included, in the order of the
    columns on disk. keep: the Arrow type of each kept column."""
    fields = [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
    ]
    if include_text:
        fields.append(pa.field("text", pa.string(), nullable=False))
    fields += [pa.field(name, type_) for name, type_ in keep.items()]
    fields.append(pa.field("embedding", vector_type(precision, dimension), nullable=False))
    if precision == "int8":
        fields.append(pa.field("embedding_scale", pa.float32(), nullable=False))
    fields += [pa.field(name, type_, nullable=False) for name, type_ in LINEAGE_COLUMNS.items()]
    return pa.schema(fields)


def has_extension(type_: pa.DataType) -> bool:
    """Whether an Arrow type, or a type nested in it, is an extension type.

    Such a type names the Python class that makes its values, and Ray registers one that unpickles
    them (`ray.data.arrow_pickled_object`): no value whose type was chosen by a file must reach
    Python.
    """
    if pa.types.is_dictionary(type_):
        return has_extension(type_.value_type)
    nested = (type_.field(number).type for number in range(type_.num_fields))
    return isinstance(type_, pa.BaseExtensionType) or any(map(has_extension, nested))


def footer(metadata: Mapping[str, object]) -> dict[bytes, bytes]:
    """The key-value metadata of a data file with the lineage `metadata`."""
    return {FOOTER_KEY: json.dumps(metadata, sort_keys=True).encode()}
