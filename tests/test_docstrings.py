"""Functions that take or return tensors tell their shapes: by suffixes (the legend is in `records.py`) or in words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mrm_stream"
FILES = sorted(PACKAGE.rglob("*.py"))

WITHOUT_SHAPES = 0
"""Public functions that take or return arrays and do not say of which shape; it may only shrink."""

_ARRAYS = {"Tensor", "NDArray", "ndarray", "ArrayLike"}
_MAPPINGS = {"dict", "Mapping", "MutableMapping", "OrderedDict"}
_SUFFIX = re.compile(r"_[A-Z][A-Z0-9]*\b|_[0-9]+[A-Z]+\b")
_SIDE = r"[\w.]+(?: ?(?:[*+]|//?) ?[\w.]+)*"
_SHAPE = re.compile(rf"\({_SIDE},(?: {_SIDE},?)*\)|\(\.\.\.\)|\bscalars?\b|\bany shape\b")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def aliases() -> set[str]:
    """Names that modules give to types of arrays, such as `Plane`."""
    names = set()
    for node in (node for path in FILES for node in parsed(path).body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and has_array(node.value):
                names.add(target.id)
    return names


def has_array(annotation: ast.expr | None) -> bool:
    """Whether arrays are among what is annotated; weights by name, in a mapping, have their parameters' shapes."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).split(".")[-1] in _MAPPINGS:
        return False
    if isinstance(annotation, ast.Name | ast.Attribute):
        return ast.unparse(annotation).split(".")[-1] in _ARRAYS
    return annotation is not None and any(
        has_array(part) for part in ast.iter_child_nodes(annotation) if isinstance(part, ast.expr)
    )


Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(body: list[ast.stmt], of_class: str = "") -> Iterator[tuple[Function, str]]:
    """Functions and methods that are not private, nor is their class, and the docstring; `__call__` and its like too.

    What `__init__` takes is told in the docstring `of_class`.
    """
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, ast.get_docstring(node) or "")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and re.match(r"[^_]|__", node.name):
            yield node, (ast.get_docstring(node) or "") + (of_class if node.name == "__init__" else "")


def parameters(function: Function) -> list[ast.arg]:
    given = function.args
    extra = [argument for argument in (given.vararg, given.kwarg) if argument is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *extra]


def lacks_shapes(function: Function, words: str) -> bool:
    arrays = [argument for argument in parameters(function) if has_array(argument.annotation)]
    if not arrays and not has_array(function.returns):
        return False
    prose = re.sub(r"^\s*(>>>|\.\.\.).*$", "", words, flags=re.MULTILINE)
    return not (
        _SHAPE.search(prose) or _SUFFIX.search(prose) or any(_SUFFIX.search(argument.arg) for argument in arrays)
    )


def without_shapes(path: Path) -> list[str]:
    functions = public_functions(parsed(path).body)
    return [
        f"{path.name}:{function.lineno} {function.name}"
        for function, words in functions
        if lacks_shapes(function, words)
    ]


_ARRAYS |= aliases()


def test_public_functions_tell_the_shapes_of_what_they_take_and_return() -> None:
    found = [line for path in FILES for line in without_shapes(path)]
    assert len(found) <= WITHOUT_SHAPES, "\n".join(found)
    assert len(found) == WITHOUT_SHAPES, f"only {len(found)} are left: lower WITHOUT_SHAPES"


@pytest.mark.parametrize(
    ("source", "lacks"),
    [
        ("def f(a: Tensor) -> int: ...", True),
        ("def f(a_BL: Tensor) -> int: ...", False),
        ("def f(a: int) -> Tensor: ...", True),
        ("def f(a: int) -> Tensor:\n    'Return noise, (B, N).'", False),
        ("def f(a: int) -> Tensor:\n    'Return what is drawn (and nothing else, by the way).'", True),
        ("def f(a: int) -> Tensor:\n    'Return a permutation, (size,).'", False),
        ("def f(a: int) -> Tensor:\n    'Return the image, (height // 2, 3 * W).'", False),
        ("def f(a: int) -> Tensor:\n    '''Return noise.\n\n    >>> f(a, b)\n    '''", True),
        ("def f(a: list[NDArray[np.uint8]] | None) -> int: ...", True),
        ("def f(a: dict[str, Tensor]) -> int: ...", False),
        ("def f(a: Sequence[int]) -> int: ...", False),
        ("def _f(a: Tensor) -> int: ...", False),
        ("class A:\n    def f(self, a: Tensor) -> int: ...", True),
        ("class A:\n    def __init__(self, a: Tensor) -> None: ...", True),
        ("class A:\n    'Of weights, (N,).'\n    def __init__(self, a: Tensor) -> None: ...", False),
        ("class A:\n    def __call__(self, a: Tensor) -> int: ...", True),
        ("class _A:\n    def f(self, a: Tensor) -> int: ...", False),
    ],
)
def test_what_counts_as_told(tmp_path: Path, source: str, lacks: bool) -> None:
    (tmp_path / "a.py").write_text(source)
    assert bool(without_shapes(tmp_path / "a.py")) == lacks
