"""What a run would do to an output that holds the work of another job, or of this one with another
fingerprint.

In: the head of an output, its parts and the job. Out: a `Takeover`, and the sentence for which a
run wants `--full-refresh`: nobody replaces another job's output, or pays for embedding a whole
corpus again, without being asked. Cost: two small reads where the output has a snapshot.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

from pipeline.errors import CorpusEmbedError
from pipeline.job.resolve import Job, differences
from pipeline.job.vector_identity import has_same_vectors, serves
from pipeline.output.run_folder import read_spec
from pipeline.output.snapshots import load_generation
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest, Shard, Snapshot
from pipeline.storage.store import Store
from pipeline.storage.words import counted

MAX_SHOWN = 6
"""How many settings a sentence names."""


@dataclasses.dataclass(frozen=True)
class Takeover:
    """How the head of an output differs from what a job makes.

    owner: the name of the job that the head is of, where it is another one. has_own_shards: whether
    a shard of the head is in the input of this job. changed_identity: dotted names of what differs
    from the identity of the head. reuses_vectors: whether its vectors serve this job.
    stored_precision: the precision that keeps them from it, if nothing else does.
    """

    owner: str | None = None
    has_own_shards: bool = True
    changed_identity: Sequence[str] = ()
    reuses_vectors: bool = True
    stored_precision: str | None = None

    def describe(self) -> str | None:
        """What a person should know before a run, in one line; None where nothing is special."""
        sentences = []
        if self.owner is not None:
            shards = "" if self.has_own_shards else ", and none of its shards is in this input"
            sentences.append(f"this output belongs to job '{self.owner}'{shards}")
        elif not self.has_own_shards:
            sentences.append("none of the shards of the live snapshot is in this input")
        if self.changed_identity:
            names = ", ".join(self.changed_identity[:MAX_SHOWN])
            effect = "every stored vector is reused" if self.reuses_vectors else "full re-embed"
            sentences.append(f"{effect}: differs from the live one in {names}")
        if self.stored_precision is not None:
            sentences.append(
                f"vectors stored as {self.stored_precision} do not give the asked precision"
            )
        return "; ".join(sentences) or None

    @property
    def wants_consent(self) -> bool:
        """Whether another job's output would be replaced, or all vectors made again."""
        is_other = self.owner is not None and bool(self.changed_identity or not self.has_own_shards)
        return is_other or not self.reuses_vectors


def takeover_of(
    job: Job,
    store: Store,
    head: Snapshot | None,
    live: Sequence[Manifest],
    shards: Sequence[Shard],
) -> Takeover:
    """Compare a job with the head of its output. live: the parts of the head."""
    if head is None or not head.n_records:
        return Takeover()
    owner = None
    with contextlib.suppress(CorpusEmbedError):  # a lost or damaged spec names nobody
        owner = read_spec(store, head.run_id).name
    uris = {shard.uri for shard in shards}
    has_own_shards = any(span.shard.uri in uris for part in live for span in part.split.spans)
    changed: list[str] = []
    is_same = True
    stored_precision = None
    if head.fingerprint != job.fingerprint:
        generation = load_generation(store, head.fingerprint)
        identity = generation.identity if generation else {}
        changed = sorted(differences(identity, job.identity))
        is_same = has_same_vectors(identity, job.identity)
        precision = generation.vector_precision if generation else "float32"
        if is_same and not serves(precision, job.spec.output.vector_precision):
            stored_precision = precision
            is_same = False
    return Takeover(
        owner=None if owner == job.spec.name else owner,
        has_own_shards=has_own_shards,
        changed_identity=changed,
        reuses_vectors=is_same,
        stored_precision=stored_precision,
    )


def question(takeover: Takeover, job: Job, head: Snapshot) -> str:
    """The sentence for a run that wants consent."""
    return (
        f"{shown(job.spec.output.uri)}: {takeover.describe()}. A run would replace all of snapshot "
        f"{head.number} ({counted(head.n_documents, 'document')}). If that is meant, run once with "
        "--full-refresh; runs after that need it no more. Otherwise use another output.uri, or "
        "undo the change. Nothing was started."
    )
