"""The commands about packed sets as a person types them, rightly and wrongly: what they print, and how they exit."""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mrm_stream.cli import main
from mrm_stream.formats.manifest import read_manifest, write_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.packing.pack import pack
from mrm_stream.packing.verify import verify
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.storage.files import names_in, upload
from mrm_stream.storage.paths import parse_path
from mrm_stream.storage.publish import sha256_of

FLAG = "--i-may-store-this-there"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "tree"
    write_phantom_tree(folder, 24, size=64, workers=1, progress=None)
    return folder


@pytest.fixture(scope="module")
def packed(tree: Path) -> Path:
    pack("mimic", tree, tree.parent / "set", options=PackOptions(short_side=64, vocabulary=200, samples_per_shard=8))
    return tree.parent / "set"


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def says(*words: object) -> str:
    """What a command prints that ends well."""
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.output


def fails(*words: object, code: int = 1) -> str:
    """What a command prints that ends with the user's mistake, or with what it found."""
    result = run(*words)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result.output


def damage(path: Path) -> str:
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    return path.name


def a_shard(directory: Path) -> Path:
    return directory / read_manifest(directory).shards()[0].file


def spoil_behind_the_checksums(directory: Path) -> str:
    """Break a JPEG, and let the manifest vouch for it: what a mistake of packing would leave."""
    manifest = read_manifest(directory)
    tar = a_shard(directory)
    content = bytearray(tar.read_bytes())
    start = content.index(b"\xff\xd8")
    content[start : start + 2] = b"no"
    tar.write_bytes(content)

    def vouched(entry: ShardEntry) -> ShardEntry:
        return ShardEntry(entry.file, entry.samples, entry.bytes, sha256_of(directory / entry.file), entry.index_sha256)

    splits = {split: tuple(map(vouched, entries)) for split, entries in manifest.splits.items()}
    write_manifest(directory, dataclasses.replace(manifest, splits=splits))
    return tar.name


# ---- verify ----


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_finds_nothing_wrong_with_a_whole_set(packed: Path, workers: int) -> None:
    assert "no fault found (every checksum" in says("verify", packed, "--workers", workers)
    assert "no fault found\n" in says("verify", packed, "--decode", "--workers", workers)


def test_verify_names_what_repair_repairs_and_what_it_does_not(copy: Path) -> None:
    name = damage(a_shard(copy))
    said = fails("verify", copy, "--workers", 1)
    assert f"{name}: the SHA-256 is not the manifest's" in said
    assert "1 fault\n" in said
    assert f"mrm-stream repair {copy} --root SOURCE" in said
    assert "anew" not in said


def test_verify_names_repair_only_where_it_helps(copy: Path) -> None:
    name = spoil_behind_the_checksums(copy)
    says("verify", copy, "--workers", 1)
    said = fails("verify", copy, "--decode", "--workers", 1)
    assert f"{name}: " in said
    assert "only packing the set anew" in said
    assert "mrm-stream repair" not in said
    (copy / "reports.zdict").unlink()
    said = fails("verify", copy, "--decode", "--workers", 1)
    assert "only packing the set anew" in said
    assert "mrm-stream repair" in said


def test_verify_of_many_faults_tells_how_many_more(copy: Path) -> None:
    for number in range(25):
        (copy / f"train-{900 + number:05d}.tar").write_bytes(b"")
    said = fails("verify", copy, "--workers", 1)
    assert said.count("is not in the manifest") == 20
    assert "... and 5 more" in said


def test_verify_of_no_set(tmp_path: Path) -> None:
    assert "no packed data set" in fails("verify", tmp_path)


def test_two_ways_to_say_who_works_and_an_address_that_is_none(packed: Path) -> None:
    assert "two ways" in fails("verify", packed, "--workers", 1, "--scheduler", "tcp://node:8786")
    assert "no address of a Dask scheduler" in fails("verify", packed, "--scheduler", "foo")


# ---- inspect ----


def test_inspect_writes_a_page_for_its_owner_alone(packed: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    said = says("inspect", packed, "--out", page, "-n", 2)
    assert f"The page: {page}" in said
    assert str(read_manifest(packed).samples("train")) in said
    assert page.read_text().startswith("<!DOCTYPE html>") or page.read_text().startswith("<!doctype html>")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_inspect_refuses_a_page_that_is_none(packed: Path, tmp_path: Path) -> None:
    assert "ends in .html" in fails("inspect", packed, "--out", tmp_path / "page.pdf")
    assert list(tmp_path.iterdir()) == []


# ---- repair ----


def test_repair_makes_a_set_whole(tree: Path, packed: Path, copy: Path) -> None:
    assert "there was no fault" in says("repair", copy, "--root", tree, "--workers", 1)
    tar = a_shard(copy)
    damage(tar)
    (copy / "tokenizer.json").unlink()
    assert "2 faults repaired" in says("repair", copy, "--root", tree, "--workers", 1)
    assert verify(copy) == []
    assert tar.read_bytes() == a_shard(packed).read_bytes()


def test_repair_says_what_is_left_and_why(tree: Path, copy: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(tree, tmp_path / "changed"))
    images = sorted(changed.glob("files/**/*.jpg"))
    for path in images[1:]:
        shutil.copy(images[0], path)
    name = damage(a_shard(copy))
    (copy / "train-00900.tar").write_bytes(b"")
    said = fails("repair", copy, "--root", changed, "--workers", 1)
    assert f"{name}: the SHA-256 is not the manifest's (packed again, it is not what it was: the images" in said
    assert "1 of 2 faults left" in said


def test_repair_says_what_helps_where_it_cannot(tree: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    says("tokenize", packed, "--out", out, "--tokenizer", packed / "tokenizer.json", "--workers", 1)
    (out / "tokenizer.json").unlink()
    said = fails("repair", out, "--root", tree, "--workers", 1)
    assert "tokenizer.json: copy it from where it was given" in said
    assert "mrm-stream repair" not in said


# ---- tokenize ----


def test_tokenize_sections(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "findings"
    said = says("tokenize", packed, "--out", out, "--sections", "findings", "--length", 9, "--workers", 1)
    assert f"a vocabulary of {read_manifest(packed).reports.vocabulary:,}: {out}" in said  # type: ignore[union-attr]
    manifest = read_manifest(out)
    assert manifest.options.sections == ("findings",)
    assert "nothing would change" in fails("tokenize", out, "--out", tmp_path / "same", "--length", 9)
    says("tokenize", out, "--out", tmp_path / "whole", "--sections", "whole", "--workers", 1)
    assert read_manifest(tmp_path / "whole").options.sections == ()


def test_tokenize_refuses_what_makes_no_sense(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = packed / "tokenizer.json"
    assert "are two tokenizers" in fails("tokenize", packed, "--out", out, "--tokenizer", given, "--vocabulary", 90)
    assert "unknown section 'finding'" in fails("tokenize", packed, "--out", out, "--sections", "finding")
    assert "a set within a set" in fails("tokenize", packed, "--out", packed / "t", "--length", 9)
    assert "already holds shards" in fails("tokenize", packed, "--out", packed, "--length", 9)
    assert not out.exists()
    assert verify(packed) == []


# ---- shard ----


def test_a_dry_run_counts_and_writes_nothing(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = says("shard", "--src", "mimic", "--root", tree, "--out", out, "--dry-run", "--workers", 1)
    images = len(list(tree.glob("files/**/*.jpg")))
    assert f"{images} records of " in said
    assert " train" in said
    assert not out.exists()


def test_conditions_are_told_once(tree: Path, tmp_path: Path) -> None:
    words = ["--short-side", 64, "--vocabulary", 200, "--workers", 1]
    said = says("shard", "--src", "mimic", "--root", tree, "--out", tmp_path / "out", *words)
    assert said.count("Conditions of use") == 1


# ---- to elsewhere ----


def test_nothing_is_stored_elsewhere_unless_that_was_said(tree: Path, packed: Path) -> None:
    there = "memory://commands/refused"
    for words in (
        ["shard", "--src", "mimic", "--root", tree, "--out", there],
        ["tokenize", packed, "--out", there],
        ["repair", there, "--root", tree],
    ):
        said = fails(*words, "--workers", 1)
        assert "radiographs and reports would leave this machine" in said
        assert FLAG in said
    assert names_in(parse_path(there)) == set()


def test_with_the_flag_a_set_elsewhere_is_repaired_and_tokenized(tree: Path, packed: Path) -> None:
    there, again = parse_path("memory://commands/set"), parse_path("memory://commands/again")
    for path in packed.iterdir():
        upload(path, there / path.name)
    (there / a_shard(packed).name).unlink()
    assert "1 fault repaired" in says("repair", there, "--root", tree, "--workers", 1, FLAG)
    assert verify(there) == []
    says("tokenize", there, "--out", again, "--sections", "findings", "--workers", 1, FLAG)
    assert verify(again, decode=True) == []


# ---- bench pack ----


def test_bench_pack_measures_a_few(tmp_path: Path) -> None:
    said = says("bench", "pack", "--out", tmp_path / "bench", "-n", 2, "--rounds", 1, "--workers", 1)
    assert "pack.json" in said
    assert json.loads((tmp_path / "bench" / "pack.json").read_text())


@pytest.mark.parametrize("words", [["-n", 0], ["--rounds", 0], ["--workers", 0]])
def test_bench_pack_refuses_nothing_at_all(tmp_path: Path, words: list[object]) -> None:
    assert "is not in the range" in fails("bench", "pack", "--out", tmp_path / "bench", *words, code=2)
    assert not (tmp_path / "bench").exists()
