"""The first document of a plan as a run embeds it: cleaned, cut, with the prompt in front.

In: a plan and its tokenizer. Out: the document, and how long the records beside it are. Cost: the
start of the first shard that has a record to embed, of at most MAX_SHARDS.
"""

from __future__ import annotations

import dataclasses
import itertools
import time

import pyarrow.compute as pc

from pipeline.driver.planning.plan import Plan
from pipeline.errors import InputError
from pipeline.read.parts import Part, read_tables, with_source
from pipeline.storage.lineage import Span
from pipeline.tokenize import Tokenizer
from pipeline.workers.isolate import Crashed, in_process
from pipeline.workers.steps import prepare_part

__all__ = ["FirstDocument", "FirstText", "first_document"]

MAX_SHARDS = 3
MAX_TEXTS = 3
"""How many chunks of the document are given."""


@dataclasses.dataclass(frozen=True)
class FirstText:
    """One text that the model sees: prompt and text, its tokens with special ones, and whether more
    tokens were cut off. char_start, char_end: where it lies in the cleaned document."""

    text: str
    n_tokens: int
    truncated: bool
    char_start: int
    char_end: int


@dataclasses.dataclass(frozen=True)
class FirstDocument:
    """n_tokens: of the whole document, without prompt and special tokens. n_rows: how many rows it
    gives. texts: the first of them."""

    doc_id: str
    source_uri: str
    source_record: int
    n_chars: int
    n_tokens: int
    n_rows: int
    texts: tuple[FirstText, ...]


def first_document(
    plan: Plan, tokenizer: Tokenizer, deadline_s: float
) -> tuple[FirstDocument | None, int]:
    """(the first document of the splits to do, mean bytes of the records of its table)"""
    spans = itertools.chain.from_iterable(todo.split.spans for todo in plan.todo)
    for span in itertools.islice(spans, MAX_SHARDS):
        try:
            found = _first_of(plan, span, tokenizer)
        except InputError:  # its preview says so
            continue
        if found or time.monotonic() > deadline_s:
            return found or (None, 0)
    return None, 0


def _first_of(plan: Plan, span: Span, tokenizer: Tokenizer) -> tuple[FirstDocument, int] | None:
    job = plan.job
    table = next(read_tables(span, job), None)
    if table is None:
        return None
    good = table.filter(pc.is_null(table["reason"]))
    for row in range(min(good.num_rows, 100)):
        records = with_source(good.slice(row, 1), span.shard, job.spec.input)
        part = Part(plan.todo[0].split, 0, True, records, ())
        try:
            rows = in_process(prepare_part)(part, job, tokenizer, plan.run_id).rows
        except Crashed:  # a run isolates the record
            continue
        if not rows.num_rows:
            continue
        texts = [
            FirstText(
                text=(job.prompt or "") + each["text"],
                n_tokens=each["n_tokens"],
                truncated=each["truncated"],
                char_start=each["char_start"],
                char_end=each["char_end"],
            )
            for each in rows.slice(0, MAX_TEXTS).to_pylist()
        ]
        document = FirstDocument(
            doc_id=rows["doc_id"][0].as_py(),
            source_uri=span.shard.uri,
            source_record=records["source_record"][0].as_py(),
            n_chars=pc.max(rows["char_end"]).as_py(),
            n_tokens=int(tokenizer.count([records["text"][0].as_py()])[0]),
            n_rows=rows.num_rows,
            texts=tuple(texts),
        )
        return document, round(pc.mean(table["record_bytes"]).as_py())
    return None
