"""The manifest: what a packed set holds, how it was made, its files' checksums. Without it there is no set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mrm_stream.errors import ConfigError, ShardError
from mrm_stream.formats.folder import DICTIONARY, FORMAT, MANIFEST, QUARANTINE, TOKENIZER
from mrm_stream.formats.options import BITS, PackOptions
from mrm_stream.formats.shard import MASK_MEMBER, ShardEntry, canonical_json, members_of
from mrm_stream.records import SPLITS
from mrm_stream.storage.access import refuse_barred
from mrm_stream.storage.files import read_whole
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import publish_bytes
from mrm_stream.strict import parse_json
from mrm_stream.text.sections import check_sections

DICTIONARY_LIMIT = 1 << 20
QUARANTINE_LIMIT = 1 << 30
"""Bytes of the two files that are read, at most; see `read_whole`."""
VERSION = 2

_MAX_BYTES = 64 << 20
_LATER_OPTIONS = {"bits": None, "blank": "keep"}
"""Options that sets of earlier versions lack, and how those were packed."""
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,9}}\.tar", re.ASCII)


@dataclass(frozen=True)
class ReportsEntry:
    """The files that the reports of a set share."""

    tokenizer_sha256: str
    dictionary_sha256: str
    vocabulary: int
    """Entries of the tokenizer."""
    is_trained: bool
    """On this set's reports, to `options.vocabulary` entries at most; else the tokenizer was given."""
    length: int | None = None
    """Tokens of a report that were kept, at most; None: all."""
    is_retrained: bool = False
    """When the set was tokenized again, on the reports stored in it; else when it was packed, on the source's."""
    trained_sections: tuple[str, ...] | None = None
    """Of the reports, that it was trained on, where others were tokenized; None: `options.sections`."""

    @property
    def made(self) -> str:
        """Where the tokenizer came from, in the manifest's words."""
        return "given" if not self.is_trained else "trained again" if self.is_retrained else "trained"


@dataclass(frozen=True)
class MasksEntry:
    """What packing has changed of the masks that are not empty; tokenizing again, which copies masks, repeats it."""

    count: int
    mean_area_change: float
    """Of a finding's share of the image, relative, without the sign."""
    worst_area_change: float
    """The one that is farthest from 0, with its sign."""
    kept_by_rule: int
    """Connected components, of all masks, that have a pixel only because none may vanish."""

    def __str__(self) -> str:
        return (
            f"{self.count:,} not empty; packed, their areas are {self.mean_area_change:.2%} off on average and "
            f"{self.worst_area_change:+.2%} at worst, and {self.kept_by_rule:,} components have but a pixel"
        )


@dataclass(frozen=True)
class Manifest:
    """A packed set, as its `manifest.json` describes it."""

    source: str
    options: PackOptions
    reports: ReportsEntry | None
    """None where the set has no reports: it is for fine-tuning."""
    has_masks: bool = False
    masks: MasksEntry | None = None
    """None where there are none, and in sets of earlier versions."""
    assumed_bits: Mapping[int, int] | None = field(default_factory=dict)
    """Bits to how many 16-bit PNGs were packed as if their values had so many; tokenizing again repeats it.

    None in sets of earlier versions, where values were taken to have 16 bits, and blank images were kept.
    """
    padded: int = 0
    """DICOMs packed that declare some of their pixels to be padding: black, and out of the range of grey. Not counted
    in sets of earlier versions; tokenizing again repeats it."""
    by_lists: bool = False
    """Whether the reference code's list files said what is in which split."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Reason to how many records were rejected for it."""
    quarantine_sha256: str = hashlib.sha256(b"").hexdigest()
    splits: Mapping[str, tuple[ShardEntry, ...]] = field(default_factory=dict)
    """Shards of each split that has any, in the order of their names."""

    @property
    def members(self) -> tuple[str, ...]:
        """Extensions of each sample's members, in their order."""
        return members_of(reports=self.reports is not None, masks=self.has_masks)

    def shards(self) -> list[ShardEntry]:
        """Return the shards of all splits."""
        return [shard for shards in self.splits.values() for shard in shards]

    def samples(self, split: str) -> int:
        """Return how many samples a split has; 0 where there is no such split."""
        return sum(shard.samples for shard in self.splits.get(split, ()))

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that differ between any two sets that differ."""
        return hashlib.sha256(_to_text(self)).hexdigest()


def tell_bits(assumed_bits: Mapping[int, int]) -> str:
    """Return how many 16-bit PNGs were packed as of how many bits.

    Example:
        >>> tell_bits({12: 1480, 8: 1})
        '1 taken as 8-bit, 1,480 as 12-bit'
    """
    counts = [f"{count:,} taken as {bits}-bit" for bits, count in sorted(assumed_bits.items())]
    return ", ".join([*counts[:1], *(count.replace("taken ", "") for count in counts[1:])])


def tell_padded(padded: int) -> str:
    """Return how many DICOMs declare padding, and what became of it."""
    return f"DICOMs that declare padding: {padded:,}; it is black, and takes no part in the range of grey"


def write_manifest(directory: AnyPath, manifest: Manifest, *, staging: AnyPath | None = None) -> None:
    """Publish `manifest.json`: from now on there is a set; see `publishing`."""
    publish_bytes(directory / MANIFEST, _to_text(manifest), staging=staging)


def read_manifest(directory: AnyPath) -> Manifest:
    """Read and check `manifest.json`, every bit of it; the shards themselves are not looked at.

    Raises:
        ShardError: There is none, it is of another format or version, or it is damaged.
    """
    path = directory / MANIFEST
    try:
        text = read_whole(path, _MAX_BYTES)
    except OSError as error:
        refuse_barred(error, path)
        raise ShardError(
            f"no packed data set: the manifest cannot be read ({error.strerror or 'there is no such file'})",
            where=path,
            remedy="Give the directory that `mrm-stream shard` wrote; if it was interrupted, run it again.",
        ) from error
    try:
        if len(text) > _MAX_BYTES:
            raise ValueError("larger than any manifest")
        manifest = _from_json(parse_json(text))
        if _to_text(manifest) != text:
            raise ValueError("its checksum or its spelling is not its own")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        detail = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ShardError(
            f"the manifest is damaged, or of another version: {detail[:200]}",
            where=path,
            remedy="Copy the set again from where it came, or pack it again with this version.",
        ) from error


def _to_text(manifest: Manifest) -> bytes:
    reports = manifest.reports
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "source": manifest.source,
        "splits_from": "lists" if manifest.by_lists else "source",
        "options": dataclasses.asdict(manifest.options) | {"sections": list(manifest.options.sections)},
        "members": list(manifest.members),
        "reports": None
        if reports is None
        else {
            "tokenizer": {
                "file": TOKENIZER,
                "sha256": reports.tokenizer_sha256,
                "vocabulary": reports.vocabulary,
                "made": reports.made,
                "sections": None if reports.trained_sections is None else list(reports.trained_sections),
                "length": reports.length,
            },
            "dictionary": {"file": DICTIONARY, "sha256": reports.dictionary_sha256},
        },
        "quarantined": {
            "file": QUARANTINE,
            "sha256": manifest.quarantine_sha256,
            "total": sum(manifest.quarantined.values()),
            "by_reason": dict(manifest.quarantined),
        },
        "splits": {
            split: {
                "samples": manifest.samples(split),
                "shards": [dataclasses.asdict(shard) for shard in shards],
            }
            for split, shards in manifest.splits.items()
        },
    }
    if manifest.masks is not None:
        content["masks"] = dataclasses.asdict(manifest.masks)
    if manifest.assumed_bits is not None:
        content["assumed_bits"] = {str(bits): count for bits, count in manifest.assumed_bits.items()}
    else:
        for name in _LATER_OPTIONS:
            del content["options"][name]
    if manifest.padded:
        content["padded"] = manifest.padded
    # Of everything else: a flipped bit in a number or a name is found as one in a shard is.
    content["sha256"] = hashlib.sha256(canonical_json(content)).hexdigest()
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True).encode("ascii") + b"\n"


def _from_json(content: Any) -> Manifest:
    """Return the manifest; KeyError, TypeError, ValueError or ConfigError where it is not one that `_to_text` wrote."""
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise ValueError(f"not format {FORMAT!r}, version {VERSION}")
    options = dict(content["options"])
    options["sections"] = tuple(_text(section) for section in options["sections"])
    assumed_bits = None
    if "assumed_bits" in content:
        assumed_bits = {BITS[BITS.index(int(bits))]: _count(number) for bits, number in content["assumed_bits"].items()}
    else:
        options = _LATER_OPTIONS | options
    quarantined = content["quarantined"]
    return Manifest(
        source=_text(content["source"]),
        options=PackOptions(**options),
        reports=None if content["reports"] is None else _reports(content["reports"]),
        has_masks=MASK_MEMBER in content["members"],
        masks=_masks(content["masks"]) if "masks" in content else None,
        assumed_bits=assumed_bits,
        padded=_count(content.get("padded", 0)),
        by_lists=content["splits_from"] == "lists",
        quarantined={_text(reason): _count(number) for reason, number in quarantined["by_reason"].items()},
        quarantine_sha256=_sha256(quarantined["sha256"]),
        splits={split: _shards(split, content["splits"][split]) for split in sorted(content["splits"], key=_place)},
    )


def _reports(content: Any) -> ReportsEntry:
    tokenizer = content["tokenizer"]
    sections = tokenizer["sections"]
    return ReportsEntry(
        tokenizer_sha256=_sha256(tokenizer["sha256"]),
        dictionary_sha256=_sha256(content["dictionary"]["sha256"]),
        vocabulary=_count(tokenizer["vocabulary"]),
        is_trained=tokenizer["made"] in ("trained", "trained again"),
        length=None if tokenizer["length"] is None else _count(tokenizer["length"]),
        is_retrained=tokenizer["made"] == "trained again",
        trained_sections=None if sections is None else _sections(sections),
    )


def _masks(content: Any) -> MasksEntry:
    mean, worst = content["mean_area_change"], content["worst_area_change"]
    if not all(isinstance(change, float) and math.isfinite(change) for change in (mean, worst)):
        raise ValueError("a change of area is no number")
    return MasksEntry(_count(content["count"]), mean, worst, _count(content["kept_by_rule"]))


def _sections(content: Any) -> tuple[str, ...]:
    sections = tuple(_text(section) for section in content)
    return check_sections(sections) if sections else ()


def _place(split: str) -> int:
    """Return where a split stands among `SPLITS`; ValueError where it is none."""
    return SPLITS.index(split)


def _shards(split: str, listed: Any) -> tuple[ShardEntry, ...]:
    shards = tuple(shard_entry_from_json(shard) for shard in listed["shards"])
    names = [shard.file for shard in shards]
    if split not in SPLITS or len(set(names)) != len(names) or not all(name.startswith(f"{split}-") for name in names):
        raise ValueError(f"split {split[:80]!r} is unknown, lists a shard twice, or lists one of another split")
    if listed["samples"] != sum(shard.samples for shard in shards):
        raise ValueError(f"the samples of {split}'s shards do not add up")
    return shards


def shard_entry_from_json(content: Any) -> ShardEntry:
    """Return one shard's entry; KeyError, TypeError or ValueError where it is not one.

    The name is checked, as paths are made of it.
    """
    if not SHARD_NAME.fullmatch(_text(content["file"])):
        raise ValueError("a shard's name is not SPLIT-NNNNN.tar")
    if _count(content["samples"]) < 1:
        raise ValueError("a shard without samples")
    return ShardEntry(
        file=content["file"],
        samples=content["samples"],
        bytes=_count(content["bytes"]),
        sha256=_sha256(content["sha256"]),
        index_sha256=_sha256(content["index_sha256"]),
    )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a number is not a whole one, or negative")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is not text")
    return value


def _sha256(value: Any) -> str:
    if not _SHA256.fullmatch(_text(value)):
        raise ValueError("a SHA-256 is not 64 hexadecimal digits")
    return str(value)
