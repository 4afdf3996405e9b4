"""Chunking: nothing visible is lost, no window is too long, sentences stay whole. Token counters
are plain functions."""

from __future__ import annotations

import itertools
import re
import time

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prepare.chunk import Chunks, chunk
from pipeline.prepare.text_slices import TextSlices
from tests.support.processes import printed_by


def count_words(texts: list[str]) -> npt.NDArray[np.int64]:
    """One token a word, or a character of Japanese."""
    return np.array(
        [len(re.findall(r"[぀-ヿ一-鿿。！？]|[^\s぀-ヿ一-鿿。！？]+", text)) for text in texts],
        np.int64,
    )


def count_bytes(texts: list[str]) -> npt.NDArray[np.int64]:
    """One token a byte, white space too, and two for every text."""
    return np.array([len(text.encode()) + 2 for text in texts], np.int64)


def chunked(
    documents: list[str], max_tokens: int, overlap_tokens: int = 0, boundary: str = "sentence"
) -> tuple[Chunks, list[str]]:
    chunks = chunk(
        pa.array(documents, pa.string()),
        count_words,
        max_tokens=max_tokens,
        overlap_tokens=overlap_tokens,
        boundary=boundary,
    )
    return chunks, chunks.texts.to_pylist()


TEXT = st.text(st.sampled_from("ab .!?\n。！？」』漢字 \u3000\u3042,\"')x"), max_size=80)


@pytest.mark.thorough
@settings(max_examples=300, deadline=None)
@given(
    st.lists(TEXT, max_size=5),
    st.integers(1, 12),
    st.integers(0, 11),
    st.sampled_from(["sentence", "token"]),
    st.sampled_from([count_words, count_bytes]),
)
def test_windows_cover_their_document_in_order_and_fit(
    documents, max_tokens, overlap, boundary, count
) -> None:
    chunks = chunk(
        pa.array(documents, pa.string()),
        count,
        max_tokens=max_tokens,
        overlap_tokens=min(overlap, max_tokens - 1),
        boundary=boundary,
    )
    texts = chunks.texts.to_pylist()
    assert chunks.doc_index.dtype == chunks.char_start.dtype == chunks.char_end.dtype == np.int64
    assert len(chunks.doc_index) == len(chunks.char_start) == len(chunks.char_end) == len(texts)
    assert chunks.doc_index.tolist() == sorted(chunks.doc_index.tolist())
    spans: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(documents))}
    for doc, start, end, text in zip(
        *(column.tolist() for column in chunks[:3]), texts, strict=True
    ):
        assert documents[doc][start:end] == text
        spans[doc].append((start, end))
        assert count([text])[0] <= max_tokens or end - start <= 1 or not documents[doc].strip()
    for doc, document in enumerate(documents):
        assert spans[doc], "every document has a chunk"
        if count([document])[0] <= max_tokens:
            assert spans[doc] == [(0, len(document))]
        seen = {place for start, end in spans[doc] for place in range(start, end)}
        assert all(place in seen or char.isspace() for place, char in enumerate(document))
        for (a, b), (c, d) in itertools.pairwise(spans[doc]):
            assert a < c
            assert b < d


def test_a_document_that_fits_is_one_chunk_untouched() -> None:
    documents = [" one two. \n", "一。二。", "", "three"]
    chunks, texts = chunked(documents, 5)
    assert texts == documents
    assert chunks.char_end.tolist() == [len(document) for document in documents]


def test_windows_are_whole_japanese_sentences() -> None:
    document = "吾輩は猫である。「名前はまだ無い。」どこで生れた？\nとんと見当がつかぬ！！"
    _, texts = chunked([document], 12)
    assert texts == [
        "吾輩は猫である。",
        "「名前はまだ無い。」",
        "どこで生れた？",
        "とんと見当がつかぬ！！",
    ]
    _, texts = chunked([document], 20)
    assert texts == [
        "吾輩は猫である。「名前はまだ無い。」",
        "どこで生れた？\nとんと見当がつかぬ！！",
    ]


def test_latin_sentences_end_before_white_space_only() -> None:
    _, texts = chunked(['Pi is 3.14 or so. "Is it?" he said! See example.org now.'], 5)
    assert texts == ["Pi is 3.14 or so.", '"Is it?" he said!', "See example.org now."]


def test_the_overlap_is_whole_sentences() -> None:
    _, texts = chunked(["a b. c d. e f. g h. i j."], 6, 2)
    assert texts == ["a b. c d. e f.", "e f. g h. i j."]
    _, texts = chunked(["a b. c d. e f. g h. i j."], 6, 3)
    assert texts == ["a b. c d. e f.", "e f. g h. i j."]
    _, texts = chunked(["a b. c d. e f. g h."], 4, 1)
    assert texts == ["a b. c d.", "e f. g h."]


def test_a_long_sentence_is_cut_near_spaces() -> None:
    document = " ".join(f"word{i}" for i in range(100))
    _, texts = chunked([document], 10)
    assert all(re.fullmatch(r"word\d+( word\d+)*", text) for text in texts)
    assert " ".join(texts) == document


def test_token_boundary_fills_windows_without_regard_to_sentences() -> None:
    _, texts = chunked(["a b. c d. e f. g h. i j."], 3, 1, boundary="token")
    assert texts[0] == "a b. c"
    assert texts[1] == "c d. e"


def test_a_window_that_a_tokenizer_counts_higher_than_its_sentences_is_halved() -> None:
    def count_joined(texts: list[str]) -> npt.NDArray[np.int64]:
        return np.array([len(text.split()) + 5 * (text.count(".") > 2) for text in texts], np.int64)

    chunks = chunk(
        pa.array(["a. b. c. d. e. f. g. h."]), count_joined, max_tokens=4, overlap_tokens=0
    )
    assert chunks.texts.to_pylist() == ["a. b.", "c. d.", "e. f.", "g. h."]


@pytest.mark.parametrize(
    "text", ["漢" * 400_000, "a" * 400_000, "." * 400_000, ".)" * 200_000, "\n " * 200_000 + "a"]
)
def test_a_long_unbroken_text_is_cut_in_linear_time(text: str) -> None:
    started_s = time.process_time()  # of this process alone: other work is no reason to fail
    chunks = chunk(pa.array([text]), count_bytes, max_tokens=256, overlap_tokens=32)
    # measured under 1 s; a quadratic search takes minutes
    assert time.process_time() - started_s < 10
    covered = np.zeros(len(text), bool)
    for start, end in zip(chunks.char_start.tolist(), chunks.char_end.tolist(), strict=True):
        covered[start:end] = True
    assert all(text[place].isspace() for place in np.flatnonzero(~covered))


@pytest.mark.parametrize(
    ("text", "max_tokens", "overlap", "boundary"),
    [
        ("'a\\n' * 1_000_000", 256, 32, "sentence"),  # sentences of one character
        ("'a ' * 1_000_000", 256, 192, "token"),
        ("'\\U0001f600 ' * 400_000", 256, 32, "token"),
        ("' ' * 2_000_000 + 'x'", 256, 32, "sentence"),
        ("'a\\n' * 500_000", 4, 2, "sentence"),  # a window every four bytes
        ("'a\\n' * 500_000 + '\\U0001f600'", 4, 2, "sentence"),  # four bytes a character
        ("'a' * 1_000_000 + '\\U0001f600'", 4, 0, "sentence"),  # one sentence cut into many
    ],
)
def test_chunking_takes_at_most_twenty_bytes_a_byte_of_text(
    text: str, max_tokens: int, overlap: int, boundary: str
) -> None:
    """In a fresh process, because peaks of memory are those of a process."""
    code = f"""if True:
        import re
        import numpy as np, pyarrow as pa
        from pipeline.prepare.chunk import chunk
        def count(texts): return np.array([len(text) // 4 + 1 for text in texts], np.int64)
        # not ru_maxrss, which begins with what the process had before exec
        def peak_kib():
            status = open("/proc/self/status").read()
            return int(re.search("VmHWM:\\s*(\\d+)", status)[1])
        texts = pa.array([{text}])
        before = peak_kib()
        limits = dict(max_tokens={max_tokens}, overlap_tokens={overlap})
        chunk(texts, count, **limits, boundary="{boundary}")
        more = peak_kib() - before
        print(more * 1024 / texts.nbytes)
    """
    assert float(printed_by(code)) <= 20


def test_slices_are_the_characters_of_their_text_in_any_script() -> None:
    documents = ["", "short", "é\u3042\U0001f600x" * 30_000, "a longer one in ASCII alone"]
    texts = pa.array(["before", *documents], pa.string()).slice(1)
    slices = TextSlices(texts)
    chars = np.array([[0, 1], [0, 12], [3, 70_000], [5, 70_001], [119_999, 120_000]], np.int32)
    views = slices.views(slices.byte_ranges(2, chars))
    views.validate(full=True)
    assert views.to_pylist() == [documents[2][start:end] for start, end in chars.tolist()]
