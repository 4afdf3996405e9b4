"""Bring the card of an output up to its newest snapshot.

A card is written after the commit, by whoever committed, and is always about the newest snapshot.
Each file is recognised by a stamp inside; one without it is another's and stays as it is. A writer
looks for a later snapshot after it has written, and writes again if there is one, so of two runs
the last writer has seen the last snapshot. Cost: a listing and six small reads; where the stamp
shows that nothing has changed, three.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pydantic

from pipeline.job.card_spec import CardSpec
from pipeline.job.spec import JobSpec
from pipeline.output.card.croissant import STAMP, croissant
from pipeline.output.card.facts import CardFacts, facts_of
from pipeline.output.card.readme import readme
from pipeline.output.run_folder import read_spec
from pipeline.output.snapshots import load_snapshot
from pipeline.storage import layout
from pipeline.storage.lineage import Snapshot
from pipeline.storage.printable import printable, printable_json
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

CARD_VERSION = 1
"""Raised when a card of the same snapshot is to be written differently."""

_MARK = re.compile(r"^<!-- corpus-embed card (\{.*\}) -->$", re.MULTILINE)
_ADVICE = (
    "<!-- corpus-embed replaces this file with each snapshot. To keep a version of your own, "
    "remove the line above. -->"
)


class Stamp(pydantic.BaseModel):
    """The state that a card shows: what it is about, and what it was rendered with."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")

    version: int
    snapshot: int
    file_list: str
    settings: CardSpec


def update_card(store: Store, spec: JobSpec | None = None) -> None:
    """Write `README.md` and `croissant.json` for the newest snapshot, unless they are there.

    spec: of a run that has just planned or committed; its `output.card` says what only a person can
    know, and null removes the card. Without a spec, the settings of the card that is there count,
    otherwise those of the stored spec. Never raises: what goes wrong is a warning in Python's log.
    """
    try:
        _update(store, spec)
    except Exception as error:  # noqa: BLE001 - the snapshot is made; a card is no reason to fail
        log.warning(
            "%s: the dataset card (%s, %s) was not updated: %s The data is complete; the next run "
            "writes the card.",
            store.shown_uri,
            layout.CARD,
            layout.CROISSANT,
            printable(f"{str(error).rstrip('.') or type(error).__name__}."),
        )


def _update(store: Store, spec: JobSpec | None) -> None:
    head = load_snapshot(store)
    while head is not None:
        stored_spec = read_spec(store, head.run_id)
        settings = spec.output.card if spec else _present_settings(store, stored_spec)
        _bring_up(store, head, stored_spec, settings)
        newest = load_snapshot(store)
        if newest == head:
            return
        head = newest


def _present_settings(store: Store, stored_spec: JobSpec) -> CardSpec | None:
    stamp = stamp_of(layout.CARD, store.read_or_none(layout.CARD) or b"")
    return stamp.settings if stamp else stored_spec.output.card


def _bring_up(store: Store, head: Snapshot, spec: JobSpec, settings: CardSpec | None) -> None:
    if settings is None:
        for path in (layout.CARD, layout.CROISSANT):
            if stamp_of(path, store.read_or_none(path) or b""):
                store.delete(path)
        return
    stamp = Stamp(
        version=CARD_VERSION, snapshot=head.number, file_list=head.file_list, settings=settings
    )
    facts: list[CardFacts] = []

    def render(content: Callable[[CardFacts, Stamp], str]) -> bytes:
        if not facts:
            facts.append(facts_of(store, head, spec, settings))
        return content(facts[0], stamp).encode()

    _put(store, layout.CARD, stamp, lambda: render(_readme))
    _put(store, layout.CROISSANT, stamp, lambda: render(_croissant))


def _put(store: Store, path: str, stamp: Stamp, render: Callable[[], bytes]) -> None:
    """Write one file unless it is another's, or has the stamp already."""
    present = store.read_or_none(path)
    if present is None and store.put_if_absent(path, render()):
        return
    if present is None:  # somebody was first
        present = store.read(path)
    old = stamp_of(path, present)
    if old is not None and old != stamp:
        store.replace(path, render())


def stamp_of(path: str, data: bytes) -> Stamp | None:
    """The stamp of a file that this package wrote; None for any other file."""
    try:
        if path == layout.CARD:
            match = _MARK.search(data.decode())
            return Stamp.model_validate_json(match[1]) if match else None
        fields: Any = json.loads(data)
        return Stamp.model_validate_json(fields[STAMP]) if STAMP in fields else None
    except (ValueError, TypeError, RecursionError):
        return None


def _readme(facts: CardFacts, stamp: Stamp) -> str:
    fields = printable_json(stamp.model_dump(mode="json"), sort_keys=True)
    for char in "-<>":  # no "-->" of a description ends the comment early
        fields = fields.replace(char, f"\\u{ord(char):04x}")
    return readme(facts, f"<!-- corpus-embed card {fields} -->\n{_ADVICE}")


def _croissant(facts: CardFacts, stamp: Stamp) -> str:
    fields = croissant(facts, stamp.model_dump_json())
    # a page that embeds the metadata is not left by a "</script>" in it
    return printable_json(fields, indent=1).replace("<", "\\u003c") + "\n"
