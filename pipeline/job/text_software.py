"""The software outside this package that decides the text of a record, as part of the fingerprint.

Pages in WARC: the versions of turbohtml, which has their characters, and of resiliparse, which
takes their text out of the markup. Only jobs that read pages name them.

`prepare.unicode`: the normal forms are those of the Unicode tables in pyarrow, which states no
version of them. They are known by a hash over what they do to all characters that may have one;
0.3 s, in jobs that normalize. Those of the first release are not named, so that fingerprints of
earlier outputs stay what they are.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SpecError

CSV = "the CSV reader of corpus-embed"
CSV_READING = "2"
"""1, which no fingerprint names, took quotation marks out of tab-separated files, and made line
feeds of the line ends inside of a quoted field."""

PAGE_PACKAGES = ("resiliparse", "turbohtml")

FIRST_NORMAL_FORMS = "d7cccef0ba9c6165"
"""`normal_forms()` of pyarrow 26."""

_CHARACTERS = [(0, 0x3400), (0xA000, 0xAC00), (0xF900, 0x20000), (0x2F800, 0x2FA20)]
_MARKS = [(0xE0000, 0xE0200)]
"""Ranges of code points; the others are ideographs, Hangul syllables and private use, whose normal
forms are rules and not tables."""


def text_software(unicode: str, formats: Collection[str]) -> dict[str, str]:
    """Name → version of what decides a text. unicode: `prepare.unicode`. formats: "pages", "csv" or
    both. Raises SpecError for a package that is not installed."""
    software = {name: _version(name) for name in PAGE_PACKAGES} if "pages" in formats else {}
    if "csv" in formats:
        software[CSV] = CSV_READING
    if unicode != "none" and normal_forms() != FIRST_NORMAL_FORMS:
        software["the Unicode tables of pyarrow"] = normal_forms()
    return software


def formats_in(software: Collection[str]) -> set[str]:
    """The formats with which `text_software` gave these names."""
    known = {"pages": PAGE_PACKAGES[0], "csv": CSV}
    return {format for format, name in known.items() if name in software}


@functools.cache
def normal_forms() -> str:
    """A hash of the decompositions and the order of combining characters, which decide all normal
    forms. Source: Unicode Standard Annex 15."""
    # behind each character a mark that sorts first, before it one that sorts last
    text = "".join(
        f"{character}\u0334 \u0345{character}\n"
        for start, stop in (*_CHARACTERS, *_MARKS)
        for character in map(chr, range(start, stop))
    )
    decomposed = pc.utf8_normalize(pa.array([text]), "NFKD")[0]
    return hashlib.sha256(decomposed.as_buffer()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise SpecError(
            f"the input has WARC, and the text of its pages needs {package}, which is not "
            "installed. Install corpus-embed[html], or read WET shards."
        ) from error
