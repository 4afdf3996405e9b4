"""How the vectors were made, as rows of a table: model, prompt, limits, cleaning, chunks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.output.card.facts import CardFacts
from pipeline.output.card.markdown import code
from pipeline.storage.addresses import shown

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_CLEANING = {
    "none": "none",
    "NFC": "Unicode normalization form NFC",
    "NFKC": "Unicode normalization form NFKC",
}
_LONG = {
    "truncate": "cut at the model's limit; the rest is not embedded",
    "chunk": "cut into chunks, one vector each",
    "chunk_and_pool": "cut into chunks, whose vectors are averaged into one",
}


def making(facts: CardFacts) -> Iterator[tuple[str, str]]:
    """(what, how) in Markdown."""
    model, spec = facts.identity.model, facts.spec
    yield "model", model_link(facts.generation.model_name)
    if spec.model.revision:
        yield "revision", code(spec.model.revision)
    yield "model files", f"{len(model.files):,}, each pinned by its SHA-256"
    yield "prompt before each text", code(model.prompt) if model.prompt else "none"
    yield "most tokens of a text", f"{model.max_tokens:,}"
    yield "pooling", code(model.pooling)
    yield "vectors are normalized to length 1", "yes" if model.normalize else "no"
    if model.truncate_dim:
        yield "vectors are cut to", f"{model.truncate_dim:,} dimensions"
    yield "computed in", model.dtype
    yield "cleaning", _CLEANING[spec.prepare.unicode]
    if spec.prepare.min_chars > 1:
        yield "shortest text", f"{spec.prepare.min_chars:,} characters"
    yield "long documents", _LONG[spec.prepare.long_documents]
    if spec.prepare.long_documents != "truncate":
        chunk = spec.prepare.chunk
        units = "sentences" if chunk.boundary == "sentence" else "words"
        yield (
            "chunks",
            f"whole {units}, up to {chunk.max_tokens:,} tokens, "
            f"{chunk.overlap_tokens:,} tokens of overlap",
        )
    yield "text", _text(facts)
    software = sorted(facts.identity.tokenizer.items())
    if software:
        yield "tokenizer", ", ".join(code(f"{name} {version}") for name, version in software)
    yield "fingerprint of all this", code(facts.generation.fingerprint)


def model_link(name: str) -> str:
    """The model's name, with a link where it is an id of the Hugging Face Hub."""
    if _HUB_ID.fullmatch(name):
        return f"[{name}](https://huggingface.co/{name})"
    return code(shown(name))


def _text(facts: CardFacts) -> str:
    template = facts.spec.input.text_template
    if template is not None:
        return f"made from fields of a record by {code(template)}"
    return f"the field {code(facts.spec.input.text_column)} of a record"
