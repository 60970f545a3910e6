"""What CONTRIBUTING.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mrm_stream"
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
NAMED = re.findall(r"`([^`]+)`", TEXT)


def test_every_path_exists() -> None:
    paths = [name for name in NAMED if re.fullmatch(r"[\w./]+(\.py|\.md|/)", name) and name not in ("../shared",)]
    assert len(paths) > 50
    for name in paths:
        assert any((folder / name).exists() for folder in (ROOT, PACKAGE)), name


def test_every_class_and_function_is_in_a_file_of_its_line() -> None:
    checked = 0
    for line in TEXT.splitlines():
        files = [PACKAGE / name for name in re.findall(r"`([\w./]+\.py)`", line)]
        for name in re.findall(r"`((?:[A-Z]\w+|[a-z_]+_[a-z_]+)(?:\.\w+)?)`", line):
            if files and line.startswith("|"):
                text = "\n".join(path.read_text() for path in files if path.exists())
                assert all(re.search(rf"(class|def) {part}\b", text) for part in name.split(".")), name
                checked += 1
    assert checked > 8


def test_at_least_twenty_changes_are_named() -> None:
    table = TEXT[TEXT.index("| change | files |") : TEXT.index("## Tests")]
    assert len(re.findall(r"^\| (?!change|---)", table, re.MULTILINE)) >= 20
