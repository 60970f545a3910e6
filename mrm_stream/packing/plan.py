"""Which records go into which shard, in which order: a pure function of the records, the options and the seed.

Everything is decided here before an image is read. So workers need no coordination, a shard can be packed again by
itself (which is how an interrupted job goes on and how a set is repaired), and the number of workers cannot matter.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from mrm_stream.errors import ConfigError, SourceError
from mrm_stream.formats.manifest import VERSION
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import canonical_json
from mrm_stream.packing.labels import apply_policy
from mrm_stream.randomness import Purpose, permutation
from mrm_stream.records import SPLITS, Record
from mrm_stream.sources.registry import find_source, list_records
from mrm_stream.storage.paths import AnyPath

_FRONTAL = {"AP", "PA", "FRONTAL"}
_NO_DICOM = (".jpg", ".jpeg", ".png")
_NO_PNG = (".jpg", ".jpeg", ".dcm", ".dicom")
# Another release of these may write other bytes. An interrupted job is not finished with another one: half of the set
# would be what no single run makes, and `repair` could never make it again.
_LIBRARIES = (
    *("numpy", "opencv-python-headless", "pillow", "pydicom"),
    *("python-gdcm", "simplejpeg", "tokenizers", "zstandard"),
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The records that go into one shard, in their order."""

    name: str
    """Without `.tar`."""
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class SetPlan:
    """All that is decided of a set before an image is read."""

    source: str
    root: AnyPath
    options: PackOptions
    by_lists: bool
    has_reports: bool
    has_masks: bool
    shards: tuple[ShardPlan, ...]
    has_uncertain_labels: bool = True
    """Before `options.uncertain` was applied; True where that keeps them, as then it does not matter."""

    @property
    def records(self) -> int:
        """How many records there are to pack."""
        return sum(len(shard.records) for shard in self.shards)

    def fingerprint(self, tokenizer: str | None) -> str:
        """Return a digest of all that decides the set's bytes, save the contents of the images and report files.

        Args:
            tokenizer: The one that was given, as JSON.
        """
        choices: dict[str, Any] = asdict(self.options) | {
            "tokenizer": tokenizer,
            "kind": [self.by_lists, self.has_reports, self.has_masks],
        }
        digest = hashlib.sha256(canonical_json([VERSION, self.source, choices, libraries()]))
        for plan in self.shards:
            for record in plan.records:
                # A canonical spelling of a record; asdict alone is slow, and labels may be any mapping.
                fields = [record.key, record.image_path, record.report_path, record.report_text, record.subject]
                fields += [record.study, record.view, record.split, record.mask_path, record.mask_runs]
                annotations = [dict(record.labels), record.boxes, record.annotated_size, record.lists]
                digest.update(canonical_json([*fields, *annotations]))
        return digest.hexdigest()


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that decide what bytes are made."""
    return {name: version(name) for name in _LIBRARIES}


def plan_set(source: str, root: AnyPath, options: PackOptions, lists: AnyPath | None = None) -> SetPlan:
    """List a data set's records, choose among them, and distribute them over shards.

    Raises:
        SourceError: The data set is not laid out as its source expects, or has none of the views wanted.
    """
    kind = find_source(source)
    records = _choose_views(list_records(source, root, lists), options, root)
    if options.uncertain != "keep":
        # Records of one study share their labels, before and after.
        treated = {id(record.labels): apply_policy(record.labels, options.uncertain) for record in records}
        is_uncertain = any(-1 in record.labels.values() for record in records)
        records = [replace(record, labels=treated[id(record.labels)]) for record in records]
    else:
        is_uncertain = True
    return SetPlan(
        source=source,
        root=root,
        options=options,
        by_lists=lists is not None,
        # The lists are for fine-tuning, which reads no reports.
        has_reports=kind.has_reports and lists is None,
        has_masks=kind.has_masks,
        shards=tuple(plan_shards(records, options)),
        has_uncertain_labels=is_uncertain,
    )


def check_choices(plan: SetPlan, *, tokenizer: AnyPath | None = None, vocabulary: int | None = None) -> None:
    """Refuse a choice that would change nothing in this set: whoever makes it takes the set for another.

    Args:
        plan: Of the set, with its options.
        tokenizer: That was given.
        vocabulary: That was asked for explicitly, not by default.

    Raises:
        ConfigError: Sections, tokenizer or vocabulary of a set without reports; a policy for uncertain labels where
            there are none; a rendering of DICOMs, or the bits of PNGs, where every image is another by its name.
    """
    of_reports = {"sections": plan.options.sections, "tokenizer": tokenizer, "vocabulary": vocabulary}
    unused = [name for name, value in of_reports.items() if value]
    if unused and not plan.has_reports:
        why = "packed by list files" if plan.by_lists else f"of {plan.source}"
        _refuse(unused, f"a set {why} has no reports")
    if not plan.has_uncertain_labels:
        _refuse(["uncertain"], "no label of this set is uncertain (-1)")
    if plan.options.rendering != "window" and _all_named(plan, _NO_DICOM):
        _refuse(["rendering"], "no image of this set is a DICOM")
    if plan.options.bits is not None and _all_named(plan, _NO_PNG):
        _refuse(["bits"], "no image of this set is a PNG")


def _all_named(plan: SetPlan, suffixes: tuple[str, ...]) -> bool:
    return all(record.image_path.lower().endswith(suffixes) for shard in plan.shards for record in shard.records)


def _refuse(names: Sequence[str], why: str) -> None:
    raise ConfigError(
        f"would change nothing: {why}",
        where=", ".join(f"--{name}" for name in names),
        remedy="Omit it, or check that this is the data set that you mean.",
    )


def plan_shards(records: Sequence[Record], options: PackOptions) -> list[ShardPlan]:
    """Distribute records over shards: a pure function of their keys, their splits and the seed.

    Records are sorted by key first, as a source may list them in any order, and then permuted. So each shard is already
    a random sample of the whole source, and training, which shuffles within a window of a few shards only, mixes as
    well as if it shuffled the whole set.
    """
    plans = []
    for stream, split in enumerate(SPLITS):
        chosen = sorted((record for record in records if record.split == split), key=lambda record: record.key)
        if not chosen:
            continue
        order = permutation(options.seed, 0, stream, Purpose.PACKING, len(chosen))
        count = -(-len(chosen) // options.samples_per_shard)
        # Shards of equal length, to within one: training permutes shards, and would otherwise visit the few samples of
        # a short last one as if they were a full shard.
        for number, rows in enumerate(np.array_split(order, count)):
            plans.append(ShardPlan(f"{split}-{number:05d}", tuple(chosen[row] for row in rows)))
    return plans


def _choose_views(records: list[Record], options: PackOptions, root: AnyPath) -> list[Record]:
    if options.views == "all":
        return records
    frontal = [record for record in records if record.view.upper().partition(" ")[0] in _FRONTAL]
    _logger.info("%d of %d records are frontal views", len(frontal), len(records))
    if not frontal:
        raise SourceError("no record is a frontal view", where=root, remedy="Pack all views.")
    return frontal
