"""Twenty nights of a changing corpus: is every night's snapshot that of a full rebuild, and embeds
it only what is new?

    python -m benchmarks.refresh --corpus DIR [--nights 20] [--documents 1200] [--ray-nights 2] [--seed 0] [--shards 10000]

In: jsonl.gz shards with `id`, `lang`, `text`. Each night some documents are added, changed, deleted
and moved to other shards, shards are renamed, merged, cut in two or removed, and the model (a tiny
random BERT) refreshes the output. After EVERY night the snapshot is compared with a rebuild in an
empty output (ids, chunks, hashes exactly, vectors by cosine), and the number of texts that the
model saw with the distinct texts that no night before had: else it stops with an error. The first
`--ray-nights` go through the public `pipeline.run`, the others through the functions behind it,
without Ray.

Then `--shards` small shards on a real S3 server, embedded once: how long a refresh takes to find
nothing to do, and how many requests of which kind it makes. Out: two tables.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import pipeline
from pipeline.driver.plan import make_plan
from pipeline.driver.tally import row_counts
from pipeline.job.resolve import resolve
from pipeline.job.spec import JobSpec
from pipeline.output.snapshots import live_parts, load_snapshot
from pipeline.storage.store import Store
from tests.support.fault_proxy import FaultProxy
from tests.support.model_dirs import bert_mean
from tests.support.outputs import make_spec, run_without_ray
from tests.support.s3_server import s3_server

MIN_COSINE = 0.99999
Document = dict[str, Any]


class Corpus:
    """Documents in shards, and what a night does to them. Every text that ever was is in `known`."""

    def __init__(self, folder: Path, documents: list[Document], seed: int) -> None:
        self.folder, self.chance, self.n_made = folder, random.Random(seed), 0
        n_first = len(documents) * 2 // 3
        self.reserve = documents[n_first:]
        self.shards = {f"s{n:03d}": documents[n:n_first:12] for n in range(12)}
        self.known: set[str] = set()

    def write(self) -> int:
        """Bring the folder up to date; returns how many distinct texts no earlier state had."""
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            if path.name.removesuffix(".jsonl.gz") not in self.shards:
                path.unlink()
        for name, documents in self.shards.items():
            lines = "".join(
                json.dumps(document, ensure_ascii=False) + "\n" for document in documents
            )
            path, data = self.folder / f"{name}.jsonl.gz", gzip.compress(lines.encode(), mtime=0)
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)
        texts = {document["text"] for documents in self.shards.values() for document in documents}
        new = len(texts - self.known)
        self.known |= texts
        return new

    def night(self) -> None:
        chance = self.chance
        names = chance.sample(sorted(self.shards), 3)
        for name in names[:2]:  # two shards change inside; a third gets documents of theirs
            kept = []
            for document in self.shards[name]:
                fate = chance.random()
                if fate < 0.06:
                    self.n_made += 1
                    document = {**document, "text": f"{document['text']} (edit {self.n_made})"}
                if fate > 0.12:
                    (self.shards[names[2]] if fate > 0.94 else kept).append(document)
            taken = chance.randint(0, 12)
            self.shards[name] = kept + self.reserve[:taken]
            del self.reserve[:taken]
        self._reshard(chance.choice(["cut", "merge", "rename", "remove", "shuffle", "nothing"]))

    def _reshard(self, action: str) -> None:
        one, other = self.chance.sample(sorted(self.shards), 2)
        self.n_made += 1
        fresh = f"n{self.n_made:05d}"
        if action == "cut":
            documents = self.shards.pop(one)
            self.shards |= {one: documents[::2], fresh: documents[1::2]}
        elif action in ("merge", "shuffle"):
            documents = self.shards.pop(one) + self.shards.pop(other)
            if action == "shuffle":
                self.chance.shuffle(documents)
            self.shards[fresh] = documents
        elif action == "rename":
            self.shards[fresh] = self.shards.pop(one)
        elif action == "remove" and len(self.shards) > 9:
            del self.shards[one]


def rows(uri: str) -> tuple[pa.Table, np.ndarray]:
    table = pipeline.open_dataset(uri).to_table(
        columns=["doc_id", "chunk", "text_sha256", "n_tokens", "embedding"]
    )
    table = table.sort_by(
        [("doc_id", "ascending"), ("chunk", "ascending"), ("text_sha256", "ascending")]
    )
    vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    return table.drop_columns(["embedding"]), vectors


def lowest_cosine(one: str, other: str) -> float:
    """Stops where ids, chunks, hashes or token counts differ."""
    (table, vectors), (expected, fresh) = rows(one), rows(other)
    if not table.equals(expected):
        raise SystemExit(
            f"{one}: the rows are not those of a rebuild: {table.num_rows} and {expected.num_rows}"
        )
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(fresh, axis=1)
    return float(((vectors * fresh).sum(axis=1) / lengths).min())


def nights(options: argparse.Namespace, root: Path, model: Path) -> None:
    shards = sorted(options.corpus.glob("*.jsonl.gz"))
    lines = (line for shard in shards for line in gzip.decompress(shard.read_bytes()).splitlines())
    by_text: dict[str, Document] = {}
    for line in lines:
        found = json.loads(line)
        text = " ".join(found["text"].split())[:600]
        by_text.setdefault(
            text,
            {
                "id": hashlib.sha256(text.encode()).hexdigest()[:12],
                "lang": found["lang"],
                "text": text,
            },
        )
    documents = list(by_text.values())
    random.Random(options.seed).shuffle(documents)
    corpus = Corpus(root / "in", documents[: options.documents], options.seed)

    def spec_of(output: str, part_bytes: str) -> JobSpec:
        runtime = {"part_bytes": part_bytes, "max_delete_fraction": 0.5}
        return make_spec(str(root / "in"), str(root / output), model, runtime=runtime)

    spec, store = spec_of("out", "16KiB"), Store(str(root / "out"))
    print(
        "night  by           rows  carried  reused  embedded  removed  new texts   run s  rebuild s  lowest cosine"
    )
    for night in range(options.nights + 1):
        if night:
            corpus.night()
        new, clock = corpus.write(), time.perf_counter()
        plan = make_plan(resolve(spec, "cpu"), store)
        by_ray = 0 < night <= options.ray_nights
        if by_ray:
            pipeline.run(spec)
        else:
            run_without_ray(spec)
        run_s, clock = time.perf_counter() - clock, time.perf_counter()
        shutil.rmtree(root / "scratch", ignore_errors=True)
        run_without_ray(spec_of("scratch", "32MiB"))
        rebuild_s = time.perf_counter() - clock
        live = live_parts(store, load_snapshot(store))
        split = row_counts(store, plan.live, live)
        before = {part.part_id for part in plan.live}
        seen = sum(part.n_embedded for part in live if part.part_id not in before)
        cosine = lowest_cosine(str(root / "out"), str(root / "scratch"))
        print(
            f"{night:5d}  {'pipeline.run' if by_ray else 'functions':12} {sum(part.n_rows for part in live):4d} "
            f"{split['carried']:8d} {split['reused']:7d} {split['embedded']:9d} {split['removed']:8d} {new:10d} "
            f"{run_s:7.1f} {rebuild_s:10.1f} {cosine:14.7f}",
            flush=True,
        )
        if seen != new or cosine < MIN_COSINE:
            raise SystemExit(
                f"night {night}: the model saw {seen} texts, {new} are new; lowest cosine {cosine}"
            )


def kind_of(target: str) -> str:
    """What a request is about."""
    return "list" if "list-type" in target else "input" if "/lake/in/" in target else "output"


def unchanged(options: argparse.Namespace, root: Path, model: Path) -> None:
    with s3_server() as server, FaultProxy(server.endpoint_url) as proxy:
        os.environ.update(server.env)
        server.make_bucket("lake")
        direct, filesystem = (
            {"storage_options": {"endpoint_url": server.endpoint_url}},
            server.filesystem(),
        )
        for start in range(0, options.shards, 500):
            objects = {
                f"lake/in/{n:06d}.jsonl": json.dumps(
                    {"id": str(n), "text": f"document number {n}", "lang": "en"}
                ).encode()
                for n in range(start, min(start + 500, options.shards))
            }
            filesystem.pipe(objects)
        runtime = {"part_bytes": "64KiB"}
        clock = time.perf_counter()
        run_without_ray(
            make_spec(
                "s3://lake/in", "s3://lake/out", model, input=direct, output=direct, runtime=runtime
            )
        )
        print(
            f"\n{options.shards} shards of one document embedded once in {time.perf_counter() - clock:.0f} s"
        )
        watched = {"storage_options": {"endpoint_url": proxy.endpoint_url}}
        spec = make_spec(
            "s3://lake/in", "s3://lake/out", model, input=watched, output=watched, runtime=runtime
        )
        for attempt in range(3):
            seen, clock = len(proxy.log), time.perf_counter()
            result = pipeline.run(spec)
            seconds, requests = time.perf_counter() - clock, proxy.log[seen:]
            kinds = collections.Counter(
                f"{request.method} {kind_of(request.target)}" for request in requests
            )
            print(
                f"refresh {attempt + 1}: embedded={result.embedded}, {seconds:.1f} s, {len(requests)} requests: {dict(kinds)}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, default=Path(__file__).parent.parent / "jobs" / "sample"
    )
    parser.add_argument("--nights", type=int, default=20)
    parser.add_argument("--documents", type=int, default=1200)
    parser.add_argument("--ray-nights", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = bert_mean(root / "model")
        if options.nights:
            nights(options, root, model)
        if options.shards:
            unchanged(options, root, model)


if __name__ == "__main__":
    main()
