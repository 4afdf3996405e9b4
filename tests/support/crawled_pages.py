"""Pages as a crawler stores them, in many character sets, with labels that are right, wrong or
missing. The same bytes are read by a browser (`tests/fixtures/make_browser_text.py`) and by the
reader under test.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

JAPANESE = (
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
    "人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。"
)
VENDOR_JAPANESE = "①②Ⅲ㈱髙橋、纊﨑さん、①番目は〜と～の違い。ｱｲｳ"
CHINESE = "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。"
TAIWANESE = "人人生而自由,在尊嚴和權利上一律平等。他們賦有理性和良心,並應以兄弟關係的精神相對待。"
KOREAN = (
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. "
    "인간은 천부적으로 이성과 양심을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다."
)
RUSSIAN = (
    "Все люди рождаются свободными и равными в своем достоинстве и правах. "
    "Они наделены разумом и совестью и должны поступать в отношении друг друга в духе братства."
)
FRENCH = (
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. "
    "Ils sont doués de raison et de conscience et doivent agir les uns envers les autres "
    "dans un esprit de fraternité."
)
POLISH = (
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. "
    "Są oni obdarzeni rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa."
)
TURKISH = (
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana "
    "sahiptirler ve birbirlerine karşı kardeşlik zihniyeti ile hareket etmelidirler."
)
GREEK = (
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. "
    "Είναι προικισμένοι με λογική και συνείδηση."
)
THAI = "มนุษย์ทั้งปวงเกิดมามีอิสระและเสมอภาคกันในศักดิ์ศรีและสิทธิ ต่างมีเหตุผลและมโนธรรม"
ARABIC = "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. وقد وهبوا عقلا وضميرا."
HEBREW = "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון."

QUOTES = "It’s “quoted” – and costs €5 … as pages of windows-1252 write it."


@dataclass(frozen=True)
class Page:
    """One page: what the server sent. text: what its author wrote, of pages without a label."""

    name: str
    content_type: str
    body: bytes
    text: str = ""


def _html(text: bytes, meta: bytes = b"") -> bytes:
    start = b"<!DOCTYPE html>\n<html><head>" + meta + b"<title>t</title></head>\n<body><p>"
    return start + text + b"</p></body></html>\n"


def _labelled(label: str, text: bytes, what: str = "", meta: bytes = b"") -> Page:
    """A page whose label is in its HTTP headers."""
    return Page(f"HTTP {label} {what}".strip(), f"text/html; charset={label}", _html(text, meta))


def _declared(what: str, text: bytes, meta: bytes = b"") -> Page:
    """A page whose label, if any, is in the page."""
    return Page(what, "text/html", _html(text, meta))


def _xml(content_type: str, text: bytes) -> Page:
    page = _html(text).replace(b"<!DOCTYPE html>", b'<?xml version="1.0" encoding="euc-jp"?>')
    page = page.replace(b"<html>", b'<html xmlns="http://www.w3.org/1999/xhtml">')
    return Page(f"{content_type} with an XML declaration", content_type, page)


def _charset(label: str) -> bytes:
    return f'<meta charset="{label}">'.encode()


def _http_equiv(label: str) -> bytes:
    return f"<META HTTP-EQUIV=Content-Type CONTENT='text/html; charset={label}'>".encode()


def _cut(page: Page, n_bytes: int) -> Page:
    """The page without the last `n_bytes` of its text and all that follows: a crawler's limit."""
    end = page.body.index(b"</p>") - n_bytes
    name = f"{page.name}, cut inside a character"
    return Page(name, page.content_type, page.body[:end], page.text[:-1] + "\ufffd")


_UTF8 = JAPANESE.encode()
_SJIS = JAPANESE.encode("cp932")
_EUC = JAPANESE.encode("euc-jp")
_JIS = JAPANESE.encode("iso-2022-jp")
_UTF16_PAGE = _html(_UTF8).decode()

RIGHT = [
    _labelled("utf-8", _UTF8),
    _labelled("Shift_JIS", VENDOR_JAPANESE.encode("cp932"), "of Windows"),
    _labelled("x-sjis", _SJIS),
    _labelled("euc-jp", _EUC + b"\xad\xa1\xad\xb5\x8f\xb0\xa1", "of NEC and of three bytes"),
    _labelled("iso-2022-jp", _JIS),
    _labelled("gb2312", (CHINESE + "镕喆").encode("gbk") + b"\x80", "that is gbk"),
    _labelled("gb18030", (CHINESE + "㐀𠀀").encode("gb18030"), "of four bytes"),
    _labelled("Big5", (TAIWANESE + "啲嘢").encode("big5hkscs"), "of Hong Kong"),
    _labelled("euc-kr", (KOREAN + " 똠방각하 펲시콜라").encode("cp949"), "that is uhc"),
    _labelled("windows-1251", RUSSIAN.encode("cp1251")),
    _labelled("koi8-u", RUSSIAN.encode("koi8-r") + b" \xae\xbe", "that is koi8-ru"),
    _labelled("iso-8859-1", QUOTES.encode("cp1252"), "that is windows-1252"),
    _labelled("US-ASCII", FRENCH.encode("cp1252") + b"\x81\x8d", "that is windows-1252"),
    _labelled("iso-8859-2", POLISH.encode("iso-8859-2")),
    _labelled("iso-8859-9", TURKISH.encode("cp1254") + b"\x80", "that is windows-1254"),
    _labelled("tis-620", THAI.encode("cp874")),
    _labelled("windows-1256", ARABIC.encode("cp1256")),
    _labelled("x-user-defined", bytes(range(0xA1, 0x100))),
    Page("HTTP utf-16", "text/html; charset=utf-16", _UTF16_PAGE.encode("utf-16-le")),
    Page("HTTP utf-16be", 'text/html;charset="utf-16be"', _UTF16_PAGE.encode("utf-16-be")),
]
WRONG = [
    Page("a mark over HTTP euc-jp", "text/html; charset=euc-jp", codecs.BOM_UTF8 + _html(_UTF8)),
    _labelled("'euc-jp'", _UTF8, "in single quotes over meta utf-8", _charset("utf-8")),
    _labelled("iso-2022-kr", _EUC, "that browsers refuse"),
    _labelled("utf-8", _SJIS[:60] + b"\xff" + _SJIS[:1], "of shift_jis"),
    _labelled("shift_jis", _UTF8, "of utf-8"),
    _labelled("iso-8859-1", _SJIS, "over meta shift_jis", _charset("shift_jis")),
    _labelled("klingon", _EUC, "over meta euc-jp", _charset("euc-jp")),
    _labelled("utf-8", _UTF8[:99] + b"\xff" + _UTF8[99:], "with an odd byte"),
    _labelled("shift_jis", _SJIS[:80] + b"\xfd\xa0" + _SJIS[80:], "with odd bytes"),
    _labelled("euc-jp", _EUC[:80] + b"\xb0<b>" + _EUC[80:], "with half a character"),
]
IN_THE_PAGE = [
    _declared("meta charset shift_jis", _SJIS, _charset("shift_jis")),
    _declared("meta http-equiv euc-jp", _EUC, _http_equiv("euc-jp")),
    _declared("meta utf-16 that is utf-8", _UTF8, _charset("utf-16")),
    _declared(
        "meta in a comment", _EUC, b"<!-- " + _charset("big5") + b" -->" + _charset("euc-jp")
    ),
    _declared("meta behind 1,500 bytes", _SJIS, b"<!--" + b"x" * 1500 + b"-->" + _charset("sjis")),
    Page("a byte-order mark of utf-16le", "text/html", _UTF16_PAGE.encode("utf-16")),
    _xml("text/html", _EUC),
    _xml("application/xhtml+xml", _EUC),
    Page("a mark over meta", "text/html", codecs.BOM_UTF8 + _html(_UTF8, _charset("sjis"))),
]


def _bare(text: str, charset: str) -> Page:
    return Page(f"no label, {charset}", "text/html", _html(text.encode(charset)), text)


MISSING = [
    _bare(JAPANESE, "cp932"),
    _bare(JAPANESE, "euc-jp"),
    _bare(JAPANESE, "iso-2022-jp"),
    _bare(CHINESE, "gbk"),
    _bare(KOREAN, "euc-kr"),
    _bare(TAIWANESE, "big5"),
    _bare(RUSSIAN, "cp1251"),
    _bare(RUSSIAN, "koi8-r"),
    _bare(FRENCH, "cp1252"),
    _bare(GREEK, "cp1253"),
    _bare(HEBREW, "cp1255"),
    _bare(JAPANESE, "utf-8"),
    _bare("All human beings are born free and equal.", "ascii"),
]
CUT = [
    *[_cut(page, 1) for page in RIGHT[:2]],
    _cut(_labelled("euc-jp", _EUC), 1),
    _cut(_labelled("gb18030", (CHINESE + "㐀").encode("gb18030")), 2),
    _cut(_labelled("big5", TAIWANESE.encode("big5")), 1),
    _cut(_labelled("euc-kr", KOREAN[:-1].encode("cp949")), 1),
]
CUT_WITHOUT_LABEL = [_cut(page, 1) for page in (MISSING[0], MISSING[1], MISSING[11])]

PAGES = [*RIGHT, *WRONG, *IN_THE_PAGE, *MISSING, *CUT, *CUT_WITHOUT_LABEL]
