"""What the fields of unknown records are for: guesses from their names and values.

In: the fields of a sample. Out: the `Roles` that they play: text, title, id, language, kept,
partition. Nothing is asked; each role says why. Cost: arithmetic over a few hundred records.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from pipeline.driver.starter.fields import Field
from pipeline.storage import schema

MAX_KEPT = 8
"""How many fields are kept beside the vectors: every row repeats them."""

MAX_KEPT_CHARS = 1000
MAX_LANGUAGE_CHARS = 40
MAX_LANGUAGES = 30
"""The most different values of a language column, which is a partition column too."""

_SCANNED_CHARS = 2000
"""How much of each value is looked at."""

_TEXT_NAMES = (
    *("text", "body", "content", "contents", "article", "document", "passage", "page_content"),
    *("raw_content", "full_text", "abstract", "description", "message", "本文", "内容", "テキスト"),
)
_TITLE_NAMES = ("title", "headline", "subject", "heading", "name", "題名", "タイトル", "見出し")
_ID_NAMES = (
    *("id", "_id", "doc_id", "docid", "document_id", "uuid", "guid", "pk", "key", "identifier"),
    *("url", "uri", "warc-target-uri", "permalink", "doi", "isbn", "warc-record-id"),
)
_LANGUAGE_NAME = re.compile(r"lang|lng|locale|sprache|idioma|言語|语言|언어", re.IGNORECASE)
_PLACE_NAME = re.compile(r"country|region|nation|state|geo|market|^cc$|国", re.IGNORECASE)
_CODES = (
    " ar az be bg bn ca cs da de el en es et eu fa fi fr gl gu he hi hr hu hy id is it ja ka kk km "
    "kn ko lo lt lv mk ml mn mr ms my nb ne nl nn no pa pl pt ro ru sk sl sq sr sv sw ta te th tl "
    "tr uk ur uz vi zh "
)
"""Codes of languages by which a column is known whatever its name."""

_KEPT_NAMES = (
    *("date", "time", "timestamp", "published", "created", "updated", "year", "source", "category"),
    *("domain", "host", "author", "section", "type", "tag", "topic", "license", "licence"),
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_FEW = 20
"""So many different values make a category."""
_KANA = re.compile(r"[\u3041-\u30ff]")
_NO_SPACES = re.compile(r"[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3\u0e00-\u0e7f]")


@dataclasses.dataclass(frozen=True)
class Roles:
    """The names that a spec gives to fields, None where no field fits. language: the column of
    languages, if there is one. keep: names to types. why: a reason for each role that is filled."""

    text: str | None = None
    title: str | None = None
    id: str | None = None
    language: str | None = None
    keep: Mapping[str, str] = dataclasses.field(default_factory=dict)
    partition: Sequence[str] = ()
    why: Mapping[str, str] = dataclasses.field(default_factory=dict)


def roles_of(fields: Sequence[Field], in_path: Sequence[str] = ()) -> Roles:
    """Guess what fields are for. in_path: names that folders hold, such as lang of `lang=ja/`."""
    why: dict[str, str] = {}
    texts = sorted(filter(_can_be_text, fields), key=_text_score, reverse=True)
    text = texts[0] if texts else None
    if text:
        n_chars = sum(map(len, text.texts)) / len(text.texts)
        why["text"] = f"the longest prose: {n_chars:,.0f} characters on average"
    others = [field for field in fields if field is not text]
    title = next((field for field in others if _is_title(field, text)), None)
    ids = sorted(filter(_can_be_id, others), key=_id_score, reverse=True)
    identifier = ids[0] if ids else None
    if identifier:
        why["id"] = f"different in all of {identifier.n_records} records"
    language = next((field for field in others if _is_language(field)), None)
    if language:
        shown = ", ".join(sorted(set(language.texts))[:5])
        why["language"] = f"languages: {shown}"
    folders = [field for field in others if field.name in in_path]
    candidates = [
        *filter(None, (language, title)),
        *folders,
        *(field for field in others if _is_worth_keeping(field)),
    ]
    kept = {
        field.name: "string" if field.name in in_path else field.kind
        for field in _distinct(candidates)
        if field is not identifier and _can_be_kept(field)
    }
    kept = dict(list(kept.items())[:MAX_KEPT])
    partition = [
        field.name
        for field in _distinct(filter(None, (language, *folders)))
        if field.name in kept and field.n_distinct <= MAX_LANGUAGES
    ]
    return Roles(
        text=text.name if text else None,
        title=title.name if title else None,
        id=identifier.name if identifier else None,
        language=language.name if language else None,
        keep=kept,
        partition=partition[:2],
        why=why,
    )


def language_of(texts: Sequence[str]) -> str:
    """ "ja" where the texts are mostly Japanese, else "many"."""
    sample = "".join(text[:_SCANNED_CHARS] for text in texts)
    letters = sum(character.isalpha() for character in sample)
    return "ja" if len(_KANA.findall(sample)) > 0.1 * max(1, letters) else "many"


def _distinct(fields: Iterable[Field]) -> list[Field]:
    return list({field.name: field for field in fields}.values())


def _can_be_text(field: Field) -> bool:
    return field.kind in ("string", "list") and any(text.strip() for text in field.texts)


def _text_score(field: Field) -> float:
    """The more prose the higher: long values of letters with spaces, or in a script without them;
    what the name says counts as much as an e-fold of the length."""
    samples = [text[:_SCANNED_CHARS] for text in field.texts]
    n_chars = sum(map(len, samples)) or 1
    letters = sum(character.isalpha() for sample in samples for character in sample) / n_chars
    natural = sum(_is_prose(sample) for sample in samples) / len(samples)
    mean_chars = sum(map(len, field.texts)) / len(samples)
    distinct = field.n_distinct / len(samples)
    score = math.log1p(mean_chars) * letters * (0.2 + 0.8 * natural) * (0.3 + 0.7 * distinct)
    score += 1.5 if field.is_called(_TEXT_NAMES) else 0.0
    return score * field.share**2


def _is_prose(text: str) -> bool:
    is_address = text.startswith(("http://", "https://"))
    return not is_address and (len(text.split()) > 2 or bool(_NO_SPACES.search(text)))


def _is_title(field: Field, text: Field | None) -> bool:
    if text is None or field.kind != "string" or not field.is_called(_TITLE_NAMES):
        return False
    title_chars = sum(map(len, field.texts)) / max(1, len(field.values))
    text_chars = sum(map(len, text.texts)) / max(1, len(text.values))
    return field.share > 0.5 and title_chars < text_chars


def _can_be_id(field: Field) -> bool:
    if field.kind not in ("string", "int64") or len(field.values) < field.n_records:
        return False
    if field.n_distinct < field.n_records or _id_score(field) <= 0:
        return False
    return all(text and len(text) <= MAX_KEPT_CHARS for text in field.texts)


def _id_score(field: Field) -> float:
    """What the name says; 0 where it says nothing and the values are not those of an identifier."""
    if field.is_called(_ID_NAMES):
        last = field.name.rsplit(".", 1)[-1].lower()
        name = field.name.lower() if field.name.lower() in _ID_NAMES else last
        return 10.0 - _ID_NAMES.index(name) / 10 - field.name.count(".")
    name = field.name.lower()
    if re.search(r"(^|[._-])(id|uuid|guid|key|no|nr|num|number|nummer|sha\d*|md5|hash)$", name):
        return 4.0
    if field.name.endswith(("Id", "ID")):
        return 4.0
    is_code = all(re.fullmatch(r"[0-9a-fA-F-]{16,}", text) for text in field.texts)
    return 3.0 if field.kind == "string" and is_code else 0.0


def _is_language(field: Field) -> bool:
    if field.kind != "string" or not field.values or field.n_distinct > MAX_LANGUAGES:
        return False
    if _LANGUAGE_NAME.search(field.name):
        return all(len(text) <= MAX_LANGUAGE_CHARS for text in field.texts)
    codes = {re.split(r"[-_,]", text)[0] for text in field.texts}
    return all(f" {code} " in _CODES for code in codes) and not _PLACE_NAME.search(field.name)


def _is_worth_keeping(field: Field) -> bool:
    if field.share <= 0.5 or field.kind == "list":
        return False
    name = field.name.lower()
    is_named = field.is_called(("url", "uri", "link")) or any(word in name for word in _KEPT_NAMES)
    start = re.compile(rf"https?://|{_DATE.pattern}")
    is_category = 2 <= field.n_distinct <= _FEW and 3 * field.n_distinct <= field.n_records
    return is_named or is_category or all(start.match(text) for text in field.texts)


def _can_be_kept(field: Field) -> bool:
    is_short = all(len(text) <= MAX_KEPT_CHARS for text in field.texts)
    return field.kind in schema.KEPT_TYPES and field.name not in schema.RESERVED and is_short
