"""Where texts may be cut: the premises of `pipeline.tokenize.cuts`, checked against the installed
dictionary itself."""

from __future__ import annotations

import re
from pathlib import Path

import fugashi
import numpy as np
import pytest
import unidic_lite
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tokenize.cuts import EXACT_CUT, next_cut, space_cut

DICTIONARY = Path(unidic_lite.DICDIR)
BEFORE = [
    chr(c)
    for c in (*range(0x3041, 0x3097), *range(0x30A1, 0x30FB), *range(0x4E00, 0xA000))
    if chr(c) != "ニ"
]
AFTER = [*BEFORE, "ニ", "\n", " "]


@pytest.fixture(scope="module")
def lattice(tmp_path_factory: pytest.TempPathFactory) -> fugashi.GenericTagger:
    """MeCab that writes every node of the lattice: surface, left id, right id, word cost; unknown
    words marked."""
    config = tmp_path_factory.mktemp("mecab") / "mecabrc"
    node = r"%m|%phl|%phr|%pw\n"
    config.write_text(
        f"output-format-type = all\nnode-format-all = {node}\nunk-format-all = ?{node}\n"
        "bos-format-all =\neos-format-all =\n"
    )
    return fugashi.GenericTagger(f'-d "{DICTIONARY}" -r "{config}" -a')


def test_no_dictionary_word_reaches_over_a_full_stop_between_kana_or_kanji() -> None:
    raw = (DICTIONARY / "sys.dic").read_bytes()
    stop = "。".encode()
    words: set[str] = set()
    for match in re.finditer(re.escape(stop), raw):
        feature = raw[raw.rfind(b"\0", 0, match.start()) + 1 : raw.find(b"\0", match.start())]
        words |= {f for f in feature.decode("utf-8", "replace").split(",") if "。" in f}
    assert {"。"} < words  # the scan saw the dictionary's entries, emoticons among them
    allowed = (set(BEFORE), set(AFTER))
    for word in words - {"。"}:
        for at in (i for i, char in enumerate(word) if char == "。"):
            before, after = word[at - 1 : at] if at else "", word[at + 1 : at + 2]
            # A word's own end can stand beside anything, so only what the word itself has there can
            # rule a cut out.
            assert (before and before not in allowed[0]) or (after and after not in allowed[1]), (
                word
            )


def test_a_lattice_holds_nothing_but_the_two_nodes_of_the_full_stop_itself(
    lattice: fugashi.GenericTagger,
) -> None:
    for texts in (
        [f"{char}。日本" for char in BEFORE],
        [f"日本。{char}" for char in AFTER],
        ["。" + char for char in AFTER],
    ):
        for text in texts:
            nodes = {line.split("|")[0] for line in lattice.parse(text).split("\n") if "。" in line}
            assert nodes == {"。", "?。"}, text


@pytest.mark.thorough
def test_the_known_full_stop_beats_the_unknown_one_in_every_context(
    lattice: fugashi.GenericTagger,
) -> None:
    nodes = [line.split("|") for line in lattice.parse("日。本").split("\n") if "。" in line]
    known, unknown = (
        [int(x) for x in n[1:]] for n in sorted(nodes, key=lambda n: n[0].startswith("?"))
    )
    raw = (DICTIONARY / "matrix.bin").read_bytes()
    n_left, n_right = np.frombuffer(raw[:4], np.uint16)
    # costs[l, r]: l the left id of the right-hand word, r the right id of the left-hand word
    costs = np.frombuffer(raw[4:], np.int16).reshape(n_right, n_left).astype(np.int64)
    before = (costs[unknown[0], :] + unknown[2]) - (costs[known[0], :] + known[2])
    after = costs[:, unknown[1]] - costs[:, known[1]]
    assert before.min() + after.min() > 0  # 435 with unidic-lite 1.0.8


@given(
    st.text(st.sampled_from("あ漢。\n x「"), max_size=200),
    st.integers(1, 50),
    st.integers(8, 60),
    st.booleans(),
)
def test_pieces_are_bounded_make_up_the_text_and_exact_ones_end_at_a_full_stop(
    text: str, target_chars: int, piece_chars: int, exact: bool
) -> None:
    start, pieces = 0, []
    while start < len(text):
        end, is_exact = next_cut(text, start, target_chars, exact, piece_chars)
        assert start < end <= min(len(text), start + piece_chars)
        if is_exact:
            assert exact and any(m.end() == end for m in EXACT_CUT.finditer(text))
        pieces.append(text[start:end])
        start = end
    assert "".join(pieces) == text


def test_the_pattern_is_the_one_the_premises_were_checked_for() -> None:
    every = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    assert {char for char in every if EXACT_CUT.search(f"{char}。漢")} == set(BEFORE)
    assert {char for char in every if EXACT_CUT.search(f"漢。{char}")} == set(AFTER)


def test_a_text_without_a_full_stop_is_cut_after_a_line_feed_then_after_a_space() -> None:
    assert space_cut("aaaaa bb\ncc dd", 0, 12) == 9
    assert space_cut("aaaaa bbccddee", 0, 10) == 6
    assert space_cut("aaaaabbbbbcccc", 0, 10) == 10
