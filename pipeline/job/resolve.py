"""The resolved job: a spec and what its model directory says in, a `Job` with its fingerprint out.

A fingerprint is the hash of the identity: everything that can change a vector or a row, as nested
plain data. Cost: one SHA-256 pass over the model files. Neither torch nor ray is imported.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import logging
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ModelError, SpecError
from pipeline.job import model_store
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model_dir import ModelDir
from pipeline.job.spec import JobSpec
from pipeline.job.tokenizer_versions import versions
from pipeline.storage.lineage import content_hash

log = logging.getLogger(__name__)

ALGORITHM = 2
"""Version of our own cleaning, chunking, tokenizing, loading and pooling: raised with every change
that can change a row."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A spec with every `auto` resolved, and its fingerprint: what each worker needs to know."""

    spec: JobSpec
    engine: EngineOptions
    prompt: str | None
    max_tokens: int
    identity: dict[str, Any]
    model_license: str | None

    @functools.cached_property
    def fingerprint(self) -> str:
        return content_hash(self.identity, 16)

    def model(self) -> ModelDir:
        """The model directory on this node. Raises ModelError if its files are not the ones that
        were planned."""
        found = _model(self.spec)
        if found.files != self.identity["model"]["files"]:
            raise ModelError(
                f"{self.spec.model.path}: the model files on this node differ from those the run was planned with. "
                "Give every node the same files, or name an object-store prefix or a Hub id with a revision."
            )
        return found


def resolve(spec: JobSpec, device: str) -> Job:
    """Settle every `auto` of a spec on a device ("cpu" or "cuda"). Raises ModelError or SpecError."""
    model = _model(spec)
    # of a Hub model: every worker, and later every verify, asks for this very commit
    if model.commit:
        spec = spec.model_copy(
            update={"model": spec.model.model_copy(update={"revision": model.commit})}
        )
    wanted = spec.model
    if wanted.prompt_name is not None and wanted.prompt_name not in model.prompts:
        raise SpecError(
            f"model.prompt_name '{wanted.prompt_name}': the model has {sorted(model.prompts) or 'no prompts'}"
        )
    name = wanted.prompt_name or model.default_prompt_name
    prompt = (
        wanted.prompt if wanted.prompt is not None else model.prompts.get(name) if name else None
    )
    named = sorted(name for name, text in model.prompts.items() if text)
    if named and prompt is None:
        log.warning(
            "%s has prompts %s, the job uses none: set model.prompt_name (or model.prompt: '')",
            wanted.path,
            named,
        )
    prompt = prompt or None
    default_dtype = "bfloat16" if device == "cuda" else "float32"
    engine = EngineOptions.of(
        model,
        pooling=wanted.pooling,
        normalize=wanted.normalize,
        truncate_dim=wanted.truncate_dim,
        dtype=default_dtype if wanted.dtype == "auto" else wanted.dtype,
        device=device,
        **batching(spec),
    )
    max_tokens = (
        model.max_tokens
        if wanted.max_tokens == "auto"
        else min(wanted.max_tokens, model.max_tokens)
    )
    prepare = spec.prepare.model_dump(mode="json")
    if spec.prepare.long_documents == "truncate":
        del prepare["chunk"]
    identity = {
        "algorithm": ALGORITHM,
        "model": {
            "files": model.files,
            "pooling": engine.pooling,
            "normalize": engine.normalize,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "dtype": engine.dtype,
            "truncate_dim": engine.truncate_dim,
        },
        "tokenizer": versions(model),
        "prepare": prepare,
        "input": spec.input.model_dump(mode="json", exclude={"uri", "storage_options"}),
        "output": spec.output.model_dump(mode="json", exclude={"uri", "storage_options"}),
    }
    return Job(spec, engine, prompt, max_tokens, identity, model.license)


def batching(spec: JobSpec) -> dict[str, Any]:
    """The engine options that change no vector, as a spec gives them."""
    runtime = spec.runtime
    budget = runtime.max_batch_tokens
    return {"engine": runtime.engine, "max_batch_tokens": None if budget == "auto" else budget}


def device_here() -> str:
    """ "cuda" where this machine has a GPU, else "cpu". Asks no torch."""
    return "cuda" if glob.glob("/dev/nvidia[0-9]*") else "cpu"


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Dotted names of what two identities disagree on."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name


def _model(spec: JobSpec) -> ModelDir:
    return model_store.resolve(spec.model.path, spec.model.revision, spec.input.storage_options)
