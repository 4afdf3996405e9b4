"""Fuzz what lies in an output: change one stored object, then run every command on it.

Everything is a function of a seed. Each command must end, within the memory and the time of a child
process, with an answer or with an error of `pipeline.errors` of one screen. Run it for longer with
`python -m tests.support.fuzz_output --seconds 600`.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cli.inspection import status
from pipeline.driver.planning.plan import make_plan
from pipeline.errors import CorpusEmbedError
from pipeline.job.spec import JobSpec
from pipeline.output import dataset, lease
from pipeline.output.change_feed import changes
from pipeline.tools.compact import compact
from pipeline.tools.report.report import report
from pipeline.tools.trace import trace
from pipeline.tools.vacuum import vacuum
from pipeline.tools.verify.verification import verify
from tests.support import stand_in, thrift
from tests.support.outputs import write_shard

MEMORY_BYTES = 6 << 30
SLOWEST_CPU_S = 20.0
LONGEST_S = 120.0
"""How long a command takes at most, its waits included; a busy machine makes it wait, too."""
SCREEN = 2000
"""The most characters of a message."""

DEEP = json.loads("[" * 150 + "]" * 150)
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**63, 10**30, 1e308, float("nan"), "", "0", "x"),
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "data/../../x/part-00.parquet",
        "a\0b",
        "\x1b[2J",
        "a" * 99999,
    ),
    *([], {}, [[]], {"a": 1}, DEEP, list(range(1000)), "data/part-00.parquet", "s3://bucket/x"),
    *(
        "_meta/snapshots/00000000000000000001.json",
        "file:///etc/passwd",
        "f" * 16,
        "０１",
        "\u202e",
    ),
]
TEXTS = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 5000,
    b"\xff\xfe",
    b"PAR1",
    b"ARROW1",
]
YAMLS = [
    b"a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n" + b"c: [*b,*b,*b]\n" * 50,
    b"name: a\nname: b\n",
    b"- a\n",
    b"!!python/object/apply:os.system [true]\n",
    b"name: 9" * 5000,
]
FOREIGN = [
    *("Copy of x.json", ".nfs0001", ".DS_Store", "x.json~", "1.json", "²²²²²²²²²²²²²²²²²²²².json"),
    *("README", "sub/folder/x.json", b"\xff\xfe.json", "0" * 16 + ".json", "0" * 32 + ".parquet"),
    *("00000000000000000001.json/x", "part-00.parquet", "[1]*?.json", "a\nb.json", " "),
]
Change = Callable[[random.Random, Path], str]


def make_output(root: Path) -> JobSpec:
    """Two snapshots with partitions, rejects, shared ids, an index and a released lease."""
    documents: list[dict[str, Any]] = [
        {
            "id": f"d{n % 20}",
            "text": f"text {n} " * 3 if n % 7 else None,
            "lang": "en" if n % 2 else None,
        }
        for n in range(24)
    ]
    write_shard(root / "in/a.jsonl", documents[:12])
    write_shard(root / "in/b.jsonl.gz", documents[12:])
    spec = spec_of(root)
    stand_in.run(spec)
    write_shard(root / "in/a.jsonl", [*documents[:8], {"id": "n", "text": "new", "lang": "ja"}])
    stand_in.run(spec)
    with lease.hold(stand_in.store_of(spec)):
        pass
    return spec


def spec_of(root: Path) -> JobSpec:
    return stand_in.make_spec(
        root / "in",
        root / "out",
        input={"keep_columns": ["lang"]},
        output={"partition_by": ["lang"], "card": {}},
        runtime={"part_bytes": 1024},
    )


def uses(spec: JobSpec) -> dict[str, Callable[[], object]]:
    """Every command on an output that needs no model."""
    uri = spec.output.uri
    store = stand_in.store_of(spec)
    second = datetime.timedelta(0)

    def take_lease() -> None:
        with lease.hold(store):
            pass

    return {
        "status": lambda: status(uri),
        "verify": lambda: verify(uri, sample=0),
        "trace": lambda: list(trace(uri, "d1").lines()),
        "report": lambda: report(uri, sample=50),
        "read_vectors": lambda: dataset.read_vectors(uri),
        "open_dataset": lambda: dataset.open_dataset(uri),
        "upserts": lambda: [batch.to_pylist() for batch in changes(uri, 1, 2).upserts()],
        "deletes": lambda: [batch.to_pylist() for batch in changes(uri, 0, 2).deletes()],
        "plan": lambda: make_plan(stand_in.job_of(spec), store).summary(),
        "lease": take_lease,
        "vacuum": lambda: vacuum(uri, keep_snapshots=1, older_than=second),
        "compact": lambda: compact(uri),
        "run": lambda: stand_in.run(spec),
        "vacuum --delete": lambda: vacuum(uri, older_than=second, delete=True),
    }


def spoil(dice: random.Random, out: Path) -> str:
    """Change one thing below an output; returns what was done."""
    if dice.random() < 0.12:
        return _add_foreign(dice, out)
    folders = sorted({path.parent for path in out.rglob("*") if path.is_file()})
    path = dice.choice(sorted(file for file in dice.choice(folders).iterdir() if file.is_file()))
    name = path.relative_to(out).as_posix()
    how = _CHANGES[dice.choice([path.suffix, path.suffix, path.suffix, ""])](dice, path)
    return f"{name}: {how}"


def _add_foreign(dice: random.Random, out: Path) -> str:
    folders = [path for path in out.rglob("*") if path.is_dir()]
    folder = dice.choice(sorted(folders))
    name = dice.choice(FOREIGN)
    path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
    if dice.random() < 0.3:
        path.mkdir(parents=True, exist_ok=True)
        return f"folder {path!r}"
    path.parent.mkdir(parents=True, exist_ok=True)
    others = [file for file in out.rglob("*") if file.is_file()]
    data = dice.choice([dice.choice(sorted(others)).read_bytes(), b"", b"{}", b"see wiki"])
    if not path.exists():
        path.write_bytes(data)
    return f"foreign {path!r} of {len(data)} bytes"


def _spoil_bytes(dice: random.Random, path: Path) -> str:
    data = path.read_bytes()
    at = dice.randrange(len(data) + 1)
    how = dice.choice(
        ["flip", "flip", "cut", "tail", "zeros", "text", "gone", "folder", "link", "other"]
    )
    if how in ("gone", "folder", "link"):
        path.unlink()
        if how == "folder":
            path.mkdir()
        if how == "link":
            path.symlink_to("/etc/passwd")
        return how
    changed = bytearray(data)
    if how == "flip" and data:
        changed[at - 1] ^= 1 << dice.randrange(8)
    others = [file for file in path.parents[1].rglob("*") if file.is_file()]
    contents = {
        "flip": bytes(changed),
        "cut": data[:at],
        "tail": data + dice.randbytes(20),
        "zeros": data[:at] + bytes(20) + data[at + 20 :],
        "text": dice.choice(TEXTS),
        "other": dice.choice(sorted(others)).read_bytes(),
    }
    path.write_bytes(contents[how])
    return f"{how} at {at}"


def _spoil_json(dice: random.Random, path: Path) -> str:
    try:
        text, how = _changed_json(dice, path.read_text())
    except ValueError:
        return _spoil_bytes(dice, path)
    path.write_text(text)
    return how


def _changed_json(dice: random.Random, text: str) -> tuple[str, str]:
    fields = json.loads(text)
    places = list(_places(fields))
    if not places:
        return "{}", "empty"
    holder, key = dice.choice(places)
    how = dice.choice(["value", "value", "value", "value", "gone", "extra", "swap", "digits"])
    if how == "gone":
        del holder[key]
    elif how == "swap":
        other, other_key = dice.choice(places)
        holder[key] = copy.deepcopy(other[other_key])
    elif how == "extra" and isinstance(holder, dict):
        holder["extra"] = dice.choice(VALUES)
    elif how == "digits":
        holder[key] = 1234567890123
        return json.dumps(fields).replace("1234567890123", "9" * dice.choice([30, 5000])), how
    else:
        holder[key] = dice.choice(VALUES)
    return json.dumps(fields), f"{how} of {key!r}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(mapping or list, key) of every value in nested plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _spoil_table(dice: random.Random, path: Path) -> str:
    """A well-formed Parquet file with other columns or values, or one that lies about its sizes."""
    if dice.random() < 0.3:
        path.write_bytes(thrift.lie(dice, path.read_bytes()))
        return "lying numbers"
    table = pq.read_table(path, partitioning=None)
    number = dice.randrange(table.num_columns)
    field = table.schema.field(number)
    how = dice.choice(
        ["null", "type", "gone", "renamed", "twice", "rows", "json", "value", "nested"]
    )
    if how == "json" and "manifest" in table.column_names and table.num_rows:
        texts = table["manifest"].to_pylist()
        at = dice.randrange(len(texts))
        texts[at], how = _changed_json(dice, texts[at])
        table = table.set_column(table.column_names.index("manifest"), "manifest", pa.array(texts))
    elif how == "gone" and table.num_columns > 1:
        table = table.remove_column(number)
    elif how == "renamed":
        names = [*table.column_names]
        names[number] = "renamed"
        table = table.rename_columns(names)
    elif how == "twice":
        table = table.append_column(field, table.column(number))
    elif how == "rows":
        table = dice.choice([table.slice(0, 0), pa.concat_tables([table, table])])
    else:
        values = {
            "null": pa.nulls(len(table), field.type),
            "nested": pa.array([[["x"]]] * len(table)),
            "value": pa.array([str(dice.choice(VALUES))] * len(table)).cast(pa.string()),
        }.get(how, pa.array(range(len(table))))
        table = table.set_column(number, field.name, values)
    pq.write_table(table, path)
    return f"{how} in column {field.name}"


def _spoil_segment(dice: random.Random, path: Path) -> str:
    """A well-formed Arrow file with other columns."""
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    number = dice.randrange(table.num_columns)
    values = dice.choice(
        [
            pa.array([2**32 - 1] * len(table), pa.uint32()),
            pa.array(["a"] * len(table)),
            pa.nulls(len(table), pa.uint64()),
            pa.array([[1]] * len(table)),
        ]
    )
    table = table.set_column(number, table.column_names[number], values)
    if dice.random() < 0.5:
        paths = json.dumps(dice.choice([*VALUES, ["../x"] * 9]))
        table = table.replace_schema_metadata({"paths": paths} if dice.random() < 0.8 else {})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    path.write_bytes(sink.getvalue())
    return f"column {number}"


def _spoil_spec(dice: random.Random, path: Path) -> str:
    lines = path.read_bytes().splitlines(keepends=True)
    at = dice.randrange(len(lines))
    value = json.dumps(dice.choice(VALUES)).encode()
    lines[at] = dice.choice([b"", lines[at].partition(b":")[0] + b": " + value + b"\n", *YAMLS])
    path.write_bytes(dice.choice([b"".join(lines), b"".join(lines), dice.choice(YAMLS)]))
    return f"line {at}"


_CHANGES: dict[str, Change] = {
    "": _spoil_bytes,
    ".json": _spoil_json,
    ".parquet": _spoil_table,
    ".arrow": _spoil_segment,
    ".yaml": _spoil_spec,
    ".md": _spoil_bytes,
}


def failures_of(seed: int, made: Path) -> list[str]:
    """What no command may do, for one seed. made: the folder of an output that `make_output` made,
    which is left as it is."""
    dice = random.Random(seed)
    failures = []
    root = made.parent / "changed"
    shutil.copytree(made, root, symlinks=True)
    try:
        how = spoil(dice, root / "out")
        write_shard(root / "in/c.jsonl", [{"id": "c", "text": "one more", "lang": "en"}])
        for name, use in uses(spec_of(root)).items():
            start_s = time.monotonic()
            start_cpu_s = time.process_time()
            try:
                use()
            except CorpusEmbedError as error:
                if len(str(error)) > SCREEN:
                    failures.append(f"{name}: {len(str(error))} characters: {str(error)[:300]}")
            except BaseException as error:  # noqa: BLE001 - that is what is looked for
                failures.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            cpu_s = time.process_time() - start_cpu_s
            elapsed_s = time.monotonic() - start_s
            if cpu_s > SLOWEST_CPU_S or elapsed_s > LONGEST_S:
                failures.append(f"{name}: took {cpu_s:.0f} s of CPU, {elapsed_s:.0f} s in all")
        return [f"seed {seed}, {how}: {failure}" for failure in failures]
    finally:
        shutil.rmtree(root)


def child(first: int, last: int, cpu_s: float) -> None:
    """Try the seeds [first, last) as far as seconds of CPU suffice; prints a line of JSON for
    each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    end_s = time.process_time() + cpu_s
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made")
        make_output(made)
        for seed in range(first, last):
            if time.process_time() > end_s:
                break
            print(json.dumps({"start": seed}), file=sys.stderr, flush=True)
            report = {"seed": seed, "failures": failures_of(seed, made)}
            print("\n" + json.dumps(report), flush=True)


def fuzz(first: int, last: int, cpu_s: float) -> tuple[int, list[str]]:
    """(number of seeds tried, failures) of the seeds [first, last), in a child process. A child
    that dies is a failure of the seed that it was at."""
    command = [sys.executable, "-m", "tests.support.fuzz_output", "--child"]
    command += [str(first), str(last), str(cpu_s)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seed"')]
    reports = [json.loads(line) for line in lines]
    failures = [failure for report in reports for failure in report["failures"]]
    if done.returncode:
        failures.append(f"the process ended with {done.returncode}: {done.stderr[-2000:]}")
    return len(reports), failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of CPU")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--child", nargs=3, type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(int(arguments.child[0]), int(arguments.child[1]), arguments.child[2])
    else:
        n_tried, failures = fuzz(arguments.seed, arguments.seed + 10**9, arguments.seconds)
        print("\n".join([*failures, f"{n_tried} seeds tried, {len(failures)} failures"]))
