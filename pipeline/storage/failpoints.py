"""Named places between the steps of the commit protocol at which a test can interfere.

`CORPUS_EMBED_FAILPOINT="after_data_put:kill"` with `CORPUS_EMBED_FAILPOINT_DIR=<folder>` makes the
first process that reaches that place act, once per folder: `kill` (SIGKILL to itself), `raise`
(StorageError), or `pause` (waits until the file `<name>.go` appears, so that a test can kill
something else at that very moment). Unset, a failpoint costs one look into the environment.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pipeline.errors import StorageError

NAMES = (
    "after_plan",
    "before_data_put",
    "after_data_put",
    "after_rejects_put",
    "after_manifest_put",
    "before_file_list_put",
    "after_file_list_put",
    "after_snapshot_put",
)
ACTIONS = ("kill", "raise", "pause")


def failpoint(name: str) -> None:
    """Act if the environment names this place. Raises StorageError for the action `raise`, and for
    a setting that names no failpoint or no action."""
    setting = os.environ.get("CORPUS_EMBED_FAILPOINT")
    if not setting:
        return
    chosen, _, action = setting.partition(":")
    directory = os.environ.get("CORPUS_EMBED_FAILPOINT_DIR")
    if chosen not in NAMES or action not in ACTIONS or directory is None:
        raise StorageError(
            f"CORPUS_EMBED_FAILPOINT={setting}: write it as name:action, with one of the names "
            f"{', '.join(NAMES)} and one of the actions {', '.join(ACTIONS)}, and set "
            "CORPUS_EMBED_FAILPOINT_DIR. Unset it outside of tests."
        )
    if chosen != name:
        return
    folder = Path(directory)
    try:
        (folder / f"{name}.hit").touch(exist_ok=False)
    except FileExistsError:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "raise":
        raise StorageError(f"failpoint {name}: stopped on request")
    while action == "pause" and not (folder / f"{name}.go").exists():
        time.sleep(0.02)
