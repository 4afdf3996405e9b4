"""What is put in front of a document, and where that comes from; and in front of a query.

A model directory and what a job says come in; the prompt and its source come out. Method: as
`SentenceTransformer.encode_document` (sentence-transformers 6.2) does it, the prompt registered as
document, passage or corpus, else the model's default, else none. Nothing is ever put in front by
the table of known models below: where one of them registers nothing, a warning names what its model
card asks for. A model is known by its path or by the examples of its card. Cost: none.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from pipeline.errors import SpecError
from pipeline.job.model.directory import ModelDir
from pipeline.job.sections import ModelSpec

__all__ = ["Prompt", "document_prompt", "query_prompt"]

log = logging.getLogger(__name__)

DOCUMENT_NAMES = ("document", "passage", "corpus")

KNOWN: tuple[tuple[str, str, str | None], ...] = (
    (r"\be5-(small|base|large)\b(?!-instruct)", "passage: ", "query: "),
    (r"ruri-v3", "検索文書: ", "検索クエリ: "),
    (r"ruri-(small|base|large)|ruri-v[12]", "文章: ", "クエリ: "),
    (r"sarashina-embedding-v2", "text: ", None),
    (r"glucose-base-ja-v2", "passage: ", "query: "),
    (r"nomic-embed-text", "search_document: ", "search_query: "),
    (r"embeddinggemma", "title: none | text: ", "task: search result | query: "),
)
"""Part of a model's name -> the prompts for documents and for queries that its model card asks for;
None: one for each task."""

_DOCUMENT = re.compile("doc|passage|corpus", re.IGNORECASE)
"""What the name of a prompt for documents holds."""

_LOADED = re.compile(r"""(?:SentenceTransformer|from_pretrained)\(\s*["']([^"']+)["']""")
"""The name of the model in a card's example, which a directory keeps when it is renamed."""


@dataclass(frozen=True)
class Prompt:
    """The text before every document, None for none, and who says so."""

    text: str | None
    source: str


def query_prompt(
    path: str, model: ModelDir, text: str | None = None, name: str | None = None
) -> str | None:
    """What is put in front of a query of the model at `path`: `text`, else the prompt that is
    registered as `name`, else the query prompt or the model's default, None for none. Raises
    SpecError for a name that the model does not register."""
    if text is not None:
        return text or None
    if name is not None and name not in model.prompts:
        raise SpecError(
            f"prompt {name!r} not found; {_names(model)} give the text itself with --prompt "
            "(prompt in Python)."
        )
    if name is not None:
        return model.prompts[name] or None
    own = "query" if "query" in model.prompts else model.default_prompt_name
    prompt = model.prompts.get(own) if own else None
    _, asked = _of_card(path, model)
    if not prompt and asked:
        log.warning(
            "%s registers no prompt for queries, and its model card asks for %r: give it with "
            "--prompt (prompt in Python), or '' for none",
            path,
            asked,
        )
    return prompt or None


def document_prompt(choice: ModelSpec, model: ModelDir) -> Prompt:
    """Raises SpecError for a name that the model does not register."""
    if choice.prompt is not None:
        return Prompt(choice.prompt or None, "model.prompt")
    if choice.prompt_name != "auto":
        if choice.prompt_name not in model.prompts:
            raise SpecError(
                f"model.prompt_name {choice.prompt_name!r}: {_names(model)} write the text as "
                "model.prompt, or leave both out."
            )
        return Prompt(model.prompts[choice.prompt_name] or None, "model.prompt_name")
    registered = [name for name in DOCUMENT_NAMES if name in model.prompts]
    # an empty one beside another is a place that sentence-transformers keeps free when it saves
    first = next(iter(sorted(registered, key=lambda name: not model.prompts[name])), None)
    default = model.default_prompt_name
    if first is not None:
        prompt = Prompt(model.prompts[first] or None, f"the model's prompt {first!r}")
    elif default in model.prompts:
        prompt = Prompt(model.prompts[default] or None, f"the model's default prompt {default!r}")
    else:
        prompt = Prompt(None, "the model registers none for documents")
    if prompt.text is None or first is None:
        _warn(choice.path, model, prompt.text)
    return prompt


def _warn(path: str, model: ModelDir, text: str | None) -> None:
    """Where `text`, which the directory does not register for documents, goes in front of them, and
    another one perhaps should."""
    asked, _ = _of_card(path, model)
    is_open = not any(name in model.prompts for name in DOCUMENT_NAMES)
    others = [
        name
        for name, prompt in sorted(model.prompts.items())
        if prompt and "query" not in name.lower() and (is_open or _DOCUMENT.search(name))
    ]
    if asked is not None and asked != text:
        log.warning(
            "%s registers no prompt for documents, and its model card asks for %r; they get %s: "
            "set model.prompt (to '' for none)",
            path,
            asked,
            repr(text) if text else "none",
        )
    elif others and text is None:
        log.warning(
            "%s has prompts %s, and none of them is for documents by its name: set "
            "model.prompt_name (or model.prompt: '')",
            path,
            others,
        )


def _names(model: ModelDir) -> str:
    """What a model registers, as the beginning of an advice."""
    names = ", ".join(sorted(model.prompts))
    return f"the model has {names}. Name one of them, or" if names else "the model registers none:"


def _of_card(path: str, model: ModelDir) -> tuple[str | None, str | None]:
    """What the card of a known model asks for in front of documents, and of queries."""
    card = model.path / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    names = re.sub(r"[_.]", "-", " ".join([path, *_LOADED.findall(text)]).lower())
    known = ((document, query) for name, document, query in KNOWN if re.search(name, names))
    return next(known, (None, None))
