"""Versions: what tells the content that an object has now from the content that it had before.

A version is made from the answer to `fs.info`, so it costs no request of its own. Each protocol
has its own names for what it knows:

| protocol | a version is made of |
|---|---|
| s3, oss, tos, http(s) with ETag, gs, abfs, adl, oci, webdav | `ETag`, `etag` |
| a gs, oci or versioned store without one | `md5Hash`, `generation`, `VersionId` |
| hf, lakefs, http(s) with a digest | `blob_id`, `checksum`, `Content-MD5`, `Digest` |
| file, local | modification time, size and change time |
| sftp, ssh, smb, hdfs | `mtime` and size |
| http(s) without ETag | `Last-Modified` and size |
| ftp, webhdfs, webdav without etag | `modify`, `modificationTime`, `modified`, and size |
| memory | `created` and size |
| http(s) with neither | the size alone, which `is_size_only` tells |

The change time is what nobody can set: a file that was replaced or rewritten with its modification
time and size kept (`rsync -t`, `cp -p`, tar, a restored backup) has another one. So have a file
whose owner or mode was changed, and a copy on another disk: they are read again, and their texts
keep their vectors. On macOS, fsspec gives the time of the file's birth in its place, which a file
rewritten in place keeps. There is no inode number in a version, because network and FUSE mounts
give one file another number on every node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CONTENT = (
    *("ETag", "etag", "md5Hash", "generation", "VersionId"),
    *("blob_id", "checksum", "Content-MD5", "Digest"),
)
"""What names a content, the first that an answer has."""

_TIMES = (
    *("mtime", "LastModified", "last_modified"),
    *("Last-Modified", "modified", "modify", "modificationTime", "timeModified", "updated"),
    "created",
)
"""When an object was last changed, the first that an answer has. `created` comes last: of a store
that has both, it is the time of the first content."""


def version_of(info: Mapping[str, Any]) -> str:
    """The version of the object that a file system's `info` describes."""
    if _is_local(info):
        return f"{_earlier_local_version(info)}-{info['created']}"
    for key in _CONTENT:
        if info.get(key):
            return str(info[key]).strip('"')
    changed = next(filter(None, map(info.get, _TIMES)), "")
    return f"{changed}-{info.get('size')}".replace(" ", "T")


def is_version(version: str, info: Mapping[str, Any]) -> bool:
    """Whether `info` describes an object of this version, which an earlier release may have made:
    then a local one has no change time."""
    is_earlier = _is_local(info) and version == _earlier_local_version(info)
    return is_earlier or version == version_of(info)


def without_change_time(uri: str, version: str) -> str:
    """The version that releases before the change time was in it gave to the same local file, and
    that a reader takes which compares contents anyway; the same version for an object of a store.
    """
    match = re.fullmatch(r"(.*-\d+)-\d+\.\d+", version) if uri.startswith("file://") else None
    return match[1] if match else version


def is_size_only(version: str) -> bool:
    """Whether a change that keeps the size gives an object the same version."""
    return re.fullmatch(r"-\d+", version) is not None


def _is_local(info: Mapping[str, Any]) -> bool:
    return "ino" in info and "islink" in info  # fsspec's LocalFileSystem, and no other


def _earlier_local_version(info: Mapping[str, Any]) -> str:
    return f"{info['mtime']}-{info['size']}"
