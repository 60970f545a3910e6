"""The commands as a person types them: instant help, and mistakes that are answered in words."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mrm_stream.cli import main
from mrm_stream.commands.bench import bench
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.sources.phantom.tree import write_phantom_tree

README = Path(__file__).parents[1] / "README.md"
SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"
COMMANDS = [*sorted(main.commands), *(f"bench {name}" for name in bench.commands)]


def fails(*arguments: object) -> str:
    """Run a command that must fail as the user's mistake; return what it says."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return result.output


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "tree"
    write_phantom_tree(folder, 24, size=64, workers=1, progress=None)
    return folder


@pytest.fixture
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to make, which is not in that of the source."""
    return tmp_path_factory.mktemp("packed") / "out"


@pytest.fixture(scope="module")
def shards(tree: Path) -> Path:
    out = tree.parent / "shards"
    pack("mimic", tree, out, options=PackOptions(short_side=64, vocabulary=200))
    return out


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.alone
def test_help_is_instant(command: str) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "mrm_stream.cli", *command.split(), "--help"], check=True, capture_output=True
        )
        return time.perf_counter() - start

    # The best of three: a busy machine may slow down one of them, never speed one up.
    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_help_and_stands_in_the_readme(command: str) -> None:
    found: click.Command = main
    for name in command.split():
        assert isinstance(found, click.Group)
        found = found.commands[name]
    assert found.help
    for parameter in found.params:
        # An argument stands in the command's own text.
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), parameter.name
    assert f"mrm-stream {command}" in README.read_text()


def test_the_readme_names_only_commands_and_files_that_exist() -> None:
    text = README.read_text()
    assert set(re.findall(r"mrm-stream ([a-z]+)", text)) == set(main.commands)
    for path in re.findall(r"\]\(((?:docs|mrm_stream|configs|tools)/[^)]+)\)|(configs/\w+\.yaml)", text):
        assert (README.parent / (path[0] or path[1])).exists(), path
    assert "@" not in re.sub(r"`[^`]*`", "", text), "a figure has not been filled in"


def test_pack_refuses_an_unknown_source_and_names_the_known(tree: Path, tmp_path: Path) -> None:
    assert "training-csv" in fails("shard", "--src", "mimik", "--root", tree, "--out", tmp_path / "out")


def test_pack_says_what_is_missing_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = fails("shard", "--src", "mimic", "--root", tmp_path / "empty", "--out", tmp_path / "out")
    assert "mimic-cxr-2.0.0-split.csv.gz" in said
    assert not (tmp_path / "out").exists()


def test_pack_says_which_column_is_missing(tmp_path: Path, out: Path) -> None:
    (tmp_path / "training.csv").write_text("image_path,report\na.jpg,text\n")
    said = fails("shard", "--src", "training-csv", "--root", tmp_path, "--out", out)
    assert "report_content" in said
    assert "training.csv" in said


def test_pack_says_where_a_key_stands_twice(tmp_path: Path, out: Path) -> None:
    (tmp_path / "training.csv").write_text("image_path,report_content\na.jpg,one\nb.jpg,two\na.jpg,three\n")
    said = fails("shard", "--src", "training-csv", "--root", tmp_path, "--out", out)
    assert "lines 2 and 4" in said
    assert "three" not in said


def test_pack_refuses_when_there_are_no_images(tmp_path: Path, out: Path) -> None:
    (tmp_path / "training.csv").write_text("image_path,report_content\na.jpg,one\nb.jpg,two\n")
    said = fails("shard", "--src", "training-csv", "--root", tmp_path, "--out", out)
    assert "no images under the root" in said


def test_pack_quarantines_damaged_images_and_reports_by_name(tree: Path, tmp_path: Path, out: Path) -> None:
    images = sorted(tree.glob("files/**/*.jpg"))
    whole = images[0].read_bytes()
    contents = {"whole": whole, "cut": whole[:-9], "empty": b"", "text": b"not an image", "silent": whole}
    rows = []
    for name, content in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
        rows.append(f"{name}.jpg,{'' if name == 'silent' else 'the lungs are clear'}")
    rows.append("absent.jpg,the lungs are clear")
    (tmp_path / "training.csv").write_text("\n".join(["image_path,report_content", *rows]) + "\n")
    arguments = ["shard", "--src", "training-csv", "--root", str(tmp_path), "--out", str(out)]
    assert "of 6, 1.00% may be" in fails(*arguments)
    arguments += ["--max-bad", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "1 train samples" in result.output
    listed = (out / "quarantine.jsonl").read_text()
    for name in ("cut", "empty", "text", "silent", "absent"):
        assert f"{name}.jpg" in listed
    assert "lungs" not in listed


def test_pack_refuses_a_folder_that_holds_shards(tree: Path, shards: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in shards.iterdir())
    assert "already" in fails("shard", "--src", "mimic", "--root", tree, "--out", shards)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in shards.iterdir()) == before


def test_pack_refuses_a_tokenizer_that_is_none(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    said = fails(
        "shard", "--src", "mimic", "--root", tree, "--out", tmp_path / "out", "--tokenizer", tmp_path / "tokenizer.json"
    )
    assert "tokenizer.json" in said


def test_phantom_refuses_a_folder_that_holds_something(tree: Path) -> None:
    assert str(tree) in fails("phantom", "--out", tree, "-n", 3)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.batchsize=8", "Did you mean optim.batch_size?"),
        ("optim.batch_size=7", "2 ranks do not divide a batch of 7 samples"),
        ("optim.micro_batch_size=3", "3 does not divide the 4 samples"),
        ("data.split=valid", "must be 'train' or 'validate' or 'test'"),
    ],
)
def test_train_refuses_a_wrong_setting_before_it_starts(shards: Path, tmp_path: Path, override: str, said: str) -> None:
    output = fails(
        "train", "--config", SMOKE, "--shards", shards, "--out", tmp_path / "run", "--ranks", 2, "--set", override
    )
    assert said in output
    assert not (tmp_path / "run").exists()


def test_train_says_which_directory_holds_no_shards(tmp_path: Path) -> None:
    said = fails("train", "--config", SMOKE, "--shards", tmp_path, "--out", tmp_path / "run")
    assert "manifest.json" in said
    assert "mrm-stream shard" in said


def test_train_asks_for_what_is_not_set() -> None:
    assert "--shards DIR" in fails("train", "--config", SMOKE.with_name("demo.yaml"))


def test_train_refuses_a_tokenizer_other_than_the_shards_own(shards: Path, tmp_path: Path, tree: Path) -> None:
    import shutil

    changed = tmp_path / "changed"
    shutil.copytree(shards, changed)
    pack("mimic", tree, tmp_path / "other", options=PackOptions(short_side=64, vocabulary=100))
    shutil.copy(tmp_path / "other" / "tokenizer.json", changed / "tokenizer.json")
    said = fails("train", "--config", SMOKE, "--shards", changed, "--out", tmp_path / "run")
    assert "is not the tokenizer that these shards were packed with" in said


@pytest.mark.parametrize("command", ["reconstruct", "export"])
def test_what_is_no_run_is_named(command: str, tmp_path: Path) -> None:
    said = fails(command, "--run", tmp_path, "--out", tmp_path / "out.png")
    assert f"{tmp_path}: there is no run here" in said


def test_tables_may_be_compressed_or_not_but_not_damaged(tree: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    table = copy / "mimic-cxr-2.0.0-split.csv.gz"
    table.write_bytes(table.read_bytes()[:-20])
    assert table.name in fails("shard", "--src", "mimic", "--root", copy, "--out", tmp_path / "out")
    table.write_bytes(gzip.compress(b"dicom_id,study_id\n"))
    assert "split" in fails("shard", "--src", "mimic", "--root", copy, "--out", tmp_path / "out")
