"""Starts candidates in processes of their own and asks them in turns.

In: a candidate, texts and a batch size. Out: wall seconds and vectors. The processes of a candidate
(`openvino/2`) each take every n-th text with one thread, and the slowest counts. Candidates of the
other environment run under `--rivals-python`; their exports lie in `build/exports`, in a folder a
model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals.encoders import ELSEWHERE, PRECISIONS, Candidate
from tests import ROOT

RIVALS_PYTHON = ROOT / "build" / "rivals" / "bin" / "python"
BATCH_SIZES = {"cpu": (1, 4, 8, 16, 32), "cuda": (64, 128, 256, 512)}
TRIAL_TEXTS = {"cpu": 192, "cuda": 8192}


class CandidateError(Exception):
    """A candidate cannot take part; the message says why."""


def add_rival_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rivals-python",
        type=Path,
        default=RIVALS_PYTHON,
        help="an environment with rivals/requirements.txt (default: the one of `make rivals`)",
    )
    parser.add_argument("--exports", type=Path, default=ROOT / "build" / "exports")


def participants(
    texts: Sequence[str], kinds: Sequence[str], model: Path, rivals_python: Path
) -> list[Candidate]:
    """The candidates that can take part; prints why others cannot."""
    candidates = []
    for candidate in map(Candidate.parse, texts):
        if candidate.kind not in kinds:
            raise SystemExit(f"{candidate}: the candidates are {', '.join(kinds)}")
        if candidate.precision not in PRECISIONS.get(candidate.kind, (candidate.precision,)):
            raise SystemExit(
                f"{candidate}: {candidate.kind} has {', '.join(PRECISIONS[candidate.kind])}"
            )
        if candidate.kind in ELSEWHERE and not rivals_python.exists():
            print(
                f"{candidate} is left out: {rivals_python} does not exist. Make it with `make "
                "rivals`, or name another environment with --rivals-python."
            )
        elif candidate.kind == "fastembed" and not (model / "tokenizer.json").exists():
            print(f"{candidate} is left out: it needs a tokenizer.json (try --minilm)")
        else:
            candidates.append(candidate)
    return candidates


def trial_of(texts: Sequence[str], device: str = "cpu") -> list[int]:
    """Places of the texts on which batch sizes are tried: runs of neighbours in length over the
    whole range, each the largest batch, so that a trial pads as little as all texts do when a
    library sorts them. In the order of the texts, for those that do not sort."""
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    width = max(BATCH_SIZES[device])
    n_runs = min(TRIAL_TEXTS[device], len(texts)) // width or 1
    middles = [(2 * run + 1) * len(texts) // (2 * n_runs) for run in range(n_runs)]
    starts = [max(0, middle - width // 2) for middle in middles]
    places = {place for start in starts for place in by_length[start : start + width]}
    return sorted(places)


def python_of(candidate: Candidate, rivals_python: Path) -> str:
    return str(rivals_python) if candidate.kind in ELSEWHERE else sys.executable


def environment(n_threads: int) -> dict[str, str]:
    """For a process with so many threads: those of its libraries, and of processes it starts."""
    threads = {"OMP_NUM_THREADS": str(n_threads), "RAYON_NUM_THREADS": str(n_threads)}
    return {**os.environ, "HF_HUB_OFFLINE": "1", **threads}


def run_module(python: str, module: str, arguments: dict[str, Any], *words: str) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
    return [python, "-m", module, *words, *options]


def prepare_exports(
    candidates: Sequence[Candidate],
    model: Path,
    folder: Path,
    rivals_python: Path,
    texts: list[str],
) -> Path:
    """Make the exports that the candidates load, and return their folder. Not part of any time."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json"):
        digest.update((model / name).read_bytes())
    exports = folder / digest.hexdigest()[:16]
    names = sorted({candidate.export for candidate in candidates} - {None})
    if names:
        exports.mkdir(parents=True, exist_ok=True)
        (exports / "calibration.json").write_text(json.dumps(texts))
        arguments = {
            "model": model,
            "folder": exports,
            "texts": exports / "calibration.json",
            "exports": ",".join(names),
        }
        command = run_module(str(rivals_python), "benchmarks.rivals.exports", arguments)
        process = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment(2)
        )
        if process.returncode:
            raise SystemExit(f"exporting {', '.join(names)} failed:\n{process.stderr[-4000:]}")
    return exports


class TextServer:
    """The processes of one candidate. Raises CandidateError when one cannot load or fails."""

    def __init__(
        self,
        candidate: Candidate,
        model: Path,
        exports: Path,
        rivals_python: Path,
        n_threads: int,
        device: str = "cpu",
    ) -> None:
        self.candidate = candidate
        self._folder = tempfile.TemporaryDirectory()
        self._log = (Path(self._folder.name) / "stderr").open("w+")
        each = 1 if candidate.n_processes > 1 else n_threads
        arguments = {"model": model, "exports": exports, "threads": each, "device": device}
        self._processes = [
            subprocess.Popen(
                run_module(
                    python_of(candidate, rivals_python),
                    "benchmarks.rivals.server",
                    arguments,
                    f"{candidate.kind}:{candidate.precision}",
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                cwd=ROOT,
                env=environment(1 if candidate.kind == "pool" else each),
            )
            for _ in range(candidate.n_processes)
        ]
        self._answers()

    def _answers(self) -> list[dict[str, Any]]:
        answers = []
        for process in self._processes:
            assert process.stdout
            answer = json.loads(process.stdout.readline() or "{}")
            if not answer or "error" in answer:
                self._log.seek(0)
                reason = answer.get("error") or self._log.read()[-2000:]
                self.close()
                raise CandidateError(reason)
            answers.append(answer)
        return answers

    def encode(self, texts: list[str], batch_size: int) -> tuple[dict[str, float], np.ndarray]:
        """(`seconds` and `cpu_s` of the slowest process, vectors in the order of the texts)."""
        folder = Path(self._folder.name)
        n = self.candidate.n_processes
        for i in range(n):
            (folder / f"{i}.json").write_text(json.dumps(texts[i::n]))
        for i, process in enumerate(self._processes):
            request = {
                "texts": str(folder / f"{i}.json"),
                "batch_size": batch_size,
                "vectors": str(folder / f"{i}.npy"),
            }
            assert process.stdin
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        answers = self._answers()
        slices = [np.load(folder / f"{i}.npy") for i in range(n)]
        vectors = np.empty((len(texts), slices[0].shape[1]), np.float32)
        for i, part in enumerate(slices):
            vectors[i::n] = part
        return {key: max(answer[key] for answer in answers) for key in answers[0]}, vectors

    def best_batch(self, texts: list[str], device: str = "cpu", clock: str = "seconds") -> int:
        """The batch size at which a trial of the texts is embedded fastest; ours has none."""
        if self.candidate.kind == "ours":
            return 0
        trial = [texts[place] for place in trial_of(texts, device)]
        self.encode(trial, 16)  # warms up at these lengths
        times = {size: self.encode(trial, size)[0][clock] for size in BATCH_SIZES[device]}
        return min(times, key=times.__getitem__)

    def close(self) -> None:
        for process in self._processes:
            if process.stdin:
                process.stdin.close()
        for process in self._processes:
            process.wait()
        self._log.close()
        self._folder.cleanup()
