"""Resolve a job: a spec and its model directory come in, a `Job` with its fingerprint comes out.

A fingerprint is the hash of the identity: everything that can change a vector or a row, as nested
plain data. Cost: one SHA-256 pass over the model files. Neither torch nor ray is imported.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import platform
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipeline.errors import ModelError, SpecError, WorkerError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model import store as model_store
from pipeline.job.model.directory import ModelDir
from pipeline.job.model.prompts import document_prompt
from pipeline.job.model.tokenizer_versions import versions
from pipeline.job.release import release
from pipeline.job.sections import ModelSpec
from pipeline.job.spec import JobSpec
from pipeline.job.text_software import formats_in, text_software
from pipeline.storage.lineage import content_hash

ALGORITHM = 2
"""The version of this package's own cleaning, chunking, tokenizing, loading and pooling. It is
raised with every change that can change a row."""

INT8_ALGORITHM = 3
"""The version of the arithmetic of `dtype: int8`, in the identity of its jobs alone. The first one
had no entry."""
_INT8 = "int8_algorithm"


@dataclasses.dataclass(frozen=True)
class Job:
    """A spec with every `auto` resolved, its identity and its fingerprint. Every worker gets it."""

    spec: JobSpec
    engine: EngineOptions
    prompt: str | None
    max_tokens: int
    identity: dict[str, Any]
    model_license: str | None
    prompt_source: str | None = None
    """Who says what is put in front of a document; None for the job of a stored snapshot."""
    model_here: ModelDir | None = dataclasses.field(default=None, repr=False, compare=False)
    """The directory on the machine that resolved the job; None elsewhere, and for the job of a
    stored snapshot."""
    release: str = dataclasses.field(default_factory=release)
    """The version of this package on the driver."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash of the identity, 16 hexadecimal digits."""
        return content_hash(self.identity, 16)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model_here": None}

    def model(self) -> ModelDir:
        """The model directory on this node. Raises ModelError if its files are not the ones that
        were planned."""
        return self.checked(_model(self.spec))

    def model_of_driver(self) -> ModelDir:
        """`model()` without another hash of its weights where the job was resolved."""
        return self.model_here or self.model()

    def checked(self, model: ModelDir) -> ModelDir:
        """A model that has the files of the fingerprint. Raises ModelError for any other."""
        if model.files != self.identity["model"]["files"]:
            raise ModelError(
                f"{self.spec.model.path}: the model files on this node differ from those the run "
                "was planned with. Give every node the same files, or name an object-store prefix "
                "or a Hub id with a revision."
            )
        return model

    def model_of_worker(self) -> ModelDir:
        """`model()` on a worker. Raises WorkerError, too, where this node has other software than
        the driver of what the fingerprint names."""
        model = self.model()
        planned_text = self.identity.get("text", {})
        installed_text = text_software(self.spec.prepare.unicode, formats_in(planned_text))
        tokenizer = self.identity["tokenizer"] | planned_text
        planned = _software(self.release, self.identity["algorithm"], tokenizer)
        installed = _software(release(), ALGORITHM, versions(model) | installed_text)
        if self.engine.dtype == "int8":
            planned[_INT8] = str(self.identity["model"].get(_INT8, 1))
            installed[_INT8] = str(INT8_ALGORITHM)
        for name in sorted(planned.keys() | installed.keys()):
            if planned.get(name) != installed.get(name):
                raise WorkerError(
                    f"node {platform.node()} has {name} {installed.get(name, 'not in use')}, and "
                    f"the driver, which planned this run, has {planned.get(name, 'not in use')}: "
                    "its rows would not be those that the fingerprint promises. Install the "
                    "versions of one constraints.txt on every node, and run again."
                )
        return model


def _software(release: str, algorithm: int, others: Mapping[str, str]) -> dict[str, str]:
    return {"corpus-embed": release, "corpus-embed's algorithm": str(algorithm), **others}


def resolve(spec: JobSpec, device: str, text_formats: Collection[str] = ()) -> Job:
    """Settle every `auto` of a spec on a device ("cpu" or "cuda"). text_formats:
    what `read.pages.text_formats` says of the input. Raises ModelError, SpecError or
    StorageError."""
    model = _model(spec)
    choice = spec.model
    # Every worker, and later every search and verify in any folder, loads this very model.
    if folder := model_store.local_folder(choice.path):
        choice = choice.model_copy(update={"path": str(folder)})
    elif model.commit:
        choice = choice.model_copy(update={"revision": model.commit})
    spec = spec.model_copy(update={"model": choice})
    _check_truncation(choice, model)
    prompt = document_prompt(choice, model)
    default_dtype = "bfloat16" if device == "cuda" else "float32"
    engine = EngineOptions.of(
        model,
        pooling=choice.pooling,
        normalize=choice.normalize,
        truncate_dim=choice.truncate_dim,
        dtype=default_dtype if choice.dtype == "auto" else choice.dtype,
        device=device,
        **batching(spec),
    )
    max_tokens = (
        model.max_tokens
        if choice.max_tokens == "auto"
        else min(choice.max_tokens, model.max_tokens)
    )
    prepare = spec.prepare.model_dump(mode="json")
    if spec.prepare.long_documents == "truncate":
        del prepare["chunk"]
    identity: dict[str, Any] = {
        "algorithm": ALGORITHM,
        "model": {
            "files": model.files,
            "pooling": engine.pooling,
            "normalize": engine.normalize,
            "prompt": prompt.text,
            "max_tokens": max_tokens,
            "dtype": engine.dtype,
            "truncate_dim": engine.truncate_dim,
        },
        "tokenizer": versions(model),
        "prepare": prepare,
        "input": spec.input.identity(),
        "output": spec.output.identity(),
    }
    if engine.dtype == "int8":
        identity["model"][_INT8] = INT8_ALGORITHM
    if software := text_software(spec.prepare.unicode, text_formats):
        identity["text"] = software
    return Job(
        spec=spec,
        engine=engine,
        prompt=prompt.text,
        max_tokens=max_tokens,
        identity=identity,
        model_license=model.license,
        prompt_source=prompt.source,
        model_here=model,
    )


def _check_truncation(choice: ModelSpec, model: ModelDir) -> None:
    if choice.truncate_dim and model.max_dimension and choice.truncate_dim > model.max_dimension:
        raise SpecError(
            f"model.truncate_dim is {choice.truncate_dim}, but the vectors of {choice.path} have "
            f"{model.max_dimension} dimensions at most. Set it to fewer, or leave it out."
        )


def batching(spec: JobSpec) -> dict[str, Any]:
    """The engine options that change no vector, as a spec gives them."""
    runtime = spec.runtime
    budget = runtime.max_batch_tokens
    return {"engine": runtime.engine, "max_batch_tokens": None if budget == "auto" else budget}


def device_here() -> str:
    """The device of this machine, "cuda" where it has a GPU, else "cpu". torch is not imported."""
    return "cuda" if glob.glob("/dev/nvidia[0-9]*") else "cpu"


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """The dotted names of the entries in which two identities differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name


def _model(spec: JobSpec) -> ModelDir:
    return model_store.resolve(spec.model.path, spec.model.revision, spec.input.storage_options)
