"""Checks a packed set: every file against its SHA-256, and on demand every member of every sample."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mrm_stream.errors import ShardError
from mrm_stream.formats.dictionary import ReportCodec
from mrm_stream.formats.folder import DICTIONARY, MANIFEST, QUARANTINE, TOKENIZER
from mrm_stream.formats.manifest import DICTIONARY_LIMIT, Manifest, ReportsEntry, read_manifest
from mrm_stream.formats.shard import MASK_MEMBER, SHARD_LIMIT, ShardEntry, ShardIndex, index_path, verify_shard
from mrm_stream.packing.images.boxes import box_from_json, is_inside
from mrm_stream.packing.images.checks import MAX_SIDE, ImageError
from mrm_stream.packing.images.jpeg import decode_jpeg
from mrm_stream.packing.workers import Workers, run_all
from mrm_stream.storage.access import refuse_barred
from mrm_stream.storage.files import names_in, read_whole
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import sha256_of
from mrm_stream.strict import parse_json

STRAY = "is not in the manifest"
_PACK_ANEW = "Packed so, not damaged since: only packing the set anew, to another directory, can help."
_QUARANTINE_ANEW = (
    f"{QUARANTINE}: pack (and tokenize) the set anew, to another directory: the same source gives the same list."
)
_TOKENIZER_GIVEN = f"{TOKENIZER}: copy it from where it was given."
_TOKENIZER_TRAINED_AGAIN = (
    f"{TOKENIZER}: tokenize the set anew, to another directory: the same choices give the same one."
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a set."""

    file: str
    what: str
    shard: str | None = None
    """The shard that `repair` would pack again; None: the fault is in no shard."""
    remedy: str | None = None
    """What helps where `repair` cannot; None: `repair` can, if the source is what it was."""
    why_left: str | None = None
    """Why `repair` has left it."""

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" + (f" ({self.why_left})" if self.why_left else "")


def verify(
    directory: AnyPath,
    *,
    decode: bool = False,
    workers: Workers | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[Fault]:
    """Return all that is wrong with a packed set.

    Args:
        directory: Of the set.
        decode: Decode every image, mask, token stream and report as well: what a fault in packing itself would leave.
        workers: What reads; by default this process.
        progress: Called with shards done, shards in all, and faults found.

    Raises:
        ShardError: The manifest is absent or damaged: nothing else can be checked without it.
    """
    manifest = read_manifest(directory)
    if isinstance(directory, Path):
        directory = directory.resolve()  # workers may have another working directory
    faults = [*_stray_files(directory, manifest), *common_faults(directory, manifest)]
    shards = manifest.shards()
    has_dictionary = manifest.reports is not None and all(fault.file != DICTIONARY for fault in faults)
    check = partial(
        _shard_faults, directory, manifest.members, _vocabulary(manifest) if decode else None, has_dictionary
    )
    for done, (_, found) in enumerate(run_all(check, shards, workers or Workers()), start=1):
        faults += found
        if progress is not None:
            progress(done, len(shards), len(faults))
    return sorted(faults, key=lambda fault: (fault.file, fault.what))


def _vocabulary(manifest: Manifest) -> int:
    return 0 if manifest.reports is None else manifest.reports.vocabulary


def _stray_files(directory: AnyPath, manifest: Manifest) -> Iterator[Fault]:
    """Yield shards and indexes in the directory that the manifest does not list; other files are ignored."""
    known = {MANIFEST, QUARANTINE}
    if manifest.reports is not None:
        known |= {TOKENIZER, DICTIONARY}
    for entry in manifest.shards():
        known |= {entry.file, index_path(Path(entry.file)).name}
    for name in sorted(names_in(directory) - known):
        if name.endswith((".tar", ".idx")):
            yield Fault(name, STRAY)


def common_faults(directory: AnyPath, manifest: Manifest) -> Iterator[Fault]:
    """Yield what is wrong with the files that the shards of a set share."""
    digests = {QUARANTINE: manifest.quarantine_sha256}
    remedies: dict[str, str | None] = {QUARANTINE: _QUARANTINE_ANEW if manifest.quarantined else None}
    if manifest.reports is not None:
        digests |= {TOKENIZER: manifest.reports.tokenizer_sha256, DICTIONARY: manifest.reports.dictionary_sha256}
        remedies[TOKENIZER] = _tokenizer_remedy(manifest.reports)
    for name, digest in digests.items():
        try:
            if sha256_of(directory / name) != digest:
                yield Fault(name, "the SHA-256 is not the manifest's", remedy=remedies.get(name))
        except OSError as error:
            refuse_barred(error, directory / name)
            what = f"cannot be read: {error.strerror or 'there is no such file'}"
            yield Fault(name, what, remedy=remedies.get(name))


def _tokenizer_remedy(reports: ReportsEntry) -> str | None:
    if not reports.is_trained:
        return _TOKENIZER_GIVEN
    return _TOKENIZER_TRAINED_AGAIN if reports.is_retrained else None


def _shard_faults(
    directory: AnyPath, members: tuple[str, ...], vocabulary: int | None, has_dictionary: bool, entry: ShardEntry
) -> list[Fault]:
    """Return what is wrong with one shard; its samples are decoded where a vocabulary is given.

    Reports are decompressed only with a whole dictionary: with another, all of them would seem damaged.
    """
    try:
        index = verify_shard(directory, entry, members)
    except ShardError as error:
        file = Path(error.where).name if error.where else entry.file
        return [Fault(file, error.what, entry.file)]
    if vocabulary is None:
        return []
    codec = ReportCodec(read_whole(directory / DICTIONARY, DICTIONARY_LIMIT)) if has_dictionary else None
    return [Fault(entry.file, what, remedy=_PACK_ANEW) for what in _sample_faults(index, vocabulary, codec)]


def _sample_faults(index: ShardIndex, vocabulary: int, codec: ReportCodec | None) -> Iterator[str]:
    data = read_whole(index.path, SHARD_LIMIT)
    for row in range(len(index)):
        try:
            _check_sample(index.cut(data, row), vocabulary, codec)
        except ValueError as error:
            yield f"{index.key(row)}: {error}"


def _check_sample(contents: dict[str, bytes], vocabulary: int, codec: ReportCodec | None) -> None:
    """Raise ValueError, which says which member is not what it should be."""
    try:
        jpeg_size, _ = decode_jpeg(contents["jpg"], MAX_SIDE)
    except ImageError as error:
        raise ValueError(f"the JPEG does not decode ({error.what})") from None
    try:
        metadata = parse_json(contents["json"])
        size = tuple(metadata["size"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("the metadata is not JSON, or lacks the size") from None
    if size != jpeg_size:
        raise ValueError("the metadata tells another size than the JPEG has")
    try:
        boxes = list(map(box_from_json, metadata.get("boxes", [])))
    except (ValueError, TypeError):
        raise ValueError("the boxes of the metadata are not as `mrm-stream shard` writes them") from None
    if not all(is_inside(box, jpeg_size) for box in boxes):
        raise ValueError("a box is empty, or lies outside the image by more than a pixel")
    if "tok" in contents:
        tokens = contents["tok"]
        if not tokens or len(tokens) % 2 or int(np.frombuffer(tokens, "<u2").max()) >= vocabulary:
            raise ValueError("the token ids are absent, cut short, or outside the vocabulary")
    if codec is not None:
        codec.decompress(contents["txt.zst"])
    if MASK_MEMBER in contents:
        try:
            with Image.open(io.BytesIO(contents[MASK_MEMBER]), formats=("PNG",)) as mask:
                mask.load()
                if (mask.height, mask.width) != size:
                    raise ValueError("the mask has another size than the JPEG")
        except (OSError, SyntaxError, zlib.error, Image.DecompressionBombError) as error:
            raise ValueError(f"the mask does not decode ({type(error).__name__})") from None
