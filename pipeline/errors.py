"""Every error this package raises on purpose, and the exit code each one gives the command line.

    CorpusEmbedError           1  the run failed; nothing half-done is visible
      ├─ SpecError             2  the job spec, or what it points at, is wrong; no work was started
      ├─ InputError            1  the input could not be listed or read
      │    ├─ ShardChanged     1  a shard is no longer the object that was planned
      │    └─ ShardDamaged     1  a shard breaks off or cannot be decoded; becomes a reject
      ├─ StorageError          1  a store refused a request, or kept failing after retries
      ├─ ModelError            2  a model directory cannot be used as it is
      ├─ WorkerError           1  workers die or fail on every record they are given
      ├─ OutputError           1  this version cannot work with the output in its present state
      ├─ TooManyRejects        3  more records were rejected than runtime.max_reject_fraction allows
      │    └─ TooMuchDamage    3  more input is unreadable than runtime.max_damaged_fraction allows
      ├─ TooManyPartitions     3  partition_by makes more folders than runtime.max_partitions allows
      ├─ CommitConflict        4  another run committed a snapshot that this run cannot build on
      ├─ TooManyDeletions      5  more documents would go than runtime.max_delete_fraction allows
      ├─ FullRefreshNeeded     5  a run would replace a whole output, and nobody has agreed to that
      ├─ LeaseHeld             6  another refresh of this output is under way; nothing was started
      ├─ ClusterError          1  a Ray cluster cannot be reached, or refused a request
      └─ InternalError         1  a fault of this program; the command line's last resort

A message says what failed, where, what was found there, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "ClusterError",
    "CommitConflict",
    "CorpusEmbedError",
    "FullRefreshNeeded",
    "InputError",
    "InternalError",
    "LeaseHeld",
    "ModelError",
    "OutputError",
    "ShardChanged",
    "ShardDamaged",
    "SpecError",
    "StorageError",
    "TooManyDeletions",
    "TooManyPartitions",
    "TooManyRejects",
    "TooMuchDamage",
    "WorkerError",
]


class CorpusEmbedError(Exception):
    """The base of all deliberate errors. `exit_code` is what the command line returns for it."""

    exit_code = 1


class SpecError(CorpusEmbedError):
    """The job spec is invalid, or names something that does not exist."""

    exit_code = 2


class InputError(CorpusEmbedError):
    """The input could not be listed or read."""


class ShardChanged(InputError):
    """A shard's ETag or size differs from the plan, or the shard no longer exists: it must be
    planned again."""


class ShardDamaged(InputError):
    """A shard's bytes break off or cannot be decoded at `position`, a byte offset (for Parquet the
    index of a row).

    lost_bytes: how many of its stored bytes cannot be read because of that; None where nobody can
    say, as behind the end of a shard that was cut off, and then the whole shard counts.
    """

    def __init__(self, message: str, position: int, lost_bytes: int | None = None) -> None:
        super().__init__(message)
        self.position = position
        self.lost_bytes = lost_bytes

    def __reduce__(self) -> tuple[type[ShardDamaged], tuple[str, int, int | None]]:
        return type(self), (str(self), self.position, self.lost_bytes)


class StorageError(CorpusEmbedError):
    """A store refused a request, or kept failing until the retry limit."""


class ModelError(CorpusEmbedError):
    """A model directory is incomplete, unsupported or not allowed by the spec."""

    exit_code = 2


class WorkerError(CorpusEmbedError):
    """Workers die or fail on every record they are given: the machine, the model or a library is
    broken, not a record."""


class OutputError(CorpusEmbedError):
    """The output holds something that this version cannot work with."""


class TooManyRejects(CorpusEmbedError):
    """More than `runtime.max_reject_fraction` of the records were rejected; no snapshot was
    committed."""

    exit_code = 3


class TooMuchDamage(TooManyRejects):
    """More than `runtime.max_damaged_fraction` of the input's bytes or shards could not be read; no
    snapshot was committed."""


class TooManyPartitions(CorpusEmbedError):
    """The parts of a run have more partitions than `runtime.max_partitions`; no snapshot was
    committed."""

    exit_code = 3


class CommitConflict(CorpusEmbedError):
    """Another run committed first, and this run cannot be rebased on its snapshot."""

    exit_code = 4


class TooManyDeletions(CorpusEmbedError):
    """The next snapshot would lack more than `runtime.max_delete_fraction` of the documents in the
    newest one; it was not committed."""

    exit_code = 5


class FullRefreshNeeded(CorpusEmbedError):
    """The output belongs to another job, or all of it would be embedded again, and `--full-refresh`
    was not given; nothing was started."""

    exit_code = 5


class LeaseHeld(CorpusEmbedError):
    """Another refresh holds the lease of the output."""

    exit_code = 6


class ClusterError(CorpusEmbedError):
    """A Ray cluster or its job server cannot be reached, or refused a request."""


class InternalError(CorpusEmbedError):
    """An exception that is none of these: a fault of this program. The command line shows it so;
    nothing raises it."""
