"""The `output.card` section of a job spec: what only a person can say about the data."""

from __future__ import annotations

from typing import Annotated

import pydantic

from pipeline.job.field_types import Languages, Section, takes


class CardSpec(Section):
    """What the dataset card says that no record knows."""

    license: Annotated[
        str | None,
        pydantic.Field(min_length=1, max_length=200),
        takes("a licence, for instance CC-BY-4.0"),
    ] = None
    """The licence of the data: an SPDX identifier, a name or a URL."""

    languages: Languages = ()
    """The languages of the texts, as codes of ISO 639."""

    description: Annotated[
        str | None,
        pydantic.Field(min_length=1, max_length=20_000),
        takes("Markdown"),
    ] = None
    """What the data is, as Markdown, in place of a sentence that is made from the records."""
