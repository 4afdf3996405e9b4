"""A run over the first records of an input, to look at what a job will make: `run --limit`.

The spec of a job comes in; out comes the same job with an output of its own, which is new and can
be deleted at once. Only what keeps a small trial from ending well is changed: the vectors are those
of the job. Cost: a folder.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import secrets
import tempfile

from pipeline.driver.planning.places import is_alone
from pipeline.job.resolve import Job
from pipeline.job.sections import PublishSpec
from pipeline.job.spec import JobSpec

MAX_REJECT_FRACTION = 0.99
"""A few rejects are many of a hundred records; where all are rejected, the run says why."""


def _remove_empty(folder: str) -> None:
    """A run that was refused has written nothing."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def trial_of(spec: JobSpec, address: str | None = None) -> JobSpec:
    """The job with another output: a temporary folder where all workers are on this machine, or a
    new name beside `output.uri` where they are on others. It is published nowhere."""
    if is_alone(address):
        uri = tempfile.mkdtemp(prefix="corpus-embed-limit-")
        atexit.register(_remove_empty, uri)
        storage_options = {}
    else:
        uri = f"{spec.output.uri.rstrip('/')}-limit-{secrets.token_hex(4)}"
        storage_options = spec.output.storage_options
    output = {"uri": uri, "storage_options": storage_options}
    limits = {
        "max_reject_fraction": max(spec.runtime.max_reject_fraction, MAX_REJECT_FRACTION),
        "max_damaged_fraction": 1.0,
        "commit_every": None,
    }
    return spec.model_copy(
        update={
            "output": spec.output.model_copy(update=output),
            "runtime": spec.runtime.model_copy(update=limits),
            "publish": PublishSpec(),
        }
    )


def limited(job: Job, limit: int) -> Job:
    """The job with a fingerprint that nobody else has, so that a whole run into the output of a
    trial does not take its parts, which end early, for finished shards. As only the input differs,
    it reuses their vectors."""
    identity = {**job.identity, "input": {**job.identity["input"], "first_records": limit}}
    return dataclasses.replace(job, identity=identity)
