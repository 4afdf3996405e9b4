"""The tokens of a batch, and the special tokens and truncation that frame the content of a text.

In: content ids of single texts (without special tokens, as packed int32). Out: `Tokens` for a
batch. Method: every post-processor in use puts a constant prefix and a constant suffix round one
text, so truncation is `prefix + content[:room] + suffix`, which is what "longest_first" does to
a single text. Cost: a copy.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SpecError

__all__ = [
    "ID_BYTES",
    "Frame",
    "TokenBuilder",
    "Tokenizer",
    "Tokens",
    "packed",
    "without_surrogates",
]

ID_BYTES = 4
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Tokens:
    """Ids of N texts, one after another.

    ids: (T,) int32, special tokens included · offsets: (N + 1,) int64, text i is
    `ids[offsets[i]:offsets[i + 1]]` · truncated: (N,) bool, content was left out because of
    `max_tokens`.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.truncated)


class Tokenizer(Protocol):
    """One model's tokenizer, in one process; not for use from several threads at once."""

    prompt_tokens: int
    """Leading ids of every text that belong to the prompt, its leading special tokens included; 0
    without a prompt. As sentence-transformers measures it for poolings that leave the prompt
    out."""
    special_tokens: int
    """Ids that every text gets besides its content (BOS, CLS, SEP, …)."""
    max_tokens: int

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Ids of prompt + text, at most `max_tokens` each, special tokens included."""
        ...

    def count(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(N,) int64: tokens of each text without prompt and special tokens, not truncated."""
        ...


@dataclass(frozen=True)
class Frame:
    """The ids round the content, and how much content fits. `keep_left` False: the left side is
    truncated."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    max_tokens: int
    keep_left: bool = True

    def __post_init__(self) -> None:
        if self.room < 1:
            raise SpecError(
                f"max_tokens is {self.max_tokens}, but {self.special_tokens} of them are special "
                "tokens of this model. Set model.max_tokens higher."
            )

    @property
    def special_tokens(self) -> int:
        return len(self.prefix) + len(self.suffix)

    @property
    def room(self) -> int:
        """Content tokens that fit."""
        return self.max_tokens - self.special_tokens


class TokenBuilder:
    """Collects texts into `Tokens`. The content of a text comes as bytes, native int32 after int32
    (`packed`)."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._prefix = packed(frame.prefix)
        self._suffix = packed(frame.suffix)
        self._parts: list[bytes] = []
        self._lengths: list[int] = []
        self._truncated = bytearray()

    def add(self, content: bytes, is_whole: bool = True) -> None:
        """Append one text. `is_whole` False: text after `content` was never read."""
        room = self._frame.room * ID_BYTES
        is_long = len(content) > room
        if is_long:
            content = content[:room] if self._frame.keep_left else content[-room:]
        self._parts += (self._prefix, content, self._suffix)
        self._lengths.append(len(content))
        self._truncated.append(is_long or not is_whole)

    def build(self) -> Tokens:
        lengths = np.array(self._lengths, dtype=np.int64) // ID_BYTES + self._frame.special_tokens
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        ids = np.frombuffer(b"".join(self._parts), dtype=np.int32)
        return Tokens(ids, offsets, np.frombuffer(self._truncated, dtype=np.bool_))


def packed(ids: Sequence[int]) -> bytes:
    """Ids as native int32. Bytes are joined and cut without making Python integers, six times as
    fast as lists."""
    return array("i", ids).tobytes()


def without_surrogates(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate, which has no UTF-8 form."""
    return _SURROGATES.sub("\ufffd", text)
