"""Named places between the steps of the commit protocol where a test can stop the world.

`CORPUS_EMBED_FAILPOINT="after_data_put:kill"` with `CORPUS_EMBED_FAILPOINT_DIR=<folder>` makes the
first process that gets to that place act, once per folder: `kill` (SIGKILL to itself), `raise`
(StorageError), or `pause` (waits until the file `<name>.go` appears, so that a test can kill
something else at that very moment). Unset, it costs one look into the environment.
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
    """Act if the environment names this place. Raises StorageError for the action `raise`, or for a
    setting that could never act."""
    setting = os.environ.get("CORPUS_EMBED_FAILPOINT")
    if not setting:
        return
    wanted, _, action = setting.partition(":")
    if (
        wanted not in NAMES
        or action not in ACTIONS
        or "CORPUS_EMBED_FAILPOINT_DIR" not in os.environ
    ):
        raise StorageError(
            f"CORPUS_EMBED_FAILPOINT={setting}: write it as name:action, name one of {', '.join(NAMES)}, action one of "
            f"{', '.join(ACTIONS)}, and set CORPUS_EMBED_FAILPOINT_DIR. Unset it outside of tests."
        )
    if wanted != name:
        return
    folder = Path(os.environ["CORPUS_EMBED_FAILPOINT_DIR"])
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
