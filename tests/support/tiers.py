"""The tiers of the suite: which one a test is of, and a guard against what its tier does not have.

A tier is a marker that is derived: `tiers_of` takes it from the names that a test
can reach, which are its fixtures and every name in its code, in the code of its module's fixtures
and in the functions of `tests` that these call. A test without a tier is `quick`. Names cannot
show what the product does underneath, so `Guard` fails a test that starts a process, opens a
socket, imports a heavy library or computes with torch without being of a tier that has it. Cost:
0.1 s for the whole suite, and 30 µs a test. Files that run the command line in a process
set `ray` by hand, since no name in them shows that the command starts Ray.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

NAMES = {
    "s3": {"s3_session", "s3_server"},
    "ray": {"ray", "ray_local", "ray_cluster"},
    "model": {
        *("model_root", "minilm_dir", "bert_japanese_dir", "llama_dir"),
        *("bert_mean_dir", "bert_dense_dir", "static_dir", "minilm"),
        *("torch", "transformers", "sentence_transformers", "load_engine", "load_tokenizer"),
        "pipeline.embed",
    },
    "process": {
        *("run_python", "subprocess", "multiprocessing", "ProcessPoolExecutor", "fork", "Child"),
        *("read_in_child", "estimate_of", "serving", "SparkSession", "TextServer"),
        *("refusing_url", "small_disk"),
    },
    "faults": {"proxy", "small_disk", "FaultProxy", "poison", "Killer", "SIGKILL"},
}
"""Tier -> names that make a test one of it. A name is a fixture, a library or a function."""

SLOWER = {*NAMES, "parity", "gpu", "slow", "thorough"}
PERMITTED = {
    "a process": {"process", "ray", "s3", "model"},
    "a socket": {"process", "ray", "s3"},
    "ray": {"ray"},
    "torch": {"model", "ray"},
    "transformers": {"model", "ray"},
    "sentence_transformers": {"model", "ray"},
}
"""What the guard watches for -> the tiers that have it."""

_EVENTS = {
    "subprocess.Popen": "a process",
    "os.fork": "a process",
    "os.posix_spawn": "a process",
    "socket.connect": "a socket",
    "socket.bind": "a socket",
    "socket.getaddrinfo": "a socket",
}


def tiers_of(item: pytest.Function) -> set[str]:
    """The tiers of a test: those derived here, and "quick" where it is of none."""
    names = set(item.fixturenames)
    if callspec := getattr(item, "callspec", None):  # request.getfixturevalue(model)
        names |= {str(value) for value in callspec.params.values()} & NAMES["model"]
    if imports_a_model_library(item.path):
        names.add("torch")
    functions = [_inner(item.obj)]
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        functions += [_inner(d.func) for d in definitions if d.baseid != "tests"]
    for function in functions:
        names |= _reached(function)
    tiers = {tier for tier, causes in NAMES.items() if names & causes}
    by_hand = {mark.name for mark in item.iter_markers()} & SLOWER
    if by_hand & {"parity", "gpu"}:
        tiers.add("model")
    return tiers if tiers | by_hand else {"quick"}


@functools.cache
def imports_a_model_library(path: Path) -> bool:
    """Whether a module imports torch, a library on top of it or the room that needs it when it is
    imported itself: all of its tests are of the tier `model`, and `-m quick` need not import it to
    know that."""
    libraries = r"torch|transformers|sentence_transformers|pipeline\.embed|tests\.support\.engines"
    pattern = rf"^(?:import|from) (?:{libraries})\b"
    return re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _inner(function: Any) -> Any:
    """The function below decorators, hypothesis' and mocks' included."""
    while hypothesis := getattr(function, "hypothesis", None):
        function = hypothesis.inner_test
    return inspect.unwrap(function)


@functools.cache
def _reached(function: Any) -> frozenset[str]:
    """The names in the code of `function` and of every function of `tests` that it names."""
    names: set[str] = set()
    functions = [function]
    seen: set[Any] = set()
    while functions:
        function = functions.pop()
        if not isinstance(function, types.FunctionType) or function in seen:
            continue
        seen.add(function)
        used = set(_names_in(function.__code__))
        names |= used
        scopes = [function.__globals__]
        for name in used:
            value = function.__globals__.get(name)
            if isinstance(value, types.ModuleType) and value.__name__.startswith("tests."):
                scopes.append(vars(value))
        for value in [scope[name] for scope in scopes for name in used & scope.keys()]:
            if str(getattr(value, "__module__", "")).startswith("tests"):
                functions += vars(value).values() if isinstance(value, type) else [_inner(value)]
    return frozenset(names)


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


class Guard:
    """Notes what a test does that its tiers do not have; one per session, as hooks stay."""

    def __init__(self) -> None:
        # It binds a socket when it is imported, in whatever test is the first to need s3fs.
        importlib.import_module("urllib3")
        self._watched: set[str] = set()
        self._violations: list[str] = []
        sys.addaudithook(self._audit)

    @contextmanager
    def over(self, item: pytest.Item) -> Iterator[None]:
        """Fails at the end, so that no `except` of the product hides a violation."""
        tiers = {mark.name for mark in item.iter_markers()}
        self._watched = {thing for thing, having in PERMITTED.items() if not tiers & having}
        try:
            with ExitStack() as stack:
                if "torch" in self._watched and "torch" in sys.modules:
                    stack.enter_context(_watched_tensors(self._note))
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                patch.setattr(builtins, "__import__", self._import)
                patch.setattr(BaseProcess, "start", self._start)
                self._violations.clear()
                yield
        finally:
            self._watched = set()
        if self._violations:
            used = ", ".join(sorted(set(self._violations)))
            pytest.fail(
                f"this test uses {used}, which its tiers {sorted(tiers & SLOWER)} do not have: "
                "use the fixture, or add the name that shows it to tests/support/tiers.py",
                pytrace=False,
            )

    def _note(self, thing: str) -> None:
        if thing in self._watched:
            self._violations.append(thing)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            self._note(_EVENTS[event])

    def _import(self, name: str, *arguments: Any, **named: Any) -> Any:
        caller = str((arguments[0] or {}).get("__name__", "")) if arguments else ""
        # Ray's own threads import parts of it while they print, in whatever test is running
        if caller.partition(".")[0] != name.partition(".")[0]:
            self._note(name.partition(".")[0])
        return _import(name, *arguments, **named)

    @property
    def _start(self) -> Callable[[BaseProcess], None]:
        def start(process: BaseProcess) -> None:
            self._note("a process")
            _start(process)

        return start


_import = builtins.__import__
_start = BaseProcess.start


def _watched_tensors(note: Callable[[str], None]) -> AbstractContextManager[Any]:
    """Notes every operation on a tensor in this thread."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            note("torch")
            return operation(*args, **(kwargs or {}))

    return Watch()
