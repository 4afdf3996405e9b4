"""What a dataset card says, gathered from the records of an output.

In: a store and its newest snapshot. Out: `CardFacts`, from which both files are rendered without a
further look at the store. Cost: four small reads and the file list.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.job.card_spec import CardSpec
from pipeline.job.spec import JobSpec
from pipeline.output.dataset import arrow_schema
from pipeline.output.identity import Identity, identity_of
from pipeline.output.snapshots import live_parts, load_generation
from pipeline.storage import layout
from pipeline.storage.lineage import DataFile, Generation, Shard, Snapshot
from pipeline.storage.store import Store


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """The facts about one snapshot. spec: of its run. settings: what only a person can know.

    columns: as a reader sees them, partition columns included. files: the live data files by path.
    made_at: when the store says that the snapshot was made; None where it does not say.
    n_truncated: rows of texts with more tokens than the model was given.
    """

    snapshot: Snapshot
    generation: Generation
    identity: Identity
    spec: JobSpec
    settings: CardSpec
    columns: pa.Schema
    files: Sequence[DataFile]
    made_at: datetime.datetime | None
    shards: Sequence[Shard]
    n_truncated: int

    @property
    def partition_types(self) -> dict[str, pa.DataType]:
        """The type of each column that exists only as the name of folders."""
        names = self.generation.partition_by
        return {name: self.columns.field(name).type for name in names}


def facts_of(store: Store, snapshot: Snapshot, spec: JobSpec, settings: CardSpec) -> CardFacts:
    """Gather the facts. Raises OutputError when a record is missing or damaged."""
    generation = load_generation(store, snapshot.fingerprint)
    if generation is None:
        raise OutputError(
            f"{store.shown_uri}: the generation record of fingerprint {snapshot.fingerprint} is "
            f"missing. Restore {layout.generation(snapshot.fingerprint)} from a backup."
        )
    parts = live_parts(store, snapshot)
    shards = {span.shard for part in parts for span in part.split.spans}
    files = [file for part in parts for file in part.data_files]
    return CardFacts(
        snapshot=snapshot,
        generation=generation,
        identity=identity_of(generation),
        spec=spec,
        settings=settings,
        columns=arrow_schema(generation),
        files=sorted(files, key=lambda file: file.path),
        made_at=_made_at(store, snapshot),
        shards=sorted(shards, key=lambda shard: shard.uri),
        n_truncated=sum(part.n_truncated for part in parts),
    )


def _made_at(store: Store, snapshot: Snapshot) -> datetime.datetime | None:
    try:
        seconds = store.changed_at(store.info(layout.snapshot(snapshot.number)))
    except OutputError:
        return None
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
