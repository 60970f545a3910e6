"""The manifest: what a packed set holds, how it was made, its files' checksums. Without it there is no set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mrm_stream.errors import ShardError
from mrm_stream.packing.shard import ShardEntry
from mrm_stream.publish import publish_bytes
from mrm_stream.records import SPLITS

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
DICTIONARY = "reports.zdict"
QUARANTINE = "quarantine.jsonl"
FORMAT = "mrm-stream-shards"
VERSION = 1

_MAX_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,9}}\.tar", re.ASCII)


@dataclass(frozen=True)
class Manifest:
    """A packed set, as its `manifest.json` describes it."""

    source: str
    seed: int
    short_side: int
    jpeg_quality: int
    samples_per_shard: int
    vocabulary: int
    """Entries of the tokenizer."""
    tokenizer_sha256: str
    dictionary_sha256: str
    choices: Mapping[str, str] = field(default_factory=dict)
    """What else was chosen when packing, such as the views."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Reason to how many records were rejected for it."""
    splits: Mapping[str, tuple[ShardEntry, ...]] = field(default_factory=dict)
    """Shards of each split that has any, in the order of their names."""

    def samples(self, split: str) -> int:
        """Return how many samples a split has; 0 where there is no such split."""
        return sum(shard.samples for shard in self.splits.get(split, ()))

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that differ between any two sets that differ."""
        return hashlib.sha256(_to_text(self)).hexdigest()


def write_manifest(directory: Path, manifest: Manifest, *, staging: Path | None = None) -> None:
    """Publish `manifest.json`: from now on there is a set; see `publishing`."""
    publish_bytes(directory / MANIFEST, _to_text(manifest), staging=staging)


def read_manifest(directory: Path) -> Manifest:
    """Read and check `manifest.json`; the shards themselves are not looked at.

    Raises:
        ShardError: There is none, it is of another format or version, or it is damaged.
    """
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ShardError(
            f"no packed data set: the manifest cannot be read ({error.strerror})",
            where=path,
            remedy="Give the directory that `mrm-stream shard` wrote; if it was interrupted, run it again.",
        ) from error
    try:
        if len(text) > _MAX_BYTES:
            raise ValueError("larger than any manifest")
        return _from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        detail = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ShardError(
            f"the manifest is damaged, or of another version: {detail[:200]}",
            where=path,
            remedy="Copy the set again from where it came, or pack it again with this version.",
        ) from error


def _to_text(manifest: Manifest) -> bytes:
    content = {
        "format": FORMAT,
        "version": VERSION,
        "source": manifest.source,
        "seed": manifest.seed,
        "short_side": manifest.short_side,
        "jpeg_quality": manifest.jpeg_quality,
        "samples_per_shard": manifest.samples_per_shard,
        "choices": dict(manifest.choices),
        "tokenizer": {
            "file": TOKENIZER,
            "sha256": manifest.tokenizer_sha256,
            "vocabulary": manifest.vocabulary,
        },
        "report_dictionary": {"file": DICTIONARY, "sha256": manifest.dictionary_sha256},
        "quarantined": {"total": sum(manifest.quarantined.values()), "by_reason": dict(manifest.quarantined)},
        "splits": {
            split: {
                "samples": manifest.samples(split),
                "shards": [dataclasses.asdict(shard) for shard in shards],
            }
            for split, shards in manifest.splits.items()
        },
    }
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True).encode("ascii") + b"\n"


def _from_json(content: Any) -> Manifest:
    """Return the manifest; KeyError, TypeError or ValueError where it is not one that `_to_text` wrote."""
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise ValueError(f"not format {FORMAT!r}, version {VERSION}")
    tokenizer, dictionary = content["tokenizer"], content["report_dictionary"]
    if (tokenizer["file"], dictionary["file"]) != (TOKENIZER, DICTIONARY):
        raise ValueError(f"the tokenizer is not {TOKENIZER}, or the reports' dictionary not {DICTIONARY}")
    manifest = Manifest(
        source=_text(content["source"]),
        seed=_count(content["seed"]),
        short_side=_count(content["short_side"]),
        jpeg_quality=_count(content["jpeg_quality"]),
        samples_per_shard=_count(content["samples_per_shard"]),
        vocabulary=_count(tokenizer["vocabulary"]),
        tokenizer_sha256=_sha256(tokenizer["sha256"]),
        dictionary_sha256=_sha256(dictionary["sha256"]),
        choices={_text(name): _text(choice) for name, choice in content["choices"].items()},
        quarantined={_text(reason): _count(number) for reason, number in content["quarantined"]["by_reason"].items()},
        splits={split: _shards(split, listed) for split, listed in content["splits"].items()},
    )
    if content["quarantined"]["total"] != sum(manifest.quarantined.values()):
        raise ValueError("the counts of quarantined records do not add up")
    return manifest


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
