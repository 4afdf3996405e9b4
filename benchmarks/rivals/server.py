"""One candidate in a process of its own, so that candidates of different environments can take
turns.

    python -m benchmarks.rivals.server openvino:qint8 --model DIR --exports DIR --threads 2

Loads and warms up, then answers `{"ready": true}`. Each line on standard input asks:
`{"texts": FILE, "batch_size": 16, "vectors": FILE}`, a JSON list in and an .npy file out; each
answer is `{"seconds": 1.5, "cpu_s": 2.9}`: wall time and CPU time of all threads of this process
from texts to vectors in memory. `{"error": TEXT}` instead of either ends the process, as does the
end of its input. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.rivals.encoders import KINDS, Candidate, Encoder, Setting

WARM_UP = ["A first text.", "A second one, which is somewhat longer than the first."] * 4


def answer(request: dict[str, Any], encode: Encoder) -> dict[str, Any]:
    texts = json.loads(Path(request["texts"]).read_text())
    cpu_start_s = time.process_time()
    start_s = time.perf_counter()
    vectors = encode(texts, request["batch_size"])
    seconds = time.perf_counter() - start_s
    cpu_s = time.process_time() - cpu_start_s
    np.save(request["vectors"], np.asarray(vectors, np.float32))
    return {"seconds": seconds, "cpu_s": cpu_s}


def serve(options: argparse.Namespace, answers: TextIO) -> None:
    candidate = Candidate.parse(options.candidate)
    setting = Setting(
        options.model, options.exports, candidate.precision, options.threads, options.device
    )

    def write(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    try:
        encode = KINDS[candidate.kind](setting)
        encode(WARM_UP, 8)
        write({"ready": True})
        for line in sys.stdin:
            write(answer(json.loads(line), encode))
    except Exception as error:
        write({"error": f"{type(error).__name__}: {error}"})
        raise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("candidate")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--exports", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(options, answers)


if __name__ == "__main__":
    main()
