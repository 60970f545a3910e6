"""A shard: a tar of samples that any reader of WebDataset tars understands, and the index that makes it random access.

A sample is four adjacent members, always in this order: KEY.jpg, KEY.tok, KEY.json, KEY.txt.zst. The index is text, as
DALI's `wds2idx` writes it (version 1.2): a line `v1.2 SAMPLES`, then a line a sample of `extension offset size member`
for each of its members. The tar holds nothing else, so the two must account for each other to the byte.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrm_stream.errors import ShardError
from mrm_stream.publish import FILE_MODE, HashingFile, publishing, sha256_of

MEMBERS = ("jpg", "tok", "json", "txt.zst")
"""Extensions of a sample's members, in their order; the columns of `ShardIndex.offsets` and `.sizes`."""
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}", re.ASCII)

_BLOCK = tarfile.BLOCKSIZE
_MTIME = 946_684_800  # 2000-01-01: some tars warn of times near zero.
_INDEX_VERSION = "v1.2"
_MAX_INDEX_BYTES = 256 << 20
_NUMBERS = tuple(f"{kind}{column}" for column in range(len(MEMBERS)) for kind in ("offset", "size"))
# Numbers without leading zeros: an index has one spelling.
_INDEX_LINE = re.compile(
    " ".join(
        rf"{re.escape(extension)} (?P<offset{column}>[1-9]\d{{0,14}}) (?P<size{column}>0|[1-9]\d{{0,14}}) "
        + ("(?P<key>[A-Za-z0-9_-]{1,80})" if column == 0 else "(?P=key)")
        + rf"\.{re.escape(extension)}"
        for column, extension in enumerate(MEMBERS)
    ).encode("ascii")
)
_REMEDY = "The shard is damaged: pack the set again, or copy it again from where it came."


@dataclass(frozen=True, slots=True)
class PackedSample:
    """The four members of one sample."""

    key: str
    jpeg: bytes = field(repr=False)
    tokens: bytes = field(repr=False)
    """Little-endian uint16."""
    metadata: Mapping[str, Any] = field(repr=False)
    report: bytes = field(repr=False)
    """One zstd frame."""

    def members(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Return the members' contents in the order of `MEMBERS`."""
        return self.jpeg, self.tokens, canonical_json(self.metadata), self.report


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What a manifest says of one shard."""

    file: str
    """Name of the tar; the index has the same name with `.idx`."""
    samples: int
    bytes: int
    """Size of the tar."""
    sha256: str
    index_sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndex:
    """Where the members of each of a shard's n samples lie."""

    path: Path
    """The tar."""
    offsets: NDArray[np.int64]
    """First byte of each member in the tar, shape (n, 4)."""
    sizes: NDArray[np.int64]
    """Bytes of each member, shape (n, 4)."""
    encoded_keys: NDArray[np.bytes_] = field(repr=False)
    """Keys as fixed-width ASCII, shape (n,): a tenth of what strings take."""

    def __len__(self) -> int:
        return len(self.offsets)

    def key(self, sample: int) -> str:
        """Return the key of the sample at this place of the shard."""
        return bytes(self.encoded_keys[sample]).decode("ascii")


def canonical_json(value: Any) -> bytes:
    """Return `value` as JSON with one spelling: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def index_path(tar: Path) -> Path:
    """Return where the index of a shard lies."""
    return tar.with_suffix(".idx")


def write_shard(tar: Path, samples: Iterable[PackedSample], *, staging: Path | None = None) -> ShardEntry | None:
    """Write samples to a tar and its index, and publish both.

    Args:
        tar: Where the shard will be; its name ends in `.tar`.
        samples: With distinct keys; taken one at a time, so a shard never lies in memory.
        staging: Folder for the unfinished files; see `publishing`.

    Returns:
        The manifest's entry, or None where there were no samples; then there are no files either.

    Raises:
        StorageError: The disk is full or cannot be written to.
    """
    remaining = iter(samples)
    first = next(remaining, None)
    if first is None:
        return None
    lines: list[str] = []
    keys: set[str] = set()
    with publishing(tar, staging=staging) as file:
        for sample in chain([first], remaining):
            assert KEY_PATTERN.fullmatch(sample.key), "sources check keys"
            assert sample.key not in keys, "sources check that keys are unique"
            keys.add(sample.key)
            lines.append(" ".join(_write_members(file, sample)))
        file.write(bytes(2 * _BLOCK))
        file.write(bytes(-file.size % tarfile.RECORDSIZE))
    with publishing(index_path(tar), staging=staging) as index:
        index.write("\n".join([f"{_INDEX_VERSION} {len(lines)}", *lines, ""]).encode("ascii"))
    return ShardEntry(tar.name, len(lines), file.size, file.sha256(), index.sha256())


def _write_members(file: HashingFile, sample: PackedSample) -> Iterable[str]:
    for extension, content in zip(MEMBERS, sample.members(), strict=True):
        header = tarfile.TarInfo(f"{sample.key}.{extension}")
        header.size, header.mode, header.mtime = len(content), FILE_MODE, _MTIME
        file.write(header.tobuf(tarfile.USTAR_FORMAT, encoding="ascii", errors="strict"))
        yield f"{extension} {file.size} {len(content)} {header.name}"
        file.write(content)
        file.write(bytes(-len(content) % _BLOCK))


def read_index(path: Path) -> ShardIndex:
    """Read a shard's index, and check that it accounts for every byte of the tar.

    Args:
        path: The tar, or the index beside it.

    Raises:
        ShardError: Either is absent, or the index is not one that `write_shard` wrote for a tar of this size.
    """
    tar, index = path.with_suffix(".tar"), index_path(path)
    try:
        tar_bytes = tar.stat().st_size
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ShardError("the index is too large", where=index, remedy=_REMEDY)
        text = index.read_bytes()
    except OSError as error:
        raise ShardError(f"cannot be read: {error.strerror}", where=error.filename, remedy=_REMEDY) from error
    try:
        offsets, sizes, keys = _parse_index(text)
        _check_layout(offsets, sizes, tar_bytes)
    except ValueError as error:
        raise ShardError(str(error), where=index, remedy=_REMEDY) from error
    return ShardIndex(tar, offsets, sizes, keys)


def _parse_index(text: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bytes_]]:
    """Return offsets (n, 4), sizes (n, 4) and keys (n,); ValueError names the line that is not ours."""
    header, *lines = text.split(b"\n")
    if header != f"{_INDEX_VERSION} {len(lines) - 1}".encode("ascii") or lines[-1:] != [b""] or len(lines) < 2:
        raise ValueError("line 1: the index is not of version 1.2, or lacks lines")
    numbers = np.empty((len(lines) - 1, len(MEMBERS), 2), np.int64)
    keys: list[bytes] = []
    for row, line in enumerate(lines[:-1]):
        match = _INDEX_LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {row + 2}: not the four members of one sample")
        key, *digits = match.group("key", *_NUMBERS)
        numbers[row] = np.array(digits, dtype=np.int64).reshape(len(MEMBERS), 2)
        keys.append(key)
    if len(set(keys)) != len(keys):
        raise ValueError("two samples have the same key")
    return numbers[..., 0], numbers[..., 1], np.array(keys, dtype=np.bytes_)


def _check_layout(offsets: NDArray[np.int64], sizes: NDArray[np.int64], tar_bytes: int) -> None:
    """Raise ValueError unless headers, members and padding follow each other without a gap, to the tar's last byte."""
    starts, lengths = offsets.ravel(), sizes.ravel()
    ends = starts + -(-lengths // _BLOCK) * _BLOCK
    expected = np.concatenate([[0], ends[:-1]]) + _BLOCK
    wrong = np.flatnonzero(starts != expected)
    if len(wrong):
        raise ValueError(f"line {wrong[0] // len(MEMBERS) + 2}: members overlap, or leave a gap")
    end = int(ends[-1]) + 2 * _BLOCK
    if tar_bytes != end + -end % tarfile.RECORDSIZE:
        raise ValueError(f"the tar is {tar_bytes} bytes long, but the index tells of {end} and padding")


def verify_shard(folder: Path, entry: ShardEntry) -> ShardIndex:
    """Check a shard and its index against the manifest, every byte of both, and return the index.

    Raises:
        ShardError: Either is absent, or differs in a bit.
    """
    tar = folder / entry.file
    index = read_index(tar)
    if len(index) != entry.samples or tar.stat().st_size != entry.bytes:
        raise ShardError("the shard is not as long as the manifest says", where=tar, remedy=_REMEDY)
    for path, digest in ((index_path(tar), entry.index_sha256), (tar, entry.sha256)):
        if sha256_of(path) != digest:
            raise ShardError("the SHA-256 is not the manifest's", where=path, remedy=_REMEDY)
    return index
