"""The head of a report and its first section: what the output holds and how it was made."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.output.dataset import arrow_schema
from pipeline.storage import schema
from pipeline.storage.addresses import shown
from pipeline.storage.words import counted, human, number
from pipeline.tools.report.blocks import Block, Card, Facts, Section
from pipeline.tools.report.findings import Findings


def summary(f: Findings) -> str:
    """The output in two sentences."""
    head = f.loaded.snapshot
    n_shards = len({span.shard.uri for part in f.loaded.manifests for span in part.split.spans})
    stored = f.loaded.generation
    return (
        f"{counted(head.n_rows, 'row')} of {counted(head.n_documents, 'document')} from "
        f"{counted(n_shards, 'shard')}, at {f.loaded.store.shown_uri}. Each row has a vector of "
        f"{number(stored.dimension)} dimensions ({stored.vector_precision}) by "
        f"{model_name(f)}."
    )


def model_name(f: Findings) -> str:
    """The model as its generation names it; of a path only the last two steps."""
    name = shown(f.loaded.generation.model_name).rstrip("/")
    return "/".join(name.split("/")[-2:])


def cards(f: Findings) -> list[Card]:
    head = f.loaded.snapshot
    share = head.n_rejects / head.n_records if head.n_records else 0
    is_chunked = head.n_rows != head.n_documents
    return [
        Card("Rows", number(head.n_rows), "chunks of documents" if is_chunked else "documents"),
        Card("Documents", number(head.n_documents), f"of {counted(head.n_records, 'record')}"),
        Card("Rejected", number(head.n_rejects), f"{share:.2%} of the records"),
        Card("Tokens", number(head.n_tokens), "as the model saw them"),
        Card("Dimensions", number(f.loaded.generation.dimension), precision(f)),
        Card("Data", human(head.size_bytes), f"in {counted(head.n_files, 'file')}"),
    ]


def precision(f: Findings) -> str:
    return f.loaded.generation.vector_precision


def overview(f: Findings) -> Section:
    return Section("overview", "What it holds", list(_overview(f)))


def _overview(f: Findings) -> Iterator[Block]:
    head = f.loaded.snapshot
    stored = f.loaded.generation
    spec = f.loaded.spec
    model = f.model
    prepare = spec.prepare
    lengths = f"at most {counted(model.max_tokens, 'token')} go into the model; "
    lengths += {
        "truncate": "longer texts are cut there",
        "chunk": f"longer texts become chunks of {number(prepare.chunk.max_tokens)} tokens",
        "chunk_and_pool": "longer texts are embedded in chunks and pooled to one vector",
    }[prepare.long_documents]
    names = arrow_schema(stored).names
    columns = [name for name in names if name not in schema.RESERVED]
    shared = head.n_duplicate_ids
    yield Facts(
        [
            ("Output", f.loaded.store.shown_uri),
            ("Snapshot", f"{head.number} by run {head.run_id}, fingerprint {head.fingerprint}"),
            ("Input", ", ".join(shown(uri) for uri in spec.input.uri)),
            (
                "Model",
                f"{shown(stored.model_name)} ({stored.model_license or 'no licence stated'})",
            ),
            ("Vectors", _vectors(f)),
            ("Prompt", repr(model.prompt) if model.prompt else "none"),
            ("Lengths", lengths),
            ("Kept columns", ", ".join(columns) or "none"),
            ("Partitions", ", ".join(stored.partition_by) or "none"),
            ("Texts", "in the column text" if "text" in names else "not stored; sources have them"),
            (
                "Shared ids",
                "not counted: documents are named by their place"
                if shared is None
                else (
                    counted(shared, "document id is", "document ids are") if shared else "none is"
                )
                + " used more than once",
            ),
            (
                "Engines",
                "; ".join(f"{counted(n, 'row')} by {name}" for name, n in f.engines.items()),
            ),
        ]
    )


def _vectors(f: Findings) -> str:
    stored = f.loaded.generation
    scaled = "normalized to length 1" if f.model.normalize else "not normalized"
    cut = f", cut to {number(f.model.truncate_dim)} dimensions" if f.model.truncate_dim else ""
    return (
        f"{number(stored.dimension)} dimensions{cut}, {f.model.pooling} pooling, {scaled}, "
        f"computed in {f.model.dtype}, stored as {stored.vector_precision}"
    )
