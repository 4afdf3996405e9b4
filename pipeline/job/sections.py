"""The sections of a job spec after `input`: prepare, model, output, runtime and publish."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, Self

import pydantic

from pipeline.job.field_types import (
    MOST,
    Auto,
    Count,
    Duration,
    Names,
    Options,
    PartSize,
    PromptName,
    Section,
    Uri,
)


class ChunkSpec(Section):
    """How a long document is cut; read only where long_documents is not truncate.

    boundary: the units that chunks are packed from. `sentence`: sentences. `token`: words (runs of
    8 characters in a script without spaces), and not the tokens of the model. A unit longer than
    max_tokens is cut in any case.
    """

    max_tokens: Count = 256
    overlap_tokens: Annotated[int, pydantic.Field(ge=0, le=MOST)] = 32
    boundary: Literal["sentence", "token"] = "sentence"

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.overlap_tokens >= self.max_tokens:
            raise ValueError("prepare.chunk.overlap_tokens must be smaller than max_tokens")
        return self


class PrepareSpec(Section):
    """How a text is cleaned and cut before it is tokenized."""

    unicode: Literal["none", "NFC", "NFKC"] = "none"
    min_chars: Count = 1
    long_documents: Literal["truncate", "chunk", "chunk_and_pool"] = "truncate"
    chunk: ChunkSpec = ChunkSpec()


class ModelSpec(Section):
    """The model, and where to deviate from its own directory; `auto` takes what the directory
    says."""

    path: Uri
    revision: str | None = None
    pooling: Literal[
        "auto", "cls", "mean", "max", "last_token", "weighted_mean", "mean_sqrt_len"
    ] = "auto"
    normalize: Auto | bool = "auto"
    prompt: str | None = None
    prompt_name: PromptName = "auto"
    max_tokens: Auto | Count = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    truncate_dim: Count | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.prompt is not None and self.prompt_name != "auto":
            raise ValueError("model.prompt and model.prompt_name exclude each other; give one")
        return self


class OutputSpec(Section):
    """Where the vectors are stored, and their physical form.

    max_partitions: the most partitions, each a folder and a file, that one part may have; records
    of the others are rejected.
    """

    uri: Uri
    partition_by: Names = ()
    max_partitions: Count = 128
    vector_precision: Literal["float32", "float16", "bfloat16", "int8", "ubinary"] = "float32"
    include_text: bool = True
    storage_options: Options = {}

    def identity(self) -> dict[str, Any]:
        """What can change a row, as plain data. `max_partitions` is younger than outputs without
        it: with its default it is left out, so that their fingerprints stay as they were."""
        fields = self.model_dump(mode="json", exclude={"uri", "storage_options"})
        if self.max_partitions == OutputSpec.model_fields["max_partitions"].default:
            del fields["max_partitions"]
        return fields


class RuntimeSpec(Section):
    """Settings that can differ between two runs of one job: none of them changes a vector."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: Literal["auto", "packed", "padded"] = "auto"
    part_bytes: PartSize = "auto"
    tokenizers: Auto | Count = "auto"
    embedders: Auto | Count = "auto"
    max_batch_tokens: Auto | Count = "auto"
    max_reject_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01
    max_damaged_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01
    max_delete_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.2
    max_partitions: Count = 10_000
    commit_every: Duration | None = datetime.timedelta(minutes=10)


class IcebergSpec(Section):
    """An Iceberg table in a catalog of pyiceberg.

    catalog: the properties of the catalog; without any it is a SQLite file in the output. location:
    where a new table keeps its metadata, for catalogs that do not accept a folder of the output.
    """

    table: Annotated[
        str,
        pydantic.Field(
            pattern=r"^\w[\w-]*(\.\w[\w-]*)+$",
            description="a name below a namespace, for instance lake.vectors",
        ),
    ]
    catalog: Options = {}
    location: Uri | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if code := [name for name in self.catalog if name.startswith("py-")]:
            raise ValueError(
                f"publish.iceberg.catalog: '{code[0]}' names Python code to load, "
                "which a spec must not do"
            )
        return self


class PublishSpec(Section):
    """The tables that each snapshot is published to."""

    iceberg: IcebergSpec | None = None
    delta: bool = False
