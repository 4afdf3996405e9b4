"""No test draws numbers that depend on luck, or on which tests ran before it: each draws from a
generator that it seeds itself.

Oracle: the abstract syntax tree of every module of the tests.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

MODULES = sorted((ROOT / "tests").rglob("*.py"))
GENERATORS = {"Random", "default_rng", "RandomState", "Generator"}
OF_TORCH = {"rand", "randn", "randint", "randperm", "normal", "rand_like", "randn_like"}
OTHERS = {"seed", "getstate", "setstate", "Random", "default_rng", "Generator"}
"""Names of `random` and `numpy.random` that draw nothing."""


def module_of(node: ast.expr) -> str:
    """ "random" for `random`, "numpy.random" for `np.random`, "torch" for `torch`."""
    return ast.unparse(node).replace("np.", "numpy.")


def shared_generators(tree: ast.Module) -> Iterator[ast.AST]:
    """Generators that a module or a class keeps, and that a default of a parameter is."""
    kept = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            kept += [part for part in node.body if isinstance(part, ast.Assign | ast.AnnAssign)]
    values = [node.value for node in kept if node.value is not None]
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            values += [value for value in (*node.defaults, *node.kw_defaults) if value]
    for value in values:
        call = value
        # `Generator().manual_seed(0)` is the generator itself; `Random(1).randbytes(9)` is none
        while isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            if call.func.attr in GENERATORS:
                yield value
            if call.func.attr != "manual_seed":
                break
            call = call.func.value
        if isinstance(call, ast.Call) and ast.unparse(call.func) in GENERATORS:
            yield value


def unseeded_draws(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, module = node.func.attr, module_of(node.func.value)
        has_seed = bool(node.args) or bool(node.keywords)
        if (
            (module in ("random", "numpy.random") and name not in OTHERS)
            or (module in ("random", "numpy.random") and name in GENERATORS and not has_seed)
            or (module == "torch" and name in OF_TORCH and not keyword(node, "generator"))
            or (module, name) == ("os", "urandom")
        ):
            yield node


def keyword(call: ast.Call, name: str) -> bool:
    return any(word.arg == name for word in call.keywords)


def places_of(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: list[Any] = [*shared_generators(tree), *unseeded_draws(tree)]
    return [f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}" for node in nodes]


def test_every_test_draws_from_a_generator_that_it_seeds_itself() -> None:
    assert [place for path in MODULES for place in places_of(path)] == []


@pytest.mark.parametrize(
    ("code", "n_places"),
    [
        ("G = torch.Generator().manual_seed(0)", 1),
        ("class A:\n    chance: Any = random.Random(0)", 1),
        ("def f(chance=np.random.default_rng(0)): ...", 1),
        ("def f():\n    return np.random.rand(3), random.choice([1]), torch.randn(2)", 3),
        ("def f():\n    return np.random.default_rng(), random.Random(), os.urandom(2)", 3),
        ("NOISE = random.Random(1).randbytes(9)", 0),
        ("def f(seed):\n    return torch.randn(2, generator=g), random.Random(seed)", 0),
    ],
)
def test_what_is_forbidden_is_found(code: str, n_places: int) -> None:
    tree = ast.parse(code)
    assert len([*shared_generators(tree), *unseeded_draws(tree)]) == n_places
