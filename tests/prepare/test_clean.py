"""Cleaning: what counts as empty and short, and that nothing else about a text changes."""

from __future__ import annotations

import unicodedata
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.prepare import clean as cleaning
from pipeline.prepare.clean import clean
from pipeline.storage.schema import records_schema

SCHEMA = records_schema({"lang": pa.string()})


def records(texts: list[str | None]) -> pa.Table:
    rows = [
        {
            "source_record": number,
            "record_bytes": 1,
            "doc_id": str(number),
            "text": text,
            "reason": "null_text" if text is None else None,
            "detail": "as it was" if text is None else None,
            "lang": "ja",
        }
        for number, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def cleaned(
    texts: list[str | None], unicode: str = "none", min_chars: int = 1
) -> list[dict[str, Any]]:
    table = clean(records(texts), unicode=unicode, min_chars=min_chars)
    assert table.schema == SCHEMA
    table.validate(full=True)
    return table.to_pylist()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\u3000\n\t",
        "\u200b",
        "\ufeff",
        "\u00ad",
        "\u200e\u200d",
        "\u2028",
        "\x01",
        "\u3164",
        "\u2800",
        "\ufe0f",
    ],
)
@pytest.mark.parametrize("unicode", ["none", "NFC", "NFKC"])
def test_a_text_of_nothing_visible_is_empty(text: str, unicode: str) -> None:
    rows = cleaned(["前", text, "後"], unicode, min_chars=1)
    assert [row["reason"] for row in rows] == [None, "empty_text", None]
    assert [row["text"] for row in rows] == ["前", None, "後"]
    assert [row["reason"] for row in cleaned([text], unicode, min_chars=9)] == ["empty_text"]


@pytest.mark.parametrize("text", ["a", "。", " . ", "\u200b漢", "\u0301", "👍🏽", "\ue000", "𠮷"])
def test_anything_visible_is_kept_as_it_is(text: str) -> None:
    assert [(row["text"], row["reason"]) for row in cleaned([text])] == [(text, None)]


def test_short_texts_are_counted_in_characters_between_outer_white_space() -> None:
    texts = ["漢字", "漢字だ", "\u3000漢字\n ", " 漢 だ ", None]
    rows = cleaned(texts, min_chars=3)
    assert [row["reason"] for row in rows] == ["too_short", None, "too_short", None, "null_text"]
    assert [row["text"] for row in rows] == [None, "漢字だ", None, " 漢 だ ", None]
    assert rows[0]["detail"] == "2 characters, prepare.min_chars is 3"
    assert rows[4]["detail"] == "as it was"


def test_characters_are_counted_after_normalising() -> None:
    assert cleaned(["か\u3099"], "NFC", min_chars=2)[0]["reason"] == "too_short"
    assert cleaned(["か\u3099"], "none", min_chars=2)[0]["reason"] is None
    assert cleaned(["㍿"], "NFKC", min_chars=4)[0]["text"] == "株式会社"


def test_tables_without_rows_and_in_several_chunks_are_cleaned() -> None:
    assert clean(SCHEMA.empty_table(), unicode="NFKC", min_chars=5).num_rows == 0
    both = pa.concat_tables([records(["a", ""]), records(["", "b"])])
    assert clean(both, unicode="NFC", min_chars=1)["text"].to_pylist() == ["a", None, None, "b"]


@pytest.mark.thorough
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.none() | st.text(max_size=10), max_size=10),
    st.sampled_from(["none", "NFC", "NFKC"]),
    st.integers(1, 4),
)
def test_against_pythons_own_unicode(texts: list[str | None], unicode: str, min_chars: int) -> None:
    rows = cleaned(texts, unicode, min_chars)
    assert len(rows) == len(texts)
    for row, text in zip(rows, texts, strict=True):
        assert (row["text"] is None) == (row["reason"] is not None)
        if text is None:
            assert row["reason"] == "null_text"
            continue
        assigned = all(unicodedata.category(char) != "Cn" for char in text)
        expected = text if unicode == "none" else unicodedata.normalize(unicode, text)
        # tables of different Unicode versions agree on what both know
        if row["text"] is not None and assigned:
            assert row["text"] == expected
            assert any(
                unicodedata.category(char)[0] not in "ZC" or unicodedata.category(char) == "Co"
                for char in expected
            )
            assert len(expected.strip()) >= min_chars
        if row["reason"] == "too_short":
            assert len(expected.strip("\u200b")) <= len(text) * 18


def test_text_that_outgrows_a_column_by_normalising_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cleaning, "MAX_TEXT_BYTES", 30_000)  # 2 GiB would take minutes
    ligature = "\ufdfa"  # 3 bytes, 33 after NFKC
    assert len(unicodedata.normalize("NFKC", ligature).encode()) == 33
    assert cleaned([ligature * 1000])[0]["reason"] is None
    with pytest.raises(
        InputError, match=r"one part has \d+ bytes of text after NFKC.*runtime\.part_bytes"
    ):
        cleaned([ligature * 1000], unicode="NFKC")
