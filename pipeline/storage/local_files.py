"""Create one file of a local disk whole, under a name that is free: what a conditional PUT is to an
object store.

Bytes and a path come in; a file with all of the bytes appears under that path, or nothing does.
Method: a temporary file next to the others, fsync, and then the one step that fails when the name
is taken: a hard link, or, on disks without hard links (exFAT, SMB, many FUSE mounts), Linux'
`renameat2` with RENAME_NOREPLACE. A disk that has neither is refused by name. Modes are those that
the umask leaves, as for the files of any program, so that whoever may read an output by the rules
of its folder can. Cost: two fsyncs.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from pipeline.errors import StorageError

__all__ = ["create_whole", "disk_of", "new_file", "replace_whole"]

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
"""What `link` answers on disks without hard links; EPERM also where it is not allowed."""
_NO_RENAME = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What `renameat2` answers where it cannot leave an existing name alone."""
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def new_file(folder: Path, data: bytes) -> Path:
    """A new file with a name of its own in an existing folder, with the mode that the umask leaves
    (`tempfile` gives 0600 whatever the umask), its bytes on disk."""
    path = folder / f"tmp{os.urandom(8).hex()}"
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(path)
        raise
    return path


def create_whole(path: Path, staging: Path, data: bytes) -> bool:
    """Create `path` with all of `data`, folders included; False when the name is taken.

    staging: a folder of the same disk for the file while it is written. Raises OSError when the
    disk refuses to write, StorageError when it cannot create a file only where there is none.
    """
    for folder in (path.parent, staging):
        folder.mkdir(parents=True, exist_ok=True)
    temporary = new_file(staging, data)
    try:
        _move_to_free_name(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)  # a link leaves it
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def replace_whole(path: Path, staging: Path, data: bytes) -> None:
    """Make `data` the content of `path` in one step, whether there is a file or not. As
    `create_whole`."""
    for folder in (path.parent, staging):
        folder.mkdir(parents=True, exist_ok=True)
    temporary = new_file(staging, data)
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _move_to_free_name(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if (failure := _rename_to_free_name(temporary, path)) in _NO_RENAME:
            raise StorageError(
                f"{path}: {disk_of(path)} has neither hard links nor a rename that leaves an "
                "existing file alone (RENAME_NOREPLACE), so two runs could overwrite each other's "
                "files there. Put the output on another disk (ext4, XFS, Btrfs, ZFS, NFS, Lustre) "
                "or on an object store."
            ) from error
        if failure:
            raise OSError(failure, os.strerror(failure), str(path)) from error


def _rename_to_free_name(temporary: Path, path: Path) -> int:
    """Rename a file unless the new name is taken. Returns 0 or an errno."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # not Linux, or a C library from before 2018
        return errno.ENOSYS
    names = (os.fsencode(temporary), os.fsencode(path))
    failed = rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_NOREPLACE))
    return ctypes.get_errno() if failed else 0


def disk_of(path: Path) -> str:
    """What a path lies on, for messages: "the exfat file system at /mnt/stick"."""
    real = os.path.realpath(path)
    mounts = [("the disk", "/")]
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as table:
            fields = [line.split(" ")[:3] for line in table]
    except OSError:  # not Linux
        fields = []
    mounts += [
        (f"the {kind} file system", point.replace("\\040", " ")) for _, point, kind in fields
    ]
    holding = [mount for mount in mounts if f"{real}/".startswith(mount[1].rstrip("/") + "/")]
    name, point = max(holding, key=lambda mount: len(mount[1]))
    return f"{name} at {point}"
