"""A corpus that changes every night, for `benchmarks.refresh`.

In: documents. Out: jsonl.gz shards in a folder. Each night some documents are added, changed,
deleted and moved to other shards, and shards are renamed, merged, cut in two or removed, at seeded
random.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

Document = dict[str, Any]


def read_documents(folder: Path) -> list[Document]:
    """The distinct texts of jsonl.gz shards with `lang` and `text`, cut to 600 characters, as
    documents with ids made of them."""
    documents: dict[str, Document] = {}
    for shard in sorted(folder.glob("*.jsonl.gz")):
        for line in gzip.decompress(shard.read_bytes()).splitlines():
            record = json.loads(line)
            text = " ".join(record["text"].split())[:600]
            doc_id = hashlib.sha256(text.encode()).hexdigest()[:12]
            documents.setdefault(text, {"id": doc_id, "lang": record["lang"], "text": text})
    return list(documents.values())


class Corpus:
    """Documents in shards, and their changes of a night. `known` holds all texts of all nights."""

    def __init__(self, folder: Path, documents: list[Document], seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.n_made = 0
        n_first = len(documents) * 2 // 3
        self.reserve = documents[n_first:]
        self.shards = {f"s{n:03d}": documents[n:n_first:12] for n in range(12)}
        self.known: set[str] = set()

    def write(self) -> int:
        """Write the shards that changed; returns the number of distinct texts that are new."""
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            if path.name.removesuffix(".jsonl.gz") not in self.shards:
                path.unlink()
        for name, documents in self.shards.items():
            lines = "".join(
                json.dumps(document, ensure_ascii=False) + "\n" for document in documents
            )
            path = self.folder / f"{name}.jsonl.gz"
            data = gzip.compress(lines.encode(), mtime=0)
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)
        texts = {document["text"] for documents in self.shards.values() for document in documents}
        new = len(texts - self.known)
        self.known |= texts
        return new

    def night(self) -> None:
        chance = self.chance
        names = chance.sample(sorted(self.shards), 3)
        # two shards change inside; a third one receives documents from them
        for name in names[:2]:
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
