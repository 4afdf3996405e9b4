"""Where models come from: a local directory, the Hub, or an object-store prefix, brought to this
node once.

In: what `model.path` says. Out: the `ModelDir` of a local copy. Cost: the download, once a node;
then one SHA-256 pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError, SpecError
from pipeline.job.model_dir import ModelDir, read_model
from pipeline.job.model_files import OTHER_BACKENDS, SUFFIXES, changes_vectors, hashes
from pipeline.storage.filesystems import etag_of, filesystem
from pipeline.storage.store import cache_folder

__all__ = ["resolve"]


def resolve(
    path: str, revision: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> ModelDir:
    """Bring the model to this node if it is elsewhere, and read what it says about itself.

    `path`: local directory (also `file://`), Hub id (`revision` applies; HF_HOME and HF_HUB_OFFLINE
    are honoured) or any fsspec URL of a prefix, kept under CORPUS_EMBED_CACHE (default
    ~/.cache/corpus-embed). Raises ModelError when it cannot be found, reached, or used as it is.
    """
    local = Path(os.path.expanduser(path.removeprefix("file://")))
    if local.is_dir():
        return read_model(local, path)
    if "://" in path and not path.startswith("file://"):
        return _from_prefix(path, dict(storage_options or {}))
    if path.startswith((".", "/", "~", "file://")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise ModelError(
            f"{path}: model directory not found. Set model.path to a directory, a Hub id or a URL prefix."
        )
    return read_model(_from_hub(path, revision), path)


def _from_hub(repo_id: str, revision: str | None) -> Path:
    import huggingface_hub

    patterns = [f"*{suffix}" for suffix in sorted(SUFFIXES)] + ["README.md"]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=[f"{name}/*" for name in sorted(OTHER_BACKENDS)],
            )
        )
    except Exception as error:  # the Hub client raises its own, httpx's and OSError alike
        raise ModelError(
            f"{repo_id} (revision {revision or 'default'}): not a local directory, and the Hub did not give it: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} Check the name, the revision "
            "and the network, or put the model in a directory or on the object store and name that."
        ) from error


def _from_prefix(url: str, storage_options: dict[str, Any]) -> ModelDir:
    """Download once a node. The key is a hash of the listing, so a changed object is a new
    directory; the directory appears by rename, so that several actors may start at once; a
    damaged copy is noticed by its hashes.
    """
    try:
        fs, root = filesystem(url, storage_options)
        listing = fs.find(root, detail=True)
    except SpecError:
        raise
    except Exception as error:
        raise ModelError(
            f"{url}: the model could not be listed: {type(error).__name__}: {error}"
        ) from error
    root = root.rstrip("/")
    objects = {name[len(root) :].lstrip("/"): info for name, info in sorted(listing.items())}
    objects = {
        name: info for name, info in objects.items() if changes_vectors(name) or name == "README.md"
    }
    if not objects:
        raise ModelError(
            f"{url}: no model files below this prefix. Set model.path to the prefix with config.json."
        )
    rows = [[name, info.get("size"), etag_of(info)] for name, info in objects.items()]
    key = hashlib.sha256(json.dumps([url, rows], default=str).encode()).hexdigest()[:32]
    cache = cache_folder("models")
    final = cache / key
    for _ in range(2):
        if not final.is_dir():
            _download(fs, root, objects, final, url)
        model = read_model(final, url)
        if json.loads((final / ".sha256").read_text()) == model.files:
            return model
        final.rename(tempfile.mkdtemp(prefix=f".damaged-{key}-", dir=cache))
    raise ModelError(
        f"{url}: the copy in {final} changes while it is read. Clear {cache} and try again."
    )


def _download(fs: Any, root: str, objects: Mapping[str, Any], final: Path, url: str) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        for name, info in objects.items():
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{root}/{name}", str(target))
            if info.get("size") is not None and target.stat().st_size != info["size"]:
                raise ModelError(
                    f"{url}/{name}: {target.stat().st_size} bytes arrived of {info['size']}. Try again."
                )
        (staging / ".sha256").write_text(json.dumps(hashes(staging)))
        staging.rename(final)
    except ModelError:
        raise
    except Exception as error:
        if not final.is_dir():  # else another process on this node was first: its copy serves
            raise ModelError(
                f"{url}: the model could not be downloaded: {type(error).__name__}: {error}"
            ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
