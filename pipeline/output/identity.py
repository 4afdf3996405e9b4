"""What a stored generation says about the model and the input that its rows came from.

A generation comes in; the facts that commands on an output work with come out, in their types. The
rest of an identity is only hashed and compared. Other keys than these are none of their business:
later releases add some.
"""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from pipeline.errors import OutputError
from pipeline.storage import layout
from pipeline.storage.accepted import first_mistake
from pipeline.storage.lineage import Generation
from pipeline.storage.stored_record import Count


class _Facts(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")


class ModelFacts(_Facts):
    """How the model made the vectors. files: SHA-256 by name."""

    files: dict[str, str]
    pooling: str
    normalize: bool
    truncate_dim: Count | None
    dtype: Literal["float32", "float16", "bfloat16", "int8"]
    prompt: str | None
    max_tokens: Count


class InputFacts(_Facts):
    """How records were read."""

    id_column: str | None


class Identity(_Facts):
    """tokenizer: versions of what made the ids, by name."""

    model: ModelFacts
    input: InputFacts
    tokenizer: dict[str, Any] = pydantic.Field(default={})


def identity_of(generation: Generation) -> Identity:
    """The facts of a generation. Raises OutputError when one is missing or of another type."""
    try:
        return Identity.model_validate(generation.identity)
    except pydantic.ValidationError as error:
        raise OutputError(
            f"generation {generation.fingerprint}: its identity is damaged: "
            f"{first_mistake(error, Identity)}. "
            f"Restore {layout.generation(generation.fingerprint)} from a backup."
        ) from error
