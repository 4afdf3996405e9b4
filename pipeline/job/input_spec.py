"""The `input` section of a job spec: where documents come from, which fields matter."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, Self, get_args

import pyarrow as pa
import pydantic

from pipeline.job.csv_spec import CsvSpec
from pipeline.job.field_types import KeptColumns, Name, Options, RecordSize, Section, Uris, takes
from pipeline.job.text_template import TextTemplate
from pipeline.storage import schema

Format = Literal["auto", "jsonl", "parquet", "text", "csv", "warc", "document"]
FORMATS: tuple[str, ...] = get_args(Format)[1:]
"""Formats of shards; each has its reader in `pipeline/read/`."""


LATER_SETTINGS = {"text_template", "csv", "max_column_bytes"}
"""Settings that are part of the identity only where they have another value than the default."""


class InputSpec(Section):
    """Where documents come from and which fields of a record matter."""

    uri: Uris
    """The documents: a file, a folder, a glob, or a list of them, on disk, on an object store, over
    HTTP or on the Hub (`hf://`). A name that exists is never taken for a glob."""

    format: Format = "auto"
    """The format of the shards. `auto` tells it from their names; `text` makes each line a
    document, `document` each file."""

    text_column: Annotated[
        Name,
        takes(
            "a name or a path, for instance text or doc.text; several make a text by "
            'text_template, for instance "{title}\\n{body}"'
        ),
    ] = "text"
    """The field that is embedded, by its name or by a path such as `doc.text`. A list of strings is
    joined by line feeds. Plain text and WARC have no fields and need none."""

    text_template: Annotated[
        str | None, takes('names in braces, for instance "{title}\\n{body}"')
    ] = None
    """Several fields as one text, for instance `"{title}\\n{body}"`, instead of `text_column`; `{{`
    and `}}` stand for braces."""

    id_column: Annotated[Name | None, takes("a name or a path, for instance id or doc.id")] = None
    """The field that identifies a document. With null the id is `<uri>#<source_record>`, so that a
    document that moves within its file counts as another one."""

    keep_columns: KeptColumns = {}
    """Fields that are stored beside the vectors, as strings or with a type (`{year: int64}`); also
    from folders such as `lang=ja/`."""

    max_record_bytes: RecordSize = pydantic.ByteSize(16 << 20)
    """The largest record, in bytes; a larger one is a reject. It bounds the memory of a worker."""

    max_column_bytes: RecordSize = pydantic.ByteSize(64 << 10)
    """The largest id or kept value, in bytes; a record with a larger one is a reject. Every chunk
    of a document repeats them."""

    csv: CsvSpec = CsvSpec()
    """How CSV and TSV files are written. All of it is found by itself in most files."""

    storage_options: Options = {}
    """Options of fsspec for the input and for a model on the same store, for instance an
    `endpoint_url`. Credentials come from the environment and are refused here."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.text_template is not None:
            if self.text_column != InputSpec.model_fields["text_column"].default:
                raise ValueError("text_column and text_template exclude each other; give one")
            TextTemplate.parse(self.text_template)
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
    def template(self) -> TextTemplate | None:
        """How the text is made of several fields; None where it is one field."""
        return None if self.text_template is None else TextTemplate.parse(self.text_template)

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The names of the fields that the text is made of."""
        return self.template.fields if self.template else (self.text_column,)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of all fields of a record that the job uses, each once."""
        ids = () if self.id_column is None else (self.id_column,)
        return tuple(dict.fromkeys((*self.text_fields, *ids, *self.keep_columns)))

    @property
    def text_setting(self) -> str:
        """The setting that names them."""
        return "text_template" if self.template else "text_column"

    def identity(self) -> dict[str, Any]:
        """What can change a row, as plain data. Settings that did not exist in the first release
        are left out where they have their default, so that fingerprints stay as they were."""
        first = self.model_dump(mode="json", exclude={"uri", "storage_options", *LATER_SETTINGS})
        later = self.model_dump(mode="json", include=LATER_SETTINGS, exclude_defaults=True)
        return first | later

    @functools.cached_property
    def keep(self) -> dict[str, pa.DataType]:
        """The Arrow type of each kept column, in the order of the spec."""
        return {name: schema.KEPT_TYPES[type_name] for name, type_name in self.keep_columns.items()}
