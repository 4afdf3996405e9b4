"""What is put in front of a document, and where that comes from.

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

__all__ = ["Prompt", "document_prompt"]

log = logging.getLogger(__name__)

DOCUMENT_NAMES = ("document", "passage", "corpus")

KNOWN: tuple[tuple[str, str], ...] = (
    (r"\be5-(small|base|large)\b(?!-instruct)", "passage: "),
    (r"ruri-v3", "検索文書: "),
    (r"ruri-(small|base|large)|ruri-v[12]", "文章: "),
    (r"sarashina-embedding-v2", "text: "),
    (r"glucose-base-ja-v2", "passage: "),
    (r"nomic-embed-text", "search_document: "),
    (r"embeddinggemma", "title: none | text: "),
)
"""Part of a model's name -> the prompt for documents that its model card asks for."""

_LOADED = re.compile(r"""(?:SentenceTransformer|from_pretrained)\(\s*["']([^"']+)["']""")
"""The name of the model in a card's example, which a directory keeps when it is renamed."""


@dataclass(frozen=True)
class Prompt:
    """The text before every document, None for none, and who says so."""

    text: str | None
    source: str


def document_prompt(choice: ModelSpec, model: ModelDir) -> Prompt:
    """Raises SpecError for a name that the model does not register."""
    if choice.prompt is not None:
        return Prompt(choice.prompt or None, "model.prompt")
    if choice.prompt_name != "auto":
        if choice.prompt_name not in model.prompts:
            raise SpecError(
                f"model.prompt_name {choice.prompt_name!r}: the model has "
                f"{', '.join(sorted(model.prompts)) or 'no prompts'}. Name one of them, write the "
                "text as model.prompt, or leave both out."
            )
        return Prompt(model.prompts[choice.prompt_name] or None, "model.prompt_name")
    registered = [name for name in DOCUMENT_NAMES if name in model.prompts]
    # an empty one beside another is a place that sentence-transformers keeps free when it saves
    for name in sorted(registered, key=lambda name: not model.prompts[name]):
        return Prompt(model.prompts[name] or None, f"the model's prompt {name!r}")
    default = model.default_prompt_name
    if default in model.prompts:
        return Prompt(model.prompts[default] or None, f"the model's default prompt {default!r}")
    _warn(choice, model)
    return Prompt(None, "the model registers none for documents")


def _warn(choice: ModelSpec, model: ModelDir) -> None:
    """Where nothing goes in front of a document, and something perhaps should."""
    card = model.path / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    names = " ".join([choice.path, *_LOADED.findall(text)]).lower()
    known = next((prompt for pattern, prompt in KNOWN if re.search(pattern, names)), None)
    others = sorted(name for name, text in model.prompts.items() if text and name != "query")
    if known is not None:
        log.warning(
            "%s registers no prompt for documents, and its model card asks for %r: set "
            "model.prompt to it (or to '' for none)",
            choice.path,
            known,
        )
    elif others:
        log.warning(
            "%s has prompts %s, and none of them is for documents by its name: set "
            "model.prompt_name (or model.prompt: '')",
            choice.path,
            others,
        )
