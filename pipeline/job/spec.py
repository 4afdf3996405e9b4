"""The job spec: one YAML file becomes one frozen, closed, typed object.

In: a YAML file and dotted overrides (`--set runtime.max_batch_tokens=8192`). Out: a `JobSpec` in
which every value is checked; an unknown key stops at once and names the nearest valid one.
Everything outside `runtime`, `publish` and the storage options is identity:
`pipeline/driver/plan.py` hashes it, together with what the model directory says, into the
fingerprint.
"""

from __future__ import annotations

import datetime
import difflib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

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
from pipeline.storage import schema

__all__ = ["JobSpec", "load_spec"]

FORMATS = ("jsonl", "parquet", "text", "csv", "warc")
"""Formats of shards; `read.READERS` has the reader of each."""


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
                    f"input.keep_columns: '{name}' is a column of the output; rename it in the source"
                )
            if type_name not in schema.KEPT_TYPES:
                raise ValueError(
                    f"input.keep_columns.{name}: type '{type_name}' is not one of {', '.join(schema.KEPT_TYPES)}"
                )
        return self

    @functools.cached_property
    def keep(self) -> dict[str, pa.DataType]:
        return {name: schema.KEPT_TYPES[type_name] for name, type_name in self.keep_columns.items()}


class ChunkSpec(_Section):
    """How a long document is cut; only read when long_documents is not truncate."""

    max_tokens: Count = 256
    overlap_tokens: Annotated[int, pydantic.Field(ge=0)] = 32
    boundary: Literal["sentence", "token"] = "sentence"

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.overlap_tokens >= self.max_tokens:
            raise ValueError("prepare.chunk.overlap_tokens must be smaller than max_tokens")
        return self


class PrepareSpec(_Section):
    """What happens to a text before it is tokenized."""

    unicode: Literal["none", "NFC", "NFKC"] = "none"
    min_chars: Annotated[int, pydantic.Field(ge=1)] = 1
    long_documents: Literal["truncate", "chunk", "chunk_and_pool"] = "truncate"
    chunk: ChunkSpec = ChunkSpec()


class ModelSpec(_Section):
    """Which model, and what to do differently from what its directory says (`auto` means: as it
    says)."""

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
    """Where the vectors go, and their physical form."""

    uri: Uri
    partition_by: tuple[Name, ...] = ()
    vector_precision: Literal["float32", "float16", "bfloat16", "int8", "ubinary"] = "float32"
    include_text: bool = True
    storage_options: Options = {}


class RuntimeSpec(_Section):
    """Knobs that may differ between two runs of one job: none of them changes a vector."""

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
    """A table in a catalog of pyiceberg: its properties, or none for a SQLite file in the output.

    location: where a new table keeps its metadata, for catalogs that want it in a place of theirs.
    """

    table: Annotated[str, pydantic.Field(pattern=r"^\w[\w-]*(\.\w[\w-]*)+$")]
    catalog: Options = {}
    location: Uri | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if code := [name for name in self.catalog if name.startswith("py-")]:
            raise ValueError(
                f"publish.iceberg.catalog: '{code[0]}' names Python code to load, which a spec cannot"
            )
        return self


class PublishSpec(_Section):
    """Tables that each snapshot is published to; no part of the identity."""

    iceberg: IcebergSpec | None = None
    delta: bool = False


class JobSpec(_Section):
    """One job. Raises SpecError (through `load_spec`) for anything that is not exactly right."""

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
        """The resolved spec: every default written out. Holds no secret, since a spec cannot hold
        one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job spec from YAML and apply `section.key=value` overrides (values are YAML).

    Raises SpecError naming the file, the key, what was found and the nearest valid key.
    """
    try:
        fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: cannot be read as YAML: {_yaml_problem(error)}") from None
    if not isinstance(fields, dict):
        raise SpecError(
            f"{path}: a job spec is a mapping with name, input, model and output; found {type(fields).__name__}"
        )
    for override in overrides:
        _override(fields, override)
    return spec_from(fields, str(path))


def spec_from(fields: dict[str, Any], where: str = "job spec") -> JobSpec:
    """Validate plain fields. Raises SpecError with one line a mistake."""
    try:
        return JobSpec.model_validate(fields)
    except pydantic.ValidationError as error:
        lines = [f"  {_explain(detail)}" for detail in error.errors()]
        raise SpecError(f"{where} is not a valid job spec:\n" + "\n".join(lines)) from None


def _override(fields: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    *sections, key = dotted.strip().split(".")
    if not equals or not key:
        raise SpecError(
            f"--set {dotted}: write it as section.key=value, for instance runtime.max_batch_tokens=8192"
        )
    for section in sections:
        fields = fields.setdefault(section, {})
        if not isinstance(fields, dict):
            raise SpecError(f"--set {dotted}: '{section}' is not a section")
    try:
        fields[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {dotted}: the value is not YAML: {_yaml_problem(error)}") from None


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the lines around it: somebody may have put a secret there."""
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or type(error).__name__}{place}"


def _explain(detail: Any) -> str:
    location = [
        str(step)
        for step in detail["loc"]
        if step not in ("literal['auto']", "constrained-int", "bool", "int")
    ]
    dotted = ".".join(location) or "spec"
    if detail["type"] == "extra_forbidden":
        section: Any = JobSpec
        for step in location[:-1]:
            found = section.model_fields[step].annotation
            section = next(
                (part for part in get_args(found) if hasattr(part, "model_fields")), found
            )
        near = difflib.get_close_matches(location[-1], section.model_fields, n=1, cutoff=0.5)
        hint = (
            f"did you mean '{near[0]}'?"
            if near
            else f"valid keys: {', '.join(section.model_fields)}"
        )
        return f"{dotted}: unknown key; {hint}"
    quiet = detail["type"] in ("missing", "value_error") or location[1:2] in (
        ["uri"],
        ["storage_options"],
        ["iceberg"],
    )
    found = "" if quiet else f" (found {detail['input']!r:.120})"
    return f"{dotted}: {detail['msg'].removeprefix('Value error, ')}{found}"
