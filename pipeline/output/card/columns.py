"""The columns of a data file with their meanings, in the order in which a reader sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from pipeline.output.card.facts import CardFacts

_MEANINGS = {
    "chunk": "index of the chunk in its document, from 0",
    "text": "the text that was embedded, without the prompt",
    "embedding_scale": "the factor of this row's vector",
    "n_tokens": "number of tokens that the model saw, special tokens and prompt included",
    "truncated": "whether the text had more tokens than the model was given",
    "text_sha256": "SHA-256 of the UTF-8 bytes of the embedded text, hexadecimal",
    "source_uri": "URI of the object that the document comes from",
    "source_etag": "version of this object when it was read",
    "source_record": "position of the record in it: a byte offset, or the number of the row",
    "char_start": "where the chunk begins in the cleaned text, in code points",
    "char_end": "where it ends",
    "part_id": "the part that the row was written with",
    "run_id": "the run that wrote the row",
    "fingerprint": "hash of everything that decides a vector or a row",
}

_VECTORS = {
    "float32": "the vector",
    "float16": "the vector, each value rounded to float16",
    "bfloat16": "the vector, each value rounded to bfloat16",
    "int8": "the vector as int8; multiply it by `embedding_scale` to get floats",
    "ubinary": "one bit a dimension, set where the value is above 0, the first one in the highest "
    "bit",
}


class Column(NamedTuple):
    """type: as Arrow names it. meaning: Markdown."""

    name: str
    type: str
    meaning: str


def columns_of(facts: CardFacts) -> Iterator[Column]:
    """The columns of a snapshot."""
    for field in facts.columns:
        yield Column(field.name, _type_name(field.type), _meaning(facts, field.name))


def _type_name(type_: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(type_):
        return f"fixed_size_list<{type_.value_type}>[{type_.list_size}]"
    return str(type_)


def _meaning(facts: CardFacts, name: str) -> str:
    if name == "doc_id":
        given = "the id that the input gives, not necessarily unique"
        return given if facts.identity.input.id_column else "`source_uri#source_record`"
    if name == "embedding":
        return _VECTORS[facts.generation.vector_precision]
    if name in facts.generation.partition_by:
        return "kept from the input; exists only in the names of folders"
    return _MEANINGS.get(name, "kept from the input; can be null")
