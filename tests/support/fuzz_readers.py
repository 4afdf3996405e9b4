"""Fuzzing of the readers: seeded spoiled shards, read in child processes with limits on memory and
time.

    python -m tests.support.fuzz_readers --seconds 600 --seed 1

A child prints each seed before it reads the shard, so that a crash of the process, also in a native
library, can be traced to it. For every shard: the only exception is CorpusEmbedError; tables have
the right schema and are valid to the last byte; a row has a text or a reason of the closed list,
never both or neither; the documents before the first change come first and are equal; the spans of
a shard give the rows of the whole shard; peak memory grows by less than BOUND_BYTES; and reading
takes less than LIMIT_CPU_S.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import io
import json
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.errors import CorpusEmbedError
from pipeline.read import READERS, read_span
from pipeline.read.compression import compression_of
from pipeline.read.parquet import PAGES_BYTES
from pipeline.storage.lineage import Shard, Span
from pipeline.storage.schema import REASONS, records_schema
from tests.support.specs import input_spec
from tests.support.spoiled import Spoiled, spoiled

BOUND_BYTES = {"parquet": PAGES_BYTES + (1 << 30) + (64 << 20)}
"""How much the process can grow while it reads a shard of a few hundred kilobytes with records of
at most 1 MiB; 256 MiB for other formats. The memory limit of the Parquet reader counts what is
mapped, and Arrow's allocator maps up to 1 GiB that is not in memory yet."""

LIMIT_CPU_S = 30
"""CPU time, because other processes may keep the machine busy."""

MAX_RECORD_BYTES = 1 << 20
SPECS = {
    "jsonl": input_spec("text", "id", {"n": pa.int64(), "tags": pa.string()}, MAX_RECORD_BYTES),
    "csv": input_spec("text", "id", {}, MAX_RECORD_BYTES),
    "parquet": input_spec("text", "id", {"n": pa.int64(), "tags": pa.string()}, MAX_RECORD_BYTES),
    "text": input_spec("text", None, {}, MAX_RECORD_BYTES),
    "warc": input_spec(
        "text", "WARC-Record-ID", {"WARC-Date": pa.timestamp("us", tz="UTC")}, MAX_RECORD_BYTES
    ),
}


class Broken(Exception):
    """A reader has broken one of its rules."""


def check(shard: Spoiled) -> int:
    """Read one shard and check every rule. Returns the number of rows; raises Broken."""
    rows, error = _rows(shard, [Span(shard=_shard(shard))])
    sure: list[tuple[str | None, str]] = list(shard.documents[: shard.n_sure])
    if shard.format == "text":
        sure = [(None, text) for _, text in sure]
    documents = [(row["doc_id"], row["text"]) for row in rows[: len(sure)]]
    if error is None and documents != sure:
        pairs = enumerate(zip(documents, sure, strict=False))
        wrong = next((n for n, (actual, expected) in pairs if actual != expected), len(documents))
        raise Broken(
            f"document {wrong} of {len(sure)} sure ones differs: {rows[wrong : wrong + 1]}"
        )
    if error is not None and shard.how == "whole":
        raise Broken(f"a whole shard is refused: {error}")
    if not compression_of(shard.uri) and error is None:
        spans = READERS[shard.format].spans(
            _shard(shard), functools.partial(_open, shard.data), 5000
        )
        parts, error = _rows(shard, spans)
        if error is not None or parts != rows:
            raise Broken(
                f"{len(spans)} spans give {len(parts)} rows ({error}), the whole shard {len(rows)}"
            )
    return len(rows)


def _open(data: bytes, _: Shard) -> BinaryIO:
    return io.BytesIO(data)


def _shard(shard: Spoiled) -> Shard:
    return Shard(uri=shard.uri, etag="e", size_bytes=len(shard.data))


def _rows(
    shard: Spoiled, spans: list[Span]
) -> tuple[list[dict[str, Any]], CorpusEmbedError | None]:
    spec = SPECS[shard.format]
    rows: list[dict[str, Any]] = []
    try:
        for span in spans:
            for table in read_span(READERS[shard.format], io.BytesIO(shard.data), span, spec):
                if not table.num_rows or table.schema != records_schema(spec.keep):
                    raise Broken(f"a table of {table.num_rows} rows with schema {table.schema}")
                table.validate(full=True)
                rows += table.to_pylist()
    except CorpusEmbedError as error:
        return rows, error
    for row in rows:
        is_good = row["text"] is not None and row["reason"] is None
        if not is_good and (row["text"] is not None or row["reason"] not in REASONS):
            raise Broken(f"neither good nor rejected: {row}")
        if row["source_record"] < 0 or row["record_bytes"] < 0 or "\0" in (row["text"] or ""):
            raise Broken(f"impossible values: {row}")
    return rows, None


def child(start: int, stop: int, cpu_s: float) -> None:
    """Check seeds, as far as seconds of CPU suffice. Prints a line of JSON before each, and one for
    each failure."""
    pool_bytes = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (pool_bytes + (8 << 30), resource.RLIM_INFINITY))
    faulthandler.register(signal.SIGPROF, chain=True)  # prints the stack and ends the process
    end_s = time.process_time() + cpu_s
    for seed in range(start, stop):
        if time.process_time() > end_s:
            break
        print(json.dumps({"seed": seed}), flush=True)
        shard = spoiled(seed)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_CPU_S)
        failure = ""
        with Peak() as peak:
            try:
                check(shard)
            except Exception:  # noqa: BLE001 (any exception is a failure)
                failure = traceback.format_exc(limit=-6)
        if peak.grown_bytes > BOUND_BYTES.get(shard.format, 256 << 20):
            failure += f"took {peak.grown_bytes >> 20} MiB"
        if failure:
            about = {
                "format": shard.format,
                "uri": shard.uri,
                "how": shard.how,
                "n_bytes": len(shard.data),
            }
            print(json.dumps({"seed": seed, **about, "failure": failure}), flush=True)
    print(json.dumps({"done": True}), flush=True)


class Peak:
    """How far the resident memory of this process rises within the block, in bytes."""

    grown_bytes = 0

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.grown_bytes = _status("VmHWM") - self._before


def _children_cpu_s() -> float:
    """Seconds of CPU of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))


def fuzz(start: int, stop: int, cpu_s: float) -> Iterator[dict[str, Any]]:
    """The failures among the seeds [start, stop), as far as seconds of CPU suffice, and at the end
    {"tried": number of seeds}."""
    end_s = _children_cpu_s() + cpu_s
    n_tried = 0
    while start < stop and _children_cpu_s() < end_s:
        command = [
            sys.executable,
            "-m",
            __spec__.name,
            "--child",
            str(start),
            str(stop),
            str(end_s - _children_cpu_s()),
        ]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            done = False
            for line in process.stdout:
                report = json.loads(line)
                done = "done" in report
                if "failure" in report:
                    yield report
                elif not done:
                    start = report["seed"] + 1
                    n_tried += 1
            stderr = process.stderr.read()[-3000:]
        if done:
            break
        failure = f"the process ended with {process.returncode}\n{stderr}"
        yield {"seed": start - 1, "failure": failure}
    yield {"tried": n_tried}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="of CPU")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--child", nargs=3, type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(int(arguments.child[0]), int(arguments.child[1]), arguments.child[2])
    else:
        for report in fuzz(arguments.seed, arguments.seed + 10**9, arguments.seconds):
            print(json.dumps(report).replace("\\n", "\n"), flush=True)
