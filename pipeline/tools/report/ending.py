"""The last sections: licences, how to read the output, and how the report was made."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.output.card.reading import listing, snippets
from pipeline.output.dataset import arrow_schema
from pipeline.storage.addresses import shown
from pipeline.storage.words import counted
from pipeline.tools.report.blocks import Block, Code, Facts, Section, Text
from pipeline.tools.report.findings import Findings
from pipeline.tools.report.sample import MAX_FILES


def licences(f: Findings) -> Section:
    stored = f.loaded.generation
    model = stored.model_license or "not stated in the model's card; ask its publisher"
    card = f.loaded.spec.output.card
    data = (card and card.license) or "not stated; set output.card.license in the job spec"
    return Section(
        "licences",
        "Licences",
        [
            Facts(
                [
                    ("Model", f"{shown(stored.model_name)}: {model}"),
                    ("Data", data),
                ]
            ),
            Text(
                "Vectors are derived from both: whoever hands them on needs the right to do so "
                "with the model's output and with the texts, which can be guessed from their "
                "vectors.",
                "muted",
            ),
        ],
    )


def reading(f: Findings) -> Section:
    return Section("reading", "How to read the output", list(_reading(f)))


def _reading(f: Findings) -> Iterator[Block]:
    stored = f.loaded.generation
    yield Text(
        "The files of the newest snapshot come first, because a glob over the folder can also find "
        "files of other snapshots. Each of the five tools then takes their names."
    )
    if stored.vector_precision == "int8":
        yield Text(
            "A vector is embedding * embedding_scale; for cosines the scale makes no difference."
        )
    if stored.vector_precision == "ubinary":
        yield Text("A vector is bits: the first dimension is the highest bit of the first byte.")
    root = f.loaded.store.shown_uri.removeprefix("file://")
    yield Code("The files of the newest snapshot", "python", listing(root).strip())
    types = arrow_schema(stored)
    partitions = {name: types.field(name).type for name in stored.partition_by}
    for tool, code in snippets(partitions).items():
        yield Code(tool, "python", code.strip())


def about(f: Findings) -> Section:
    return Section("about", "About this report", list(_about(f)))


def _about(f: Findings) -> Iterator[Block]:
    sample = f.sample
    drawn = (
        "all rows of the snapshot"
        if sample.is_whole
        else (
            f"{counted(len(sample.rows), 'row')} of {counted(sample.n_rows, 'row')}, each drawn "
            f"with the same probability (seed {f.options.seed}), from "
            f"{counted(sample.n_files_read, 'file')} of {counted(sample.n_files, 'file')}"
        )
    )
    if sample.n_files > MAX_FILES and not sample.is_whole:
        drawn += f"; of many files, {MAX_FILES} places are read, so rows of a file come together"
    yield Facts(
        [
            ("Exact", "numbers of rows, documents, tokens, rejects, files and bytes; shards; runs"),
            ("From a sample", f"lengths, norms, map, duplicates, neighbours: {drawn}"),
            ("Sources", _sources(f)),
            (
                "This page",
                "makes no request: its security policy allows none, and runs only the two scripts "
                "that it was made with. It holds texts of the corpus; pass it on like the corpus.",
            ),
        ]
    )


def _sources(f: Findings) -> str:
    if not f.options.ask_sources:
        return "not read"
    if f.sample.rows and f.sample.rows[0]["text"] is not None:
        return "read only for examples of rejects; other texts are those of the output"
    return "read for texts, each compared with the hash of its row"
