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

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
import yaml

from pipeline.errors import SpecError
from pipeline.job.field_types import Section
from pipeline.job.input_spec import InputSpec
from pipeline.job.overrides import apply_override
from pipeline.job.sections import ModelSpec, OutputSpec, PrepareSpec, PublishSpec, RuntimeSpec
from pipeline.job.spec_mistakes import explain_all
from pipeline.storage.closed_yaml import MAX_BYTES, YamlMistake, load_yaml

__all__ = ["JobSpec", "load_spec"]


class JobSpec(Section):
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
        with Path(path).open("rb") as file:
            fields = load_yaml(file.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        mistake = error if isinstance(error, YamlMistake) else f"cannot be read: {error}"
        raise SpecError(f"{path}: {mistake}") from error
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
