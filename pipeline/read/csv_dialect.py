r"""The dialect of a CSV shard: how its rows are split into fields, for `csv`.

Without settings a shard is read as its standard says: `.csv` by RFC 4180, `.tsv` by IANA's
text/tab-separated-values, where a quotation mark is text. Another dialect is taken only where the
standard's reading fails at the start of the shard and another one does not: `;` `|` or a tab as the
delimiter, or white space behind it, where only so the header has the columns of the spec; a
backslash before quotation marks (Spark, MySQL) where it leaves fewer bad rows. One dialect holds
for the whole shard.

Python's own `csv` splits the rows, except with an escape character: it would drop a backslash
before any character (`C:\new`), where writers only put one before a quote or another backslash.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.job.csv_spec import CsvSpec

_DELIMITERS = (",", ";", "\t", "|")

Fields = Iterator[list[str]]


@dataclass(frozen=True)
class Dialect:
    """quote, escape: None for none. skips_space: whether spaces behind a delimiter are no text."""

    delimiter: str
    quote: str | None
    escape: str | None
    skips_space: bool = False

    def rows(self, lines: Iterator[str]) -> Fields:
        """The fields of each row; `lines` have their line ends. Raises csv.Error for a row that
        does not follow the dialect, and can go on after it."""
        if self.escape is not None and self.quote is not None:
            return _EscapedRows(lines, self, self.quote, self.escape)
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote,
            quoting=csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
            skipinitialspace=self.skips_space,
            # a quote that is still open at the end of the shard is an error, not a field
            strict=True,
        )


def standard_dialect(spec: CsvSpec, is_tsv: bool) -> Dialect:
    """The dialect by the settings, and by the standard of the suffix where they are auto."""
    quote = ("none" if is_tsv else '"') if spec.quote == "auto" else spec.quote
    return Dialect(
        delimiter=("\t" if is_tsv else ",") if spec.delimiter == "auto" else spec.delimiter,
        quote=None if quote == "none" else quote,
        escape=None if spec.escape in ("auto", "none") else spec.escape,
    )


def dialect_of(
    lines: Sequence[str], spec: CsvSpec, is_tsv: bool, is_header: Callable[[list[str]], bool]
) -> Dialect:
    """The dialect of a shard.

    lines: its first ones, with their line ends. is_header: whether the fields of the first row are
    what the job needs.
    """
    standard = standard_dialect(spec, is_tsv)
    dialect = standard
    if not is_header(_first_row(lines, standard)):
        candidates = [
            replace(standard, delimiter=delimiter, skips_space=skips_space)
            for skips_space in (False, True)
            for delimiter in (
                [standard.delimiter] if is_tsv or spec.delimiter != "auto" else _DELIMITERS
            )
        ]
        fitting = (other for other in candidates if is_header(_first_row(lines, other)))
        # Where none fits, the one with most columns makes the error say which there are.
        dialect = next(fitting, None) or max(
            candidates, key=lambda other: len(_first_row(lines, other))
        )
    if spec.escape == "auto" and dialect.quote and any(f"\\{dialect.quote}" in x for x in lines):
        escaped = replace(dialect, escape="\\")
        if _n_bad_rows(lines, escaped) < _n_bad_rows(lines, dialect):
            dialect = escaped
    return dialect


def _first_row(lines: Sequence[str], dialect: Dialect) -> list[str]:
    try:
        return next((fields for fields in dialect.rows(iter(lines)) if fields), [])
    except csv.Error:
        return []


def _n_bad_rows(lines: Sequence[str], dialect: Dialect) -> int:
    rows = dialect.rows(iter(lines))
    n_fields = n_bad = 0
    while True:
        try:
            fields = next(rows)
        except StopIteration:
            return n_bad
        except csv.Error:
            n_bad += 1
            continue
        n_fields = n_fields or len(fields)
        n_bad += bool(fields) and len(fields) != n_fields


class _EscapedRows(Fields):
    """Rows of a dialect with an escape character, which counts in quoted fields alone and only
    before a quote or itself. An error leaves the line that it is in."""

    def __init__(self, lines: Iterator[str], dialect: Dialect, quote: str, escape: str) -> None:
        self._lines = lines
        self._dialect = dialect
        self._quote = quote
        q, e = re.escape(quote), re.escape(escape)
        # possessive: each character is looked at once
        self._content = re.compile(f"(?:[^{q}{e}]++|{e}.|{q}{q})*+", re.DOTALL)
        self._escaped = re.compile(f"{e}([{q}{e}])|{q}({q})")

    def __next__(self) -> list[str]:
        line = next(self._lines)
        fields: list[str] = []
        if not line.strip("\r\n"):
            return fields
        start = 0
        while True:
            if self._dialect.skips_space:
                start += len(line) - start - len(line[start:].lstrip(" "))
            if line.startswith(self._quote, start):
                field, line, start = self._quoted(line, start + 1)
            else:
                end = line.find(self._dialect.delimiter, start)
                end = end if end >= 0 else len(line.rstrip("\r\n"))
                field, start = line[start:end], end
                if "\r" in field:
                    raise csv.Error("a bare CR in a field without quotes")
            fields.append(field)
            if not line.startswith(self._dialect.delimiter, start):
                break
            start += 1
        if line[start:].strip("\r\n"):
            raise csv.Error(f"'{self._dialect.delimiter}' expected after '{self._quote}'")
        return fields

    def _quoted(self, line: str, start: int) -> tuple[str, str, int]:
        """(the field, the line it ends in, the position behind its closing quote)"""
        pieces = []
        while True:
            match = self._content.match(line, start)
            end = match.end() if match else start
            pieces.append(line[start:end])
            if end < len(line):
                break
            following = next(self._lines, None)
            if following is None:
                raise csv.Error("unexpected end of data")
            line, start = following, 0
        content = self._escaped.sub(lambda m: m[1] or m[2], "".join(pieces))
        return content, line, end + 1
