"""Tokenizing for days needs no more memory than tokenizing for a minute: texts of a million
different words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.processes import printed_by

CODE = """
import json, os, random, resource, sys
from pipeline.job.model.store import resolve
from pipeline.tokenize import load_tokenizer

tokenizer = load_tokenizer(resolve(sys.argv[1]), max_tokens=64)
if hasattr(tokenizer, "_ids_of"):
    tokenizer._ids_of._max_words = 5_000  # reached within one round
chance = random.Random(0)
n_texts = int(sys.argv[2])
letters = "abcdefghijklmnopqrstuvwxyz"
kana = "あいうえおかきくけこさしすせそたちつてとなにぬねの日本語東京都大学"
resident_mib = []
def make_word():
    return "".join(chance.choices(letters, k=9)) + "".join(chance.choices(kana, k=6))
for turn in range(6):
    for _ in range(n_texts // 6 // 500):
        words = [make_word() for _ in range(1_500)]
        tokenizer.encode([" ".join(words[i : i + 3]) for i in range(0, 1_500, 3)])
    pages = int(open("/proc/self/statm").read().split()[1])
    resident_mib.append(pages * resource.getpagesize() / 2**20)
print(json.dumps(resident_mib))
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("directory", ["bert_japanese_dir", "bert_mean_dir", "llama_dir"])
def test_memory_does_not_grow_over_a_million_texts(
    directory: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(directory)
    resident_mib = json.loads(printed_by(CODE, str(path), "1000000", timeout_s=3000))
    # A cache without bound would keep 3 new words a text at about 200 bytes, 400 MiB over the later
    # rounds; the slack is for the allocators.
    assert resident_mib[-1] - resident_mib[1] < 16, resident_mib


LONG = """
import json, re, sys
from pipeline.job.model.store import resolve
from pipeline.tokenize import load_tokenizer

tokenizer = load_tokenizer(resolve(sys.argv[1]))
text = "".join(chr(0x3042 + i * i % 80) for i in range(60_000))
tokenizer.encode([text[:100]])

def peak_mib():  # not ru_maxrss, which begins with what the process had before exec
    return int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024

before = peak_mib()
tokenizer.encode([text] * 80)
tokenizer.count([text] * 80)
print(json.dumps(peak_mib() - before))
"""


def test_many_long_texts_are_not_tokenized_at_once(static_dir: Path) -> None:
    printed = printed_by(LONG, str(static_dir), timeout_s=300)
    # 5 M characters, most of them a token here, are half a GiB of encodings when nothing bounds a
    # batch by its characters.
    assert json.loads(printed) < 350
