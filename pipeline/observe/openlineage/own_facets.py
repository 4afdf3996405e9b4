"""The facets that OpenLineage does not have: with which model, and what became of the records.

docs/openlineage-facets.json is their JSON Schema. A field that is added raises the version in the
URI of the schema.
"""

from __future__ import annotations

import attr
from openlineage.client.facet_v2 import JobFacet, OutputDatasetFacet, RunFacet

SCHEMAS = "urn:corpus-embed:openlineage:1"


@attr.define
class RunDetailsRunFacet(RunFacet):
    """The run by the names of this package. snapshot: None before there is one."""

    runId: str | None
    fingerprint: str
    release: str
    device: str
    snapshot: int | None = None
    embedded: bool | None = None
    elapsedSeconds: float | None = None

    @staticmethod
    def _get_schema() -> str:
        return f"{SCHEMAS}#RunDetailsRunFacet"


@attr.define
class ModelJobFacet(JobFacet):
    """The model, and how it makes a vector of a text. prompt: what is put before each text."""

    name: str
    revision: str | None
    license: str | None
    pooling: str
    normalize: bool
    dtype: str
    maxTokens: int
    prompt: str | None
    longDocuments: str

    @staticmethod
    def _get_schema() -> str:
        return f"{SCHEMAS}#ModelJobFacet"


@attr.define
class CountsOutputDatasetFacet(OutputDatasetFacet):
    """What became of the records of the input, and where the rows of the snapshot come from."""

    records: int
    documents: int
    rejects: int
    rejectReasons: dict[str, int]
    tokens: int
    rows: dict[str, int]
    dimension: int
    vectorPrecision: str
    complete: bool

    @staticmethod
    def _get_schema() -> str:
        return f"{SCHEMAS}#CountsOutputDatasetFacet"
