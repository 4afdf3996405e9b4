"""Parts of a job spec for tests of the rooms that take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.job.input_spec import InputSpec
from pipeline.storage.schema import KEPT_TYPES


def input_spec(
    text_column: str = "text",
    id_column: str | None = None,
    keep: Mapping[str, pa.DataType] | None = None,
    max_record_bytes: int = 1 << 20,
    **settings: Any,
) -> InputSpec:
    """The spec of a reader. keep: Arrow types by column, in the form of `InputSpec.keep`."""
    names = {type_: name for name, type_ in KEPT_TYPES.items()}
    return InputSpec(
        uri="unused",
        text_column=text_column,
        id_column=id_column,
        keep_columns={column: names[type_] for column, type_ in (keep or {}).items()},
        max_record_bytes=max_record_bytes,
        **settings,
    )
