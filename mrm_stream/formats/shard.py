"""A shard: a tar of samples that any reader of WebDataset tars understands, and the index that makes it random access.

A sample is some adjacent members, the same ones in the same order throughout a set: KEY.jpg, KEY.tok, KEY.json and
KEY.txt.zst where there are reports, KEY.jpg and KEY.json where there are none, and then KEY.mask.png where there are
masks. The index is text, as DALI's `wds2idx` writes it (version 1.2): a line `v1.2 SAMPLES`, then a line a sample of
`extension offset size member` for each of its members. The tar holds nothing else, so the two must account for each
other to the byte.
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrm_stream.errors import ShardError
from mrm_stream.storage.access import refuse_barred
from mrm_stream.storage.files import read_whole, size_of
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import sha256_of

REPORT_MEMBERS = ("jpg", "tok", "json", "txt.zst")
"""Extensions of the members of a sample with a report, in their order."""
LABEL_MEMBERS = ("jpg", "json")
"""The same of a sample without."""
MASK_MEMBER = "mask.png"

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}", re.ASCII)

SHARD_LIMIT = 1 << 40
"""Bytes of a tar that are read, at most; see `read_whole`."""

_BLOCK = tarfile.BLOCKSIZE
INDEX_VERSION = "v1.2"
_MAX_INDEX_BYTES = 256 << 20
_REMEDY = "The shard is damaged: pack the set again, or copy it again from where it came."


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

    path: AnyPath
    """The tar."""
    members: tuple[str, ...]
    """Extensions of a sample's members; the columns of `offsets` and `sizes`."""
    offsets: NDArray[np.int64]
    """First byte of each member in the tar, shape (n, members)."""
    sizes: NDArray[np.int64]
    """Bytes of each member, shape (n, members)."""
    encoded_keys: NDArray[np.bytes_] = field(repr=False)
    """Keys as fixed-width ASCII, shape (n,): a tenth of what strings take."""

    def __len__(self) -> int:
        return len(self.offsets)

    def key(self, sample: int) -> str:
        """Return the key of the sample in this row, counted from 0."""
        return bytes(self.encoded_keys[sample]).decode("ascii")

    def span(self, sample: int, member: str) -> tuple[int, int]:
        """Return the first byte of a member in the tar, and the one after its last."""
        column = self.members.index(member)
        start = int(self.offsets[sample, column])
        return start, start + int(self.sizes[sample, column])

    def cut(self, tar: bytes, sample: int) -> dict[str, bytes]:
        """Return the members of one sample by their extensions, cut out of the tar's content."""
        spans = {member: self.span(sample, member) for member in self.members}
        return {member: tar[start:end] for member, (start, end) in spans.items()}


def canonical_json(value: Any) -> bytes:
    """Return `value` as JSON with one spelling: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def members_of(*, reports: bool, masks: bool) -> tuple[str, ...]:
    """Return the members of each sample of a set, in their order."""
    return (REPORT_MEMBERS if reports else LABEL_MEMBERS) + ((MASK_MEMBER,) if masks else ())


def index_path(tar: AnyPath) -> AnyPath:
    """Return where the index of a shard lies."""
    return tar.with_suffix(".idx")


def read_index(path: AnyPath, members: tuple[str, ...] = REPORT_MEMBERS) -> ShardIndex:
    """Read a shard's index, and check that it accounts for every byte of the tar.

    Args:
        path: The tar, or the index beside it.
        members: That each sample must have, as the manifest says.

    Raises:
        ShardError: Either is absent, or the index is not one that `write_shard` wrote for a tar of this size.
    """
    tar, index = path.with_suffix(".tar"), index_path(path)
    try:
        tar_bytes = size_of(tar)
        text = read_whole(index, _MAX_INDEX_BYTES)
    except OSError as error:
        refuse_barred(error, index)
        what = error.strerror or "there is no such file"
        raise ShardError(f"cannot be read: {what}", where=error.filename or path, remedy=_REMEDY) from error
    try:
        if len(text) > _MAX_INDEX_BYTES:
            raise ValueError("the index is too large")
        offsets, sizes, keys = _parse_index(text, members)
        _check_layout(offsets, sizes, tar_bytes)
    except ValueError as error:
        raise ShardError(str(error), where=index, remedy=_REMEDY) from error
    return ShardIndex(tar, members, offsets, sizes, keys)


@lru_cache
def _index_line(members: tuple[str, ...]) -> re.Pattern[bytes]:
    """Return the pattern of one sample's line; numbers have no leading zeros: an index has one spelling."""
    parts = [
        rf"{re.escape(extension)} ([1-9]\d{{0,14}}) (0|[1-9]\d{{0,14}}) "
        + ("(?P<key>[A-Za-z0-9_-]{1,80})" if column == 0 else "(?P=key)")
        + rf"\.{re.escape(extension)}"
        for column, extension in enumerate(members)
    ]
    return re.compile(" ".join(parts).encode("ascii"))


def _parse_index(
    text: bytes, members: tuple[str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bytes_]]:
    """Return offsets and sizes (n, members) and keys (n,); ValueError names the line that is not ours."""
    header, *lines = text.split(b"\n")
    if header != f"{INDEX_VERSION} {len(lines) - 1}".encode("ascii") or lines[-1:] != [b""] or len(lines) < 2:
        raise ValueError("line 1: the index is not of version 1.2, or lacks lines")
    pattern = _index_line(members)
    numbers = np.empty((len(lines) - 1, len(members), 2), np.int64)
    keys: list[bytes] = []
    for row, line in enumerate(lines[:-1]):
        match = pattern.fullmatch(line)
        if match is None:
            raise ValueError(f"line {row + 2}: not the members {', '.join(members)} of one sample")
        first, first_size, key, *digits = match.groups()
        numbers[row] = np.array([first, first_size, *digits], dtype=np.int64).reshape(len(members), 2)
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
        raise ValueError(f"line {wrong[0] // offsets.shape[1] + 2}: members overlap, or leave a gap")
    end = int(ends[-1]) + 2 * _BLOCK
    if tar_bytes != end + -end % tarfile.RECORDSIZE:
        raise ValueError(f"the tar is {tar_bytes} bytes long, but the index tells of {end} and padding")


def verify_shard(folder: AnyPath, entry: ShardEntry, members: tuple[str, ...] = REPORT_MEMBERS) -> ShardIndex:
    """Check a shard and its index against the manifest, every byte of both, and return the index.

    Raises:
        ShardError: Either is absent, or differs in a bit.
    """
    tar = folder / entry.file
    index = read_index(tar, members)
    if len(index) != entry.samples or size_of(tar) != entry.bytes:
        raise ShardError("the shard is not as long as the manifest says", where=tar, remedy=_REMEDY)
    for path, digest in ((index_path(tar), entry.index_sha256), (tar, entry.sha256)):
        try:
            found = sha256_of(path)
        except OSError as error:
            refuse_barred(error, path)
            raise ShardError(f"cannot be read: {error.strerror}", where=path, remedy=_REMEDY) from error
        if found != digest:
            raise ShardError("the SHA-256 is not the manifest's", where=path, remedy=_REMEDY)
    return index
