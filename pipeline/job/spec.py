"""The job spec: one YAML file becomes one frozen, closed, typed object.

A YAML file and dotted overrides (`--set runtime.max_batch_tokens=8192`) come in; a `JobSpec` comes
out in which every value has been checked. An unknown key is an error that names the nearest valid
one.

The identity of a job is what can change a vector or a row: `prepare`, and `input` and `output`
without their URIs and storage options. `pipeline/job/resolve.py` adds what it settles from `model`
and the model directory, and hashes the whole into the fingerprint. Names, URIs, storage options,
`runtime` and `publish` are no part of it.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
import pydantic
import yaml

from pipeline.errors import SpecError
from pipeline.job.field_types import (
    Auto,
    Count,
    Duration,
    KeptColumns,
    Name,
    Options,
    PartSize,
    RecordSize,
    Uri,
    Uris,
)
from pipeline.job.overrides import apply_override
from pipeline.job.spec_mistakes import explain_all, explain_yaml
from pipeline.storage import schema

__all__ = ["JobSpec", "load_spec"]

FORMATS = ("jsonl", "parquet", "text", "csv", "warc")
"""Formats of shards; each has its reader in `pipeline/read/`."""


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True)


class InputSpec(_Section):
    """Where documents come from and which fields of a record matter."""

    uri: Uris
    format: str = "auto"
    text_column: Name = "text"
    id_column: Name | None = None
    keep_columns: KeptColumns = {}
    max_record_bytes: RecordSize = pydantic.ByteSize(16 << 20)
    storage_options: Options = {}

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.format not in {"auto", *FORMATS}:
            raise ValueError(
                f"input.format '{self.format}' is not one of auto, {', '.join(FORMATS)}"
            )
        for name, type_name in self.keep_columns.items():
            if name in schema.RESERVED:
                raise ValueError(
                    f"input.keep_columns: '{name}' is a column of the output; "
                    "rename it in the source"
                )
            if type_name not in schema.KEPT_TYPES:
                raise ValueError(
                    f"input.keep_columns.{name}: type '{type_name}' is not one of "
                    f"{', '.join(schema.KEPT_TYPES)}"
                )
        return self

    @functools.cached_property
    def keep(self) -> dict[str, pa.DataType]:
        """The Arrow type of each kept column, in the order of the spec."""
        return {name: schema.KEPT_TYPES[type_name] for name, type_name in self.keep_columns.items()}


class ChunkSpec(_Section):
    """How a long document is cut; read only where long_documents is not truncate.

    boundary: the units that chunks are packed from. `sentence`: sentences. `token`: words (runs of
    8 characters in a script without spaces), and not the tokens of the model. A unit longer than
    max_tokens is cut in any case.
    """

    max_tokens: Count = 256
    overlap_tokens: Annotated[int, pydantic.Field(ge=0)] = 32
    boundary: Literal["sentence", "token"] = "sentence"

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.overlap_tokens >= self.max_tokens:
            raise ValueError("prepare.chunk.overlap_tokens must be smaller than max_tokens")
        return self


class PrepareSpec(_Section):
    """How a text is cleaned and cut before it is tokenized."""

    unicode: Literal["none", "NFC", "NFKC"] = "none"
    min_chars: Annotated[int, pydantic.Field(ge=1)] = 1
    long_documents: Literal["truncate", "chunk", "chunk_and_pool"] = "truncate"
    chunk: ChunkSpec = ChunkSpec()


class ModelSpec(_Section):
    """The model, and where to deviate from its own directory; `auto` takes what the directory
    says."""

    path: Uri
    revision: str | None = None
    pooling: Literal[
        "auto", "cls", "mean", "max", "last_token", "weighted_mean", "mean_sqrt_len"
    ] = "auto"
    normalize: Auto | bool = "auto"
    prompt: str | None = None
    prompt_name: str | None = None
    max_tokens: Auto | Count = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    truncate_dim: Count | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("model.prompt and model.prompt_name exclude each other; give one")
        return self


class OutputSpec(_Section):
    """Where the vectors are stored, and their physical form."""

    uri: Uri
    partition_by: tuple[Name, ...] = ()
    vector_precision: Literal["float32", "float16", "bfloat16", "int8", "ubinary"] = "float32"
    include_text: bool = True
    storage_options: Options = {}


class RuntimeSpec(_Section):
    """Settings that can differ between two runs of one job: none of them changes a vector."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: Literal["auto", "packed", "padded"] = "auto"
    part_bytes: PartSize = "auto"
    tokenizers: Auto | Count = "auto"
    embedders: Auto | Count = "auto"
    max_batch_tokens: Auto | Count = "auto"
    max_reject_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01
    max_delete_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.2
    commit_every: Duration | None = datetime.timedelta(minutes=10)


class IcebergSpec(_Section):
    """An Iceberg table in a catalog of pyiceberg.

    catalog: the properties of the catalog; without any it is a SQLite file in the output. location:
    where a new table keeps its metadata, for catalogs that do not accept a folder of the output.
    """

    table: Annotated[str, pydantic.Field(pattern=r"^\w[\w-]*(\.\w[\w-]*)+$")]
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


class PublishSpec(_Section):
    """The tables that each snapshot is published to."""

    iceberg: IcebergSpec | None = None
    delta: bool = False


class JobSpec(_Section):
    """One job: what to embed with which model, and where to put the vectors."""

    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    input: InputSpec
    prepare: PrepareSpec = PrepareSpec()
    model: ModelSpec
    output: OutputSpec
    runtime: RuntimeSpec = RuntimeSpec()
    publish: PublishSpec = PublishSpec()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.output.partition_by:
            if name not in self.input.keep_columns:
                raise ValueError(
                    f"output.partition_by: '{name}' must also be in input.keep_columns"
                )
        return self

    def to_yaml(self) -> str:
        """The spec with every default written out. It holds no secret, because a spec cannot hold
        one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job spec from YAML and apply `section.key=value` overrides (values are YAML).

    Raises SpecError that names the file, the key, the value found there and the nearest valid key.
    """
    try:
        fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: cannot be read as YAML: {explain_yaml(error)}") from None
    if not isinstance(fields, dict):
        raise SpecError(
            f"{path}: a job spec is a mapping with name, input, model and output; "
            f"found {type(fields).__name__}"
        )
    for override in overrides:
        apply_override(fields, override)
    return spec_from(fields, str(path))


def spec_from(fields: dict[str, Any], source: str = "job spec") -> JobSpec:
    """Validate plain fields; `source` is what messages call them. Raises SpecError with one line
    for each mistake."""
    try:
        return JobSpec.model_validate(fields)
    except pydantic.ValidationError as error:
        mistakes = explain_all(error, JobSpec)
        raise SpecError(f"{source} is not a valid job spec:\n{mistakes}") from None
