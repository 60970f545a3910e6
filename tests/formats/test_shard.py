from __future__ import annotations

import random
import stat
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mrm_stream.errors import ShardError, StorageError
from mrm_stream.formats.shard import REPORT_MEMBERS, ShardEntry, index_path, read_index, verify_shard
from mrm_stream.packing.shard_writer import PackedSample, write_shard
from mrm_stream.storage.publish import publish_bytes, publishing


def make_sample(number: int) -> PackedSample:
    # Sizes around the tar's block, the empty member too.
    jpeg = bytes([number % 251]) * (0, 1, 511, 512, 513, 2000)[number % 6]
    return PackedSample(f"key-{number}", jpeg, b'{"labels":{},"split":"train"}', b"\1\0" * number, b"frame")


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, ShardEntry]:
    tar = tmp_path / "train-00000.tar"
    entry = write_shard(tar, (make_sample(number) for number in range(23)))
    assert entry is not None
    return tar, entry


def test_index_points_at_the_members(shard: tuple[Path, ShardEntry]) -> None:
    tar, entry = shard
    index, content = read_index(tar), tar.read_bytes()
    assert len(index) == entry.samples == 23
    assert index.offsets.shape == index.sizes.shape == (23, 4)
    for number in range(23):
        assert index.key(number) == f"key-{number}"
        members = [content[o : o + n] for o, n in zip(index.offsets[number], index.sizes[number], strict=True)]
        assert members == [content for _, content in make_sample(number).members()]


def test_the_tar_is_plain(shard: tuple[Path, ShardEntry]) -> None:
    tar, entry = shard
    assert tar.stat().st_size == entry.bytes
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
    assert [member.name for member in members[:4]] == [f"key-0.{extension}" for extension in REPORT_MEMBERS]
    for member in members:
        assert member.isreg()
        assert not member.pax_headers
        assert (member.uid, member.gid, member.uname, member.gname, member.mode) == (0, 0, "", "", 0o600)
        assert member.mtime == members[0].mtime > 0
    assert all(tar.read_bytes()[member.offset + 257 : member.offset + 263] == b"ustar\0" for member in members)


def test_files_are_for_their_owner_alone(shard: tuple[Path, ShardEntry]) -> None:
    for path in (shard[0], index_path(shard[0])):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_samples_give_no_files(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "train-00000.tar", []) is None
    assert not list(tmp_path.iterdir())


def test_an_exception_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def samples() -> object:
        yield make_sample(0)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        write_shard(tmp_path / "train-00000.tar", samples())  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 1, 511, 512, 3000, -512, -1])
def test_a_tar_cut_short_is_found_by_its_index(shard: tuple[Path, ShardEntry], keep: int) -> None:
    tar, _ = shard
    tar.write_bytes(tar.read_bytes()[:keep])
    with pytest.raises(ShardError, match="bytes long"):
        read_index(tar)


@pytest.mark.parametrize("more", [1, 512, tarfile.RECORDSIZE])
def test_a_tar_that_goes_on_after_its_end_is_found_by_its_index(shard: tuple[Path, ShardEntry], more: int) -> None:
    """As one is that another tar was appended to: `inspect` has no other look at it."""
    tar, _ = shard
    tar.write_bytes(tar.read_bytes() + bytes(more))
    with pytest.raises(ShardError, match="bytes long"):
        read_index(tar)


def test_every_bit_of_tar_and_index_is_verified(shard: tuple[Path, ShardEntry]) -> None:
    tar, entry = shard
    assert len(verify_shard(tar.parent, entry)) == 23
    draw = random.Random(0)
    for path in (tar, index_path(tar)):
        content = path.read_bytes()
        for _ in range(300):
            damaged = bytearray(content)
            damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(bytes(damaged))
            with pytest.raises(ShardError):
                verify_shard(tar.parent, entry)
        path.write_bytes(content)
    verify_shard(tar.parent, entry)


def test_any_changed_number_of_an_index_is_found_without_checksums(shard: tuple[Path, ShardEntry]) -> None:
    tar, _ = shard
    index = index_path(tar)
    lines = index.read_text().split("\n")
    draw = random.Random(1)
    for row in range(1, 24):
        words = lines[row].split(" ")
        place = draw.choice([1, 2, 5, 6, 9, 10, 13, 14])
        # An offset off by one block, a size that ends in another block: each still a plausible number.
        words[place] = str(int(words[place]) + draw.choice([512, 1024, 5120]))
        index.write_text("\n".join([*lines[:row], " ".join(words), *lines[row + 1 :]]))
        with pytest.raises(ShardError, match=r"line \d+|bytes long"):
            read_index(tar)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text.replace("v1.2", "v1.1"),
        lambda text: text.replace("v1.2 23", "v1.2 22"),
        lambda text: text[: text.rindex("jpg")],
        lambda text: text[:-1],
        lambda text: text.replace("jpg", "pkl"),
        lambda text: text.replace("key-3.tok", "key-4.tok"),
        lambda text: text.replace("key-3.", "../key-3."),
        lambda text: text.replace("key-3.", "key-4."),
        lambda text: text.replace(" 512 ", " -512 ", 1),
        lambda text: text.replace(" 512 ", " 0512 ", 1),
        lambda text: text.replace(" 512 ", " ٥١٢ ", 1),
        lambda text: text.replace(" 512 ", f" {'9' * 30} ", 1),
        lambda text: text.replace("\n", "\r\n"),
    ],
)
def test_indexes_of_another_shape_are_refused(shard: tuple[Path, ShardEntry], spoil: object) -> None:
    tar, _ = shard
    text = index_path(tar).read_text()
    spoilt = spoil(text)  # type: ignore[operator]
    assert spoilt != text
    index_path(tar).write_text(spoilt, newline="")
    with pytest.raises(ShardError):
        read_index(tar)


def test_missing_files_are_named(shard: tuple[Path, ShardEntry]) -> None:
    tar, _ = shard
    index_path(tar).unlink()
    with pytest.raises(ShardError, match=r"train-00000\.idx"):
        read_index(tar)


def test_reading_an_index_keeps_little_in_memory(tmp_path: Path) -> None:
    tar = tmp_path / "test-00000.tar"
    write_shard(tar, (make_sample(number) for number in range(1000)))
    index = read_index(tar)
    assert index.encoded_keys.nbytes + index.offsets.nbytes + index.sizes.nbytes < 1000 * 100
    assert index.offsets.dtype == np.int64


def test_publishing_replaces_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    publish_bytes(path, b"old")
    with suppress(ZeroDivisionError), publishing(path) as file:
        file.write(b"new, but not all of")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    publish_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent/file: cannot be written: No such file"):
        publish_bytes(tmp_path / "absent" / "file", b"")
