"""Whether an output can be at a place, as far as that shows before anything is written there.

A store comes in; nothing, or an error that says what is wrong with the place, comes out. Whether
the store keeps the promises of the commit protocol shows only when it is written to:
`Store.check_conditional_put`. Cost: a listing, or a look at a folder.
"""

from __future__ import annotations

from pipeline.errors import SpecError, StorageError
from pipeline.storage import layout
from pipeline.storage.problems import is_bucket_missing
from pipeline.storage.room import problem_of_folder, problem_of_root
from pipeline.storage.store import Store

__all__ = ["check_place"]


def check_place(store: Store) -> None:
    """Find what makes the root of a store no place for an output: its protocol, its length, a file
    in its place, a folder that refuses, a missing bucket. Raises SpecError for these, StorageError
    when the store cannot be asked."""
    problem = problem_of_root(store.uri)
    if not problem and store.local:
        problem = problem_of_folder(store.root)
    if problem:
        raise SpecError(f"output.uri {store.shown_uri}: {problem}.")
    if not store.local:
        try:
            store.list(layout.SNAPSHOTS)
        except StorageError as error:
            if error.__cause__ and is_bucket_missing(error.__cause__):
                raise SpecError(str(error)) from error
            raise
