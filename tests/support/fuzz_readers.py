"""Fuzzing of the readers: seeded spoiled shards, read in child processes with limits on memory and
time.

    python -m tests.support.fuzz_readers --seconds 600 --seed 1

A child announces each seed before it reads it, so that a crash of the process (native libraries
too) has a name. What must hold of every shard: no exception but a CorpusEmbedError; tables of the
right schema, valid to the last byte; a text or a reason of the closed list, never both, never
neither; the documents before the first change equal and first; the spans of a shard give the rows
of the whole; peak memory grows by less than BOUND_BYTES; done within LIMIT_CPU_S.
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
from pipeline.read import READERS, is_compressed, read_span
from pipeline.read.parquet import PAGES_BYTES
from pipeline.storage.lineage import Shard, Span
from pipeline.storage.schema import REASONS, records_schema
from tests.support.specs import input_spec
from tests.support.spoiled import Spoiled, spoiled

BOUND_BYTES = {"parquet": PAGES_BYTES + (1 << 30) + (64 << 20)}
"""Growth of the process while it reads a shard of a few hundred kilobytes, records of at most 1
MiB; the others 256 MiB. Parquet: the limit counts what is mapped, and Arrow's allocator keeps up
to 1 GiB mapped that is not in memory yet."""
LIMIT_CPU_S = 30
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
    """A promise of the readers does not hold."""


def check(shard: Spoiled) -> int:
    """Read one shard and hold it against what must be true. Returns the number of rows; raises
    Broken."""
    rows, error = _rows(shard, [Span(shard=_shard(shard))])
    sure = shard.documents[: shard.n_sure]
    found = [(row["doc_id"], row["text"]) for row in rows[: len(sure)]]
    if shard.format == "text":
        found, sure = [(None, text) for _, text in found], [(None, text) for _, text in sure]
    if error is None and found != sure:
        wrong = next(
            (n for n, (a, b) in enumerate(zip(found, sure, strict=False)) if a != b), len(found)
        )
        raise Broken(
            f"document {wrong} of {len(sure)} sure ones differs: {rows[wrong : wrong + 1]}"
        )
    if error is not None and shard.how == "whole":
        raise Broken(f"a whole shard is refused: {error}")
    if not is_compressed(shard.uri) and error is None:
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
        if (row["text"] is None) != (row["reason"] is not None) or row["reason"] not in {
            None,
            *REASONS,
        }:
            raise Broken(f"neither good nor rejected: {row}")
        if row["source_record"] < 0 or row["record_bytes"] < 0 or "\0" in (row["text"] or ""):
            raise Broken(f"no sense: {row}")
    return rows, None


def child(start: int, stop: int, seconds: float) -> None:
    """Check seeds and print a line before each and one for each failure, as JSON."""
    pool_bytes = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (pool_bytes + (8 << 30), resource.RLIM_INFINITY))
    faulthandler.register(signal.SIGPROF, chain=True)  # where it was, and then its end
    end = time.monotonic() + seconds
    for seed in range(start, stop):
        if time.monotonic() > end:
            break
        print(json.dumps({"seed": seed}), flush=True)
        shard = spoiled(seed)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_CPU_S)  # of CPU: other processes may be busy
        failure = ""
        with Peak() as peak:
            try:
                check(shard)
            except Exception:  # noqa: BLE001 (whatever it is, it is what is looked for)
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
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of before
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.grown_bytes = _status("VmHWM") - self._before


def _status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))


def fuzz(start: int, stop: int, seconds: float) -> Iterator[dict[str, Any]]:
    """What children say about the seeds [start, stop), until `seconds` are over; last: {"tried":
    number of seeds}."""
    end, tried = time.monotonic() + seconds, 0
    while start < stop and time.monotonic() < end:
        command = [
            sys.executable,
            "-m",
            __spec__.name,
            "--child",
            str(start),
            str(stop),
            str(end - time.monotonic()),
        ]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            done = False
            for line in process.stdout:
                said = json.loads(line)
                done = "done" in said
                if "failure" in said:
                    yield said
                elif not done:
                    start, tried = said["seed"] + 1, tried + 1
            died = process.stderr.read()[-3000:]
        if done:
            break
        yield {"seed": start - 1, "failure": f"the process ended with {process.returncode}\n{died}"}
    yield {"tried": tried}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1, help="the first of a run of seeds")
    parser.add_argument("--child", nargs=3, type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(int(arguments.child[0]), int(arguments.child[1]), arguments.child[2])
    else:
        for said in fuzz(arguments.seed, arguments.seed + 10**9, arguments.seconds):
            print(json.dumps(said).replace("\\n", "\n"), flush=True)
