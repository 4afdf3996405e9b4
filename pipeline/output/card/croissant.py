"""The card for machines: Croissant 1.1, MLCommons' JSON-LD vocabulary for datasets.

In: `CardFacts`. Out: plain data for `croissant.json`. The set of files names the live data files
one by one; a column that exists only as the name of folders is taken from the path. Source:
https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from pipeline.output.card.columns import Column, columns_of
from pipeline.output.card.facts import CardFacts
from pipeline.output.card.readme import DATA_PATTERN, MAX_FILES
from pipeline.storage import layout
from pipeline.storage.printable import printable
from pipeline.storage.words import counted

VERSION = "http://mlcommons.org/croissant/1.1"
STAMP = "corpusEmbed:stamp"
_FILES = "data-files"
_ROWS = "rows"

_TERMS = (
    *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field"),
    *("fileProperty", "fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset"),
    *("jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex"),
    *("repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "corpusEmbed": "urn:corpus-embed:",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _TERMS},
}
"""The terms of the vocabulary, all of which its readers expect, and the one of this package."""

_TYPES = {
    pa.string(): "sc:Text",
    pa.bool_(): "sc:Boolean",
    pa.date32(): "sc:Date",
    pa.timestamp("us", tz="UTC"): "sc:DateTime",
    pa.float32(): "cr:Float32",
    pa.float64(): "cr:Float64",
    pa.int8(): "cr:Int8",
    pa.int32(): "cr:Int32",
    pa.int64(): "cr:Int64",
    pa.uint8(): "cr:UInt8",
}


def croissant(facts: CardFacts, stamp: str) -> dict[str, Any]:
    """The metadata as plain data. stamp: what the file is recognised by, and its state."""
    snapshot = facts.snapshot
    name = facts.spec.name
    model = printable(facts.generation.model_name)
    described = (
        f"Embeddings of {counted(snapshot.n_documents, 'document')}: "
        f"{counted(snapshot.n_rows, 'vector')} of {facts.generation.dimension:,} "
        f"dimensions, made with {model}."
    )
    fields: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        STAMP: stamp,
        "conformsTo": VERSION,
        "name": name,
        "description": facts.settings.description or described,
        "version": f"{snapshot.number}.0.0",
        "license": facts.settings.license,
        "inLanguage": list(facts.settings.languages),
        "citeAs": f"{name}, snapshot {snapshot.number} ({facts.generation.fingerprint}).",
        "keywords": ["embeddings", "feature extraction"],
        "datePublished": facts.made_at.isoformat() if facts.made_at else None,
        "distribution": [_file_set(facts)] if facts.files else [],
        "recordSet": [_record_set(facts)] if facts.files else [],
    }
    return {key: value for key, value in fields.items() if value}


def _file_set(facts: CardFacts) -> dict[str, Any]:
    paths = [file.path for file in facts.files]
    return {
        "@type": "cr:FileSet",
        "@id": _FILES,
        "name": _FILES,
        "description": f"The data files of snapshot {facts.snapshot.number}.",
        "encodingFormat": "application/x-parquet",
        "includes": paths if len(paths) <= MAX_FILES else DATA_PATTERN,
    }


def _record_set(facts: CardFacts) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": _ROWS,
        "name": _ROWS,
        "description": "One row a vector.",
        "field": [_field(facts, column) for column in columns_of(facts)],
    }


def _field(facts: CardFacts, column: Column) -> dict[str, Any]:
    type_ = facts.columns.field(column.name).type
    shape: dict[str, Any] = {}
    if pa.types.is_fixed_size_list(type_):
        shape = {"isArray": True, "arrayShape": str(type_.list_size)}
        type_ = type_.value_type
    return {
        "@type": "cr:Field",
        "@id": f"{_ROWS}/{quote(column.name, safe='')}",
        "name": column.name,
        "description": column.meaning.replace("`", ""),
        "dataType": _TYPES[type_],
        **shape,
        "source": {"fileSet": {"@id": _FILES}, **_extraction(facts, column.name)},
    }


def _extraction(facts: CardFacts, name: str) -> dict[str, Any]:
    if name not in facts.partition_types:
        return {"extract": {"column": name}}
    step = re.escape(layout.partition_step(name, ""))
    return {
        "extract": {"fileProperty": "fullpath"},
        "transform": {"regex": f".*/{step}([^/]*)/.*"},
    }
