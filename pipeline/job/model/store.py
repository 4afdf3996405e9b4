"""Bring a model to this node: from a local directory, the Hub, or a prefix of an object store.

The value of `model.path` comes in; the `ModelDir` of a local copy comes out. Cost: the download,
once a node; then one SHA-256 pass over the model's files.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CorpusEmbedError, ModelError, SpecError, StorageError
from pipeline.job.model.directory import ModelDir, read_model
from pipeline.job.model.files import OTHER_BACKENDS, SUFFIXES, changes_vectors, hashes
from pipeline.storage.addresses import is_local, normalized, shown
from pipeline.storage.caches import note_unusable, usable_folders, writable_folder
from pipeline.storage.filesystems import endpoint_of, filesystem, options_place, reason
from pipeline.storage.retry import is_transient, retried
from pipeline.storage.versions import version_of

__all__ = ["local_folder", "resolve"]

UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}
"""What a disk answers that cannot be written or is full."""


def resolve(
    path: str,
    revision: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    fetch: bool = True,
) -> ModelDir:
    """Bring the model to this node if it is elsewhere, and read what it says about itself.

    path: a local directory (also `file://`), a Hub id (`revision` applies; HF_HOME and
    HF_HUB_OFFLINE are honoured) or any fsspec URL of a prefix, whose copy is kept under
    CORPUS_EMBED_CACHE (default ~/.cache/corpus-embed). fetch: whether the Hub may be asked;
    otherwise only the copy in its cache on this machine will do. Raises ModelError when the model
    cannot be found, reached, or used as it is, SpecError for a URL that a spec must not hold or a
    revision of a directory, StorageError when the store keeps failing.
    """
    local = local_folder(path)
    if revision is not None and (local or not is_local(path)):
        raise SpecError(
            f"model.revision {revision!r}: only models of the Hub have revisions, and "
            f"{shown(path)} is a {'directory' if local else 'prefix of a store'}. Remove "
            "model.revision."
        )
    if not is_local(path):
        return _from_prefix(path, dict(storage_options or {}))
    if local:
        return read_model(local, path)
    if path.startswith((".", "/", "~", "file:")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise ModelError(
            f"{path}: model directory not found. "
            "Set model.path to a directory, a Hub id or a URL prefix."
        )
    return read_model(_from_hub(path, revision) if fetch else _kept(path, revision), path)


def local_folder(path: str) -> Path | None:
    """The directory of this machine that `model.path` names, absolute; None for other places."""
    folder = Path(normalized(path)) if is_local(path) else None
    return folder if folder and folder.is_dir() else None


def _from_hub(repo_id: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE

    patterns = [f"*{suffix}" for suffix in sorted(SUFFIXES)] + ["README.md"]
    download = functools.partial(
        huggingface_hub.snapshot_download,
        repo_id,
        revision=revision,
        allow_patterns=patterns,
        ignore_patterns=[f"{name}/*" for name in sorted(OTHER_BACKENDS)],
    )
    try:
        try:
            return Path(download())
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            note_unusable(Path(HF_HUB_CACHE), error)
            return Path(download(cache_dir=writable_folder("hub")))
    except Exception as error:  # the Hub client raises its own, httpx's and OSError alike
        first_line = next(iter(str(error).splitlines()), "")
        kind = StorageError if is_transient(error) else ModelError
        owner = "" if "/" in repo_id else f" Did you mean sentence-transformers/{repo_id}?"
        raise kind(
            f"{repo_id}: no directory of that name in {Path.cwd()}, and the Hub did not deliver it "
            f"(revision {revision or 'default'}): {first_line}{owner} Check the name, the revision "
            "and the network, or put the model in a directory or on the object store and name "
            "that: model.path in a spec, --model for a command on an output."
        ) from error


def _kept(repo_id: str, revision: str | None) -> Path:
    """The copy of a revision in the caches of this machine. Raises ModelError without one."""
    import huggingface_hub

    for folder in (None, *usable_folders("hub")):
        with contextlib.suppress(
            OSError, ValueError
        ):  # no copy, or a name that the Hub cannot have
            return Path(
                huggingface_hub.snapshot_download(
                    repo_id, revision=revision, cache_dir=folder, local_files_only=True
                )
            )
    raise ModelError(
        f"{repo_id}: no directory of that name in {Path.cwd()}, and this machine's cache of the "
        f"Hub has no copy of revision {revision or 'default'}. It is not fetched, because only the "
        "output names it: name the model with --model, by its Hub id or where a copy of it is."
    )


def _from_prefix(url: str, storage_options: dict[str, Any]) -> ModelDir:
    """The copy on this node, downloaded where there is none.

    Its key is a hash of the listing, so a changed object is a new directory; the directory appears
    by rename, so that several actors can start at once; a damaged copy is noticed by its hashes.
    Raises StorageError when the store keeps failing, ModelError for every other failure.
    """
    try:
        fs, root = filesystem(url, storage_options, "input")
        endpoint = endpoint_of(url, storage_options, options_place("input"))
        listing = retried(lambda: fs.find(root, detail=True), f"list {shown(url)}", endpoint)
    except CorpusEmbedError:
        raise
    except Exception as error:  # file systems raise their own
        raise ModelError(f"{url}: the model could not be listed: {reason(error)}") from error
    root = root.rstrip("/")
    infos = {name[len(root) :].lstrip("/"): info for name, info in sorted(listing.items())}
    objects = {
        name: info for name, info in infos.items() if changes_vectors(name) or name == "README.md"
    }
    if not objects:
        raise ModelError(
            f"{url}: no model files below this prefix. "
            "Set model.path to the prefix that holds config.json."
        )
    versions = [[name, info.get("size"), version_of(info)] for name, info in objects.items()]
    key = hashlib.sha256(json.dumps([url, versions], default=str).encode()).hexdigest()[:32]
    download = functools.partial(_download, fs, root, objects, url)
    for folder in usable_folders("models"):
        try:
            return _copy_in(folder, key, download, url)
        except OSError as error:
            note_unusable(folder, error)
    raise StorageError(
        f"{shown(url)}: no folder of this node takes a copy of the model. Set CORPUS_EMBED_CACHE "
        "to one that can be written and has room, then run the same command again."
    )


def _copy_in(folder: Path, key: str, download: Callable[[Path], None], url: str) -> ModelDir:
    """The model in the copy `key` of a folder, downloaded where there is none. Raises OSError when
    the folder cannot be used."""
    copy = folder / key
    for _ in range(2):
        if not copy.is_dir():
            download(copy)
        if not os.access(copy, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "its models are another user's")
        model = read_model(copy, url)
        if json.loads((copy / ".sha256").read_text()) == model.files:
            return model
        copy.rename(_new_name(folder, f".damaged-{key}"))
    raise ModelError(
        f"{url}: the copy in {copy} changes while it is read. Clear {folder} and try again."
    )


def _new_name(folder: Path, prefix: str) -> Path:
    return folder / f"{prefix}-{os.urandom(8).hex()}"


def _download(fs: Any, root: str, objects: Mapping[str, Any], url: str, copy: Path) -> None:
    """Fetch all objects into a new directory `copy`; where another process on this node creates it
    first, that copy is used. Raises OSError when this node's disk refuses to be written."""
    staging = _new_name(copy.parent, f".{copy.name}")
    staging.mkdir(parents=True)  # with the mode that the umask leaves, for other users of the cache
    try:
        for name, info in objects.items():
            _fetch(fs, f"{root}/{name}", staging / name, info.get("size"), f"{shown(url)}/{name}")
        (staging / ".sha256").write_text(json.dumps(hashes(staging)))
        staging.rename(copy)
    except CorpusEmbedError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise
        if not copy.is_dir():
            raise ModelError(
                f"{url}: the model could not be downloaded: {reason(error)}"
            ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch(fs: Any, source: str, target: Path, size_bytes: int | None, label: str) -> None:
    """One object to local disk, from its first byte again after each transient failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    retried(lambda: fs.get_file(source, str(target)), f"read {label}")
    n_bytes = target.stat().st_size
    if size_bytes is not None and n_bytes != size_bytes:
        raise ModelError(f"{label}: {n_bytes} bytes arrived of {size_bytes}. Try again.")
