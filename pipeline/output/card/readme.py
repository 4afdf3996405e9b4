"""The card for people: Markdown with the front matter of Hugging Face's dataset cards.

In: `CardFacts`. Out: the text of `README.md`, without the line by which it is recognised. Source of
the front matter: https://huggingface.co/docs/hub/datasets-cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipeline.output.card.columns import columns_of
from pipeline.output.card.facts import CardFacts
from pipeline.output.card.making import making
from pipeline.output.card.markdown import code, front_matter, table
from pipeline.output.card.reading import FILES, snippets
from pipeline.storage import layout, schema
from pipeline.storage.addresses import shown
from pipeline.storage.words import counted

MAX_FILES = 1000
"""The most data files that a card names one by one; beyond them it gives a pattern."""
MAX_URIS = 5
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
_LARGER_SIZES = ("1B<n<10B", "10B<n<100B", "100B<n<1T", "n>1T")
DATA_PATTERN = f"{layout.DATA}/**/*.parquet"


def readme(facts: CardFacts, mark: str) -> str:
    """mark: a line that says whose file it is, put below the front matter."""
    sections = [
        front_matter(_front(facts)),
        mark,
        f"# {facts.spec.name}",
        facts.settings.description or _summary(facts),
        *_partial(facts),
        "## What is in it",
        table(("", ""), _content(facts)),
        "## How it was made",
        table(("", ""), making(facts)),
        "## Columns",
        table(
            ("column", "type", "meaning"),
            [(code(name), code(type_), meaning) for name, type_, meaning in columns_of(facts)],
        ),
        "## Rejected records",
        *_rejects(facts),
        "## Licences",
        *_licences(facts),
        "## Where it comes from",
        *_lineage(facts),
        "## How to read it",
        *_reading(facts),
        "## Limits",
        "\n".join(f"* {limit}" for limit in _limits(facts)),
    ]
    return "\n\n".join(sections) + "\n"


def size_category(n_rows: int) -> str:
    """The Hub's name for a number of rows."""
    digits = len(str(max(n_rows, 1)))
    categories = (*_SIZES, *_LARGER_SIZES)
    return categories[min(max(0, digits - 3), len(categories) - 1)]


def licence_id(licence: str | None) -> dict[str, str]:
    """The keys of the front matter for a licence: the Hub knows identifiers in lower case; any
    other licence is `other` with a name or a link."""
    if licence is None:
        return {"license": "unknown"}
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        return {"license": licence.lower()}
    key = "license_link" if licence.startswith("https://") else "license_name"
    return {"license": "other", key: licence}


def _front(facts: CardFacts) -> dict[str, Any]:
    paths = [file.path for file in facts.files]
    fields: dict[str, Any] = {
        "pretty_name": facts.spec.name,
        **licence_id(facts.settings.license),
        "language": list(facts.settings.languages),
        "size_categories": [size_category(facts.snapshot.n_rows)],
        "task_categories": ["feature-extraction"],
        "tags": ["embeddings", "corpus-embed", "croissant"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": paths if len(paths) <= MAX_FILES else DATA_PATTERN}
                ],
            }
        ],
    }
    if not paths:
        del fields["configs"]
    return {name: value for name, value in fields.items() if value}


def _summary(facts: CardFacts) -> str:
    documents = counted(facts.snapshot.n_documents, "document")
    vectors = counted(facts.snapshot.n_rows, "vector")
    return (
        f"Embeddings of {documents}: {vectors} of {facts.generation.dimension:,} dimensions, made "
        f"with {code(facts.generation.model_name)}."
    )


def _partial(facts: CardFacts) -> Iterator[str]:
    if not facts.snapshot.complete:
        yield (
            "> **A part of the whole.** The run that makes this snapshot has not finished: "
            "documents of its input are missing."
        )


def _content(facts: CardFacts) -> Iterator[tuple[str, str]]:
    snapshot, generation = facts.snapshot, facts.generation
    yield "documents", f"{snapshot.n_documents:,}"
    yield "rows (one vector each)", f"{snapshot.n_rows:,}"
    yield "tokens", f"{snapshot.n_tokens:,}"
    yield "rows of texts that were cut", f"{facts.n_truncated:,}"
    if snapshot.n_duplicate_ids is not None:
        yield "ids that several documents share", f"{snapshot.n_duplicate_ids:,}"
    yield "dimensions", f"{generation.dimension:,}"
    yield "stored as", generation.vector_precision
    files = counted(snapshot.n_files, "file")
    yield "data", f"{files}, {snapshot.size_bytes:,} bytes"
    if generation.partition_by:
        yield "partitioned by", ", ".join(map(code, generation.partition_by))
    yield "snapshot", f"{snapshot.number}" + ("" if snapshot.complete else " (partial)")
    if snapshot.nominal_time:
        yield "scheduled for", snapshot.nominal_time.isoformat()
    if facts.made_at:
        yield "made at", facts.made_at.isoformat()


def _rejects(facts: CardFacts) -> Iterator[str]:
    snapshot = facts.snapshot
    if not snapshot.n_rejects:
        yield "None: every record of the input is in the data."
        return
    records = counted(snapshot.n_records, "record")
    yield (
        f"{snapshot.n_rejects:,} of {records} could not be embedded; each is a row below "
        f"`{layout.REJECTS}/`, and `corpus-embed rejects` shows them with their texts."
    )
    if snapshot.reject_reasons:
        rows = [
            (code(reason), f"{number:,}", schema.REASONS.get(reason, ""))
            for reason, number in sorted(
                snapshot.reject_reasons.items(), key=lambda item: (-item[1], item[0])
            )
        ]
        yield table(("reason", "records", "meaning"), rows)


def _licences(facts: CardFacts) -> Iterator[str]:
    data = facts.settings.license
    model = facts.generation.model_license
    stated = "not stated (`output.card.license` of the job)"
    rows = [
        ("this data set", code(data) if data else stated),
        ("the model", code(model) if model else "not stated by the model directory"),
    ]
    yield table(("", "licence"), rows)
    if facts.spec.output.include_text:
        yield "The column `text` repeats the input's texts: the rights in them stay as they are."


def _lineage(facts: CardFacts) -> Iterator[str]:
    n_bytes = sum(shard.size_bytes for shard in facts.shards)
    yield f"{counted(len(facts.shards), 'object')}, {n_bytes:,} bytes, from:"
    uris = [f"* {code(shown(uri))}" for uri in facts.spec.input.uri[:MAX_URIS]]
    if len(facts.spec.input.uri) > MAX_URIS:
        uris.append(f"* and {len(facts.spec.input.uri) - MAX_URIS:,} more")
    yield "\n".join(uris)
    run_id = facts.snapshot.run_id
    yield (
        "Every row names its source to the byte (`source_uri`, `source_etag`, `source_record`, "
        "`char_start`, `char_end`). The job is "
        f"`{layout.run_spec(run_id)}`; versions and hardware of each run are beside it. "
        "`corpus-embed trace` follows a row back to its source, `corpus-embed verify` checks all."
    )


def _reading(facts: CardFacts) -> Iterator[str]:
    if not facts.files:
        yield "There are no rows yet."
        return
    yield "The files of this snapshot; run it in the folder of this card:"
    yield _python(FILES)
    for tool, code_ in snippets(facts.partition_types).items():
        yield f"With {tool}:"
        yield _python(code_)
    yield (
        "With corpus-embed, on a disk or an object store: `pipeline.open_dataset(uri)`, or "
        "`ids, vectors = pipeline.read_vectors(uri)`; `corpus-embed files` lists the files."
    )


def _python(text: str) -> str:
    return f"```python\n{text}```"


def _limits(facts: CardFacts) -> Iterator[str]:
    yield (
        f"Only the files that the newest snapshot names are the data. `{DATA_PATTERN}` can match "
        "more: files of a run that has not finished, and, after a refresh or a compaction, files "
        "that were replaced and wait for `corpus-embed vacuum`."
    )
    if len(facts.files) > MAX_FILES:
        yield f"The front matter gives this pattern, since {len(facts.files):,} files are too many."
    yield "This card is about one snapshot; it is replaced when the next one is made."
    if facts.snapshot.n_duplicate_ids:
        yield "Several documents share an id: tell them apart by `source_uri`, `source_record`."
    if facts.n_truncated:
        yield "Where `truncated` is true, the vector does not know the end of the text."
    if facts.generation.partition_by:
        yield "Partition columns are percent-encoded in the names of folders; Spark gives strings."
    yield "Vectors inherit the biases and the languages of their model."
