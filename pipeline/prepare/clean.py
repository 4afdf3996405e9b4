"""Normalizes the texts of records, and rejects texts without content.

In and out: a table of records; rejected rows have no text. A text is empty when nothing in it is
visible: Unicode white space, control and format characters
(zero-width space and joiners, byte-order mark, soft hyphen, direction marks), variation selectors,
the Hangul fillers and the blank Braille pattern. Such a text would get a vector of nothing but
special tokens, close to that of every other such text. A text is too short when it has fewer than
`min_chars` characters (code points) between its outer white space. The text itself is never
stripped: what is embedded, hashed and addressed by character stays what the source says.

Method: Arrow kernels over the whole batch, and a regular expression that ends at the first visible
character.
"""

from __future__ import annotations

import collections

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError

MAX_TEXT_BYTES = (1 << 31) - 1
"""Arrow's string columns have 32-bit offsets."""

_VISIBLE = (
    r"[^\s\p{Z}\p{Cc}\p{Cf}"
    r"\x{034F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{2800}\x{3164}"
    r"\x{FE00}-\x{FE0F}\x{FFA0}\x{E0100}-\x{E01EF}]"
)
"""RE2: one visible character."""


def clean(table: pa.Table, *, unicode: str, min_chars: int) -> pa.Table:
    """Normalize texts and reject the empty (`empty_text`) and the short (`too_short`).

    table: N rows of `schema.records_schema`. unicode: "none", "NFC" or "NFKC". min_chars: at least
    1. Returns N rows in the same order; `text` is null exactly where `reason` is set. Rows rejected
    before stay as they are. Raises InputError when the texts do not fit into one column. Source of
    the normal forms: Unicode Standard Annex 15.
    """
    text = table["text"]
    if unicode != "none":
        text = pc.utf8_normalize(text, unicode)  # chunk by chunk: NFKC can make eleven bytes of one
    if text.nbytes >= MAX_TEXT_BYTES:
        raise InputError(
            f"one part has {text.nbytes} bytes of text after {unicode}, but a column takes "
            f"{MAX_TEXT_BYTES}. Set runtime.part_bytes lower, or prepare.unicode to none."
        )
    text = _one_chunk(text)
    was_good = text.is_valid()
    empty = pc.and_(was_good, pc.invert(pc.match_substring_regex(text, _VISIBLE).fill_null(True)))
    short: pa.Array = pa.array([False] * len(text), pa.bool_())
    n_chars: pa.Array | None = None
    if min_chars > 1:
        n_chars = pc.utf8_length(pc.utf8_trim_whitespace(text))
        short = pc.and_not(pc.less(n_chars, min_chars).fill_null(False), empty)
    if pc.any(pc.or_(empty, short)).as_py():
        table = _reject(table, empty, "empty_text", pa.scalar("nothing that can be seen"))
        if n_chars is not None:
            detail = pc.binary_join_element_wise(
                n_chars.cast(pa.string()),
                pa.scalar(f"characters, prepare.min_chars is {min_chars}"),
                " ",
            )
            table = _reject(table, short, "too_short", detail)
        text = pc.if_else(pc.or_(empty, short), pa.scalar(None, pa.string()), text)
    return table.set_column(table.schema.get_field_index("text"), "text", text)


def count_replaced(text: pa.ChunkedArray, group: pa.ChunkedArray) -> dict[str, int]:
    """How many texts of each group hold U+FFFD, which stands for bytes that are no character.

    text, group: (N,) string each. Returns groups that have such a text.
    """
    groups = group.filter(pc.match_substring(text, "\ufffd"))
    return dict(collections.Counter(groups.to_pylist()))


def _reject(table: pa.Table, rows: pa.Array, reason: str, detail: pa.Scalar | pa.Array) -> pa.Table:
    for name, value in (("reason", pa.scalar(reason)), ("detail", detail)):
        column = pc.if_else(rows, value, _one_chunk(table[name]))
        table = table.set_column(
            table.schema.get_field_index(name), table.schema.field(name), column
        )
    return table


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(combined, pa.ChunkedArray):  # pyarrow gives no array for zero chunks
        combined = (
            pa.concat_arrays(combined.chunks)
            if combined.num_chunks
            else pa.array([], combined.type)
        )
    return combined
