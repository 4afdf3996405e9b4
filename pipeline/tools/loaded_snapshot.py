"""What an output says about how it was made: snapshot ─► spec, job and engine, as they were then.

verify, trace and search work from this and never from a spec that a person hands in, so they use
the very model, cleaning and dtype that made the vectors: these come from the generation record (the
identity behind the fingerprint), places (input, model path) from the spec stored with the run.
"""

from __future__ import annotations

import dataclasses
import functools

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model_dir import ModelDir
from pipeline.job.resolve import Job, batching, device_here
from pipeline.job.spec import JobSpec
from pipeline.output import dataset
from pipeline.output.run_folder import read_spec
from pipeline.output.snapshots import live_parts
from pipeline.storage.addresses import shown
from pipeline.storage.filesystems import reason
from pipeline.storage.lineage import Generation, Manifest, Snapshot
from pipeline.storage.store import Store


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One snapshot with all that storage says about it."""

    store: Store
    snapshot: Snapshot
    generation: Generation
    parts: tuple[Manifest, ...]
    spec: JobSpec

    @functools.cached_property
    def job(self) -> Job:
        """The job that made the vectors, on the device that its spec allows here.

        dtype, pooling, prompt and limits are those of the generation, whatever `auto` would mean on
        this machine, so the fingerprint is that of the snapshot.
        """
        model = self.generation.identity["model"]
        return Job(
            spec=self.spec,
            engine=EngineOptions(
                pooling=model["pooling"],
                normalize=model["normalize"],
                truncate_dim=model["truncate_dim"],
                dtype=model["dtype"],
                # the snapshot may come from a cluster that this machine is no part of
                device="cpu" if self.spec.runtime.device == "cpu" else device_here(),
                **batching(self.spec),
            ),
            prompt=model["prompt"],
            max_tokens=model["max_tokens"],
            identity=self.generation.identity,
            model_license=self.generation.model_license,
        )

    @functools.cached_property
    def model(self) -> ModelDir:
        """The model that made the vectors. Raises ModelError when it is not there or its files are
        others."""
        return self.job.model()


def read_recorded(
    store: Store,
    number: int | None = None,
    *,
    spec: JobSpec | None = None,
    model_path: str | None = None,
) -> Recorded:
    """A snapshot (the newest by default), its generation, its live parts and the spec of its run.

    spec: instead of the stored one. model_path: where the model is now. Raises OutputError when a
    record is missing.
    """
    snapshot, generation = dataset.read_head(store, number)
    found = spec or read_spec(store, snapshot.run_id)
    if model_path is not None:
        model = found.model.model_copy(update={"path": model_path, "revision": None})
        found = found.model_copy(update={"model": model})
    try:
        parts = live_parts(store, snapshot)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{shown(store.uri)}/{snapshot.file_list}: the file list of snapshot {snapshot.number} cannot be read: "
            f"{reason(error)}. Take another snapshot."
        ) from error
    return Recorded(store, snapshot, generation, tuple(parts), found)
