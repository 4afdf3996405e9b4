"""The datasets of an event: the places that the input names, and the output.

A dataset's version is what its content is known by: for an input the hash of URI, ETag and size of
its objects, for the output the number of the snapshot. Imports openlineage-python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    column_lineage_dataset,
    dataset_version_dataset,
    datasource_dataset,
    input_statistics_input_dataset,
    output_statistics_output_dataset,
    schema_dataset,
    storage_dataset,
)

from pipeline.observe.openlineage.naming import Place, place_of
from pipeline.observe.openlineage.own_facets import CountsOutputDatasetFacet
from pipeline.observe.openlineage.run_facts import RunFacts
from pipeline.output.dataset import arrow_schema
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Shard, content_hash

_OF_TEXT = ("chunk", "n_tokens", "truncated", "text_sha256", "char_start", "char_end")
"""Columns of a row that are computed from its text."""


def input_dataset(
    facts: RunFacts, place: Place, shards: Sequence[Shard], producer: str
) -> InputDataset:
    """One place of the input with the shards in it; the records that were read, once they are."""
    facets: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    if facts.shards is not None:
        versions = sorted((shard.uri, shard.etag, shard.size_bytes) for shard in shards)
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
            datasetVersion=content_hash(versions), producer=producer
        )
        uris = {shard.uri for shard in shards}
        sources = [source for part in facts.parts for source in part.sources if source.uri in uris]
        statistics["inputStatistics"] = (
            input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
                rowCount=sum(source.n_records for source in sources) if facts.snapshot else None,
                size=sum(shard.size_bytes for shard in shards),
                fileCount=len(shards),
                producer=producer,
            )
        )
    spec = facts.job.spec.input
    facets["schema"] = schema_dataset.SchemaDatasetFacet(
        fields=[
            schema_dataset.SchemaDatasetFacetFields(
                name=name, type=spec.keep_columns.get(name, "string")
            )
            for name in spec.fields
        ],
        producer=producer,
    )
    return InputDataset(place.namespace, place.name, facets=facets, inputFacets=statistics)


def output_dataset(facts: RunFacts, inputs: Sequence[Place], producer: str) -> OutputDataset:
    """The output; with a snapshot also its version, schema, column lineage and statistics."""
    uri = facts.job.spec.output.uri
    place = place_of(uri)
    facets: dict[str, Any] = {
        "dataSource": datasource_dataset.DatasourceDatasetFacet(
            name=place.namespace, uri=shown(uri), producer=producer
        ),
        "storage": storage_dataset.StorageDatasetFacet(
            storageLayer=place.namespace.partition(":")[0], fileFormat="parquet", producer=producer
        ),
    }
    statistics: dict[str, Any] = {}
    snapshot, generation = facts.snapshot, facts.generation
    if snapshot and generation:
        columns = arrow_schema(generation)
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
            datasetVersion=str(snapshot.number), producer=producer
        )
        facets["schema"] = schema_dataset.SchemaDatasetFacet(
            fields=[
                schema_dataset.SchemaDatasetFacetFields(name=field.name, type=str(field.type))
                for field in columns
            ],
            producer=producer,
        )
        facets["columnLineage"] = column_lineage(facts, columns, inputs, producer)
        statistics["outputStatistics"] = (
            output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                rowCount=snapshot.n_rows,
                size=snapshot.size_bytes,
                fileCount=snapshot.n_files,
                producer=producer,
            )
        )
        statistics["corpusEmbed_counts"] = CountsOutputDatasetFacet(
            records=snapshot.n_records,
            documents=snapshot.n_documents,
            rejects=snapshot.n_rejects,
            rejectReasons=dict(snapshot.reject_reasons),
            tokens=snapshot.n_tokens,
            rows=dict(facts.rows),
            dimension=generation.dimension,
            vectorPrecision=generation.vector_precision,
            complete=snapshot.complete,
            producer=producer,
        )
    return OutputDataset(place.namespace, place.name, facets=facets, outputFacets=statistics)


def column_lineage(
    facts: RunFacts, columns: pa.Schema, inputs: Sequence[Place], producer: str
) -> column_lineage_dataset.ColumnLineageDatasetFacet:
    """From which fields of a record each column comes: the vector from the text, the id from the
    id, kept columns from themselves. Columns about the source itself come from no field."""
    spec = facts.job.spec.input
    embedded = ("TRANSFORMATION", f"embedded with {shown(facts.job.spec.model.path)}", False)
    origins: dict[str, tuple[Sequence[str], tuple[str, str, bool]]] = {
        "embedding": (spec.text_fields, embedded),
        "embedding_scale": (spec.text_fields, embedded),
        "text": (spec.text_fields, ("TRANSFORMATION", "cleaned and cut", False)),
        **{
            name: (
                spec.text_fields,
                ("TRANSFORMATION", "computed from the text", name == "text_sha256"),
            )
            for name in _OF_TEXT
        },
        **{name: ((name,), ("IDENTITY", "kept", False)) for name in spec.keep_columns},
    }
    if spec.id_column is not None:
        origins["doc_id"] = ((spec.id_column,), ("IDENTITY", "the id of the record", False))
    return column_lineage_dataset.ColumnLineageDatasetFacet(
        fields={
            name: column_lineage_dataset.Fields(inputFields=_fields(inputs, *origins[name]))
            for name in columns.names
            if name in origins
        },
        producer=producer,
    )


def _fields(
    inputs: Sequence[Place], names: Sequence[str], how: tuple[str, str, bool]
) -> list[column_lineage_dataset.InputField]:
    subtype, description, masking = how
    return [
        column_lineage_dataset.InputField(
            namespace=place.namespace,
            name=place.name,
            field=name,
            transformations=[
                column_lineage_dataset.Transformation(
                    type="DIRECT", subtype=subtype, description=description, masking=masking
                )
            ],
        )
        for place in inputs
        for name in names
    ]
