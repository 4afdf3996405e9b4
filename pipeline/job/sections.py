"""The sections of a job spec after `input`: prepare, model, output, runtime and publish."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, Self

import pydantic

from pipeline.job.card_spec import CardSpec
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
    takes,
)


class ChunkSpec(Section):
    """How a long document is cut; read only where long_documents is not truncate."""

    max_tokens: Count = 256
    """The most tokens of a chunk, without the special tokens of the model. 256 is about a
    paragraph, which is what a search wants to find."""

    overlap_tokens: Annotated[int, pydantic.Field(ge=0, le=MOST)] = 32
    """How many tokens a chunk repeats of the one before it, so that a sentence at a border keeps
    its context."""

    boundary: Literal["sentence", "token"] = "sentence"
    """The units that chunks are packed from. `sentence`: sentences. `token`: words (runs of 8
    characters in a script without spaces), and not the tokens of the model. A unit longer than
    max_tokens is cut in any case."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.overlap_tokens >= self.max_tokens:
            raise ValueError("prepare.chunk.overlap_tokens must be smaller than max_tokens")
        return self


class PrepareSpec(Section):
    """How a text is cleaned and cut before it is tokenized."""

    unicode: Literal["none", "NFC", "NFKC"] = "none"
    """The Unicode normalisation of a text. `none` leaves it as it is, since most tokenizers
    normalise by themselves."""

    min_chars: Count = 1
    """The fewest characters of a text without the white space around it; a document with fewer is a
    reject."""

    long_documents: Literal["truncate", "chunk", "chunk_and_pool"] = "truncate"
    """What happens to a document with more tokens than the model takes. `truncate` embeds its start
    and flags it; `chunk` makes a row of each chunk; `chunk_and_pool` makes one vector of all."""

    chunk: ChunkSpec = ChunkSpec()
    """The sizes of chunks and where they may end."""


class ModelSpec(Section):
    """The model, and where to deviate from its own directory; `auto` takes what the directory
    says."""

    path: Uri
    """A directory, the id of a model on the Hugging Face Hub, or a prefix on an object store. Only
    safetensors are loaded."""

    revision: str | None = None
    """The commit, branch or tag of a Hub id; null takes the newest commit at the first run. A
    directory has none."""

    pooling: Literal[
        "auto", "cls", "mean", "max", "last_token", "weighted_mean", "mean_sqrt_len"
    ] = "auto"
    """How the vectors of tokens become one. `auto` is what the model was trained with."""

    normalize: Auto | bool = "auto"
    """Whether vectors get length 1. `auto` is what the model directory says."""

    prompt: str | None = None
    """The text in front of every document, `""` for none; null takes the one that `prompt_name`
    chooses."""

    prompt_name: PromptName = "auto"
    """A prompt of the model by its name. `auto` takes document, passage or corpus, else the model's
    default, else none."""

    max_tokens: Auto | Count = "auto"
    """The most tokens of a text, with prompt and special tokens. `auto` is the model's own limit;
    fewer are faster, since the cost of attention grows with them."""

    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """The number format of the computation. `auto` is float32 on a CPU and bfloat16 on a GPU. int8
    is for CPUs, from AVX2 on: faster, at a cosine of about 0.998 to float32. One that the CPU would
    only emulate is refused."""

    truncate_dim: Count | None = None
    """The number of leading dimensions that are kept, for models that were trained for it
    (matryoshka); null keeps all."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.prompt is not None and self.prompt_name != "auto":
            raise ValueError("model.prompt and model.prompt_name exclude each other; give one")
        return self


class OutputSpec(Section):
    """Where the vectors are stored, and their physical form."""

    uri: Uri
    """A folder on disk or on an object store, which belongs to this job alone and lies outside of
    the input."""

    partition_by: Names = ()
    """Kept columns with few values, by which the data files lie in folders such as `lang=ja/`."""

    max_partitions: Count = 128
    """The most partitions, each a folder and a file, that one part may have; records of the others
    are rejected. It keeps a column with many values from making many tiny files."""

    vector_precision: Literal["float32", "float16", "bfloat16", "int8", "ubinary"] = "float32"
    """How vectors are stored. `float16` and `bfloat16` are rounded inside float32 and compress to
    about half; `int8` and `ubinary` take a quarter and a 32nd of the bytes."""

    include_text: bool = True
    """Whether the text of each row is stored beside its vector. Search shows it; without it the
    output is smaller and holds no content."""

    card: CardSpec | None = CardSpec()
    """What the dataset card beside the data (`README.md`, `croissant.json`) says; null for no card.
    It changes no vector."""

    storage_options: Options = {}
    """Options of fsspec for the output, for instance an `endpoint_url`. Credentials come from the
    environment and are refused here."""

    def identity(self) -> dict[str, Any]:
        """What can change a row, as plain data. `max_partitions` is younger than outputs without
        it: with its default it is left out, so that their fingerprints stay as they were."""
        fields = self.model_dump(mode="json", exclude={"uri", "card", "storage_options"})
        if self.max_partitions == OutputSpec.model_fields["max_partitions"].default:
            del fields["max_partitions"]
        return fields


class RuntimeSpec(Section):
    """Settings that can differ between two runs of one job: none of them changes a vector."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs. `auto` is a GPU where the machine or the cluster has one."""

    engine: Literal["auto", "packed", "padded"] = "auto"
    """The way through the model. `auto` is `packed`, which computes no padding, for the
    architectures that it knows, otherwise `padded`."""

    part_bytes: PartSize = "auto"
    """Bytes of records in a part, the unit of work and of resuming. `auto` is a 256th of the input,
    between 256KiB and 32MiB."""

    tokenizers: Auto | Count = "auto"
    """The number of processes that read and tokenize. `auto` fits the cluster and the work."""

    embedders: Auto | Count = "auto"
    """The number of processes that embed, one for each GPU. `auto` fits the cluster and the
    work."""

    max_batch_tokens: Auto | Count = "auto"
    """The most tokens that go through the model at once. `auto` fits the memory of the device."""

    max_reject_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01
    """The share of the records that may be rejected; with more, no snapshot is made."""

    max_damaged_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01
    """The share of the bytes, and of the shards, of the input that may be unreadable; with more, no
    snapshot is made."""

    max_delete_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.2
    """The share of the documents of the newest snapshot that the next one may lack; a run that
    would drop more stops. It protects an output from an input that is half gone."""

    max_partitions: Count = 10_000
    """The most folders that the partitions of a run may fill; with more, no snapshot is made."""

    commit_every: Duration | None = datetime.timedelta(minutes=10)
    """How often a run commits what is finished as a snapshot that is not complete; null commits at
    the end only."""


class IcebergSpec(Section):
    """An Iceberg table in a catalog of pyiceberg."""

    table: Annotated[
        str,
        pydantic.Field(pattern=r"^\w[\w-]*(\.\w[\w-]*)+$"),
        takes("a name below a namespace, for instance lake.vectors"),
    ]
    """The table, by a name below a namespace. It is created at the first snapshot."""

    catalog: Options = {}
    """The properties of the catalog, as pyiceberg takes them; without any it is a SQLite file in
    the output."""

    location: Uri | None = None
    """Where a new table keeps its metadata, for catalogs that do not accept a folder of the output;
    null is a folder of the output."""

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
    """An Iceberg table that follows the snapshots; null for none."""

    delta: bool = False
    """Whether the output is a Delta table, too, whose log follows the snapshots."""
