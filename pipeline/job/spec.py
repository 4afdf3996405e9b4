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
from pipeline.job.field_types import Section, takes
from pipeline.job.input_spec import InputSpec
from pipeline.job.overrides import apply_override
from pipeline.job.sections import ModelSpec, OutputSpec, PrepareSpec, PublishSpec, RuntimeSpec
from pipeline.job.spec_mistakes import explain_all
from pipeline.storage.accepted import shown_value
from pipeline.storage.closed_yaml import MAX_BYTES, YamlMistake, load_yaml

__all__ = ["JobSpec", "load_spec"]

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""PyYAML's own, ten times faster where it was built with libyaml."""


class JobSpec(Section):
    """One job: what to embed with which model, and where to put the vectors."""

    name: Annotated[
        str,
        pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"),
        takes(
            "up to 100 letters, digits, dots, dashes and underscores, of which the first is a "
            "letter or a digit, for instance my-crawl"
        ),
    ]
    """The name of the job. An output remembers whose it is, and another job asks before it replaces
    it."""

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
        return yaml.dump(
            self.model_dump(mode="json"), Dumper=_DUMPER, sort_keys=False, allow_unicode=True
        )

    def settings(self) -> str:
        """The spec as YAML without what has its default: about as somebody would write it."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job spec from YAML and apply `section.key=value` overrides (values are YAML).

    Raises SpecError that names the file, the key, the value found there and the nearest valid key.
    """
    try:
        with Path(path).open("rb") as file:
            fields = load_yaml(file.read(MAX_BYTES + 1))
    except YamlMistake as error:
        raise SpecError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        advice = " A job spec is a file on this machine." if "://" in str(path) else ""
        problem = getattr(error, "strerror", None) or error
        raise SpecError(f"{path}: cannot be read: {problem}.{advice}") from error
    if fields is None:
        raise SpecError(f"{path}: the file is empty; {_WHOLE}")
    if not isinstance(fields, dict):
        raise SpecError(f"{path}: {_WHOLE}; found {shown_value(fields)}")
    keys = [apply_override(fields, override) for override in overrides]
    return spec_from(fields, str(path), keys)


_WHOLE = "a job spec is a mapping with name, input, model and output"


def spec_from(
    fields: dict[str, Any], source: str = "the mapping", overridden: Sequence[str] = ()
) -> JobSpec:
    """Validate plain fields; `source` is what messages call them, and `overridden` are the dotted
    names of those that `--set` has given. Raises SpecError with one line for each mistake."""
    try:
        return JobSpec.model_validate(fields)
    except pydantic.ValidationError as error:
        mistakes = explain_all(error, JobSpec, overridden)
        if all(mistake.startswith("--set ") for mistake in mistakes):
            raise SpecError("\n".join(mistakes)) from None
        lines = "\n".join(f"  {mistake}" for mistake in mistakes)
        raise SpecError(f"{source} is not a valid job spec:\n{lines}") from None
