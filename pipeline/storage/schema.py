"""The only place that names columns.

`records_schema` is what readers yield: every input record is exactly one row, good or rejected.
`rows_schema` is what lies in the data files, `rejects_schema` what lies in the dead letters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

FOOTER_KEY = b"corpus_embed"
"""Parquet key-value metadata: one JSON object with part, fingerprint, run, model and format
version."""

# Reject reasons: the closed list. A reader or stage uses these words, and `docs/output-format.md`
# explains them.
REASONS = {
    "malformed_json": "the line is not valid JSON",
    "not_an_object": "the JSON value of the line is not an object",
    "missing_text": "the text column is absent from the record",
    "null_text": "the text is null",
    "text_not_a_string": "the text has another type",
    "empty_text": "nothing that can be seen is left after cleaning",
    "too_short": "fewer characters than prepare.min_chars after cleaning",
    "invalid_utf8": "the bytes of the record are not UTF-8",
    "lone_surrogate": "the text holds half of a surrogate pair, which is not a character",
    "nul_character": "the text holds U+0000, at which tokenizers in C stop reading",
    "invalid_id": "the id is absent, null, or neither a string nor an integer",
    "invalid_column": "a kept column holds a value that does not fit its type",
    "record_too_large": "the record is longer than input.max_record_bytes",
    "damaged_shard": "the shard breaks off or cannot be decoded from this position on",
    "not_finite": "the model gave a vector with NaN or infinity",
    "crashed_worker": "the tokenizer or the model failed on this record alone, or its process died of it",
    "out_of_memory": "the record alone does not fit into the memory of the worker or its GPU",
}

RECORD_COLUMNS = {
    # row number (Parquet, CSV) or byte offset in the decompressed shard (others)
    "source_record": pa.int64(),
    # length of the record in its source; what part bounds are counted in
    "record_bytes": pa.int64(),
    "doc_id": pa.string(),  # null where the spec names no id column: the stage fills "<uri>#<record>"
    "text": pa.string(),  # null exactly where `reason` is set
    "reason": pa.string(),  # one of REASONS, or null for a good record
    "detail": pa.string(),  # what was found, for people
}

KEPT_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
"""Types a kept column can be declared to have in `input.keep_columns`; a bare name means string."""

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
"""Names that a kept column cannot have."""

VECTOR_TYPES = {
    "float32": pa.float32(),
    "float16": pa.float32(),
    "bfloat16": pa.float32(),
    "int8": pa.int8(),
    "ubinary": pa.uint8(),
}
"""Element type on disk by output.vector_precision. float16 and bfloat16 are rounded *inside*
float32."""


def records_schema(keep: Mapping[str, pa.DataType]) -> pa.Schema:
    """Schema of the tables that readers yield: RECORD_COLUMNS and then the kept columns."""
    return pa.schema([*RECORD_COLUMNS.items(), *keep.items()])


def rejects_schema() -> pa.Schema:
    return pa.schema(list(REJECT_COLUMNS.items()))


def vector_type(precision: str, dimension: int) -> pa.DataType:
    """Arrow type of the embedding column; `dimension` is in values, ubinary packs eight to a byte
    (zero bits fill)."""
    width = -(-dimension // 8) if precision == "ubinary" else dimension
    return pa.list_(pa.field("element", VECTOR_TYPES[precision], nullable=False), width)


def rows_schema(
    keep: Mapping[str, pa.DataType], *, include_text: bool, precision: str, dimension: int
) -> pa.Schema:
    """Schema of the output as a reader sees it, partition columns included, in the order of the
    columns on disk."""
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
    """Whether an Arrow type, or one inside it, is an extension type.

    Such a type names the Python class that makes its values, and Ray registers one that unpickles
    them (`ray.data.arrow_pickled_object`): no value of a type that a file chose may reach Python.
    """
    if pa.types.is_dictionary(type_):
        return has_extension(type_.value_type)
    inner = (type_.field(number).type for number in range(type_.num_fields))
    return isinstance(type_, pa.BaseExtensionType) or any(has_extension(found) for found in inner)


def footer(metadata: Mapping[str, object]) -> dict[bytes, bytes]:
    """Key-value metadata of a data file."""
    return {FOOTER_KEY: json.dumps(metadata, sort_keys=True).encode()}
