"""The benchmarks against rivals: names of candidates, the CPU in their headers, and the processes
that take turns.

Oracle: flags of /proc/cpuinfo of known CPUs, and vectors of sentence-transformers in this process.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.inputs import paragraphs
from benchmarks.machine import cpu_info, instruction_set
from benchmarks.rivals.client import (
    BATCH_SIZES,
    TRIAL_TEXTS,
    CandidateError,
    TextServer,
    add_rival_options,
    participants,
    trial_of,
)
from benchmarks.rivals.encoders import EXPORTS, KINDS, PRECISIONS, Candidate, quantized_file
from tests.support.model_dirs import SAMPLE, sample_texts
from tests.support.processes import printed_by

ROOT = Path(__file__).parents[1]
HASWELL = ["fma", "sse4_2", "avx", "f16c", "avx2", "bmi2"]
SKYLAKE = [*HASWELL, "avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"]
ZEN_4 = [*SKYLAKE, "avx512_bf16", "avx512_vnni"]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (HASWELL, "AVX2"),
        ([*HASWELL, "avx_vnni"], "AVX2 with VNNI"),
        (SKYLAKE, "AVX-512"),
        (ZEN_4, "AVX-512 with VNNI and bf16"),
        ([*ZEN_4, "avx_vnni"], "AVX-512 with VNNI and bf16"),
        (["sse4_2", "avx"], "neither AVX-512 nor AVX2"),
        ([], "neither AVX-512 nor AVX2"),
    ],
)
def test_a_cpu_is_named_by_its_instruction_set(flags: list[str], name: str) -> None:
    assert instruction_set(set(flags)) == name


@pytest.mark.parametrize(
    ("name", "path"),
    [  # as sentence-transformers 5.7 names them
        ("avx2", "onnx/model_quint8_avx2.onnx"),
        ("avx512", "onnx/model_qint8_avx512.onnx"),
        ("avx512_vnni", "onnx/model_qint8_avx512_vnni.onnx"),
    ],
)
def test_a_rival_in_8_bits_is_looked_for_where_it_is_exported(name: str, path: str) -> None:
    assert quantized_file(name) == path


@pytest.mark.parametrize(
    ("text", "candidate"),
    [
        ("encode", Candidate("encode", "float32", 1)),
        ("onnx:qint8", Candidate("onnx", "qint8", 1)),
        ("openvino:qint8/2", Candidate("openvino", "qint8", 2)),
        ("ours/4", Candidate("ours", "float32", 4)),
    ],
)
def test_a_candidate_is_read_as_it_is_printed(text: str, candidate: Candidate) -> None:
    assert Candidate.parse(text) == candidate
    assert str(candidate) == text


@pytest.mark.parametrize("text", ["", "onnx:", "onnx/two", "a b"])
def test_a_candidate_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not KIND"):
        Candidate.parse(text)


def test_every_kind_has_its_precisions_and_every_export_a_candidate() -> None:
    assert KINDS.keys() == PRECISIONS.keys()
    loaded = {
        Candidate(kind, precision).export
        for kind, precisions in PRECISIONS.items()
        for precision in precisions
    }
    assert loaded - {None} == EXPORTS.keys()


def test_rivals_without_their_environment_are_left_out_with_the_way_to_make_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_rival_options(parser)
    options = parser.parse_args(["--rivals-python", str(tmp_path / "python")])
    names = ["encode", "onnx", "ours:int8"]
    taking_part = participants(names, tuple(KINDS), tmp_path, options.rivals_python)
    assert [str(candidate) for candidate in taking_part] == ["encode", "ours:int8"]
    assert "onnx is left out" in (printed := capsys.readouterr().out)
    assert "make rivals" in printed


def test_a_precision_that_a_kind_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="encode has float32, bfloat16"):
        participants(["encode:qint8"], tuple(KINDS), tmp_path, tmp_path)


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_paragraphs_are_distinct_even_where_the_corpus_has_fewer(lang: str) -> None:
    texts = paragraphs(SAMPLE, 20_000, 100, lang=lang)
    assert len(set(texts)) == 20_000


def test_a_trial_of_batch_sizes_pads_as_little_as_all_texts_in_order_of_length() -> None:
    texts = paragraphs(SAMPLE, 3_000, 100)
    width = max(BATCH_SIZES["cpu"])

    def padding(lengths: list[int]) -> float:
        lengths = sorted(lengths)
        batches = [lengths[i : i + width] for i in range(0, len(lengths), width)]
        return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)

    trial = trial_of(texts)
    assert trial == sorted(set(trial))
    assert len(trial) == TRIAL_TEXTS["cpu"]
    assert padding([len(texts[place]) for place in trial]) < 0.04
    assert padding([len(text) for text in texts[: len(trial)]]) > 0.06  # what the first would show


@pytest.mark.parametrize("n_texts", [1, 7, 33])
def test_a_trial_of_few_texts_has_all_that_fit(n_texts: int) -> None:
    assert len(trial_of(["text"] * n_texts)) == min(n_texts, max(BATCH_SIZES["cpu"]))


def test_processes_of_a_candidate_share_the_texts_and_keep_their_order(
    bert_japanese_dir: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [text[:80] for text in sample_texts("ja")[:7]]
    expected = SentenceTransformer(str(bert_japanese_dir), device="cpu").encode(texts)
    server = TextServer(Candidate.parse("ours/2"), bert_japanese_dir, tmp_path, tmp_path, 2)
    try:
        for _ in range(2):
            figures, vectors = server.encode(texts, 4)
            assert figures["seconds"] > 0
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
    finally:
        server.close()


def test_a_candidate_that_cannot_load_says_why(tmp_path: Path) -> None:
    python = Path(sys.executable)
    with pytest.raises(CandidateError, match="No module named 'fastembed'"):
        TextServer(Candidate("fastembed"), tmp_path, tmp_path, python, 1)


@pytest.mark.model
def test_a_family_is_compared_in_three_ways_with_the_same_vectors(tmp_path: Path) -> None:
    from benchmarks.families import compare

    options = argparse.Namespace(texts=3, rounds=1, threads=1)
    cells = compare("bert", options, tmp_path).strip("| ").split(" | ")
    assert cells[0] == "bert"
    assert all(float(cell.replace(",", "")) > 0 for cell in cells[1:7])
    assert float(cells[7]) >= 0.99999


@pytest.fixture(scope="module")
def avx2_only(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The library that hides newer instructions."""
    library = tmp_path_factory.mktemp("build") / "avx2_only.so"
    source = ROOT / "benchmarks" / "avx2_only.c"
    if shutil.which("cc") is None or "cpuid_fault" not in cpu_info().get("flags", "").split():
        pytest.skip("needs a C compiler and a CPU with CPUID faulting")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


def test_a_machine_with_avx2_and_no_more_can_be_had_from_this_one(avx2_only: str) -> None:
    """The oracle is torch, which asks the CPU, in the program and in what it starts; a fault that
    is no question to the CPU still ends the program."""
    code = """
import subprocess, sys, torch
from benchmarks.machine import cpu_name
print(torch.backends.cpu.get_cpu_capability(), cpu_name(), sep="|")
child = "import torch; print(torch.backends.cpu.get_cpu_capability())"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout, end="")
fault = subprocess.run([sys.executable, "-c", "import ctypes; ctypes.string_at(0)"])
print(fault.returncode)
"""
    printed = printed_by(code, environment={"LD_PRELOAD": avx2_only})
    first, second, status = printed.splitlines()
    assert first.startswith("AVX2|AVX2 (all else hidden), ")
    assert (second, int(status)) == ("AVX2", -signal.SIGSEGV)
