"""What a packed set holds, counted in one pass over its shards.

Numbers come from the manifest, the indexes and each sample's JSON; images are read for the few samples that are to be
shown, masks where there are any, reports never. On a local disk only those bytes are read, and from remote storage
only those ranges, many requests at a time. Memory holds counts, the names of subjects and studies (so that each counts
once), and the samples that are to be shown.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mrm_stream.config.pretrain import PretrainDataConfig
from mrm_stream.errors import ShardError
from mrm_stream.formats.manifest import Manifest, read_manifest
from mrm_stream.formats.shard import MASK_MEMBER, ShardEntry, ShardIndex, index_path, read_index
from mrm_stream.packing.images.boxes import box_from_json
from mrm_stream.packing.images.checks import MAX_SIDE, ImageError
from mrm_stream.packing.images.png import read_png
from mrm_stream.records import SPLITS, Box
from mrm_stream.storage.access import refuse_barred
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import sha256_of
from mrm_stream.storage.retries import retrying
from mrm_stream.strict import parse_json

TRAINED_TOKENS = PretrainDataConfig().report_length - 1
"""Tokens of a report that training uses by default; with [CLS] before them they are 100."""
UNKNOWN = "(not known)"
"""Stands for an empty view."""

_ROWS = 1024
"""Samples read at a time."""
_METADATA_LIMIT = 1 << 20
_MASK_LIMIT = 64 << 20
_NAME_LENGTH = 80
_REMEDY = "The set is damaged or incomplete: `mrm-stream verify --decode` tells all that is wrong with it."


@dataclass(slots=True)
class SplitSummary:
    """What one split holds, or a whole set."""

    samples: int = 0
    shards: int = 0
    bytes: int = 0
    """Of the tars."""
    subjects: set[str] = field(default_factory=set, repr=False)
    studies: set[tuple[str, str]] = field(default_factory=set, repr=False)
    """Subject and study: some data sets number each subject's studies from 1."""
    views: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[int]] = field(default_factory=dict)
    """Finding to how many samples have it present (1), absent (0) or uncertain (-1)."""
    lists: Counter[str] = field(default_factory=Counter)
    """Published list to how many samples are on it."""
    boxes: Counter[str] = field(default_factory=Counter)
    """Finding to how many boxes are drawn around it."""
    boxed_samples: int = 0
    """Samples with a box or more."""
    tokens: Counter[int] = field(default_factory=Counter)
    """Length of a report in tokens to how many samples; empty where there are no reports."""
    original_short: Counter[int] = field(default_factory=Counter)
    """Short side in pixels, as found, to how many samples; the three below alike."""
    original_long: Counter[int] = field(default_factory=Counter)
    packed_short: Counter[int] = field(default_factory=Counter)
    packed_long: Counter[int] = field(default_factory=Counter)
    empty_masks: int = 0
    mask_permille: Counter[int] = field(default_factory=Counter)
    """Area of a mask that is not empty, in thousandths of the image, to how many samples."""
    member_bytes: Counter[str] = field(default_factory=Counter)
    """Extension of a member to its bytes in all samples."""

    def not_mentioned(self, finding: str) -> int:
        """Return how many samples say nothing of a finding."""
        return self.samples - self.labels.get(finding, Counter()).total()

    @property
    def masks(self) -> int:
        """How many samples have a mask, empty or not."""
        return self.empty_masks + self.mask_permille.total()

    def add(self, other: SplitSummary) -> None:
        """Count another part of the set in."""
        self.samples += other.samples
        self.shards += other.shards
        self.bytes += other.bytes
        self.subjects |= other.subjects
        self.studies |= other.studies
        self.boxed_samples += other.boxed_samples
        self.empty_masks += other.empty_masks
        for finding, counts in other.labels.items():
            self.labels.setdefault(finding, Counter()).update(counts)
        for name in ("views", "lists", "boxes", "member_bytes"):
            getattr(self, name).update(getattr(other, name))
        for name in ("tokens", "original_short", "original_long", "packed_short", "packed_long", "mask_permille"):
            getattr(self, name).update(getattr(other, name))


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample for the contact sheet."""

    key: str
    split: str
    view: str
    labels: Mapping[str, int]
    """Finding to 1, 0 or -1."""
    size: tuple[int, int]
    """(height, width) of the image in pixels."""
    boxes: tuple[Box, ...]
    """In pixels of the packed image."""
    jpeg: bytes = field(repr=False)
    mask: bytes | None = field(default=None, repr=False)
    """PNG; None where the set has no masks."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a set holds."""

    manifest: Manifest
    splits: Mapping[str, SplitSummary]
    """Those that have samples, in the order of `SPLITS`."""
    whole: SplitSummary
    shown: tuple[ShownSample, ...]
    """In the order of the set."""

    @property
    def shared_subjects(self) -> int:
        """How many subjects are in more than one split; any number but 0 spoils a test."""
        pairs = combinations((split.subjects for split in self.splits.values()), 2)
        return len(set().union(*(one & other for one, other in pairs)))


@dataclass(frozen=True, slots=True)
class _Facts:
    """A sample's JSON, checked."""

    subject: str
    study: str
    view: str
    labels: Mapping[str, int]
    lists: tuple[str, ...]
    boxes: tuple[Box, ...]
    original_size: tuple[int, int]
    size: tuple[int, int]


def summarise(
    directory: AnyPath,
    *,
    contact: int = 24,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Return what a packed set holds.

    Args:
        directory: Of the set.
        contact: Samples to show, at most; chosen from all splits alike.
        seed: Of that choice.
        progress: Called with shards done, and shards in all.

    Raises:
        ShardError: There is no finished set here, or a shard, an index, a sample's JSON or a mask is damaged.
        StorageError: Remote storage fails for good.
    """
    assert contact >= 0
    manifest = read_manifest(directory)
    total = sum(entry.samples for entry in manifest.shards())
    chosen = sorted(random.Random(seed).sample(range(total), min(contact, total)))
    splits: dict[str, SplitSummary] = {}
    shown: list[ShownSample] = []
    named = [(split, entry) for split in SPLITS for entry in manifest.splits.get(split, ())]
    first = 0
    for done, (split, entry) in enumerate(named, start=1):
        rows = [position - first for position in chosen if first <= position < first + entry.samples]
        shown += _count_shard(directory, manifest, split, entry, splits.setdefault(split, SplitSummary()), rows)
        first += entry.samples
        if progress is not None:
            progress(done, len(named))
    whole = SplitSummary()
    for part in splits.values():
        whole.add(part)
    return Summary(manifest, splits, whole, tuple(shown))


def percentile(counts: Mapping[int, int], share: float) -> int:
    """Return the least number that at least this share of a sample does not exceed.

    Args:
        counts: Number to how often it occurs; not empty.
        share: 0 to 1.

    Example:
        >>> percentile({10: 1, 20: 2, 90: 1}, 0.5)
        20
    """
    numbers = sorted(counts)
    below = np.cumsum([counts[number] for number in numbers])
    return numbers[min(int(np.searchsorted(below, share * below[-1])), len(numbers) - 1)]


def share_of(counts: Mapping[int, int], condition: Callable[[int], bool]) -> float:
    """Return which share of a sample fulfils a condition; 0 of none.

    Example:
        >>> share_of({10: 1, 20: 2, 90: 1}, lambda number: number > 50)
        0.25
    """
    return sum(count for number, count in counts.items() if condition(number)) / max(sum(counts.values()), 1)


def _count_shard(
    directory: AnyPath, manifest: Manifest, split: str, entry: ShardEntry, into: SplitSummary, rows: Sequence[int]
) -> list[ShownSample]:
    """Count a shard's samples in, and return those of these rows, ascending."""
    index = _open_index(directory / entry.file, entry, manifest.members)
    into.samples += entry.samples
    into.shards += 1
    into.bytes += entry.bytes
    into.member_bytes.update(dict(zip(index.members, index.sizes.sum(axis=0).tolist(), strict=True)))
    if "tok" in index.members:
        into.tokens.update((index.sizes[:, index.members.index("tok")] // 2).tolist())
    shown: list[ShownSample] = []
    for start in range(0, len(index), _ROWS):
        batch = range(start, min(start + _ROWS, len(index)))
        facts = [
            _parse(index, row, content)
            for row, content in zip(batch, _read(index, "json", batch, _METADATA_LIMIT), strict=True)
        ]
        for known in facts:
            _count(known, into)
        if manifest.has_masks:
            for row, known, mask in zip(batch, facts, _read(index, MASK_MEMBER, batch, _MASK_LIMIT), strict=True):
                _count_mask(index, row, mask, known.size, into)
        here = [row for row in rows if row in batch]
        jpegs = _read(index, "jpg", here, _MASK_LIMIT)
        masks = _read(index, MASK_MEMBER, here, _MASK_LIMIT) if manifest.has_masks else [None] * len(here)
        for row, jpeg, shown_mask in zip(here, jpegs, masks, strict=True):
            known = facts[row - start]
            shown.append(
                ShownSample(index.key(row), split, known.view, known.labels, known.size, known.boxes, jpeg, shown_mask)
            )
    return shown


def _open_index(tar: AnyPath, entry: ShardEntry, members: tuple[str, ...]) -> ShardIndex:
    index = read_index(tar, members)
    # What the index says of the tar's length it has been held against; that it is the manifest's index, not yet.
    if len(index) != entry.samples or sha256_of(index_path(tar)) != entry.index_sha256:
        raise ShardError("the index is not the manifest's", where=index_path(tar), remedy=_REMEDY)
    return index


def _read(index: ShardIndex, member: str, rows: Sequence[int], limit: int) -> Sequence[bytes]:
    """Return one member of each of these samples; nothing else of the shard is read."""
    column = index.members.index(member)
    sizes = index.sizes[list(rows), column]
    if len(rows) and int(sizes.min()) == 0:
        raise _damaged(index, rows[int(sizes.argmin())], f"{member} is empty")
    if len(rows) and int(sizes.max()) > limit:
        raise _damaged(index, rows[int(sizes.argmax())], f"{member} is larger than any")
    spans = [index.span(row, member) for row in rows]
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    tar = index.path
    if isinstance(tar, Path):
        return _read_local(tar, starts, ends)

    def fetch() -> list[bytes]:
        contents = tar.fs.cat_ranges([tar.path] * len(starts), starts, ends, on_error="raise")
        if [len(content) for content in contents] != sizes.tolist():
            raise ConnectionError("fewer bytes came than the object has")
        return [bytes(content) for content in contents]

    return retrying(fetch, tar) if starts else []


def _read_local(tar: Path, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    # Not through a memory map: a shard that is cut short meanwhile is an error here, there the end of the process.
    try:
        with tar.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                # Or the system reads ahead: the images too.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            contents = [os.pread(file.fileno(), end - start, start) for start, end in zip(starts, ends, strict=True)]
    except OSError as error:
        refuse_barred(error, tar)
        raise ShardError(f"cannot be read: {error.strerror}", where=tar, remedy=_REMEDY) from error
    if any(len(content) != end - start for content, start, end in zip(contents, starts, ends, strict=True)):
        raise ShardError("is cut short", where=tar, remedy=_REMEDY)
    return contents


def _count(facts: _Facts, into: SplitSummary) -> None:
    if facts.subject:
        into.subjects.add(facts.subject)
    if facts.study:
        into.studies.add((facts.subject, facts.study))
    into.views[facts.view or UNKNOWN] += 1
    for finding, label in facts.labels.items():
        into.labels.setdefault(finding, Counter())[label] += 1
    into.lists.update(facts.lists)
    into.boxes.update(box.finding for box in facts.boxes)
    into.boxed_samples += bool(facts.boxes)
    for size, short, long in (
        (facts.original_size, into.original_short, into.original_long),
        (facts.size, into.packed_short, into.packed_long),
    ):
        short[min(size)] += 1
        long[max(size)] += 1


def _count_mask(index: ShardIndex, row: int, mask: bytes, size: tuple[int, int], into: SplitSummary) -> None:
    try:
        inside_HW = read_png(mask, np.asarray) != 0
    except ImageError as error:
        raise _damaged(index, row, error.what) from error
    if inside_HW.shape != size:
        raise _damaged(index, row, "the mask has another size than the metadata tells")
    inside = int(np.count_nonzero(inside_HW))
    if inside == 0:
        into.empty_masks += 1
    else:
        into.mask_permille[round(1000 * inside / inside_HW.size)] += 1


def _parse(index: ShardIndex, row: int, content: bytes) -> _Facts:
    try:
        metadata = parse_json(content)
        labels = {_name(finding): _label(value) for finding, value in metadata["labels"].items()}
        return _Facts(
            subject=_text(metadata["subject"]),
            study=_text(metadata["study"]),
            view=_name(metadata["view"]),
            labels=labels,
            lists=tuple(map(_name, metadata.get("lists", []))),
            boxes=tuple(
                box._replace(finding=_name(box.finding)) for box in map(box_from_json, metadata.get("boxes", []))
            ),
            original_size=_size(metadata["original_size"]),
            size=_size(metadata["size"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # What the JSON says is not repeated: nobody knows what a damaged one holds.
        what = "the metadata is not JSON, or not as `mrm-stream shard` writes it"
        raise _damaged(index, row, what) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _name(value: Any) -> str:
    """Return a name that can be shown anywhere: short, and without what steers a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in _text(value)[:_NAME_LENGTH])


def _label(value: Any) -> int:
    if type(value) is not int or value not in (-1, 0, 1):
        raise ValueError("not a label")
    return value


def _size(value: Any) -> tuple[int, int]:
    height, width = value
    if any(type(side) is not int or not 1 <= side <= MAX_SIDE for side in (height, width)):
        raise ValueError("not a size")
    return height, width


def _damaged(index: ShardIndex, row: int, what: str) -> ShardError:
    return ShardError(what, where=f"{index.path}: {index.key(row)}", remedy=_REMEDY)
