"""Writes a shard, a plain tar, and its index: for the same samples the same bytes, on any machine."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from mrm_stream.formats.shard import INDEX_VERSION, KEY_PATTERN, MASK_MEMBER, REPORT_MEMBERS, ShardEntry, index_path
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import FILE_MODE, HashingFile, publishing

_BLOCK = tarfile.BLOCKSIZE
_MTIME = 946_684_800  # 2000-01-01: some tars warn of times near zero.


@dataclass(frozen=True, slots=True)
class PackedSample:
    """The members of one sample; an absent one is None."""

    key: str
    jpeg: bytes = field(repr=False)
    metadata: bytes = field(repr=False)
    """Canonical JSON."""
    tokens: bytes | None = field(default=None, repr=False)
    """Little-endian uint16."""
    report: bytes | None = field(default=None, repr=False)
    """One zstd frame."""
    mask: bytes | None = field(default=None, repr=False)
    """A grey PNG as large as the JPEG, 255 within the finding and 0 without."""

    def members(self) -> list[tuple[str, bytes]]:
        """Return the extension and content of each member that is there, in the order of the tar."""
        contents = (self.jpeg, self.tokens, self.metadata, self.report, self.mask)
        named = zip((*REPORT_MEMBERS, MASK_MEMBER), contents, strict=True)
        return [(extension, content) for extension, content in named if content is not None]


def write_shard(tar: AnyPath, samples: Iterable[PackedSample], *, staging: AnyPath | None = None) -> ShardEntry | None:
    """Write samples to a tar and its index, and publish both.

    Args:
        tar: Where the shard will be; its name ends in `.tar`.
        samples: With distinct keys, all with the same members; taken one at a time, so a shard never lies in memory.
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
        index.write("\n".join([f"{INDEX_VERSION} {len(lines)}", *lines, ""]).encode("ascii"))
    return ShardEntry(tar.name, len(lines), file.size, file.sha256(), index.sha256())


def _write_members(file: HashingFile, sample: PackedSample) -> Iterable[str]:
    for extension, content in sample.members():
        header = tarfile.TarInfo(f"{sample.key}.{extension}")
        header.size, header.mode, header.mtime = len(content), FILE_MODE, _MTIME
        file.write(header.tobuf(tarfile.USTAR_FORMAT, encoding="ascii", errors="strict"))
        yield f"{extension} {file.size} {len(content)} {header.name}"
        file.write(content)
        file.write(bytes(-len(content) % _BLOCK))
