"""Imports go one way, left to right as the data does; the heavy ones stay behind their one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mrm_stream"
FILES = sorted(PACKAGE.rglob("*.py"))

GROUND = {"errors", "records", "randomness", "progress", "strict"}
"""Modules that every part may use."""
ALLOWED = {
    "storage": {"storage"},
    "config": {"config", "storage"},
    "text": {"text", "storage"},
    "formats": {"formats", "text", "storage"},
    "sources": {"sources", "text", "storage"},
    "packing": {"packing", "sources", "formats", "text", "config", "storage"},
    "stream": {"stream", "formats", "config", "storage"},
    "decode": {"decode"},
    "model": {"model", "text", "config"},
    "pretrained": {"pretrained", "model", "storage"},
    "distributed": {"distributed", "storage"},
    "training": {"training", "distributed", "stream", "decode", "formats", "config", "storage"},
    "tasks": {"tasks", "training", "stream", "decode", "model", "pretrained", "formats", "text", "config", "storage"},
    "visual": {"visual", "tasks", "training", "stream", "packing", "formats", "text", "config", "storage"},
    "bench": {
        *("bench", "tasks", "training", "distributed", "stream", "decode", "packing", "sources"),
        *("formats", "text", "config", "storage"),
    },
    "commands": {
        *("commands", "bench", "visual", "tasks", "training", "pretrained", "distributed", "packing", "sources"),
        *("formats", "text", "config", "storage"),
    },
    "cli": {"commands", "storage"},
    "train": {"tasks", "training", "distributed", "config", "storage"},
}
DOORS = {
    "nvidia": {"decode/dali.py"},
    "deepspeed": {"training/engine.py", "training/engine_state.py", "distributed/connection.py"},
}

PARAMETERS = 8
"""Of a function, at most, `self` not counted: what travels together is an object."""
CLASS_LINES = 250
"""Of a class, at most: one with several jobs hands one of them to another class."""
OVER_LIMITS: set[str] = set()
"""Those that are still over: may only shrink."""


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            # `from mrm_stream import training` names a part as `import mrm_stream.training` does.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    allowed = GROUND | ALLOWED.get(part_of(path), set())
    own = {name.split(".")[1] for name in imported(path) if name.startswith("mrm_stream.")}
    assert own <= allowed, f"{part_of(path)} may not import {', '.join(sorted(own - allowed))}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports for the type checker's eyes and those inside functions count too: a circle is a circle."""
    modules = {".".join(("mrm_stream", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    arrows = {name: imported(path) & modules.keys() - {name} for name, path in modules.items()}
    left = TopologicalSorter(arrows)
    left.prepare()


def test_no_way_to_write_an_import_evades_the_arrows(tmp_path: Path) -> None:
    for line in ("import mrm_stream.bench", "from mrm_stream import bench", "from mrm_stream.bench import run"):
        (tmp_path / "a.py").write_text(f"def f() -> None:\n    {line}\n")
        assert {name.split(".")[1] for name in imported(tmp_path / "a.py")} == {"bench"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_stay_behind_their_door(path: Path) -> None:
    for package, doors in DOORS.items():
        if package in {name.split(".")[0] for name in imported(path)}:
            assert str(path.relative_to(PACKAGE)) in doors


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_fits_on_a_few_screens(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def over_limits(tree: ast.AST) -> set[str]:
    """Functions with too many parameters, and classes with too many lines."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            given = node.args
            parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            count = sum(parameter.arg not in ("self", "cls") for parameter in parameters)
            if count > PARAMETERS:
                found.add(f"{getattr(node, 'name', 'lambda')} takes {count} parameters")
        elif isinstance(node, ast.ClassDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > CLASS_LINES:
                found.add(f"{node.name} has {lines} lines")
    return found


def test_functions_take_few_parameters_and_classes_read_in_one_breath() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {what}" for path in FILES for what in over_limits(ast.parse(path.read_text()))
    }
    assert found - OVER_LIMITS == set()
    assert OVER_LIMITS - found == set(), "mended: strike it off the list"


def test_the_limits_count_what_they_should() -> None:
    names = [f"p{number}" for number in range(PARAMETERS)]
    method = "class A:\n    def f(self, {}, *, last=0, **rest): ..."
    assert over_limits(ast.parse(method.format(", ".join(names[:-1])))) == set()
    assert over_limits(ast.parse(method.format(", ".join(names)))) == {f"f takes {PARAMETERS + 1} parameters"}
    body = "\n".join(["    pass"] * CLASS_LINES)
    assert over_limits(ast.parse(f"class A:\n{body}")) == {f"A has {CLASS_LINES + 1} lines"}
    assert over_limits(ast.parse(f"class A:\n{body[9:]}")) == set()


def test_every_folder_says_what_it_does() -> None:
    for folder in {path.parent for path in FILES}:
        tree = ast.parse((folder / "__init__.py").read_text())
        assert ast.get_docstring(tree)


def test_packing_and_sources_do_not_load_torch() -> None:
    """A packing worker would otherwise pay seconds and hundreds of megabytes for it."""
    code = "import sys, mrm_stream.packing.pack, mrm_stream.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_question_about_a_file_is_answered_wrongly_where_permission_is_denied() -> None:
    """`exists`, `glob` and their like answer no, or raise, by the version of Python: `access.py` asks for them."""
    asking = {"exists", "is_file", "is_dir", "glob", "rglob", "isfile", "isdir"}
    # Of files that the process has made itself, or that are the machine's own.
    trusted = {f"storage/{name}.py" for name in ("access", "remote", "files", "publish")}
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in FILES
        if str(path.relative_to(PACKAGE)) not in trusted and part_of(path) != "bench"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in asking
    ]
    assert not found
