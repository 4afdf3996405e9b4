"""A snapshot with everything that storage says about how it was made.

In: a store and the number of a snapshot. Out: a `LoadedSnapshot`: the snapshot, its generation, its
manifests, and the spec and job of its run. verify, trace and search work from this alone, so they
use the very model, cleaning and dtype that made the vectors: those come from the generation (the
identity behind the fingerprint); places (input, model path) come from the spec stored with the run,
and sources are read where they agree with the operator (`pipeline/tools/source_places.py`).
Cost: four small reads, one of them the file list.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir
from pipeline.job.model.store import resolve
from pipeline.job.resolve import Job, batching, device_here
from pipeline.job.spec import JobSpec
from pipeline.output import dataset
from pipeline.output.identity import identity_of
from pipeline.output.run_folder import read_spec
from pipeline.output.snapshots import live_parts
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Generation, Manifest, Snapshot
from pipeline.storage.store import Store
from pipeline.tools.source_places import options_to_read


@dataclasses.dataclass(frozen=True)
class LoadedSnapshot:
    """One snapshot with its generation, its manifests and the spec of its run.

    source_options: the storage options that the operator gave for the sources; None for none.
    model_named: whether the operator named the model of `spec`, which otherwise is the stored one.
    """

    store: Store
    snapshot: Snapshot
    generation: Generation
    manifests: tuple[Manifest, ...]
    spec: JobSpec
    source_options: Mapping[str, Any] | None = None
    model_named: bool = False

    @property
    def data_paths(self) -> list[str]:
        """The paths of all data files, in the order of the manifests."""
        return [file.path for manifest in self.manifests for file in manifest.data_files]

    @functools.cached_property
    def job(self) -> Job:
        """The job that made the vectors, on the device that its spec allows on this machine.

        dtype, pooling, prompt and limits are those of the generation, whatever `auto` would mean on
        this machine, so the fingerprint is that of the snapshot.
        """
        model = identity_of(self.generation).model
        return Job(
            spec=self.spec,
            engine=EngineOptions(
                pooling=model.pooling,
                normalize=model.normalize,
                truncate_dim=model.truncate_dim,
                dtype=model.dtype,
                # the snapshot may come from a cluster that this machine is not part of
                device="cpu" if self.spec.runtime.device == "cpu" else device_here(),
                **batching(self.spec),
            ),
            prompt=model.prompt,
            max_tokens=model.max_tokens,
            identity=self.generation.identity,
            model_license=self.generation.model_license,
        )

    @functools.cached_property
    def model(self) -> ModelDir:
        """The model that made the vectors: the stored one is fetched only from a server that a
        source would be read from, and from the Hub's cache on this machine.

        Raises ModelError when it is missing or its files are not those of the fingerprint.
        """
        choice = self.spec.model
        options = (
            options_to_read(choice.path, self.store.options, self.store, self.source_options)
            if self.model_named
            else options_to_read(choice.path, self.spec.input.storage_options, self.store, None)
        )
        if options is None and not self.model_named:
            raise ModelError(
                f"{shown(choice.path)}: the model is not fetched, because only the output names "
                "the server that it is on. Name the model with --model, there or where a copy of "
                "it is."
            )
        model = resolve(choice.path, choice.revision, options, fetch=self.model_named)
        return self.job.checked(model)


def load_snapshot_with_lineage(
    store_uri: str,
    storage_options: Mapping[str, Any] | None = None,
    number: int | None = None,
    *,
    model_path: str | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> LoadedSnapshot:
    """Load a snapshot (the newest by default) with its generation, manifests and spec.

    model_path: where the model is now, if not where the run found it. source_options: storage
    options to read its sources with, whatever their servers. Raises OutputError when there
    is no such snapshot or one of its records is missing or unreadable.
    """
    store = Store(store_uri, storage_options)
    snapshot, generation = dataset.read_head(store, number)
    spec = read_spec(store, snapshot.run_id)
    if model_path is not None and model_path != spec.model.path:
        model = spec.model.model_copy(update={"path": model_path, "revision": None})
        spec = spec.model_copy(update={"model": model})
    manifests = live_parts(store, snapshot)
    return LoadedSnapshot(
        store,
        snapshot,
        generation,
        tuple(manifests),
        spec,
        source_options,
        model_named=model_path is not None,
    )
