"""The characters of crawled pages. Oracles: what Chromium shows and decodes, recorded by
`tests/fixtures/make_browser_text.py`; for pages without a label, what their authors wrote."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.read.records import NoText
from pipeline.read.warc import charsets
from pipeline.read.warc.charsets import decoded_page, decoded_text, encoding_of, is_mostly_replaced
from tests.read.test_warc import StatusAndHeaders, WARCWriter, read
from tests.support.crawled_pages import CUT_WITHOUT_LABEL, MISSING, PAGES
from tests.support.web_encodings import LABELS, byte_sequences

pytest.importorskip("turbohtml", reason="extra warc")

FIXTURE = Path(__file__).parents[1] / "fixtures" / "browser_text.json"
BROWSER: dict[str, Any] = json.loads(FIXTURE.read_text())
UNLABELLED = {page.name for page in [*MISSING, *CUT_WITHOUT_LABEL]}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """Name of each page -> what the reader makes of it, from one WARC with all of them."""
    pytest.importorskip("resiliparse", reason="extra html")
    sink = io.BytesIO()
    writer = WARCWriter(sink, gzip=True)
    for page in PAGES:
        http = StatusAndHeaders("200 OK", [("Content-Type", page.content_type)], "HTTP/1.1")
        writer.write_record(
            writer.create_warc_record(
                "http://example.org/", "response", payload=io.BytesIO(page.body), http_headers=http
            )
        )
    documents = read(sink.getvalue(), uri="pages.warc.gz")
    assert len({page.name for page in PAGES}) == len(documents) >= 40
    return {page.name: row for page, row in zip(PAGES, documents, strict=True)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_text_that_a_browser_shows_or_is_a_reject(
    page: Any, rows: dict[str, dict[str, Any]]
) -> None:
    digest, shown = BROWSER["pages"][page.name]
    assert digest == hashlib.sha256(page.body).hexdigest(), "make the fixture again"
    row = rows[page.name]
    expected = page.text if page.name in UNLABELLED else shown
    n_replaced = expected.count("\ufffd")
    if n_replaced > max(2, 0.02 * len(expected)) or n_replaced == len(expected):
        assert row["reason"] == "invalid_utf8"
        assert page.content_type.partition("charset=")[2] in row["detail"]
    else:
        assert (row["text"] or "").strip() == expected


def test_rejects_are_only_the_pages_whose_label_is_wrong(rows: dict[str, dict[str, Any]]) -> None:
    assert {name for name, row in rows.items() if row["reason"]} == {
        "HTTP utf-8 of shift_jis",
        "HTTP shift_jis of utf-8",
        "HTTP iso-2022-kr that browsers refuse",
    }


def test_a_cut_character_costs_one_replacement_at_most(rows: dict[str, dict[str, Any]]) -> None:
    cut = {name: row for name, row in rows.items() if name.endswith("cut inside a character")}
    assert len(cut) == 9
    assert all(row["text"].count("\ufffd") <= 1 for row in cut.values())


@pytest.mark.parametrize("label", LABELS)
def test_every_label_means_what_it_means_to_a_browser(label: str) -> None:
    # TextDecoder refuses the labels of `replacement`
    assert encoding_of(label) == BROWSER["labels"].get(label, "replacement")
    assert encoding_of(f" {label.upper()}\t") == encoding_of(label)


@pytest.mark.parametrize("name", BROWSER["encodings"])
def test_every_encoding_decodes_as_in_a_browser(name: str) -> None:
    texts = [charsets._decoded(data, name, "")[0] for data in byte_sequences(name)]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    assert digest == BROWSER["encodings"][name]


def test_four_pairs_of_big5_are_two_characters_each() -> None:
    data = b"\x88\x62\x88\x64\x88\xa3\x88\xa5"
    assert decoded_text(data, "big5")[0] == "Ê̄Ê̌ê̄ê̌"


@pytest.mark.parametrize("label", ["klingon", "", "cp932x", "utf-7", "a\0b", "\udcff", "x" * 99999])
def test_an_unknown_label_is_as_good_as_none(label: str) -> None:
    assert encoding_of(label) is None
    page = b"<meta charset=sjis>\x82\xa0"
    assert decoded_page(page, label)[0] == "<meta charset=sjis>あ"


@pytest.mark.parametrize(
    "data",
    [
        "日本".encode("euc-jp"),
        "日本語".encode("cp932"),
        "Привет".encode("cp1251"),
        "שלום".encode("cp1255"),
    ],
)
def test_what_is_too_short_to_guess_is_a_reject(data: bytes) -> None:
    with pytest.raises(NoText, match="too few to guess"):
        decoded_page(b"<html><body>" + data, None)


@pytest.mark.parametrize("text", ["café", "naïve – “quoted”", "©", "Straße, 20 °C"])
def test_few_latin_letters_are_windows_1252_as_in_all_browsers(text: str) -> None:
    assert decoded_text(text.encode("cp1252"), None)[0] == text


@pytest.mark.parametrize("n_bad", [1, 2])
def test_utf8_without_a_label_may_have_an_odd_byte(n_bad: int) -> None:
    text = "良い文字です。" * 10
    data = text.encode() + b"\xff" * n_bad + text.encode()
    assert decoded_text(data, None)[0] == text + "\ufffd" * n_bad + text
    assert decoded_text(text.encode()[:-1], None)[0] == text[:-1] + "\ufffd"


@pytest.mark.parametrize(
    ("text", "is_rejected"),
    [
        ("clean", False),
        ("\ufffd", True),
        ("\ufffd\n \ufffd", True),
        ("ab\ufffd\ufffd", False),
        ("a b\ufffd\ufffd\ufffd", True),
        ("x" * 147 + "\ufffd" * 3, False),
        ("x" * 146 + " " * 50 + "\ufffd" * 3, True),
    ],
)
def test_one_character_in_fifty_may_be_replaced(text: str, is_rejected: bool) -> None:
    assert is_mostly_replaced(text) is is_rejected
