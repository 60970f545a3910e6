"""Commands that are printed for the user to run next: pasted into a shell, they do what they say."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from mrm_stream.cli import main
from mrm_stream.errors import command_line
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.sources.phantom.tree import write_phantom_tree

PACKAGE = Path(__file__).parents[1] / "mrm_stream"


def output(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def next_words(said: str) -> list[str]:
    """The words that a shell makes of the line `Next: ...`."""
    (line,) = re.findall(r"^Next: (.*)$", said, re.MULTILINE)
    words = shlex.split(line)
    assert words[0] == "mrm-stream"
    return words[1:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A name that a shell would take apart."""
    path = tmp_path / "Jane's data; $HOME & (more)"
    path.mkdir()
    return path


def test_what_phantom_and_shard_say_next_can_be_pasted(folder: Path) -> None:
    tree, out = folder / "a tree", folder / "a set"
    words = next_words(output("phantom", "--out", tree, "-n", 6, "--size", 64, "--workers", 1))
    assert words[words.index("--root") + 1] == str(tree)
    words[words.index("--out") + 1] = str(out)
    words = next_words(output(*words, "--vocabulary", 200, "--workers", 1))
    assert words[words.index("--shards") + 1] == str(out)


def test_what_train_says_next_can_be_pasted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrm_stream.tasks.pretrain_launch.launch_pretraining", lambda *_, **__: folder)
    words = next_words(output("train", "--config", folder / "any.yaml"))
    assert words == ["reconstruct", "--run", str(folder), "--out", str(folder / "reconstructed.png")]


def test_the_remedy_of_a_damaged_set_can_be_pasted(folder: Path) -> None:
    write_phantom_tree(folder / "tree", 6, size=64, workers=1, progress=None)
    pack("mimic", folder / "tree", folder / "set", options=PackOptions(short_side=64, vocabulary=200))
    next((folder / "set").glob("*.tar")).unlink()
    said = output("verify", folder / "set", "--workers", 1, code=1)
    (line,) = [line for line in said.splitlines() if "repair" in line]
    words = shlex.split(line.replace("SOURCE repairs what it can.", shlex.quote(str(folder / "tree"))))
    assert "1 fault repaired" in output(*words[1:], "--workers", 1)


def test_a_command_line_survives_the_shell() -> None:
    words = ["mrm-stream", "verify", "a b", "it's", "$x", "a;b", ""]
    assert shlex.split(command_line(*words)) == words


def test_no_printed_command_has_a_path_that_is_not_quoted() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
                has_values = any(isinstance(part, ast.FormattedValue) for part in node.values)
                assert not (has_values and re.search(r"mrm-stream [a-z]", text)), f"{path}:{node.lineno}"
