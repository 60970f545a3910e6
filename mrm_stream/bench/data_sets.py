"""Makes the packed sets that `bench data` reads: the same radiographs at two sizes, many samples, and a long epoch."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mrm_stream.bench.data_result import DataBenchOptions
from mrm_stream.bench.formats import QUALITY
from mrm_stream.bench.mosaicml import Mosaicml
from mrm_stream.formats.folder import DICTIONARY, TOKENIZER
from mrm_stream.formats.manifest import Manifest, read_manifest, write_manifest
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.packing.shard_writer import PackedSample, write_shard
from mrm_stream.stream.order import Order
from mrm_stream.stream.shard_set import ShardSet

LARGE, SMALL = 1024, 512
"""Short sides in pixels."""
SEED, WINDOW = 0, 16
SPLIT = "train"
_SHARDS = 4
"""Of a set that is decoded: each worker of a peer needs some of its own."""


@dataclass(frozen=True, slots=True)
class DataSets:
    """Where the sets lie."""

    large: Path
    """Packed, of short side 1,024."""
    small: Path
    """The same radiographs, of short side 512."""
    encoded: Path
    """The large ones, each several times."""
    mds: Path
    """The same bytes as mosaicml-streaming's shards; absent where it is skipped."""
    long: Path
    """An epoch too long for the disk: only the shards that a resumed run reads are whole."""
    position: int
    """In the long set's order, at which a run is resumed: in the middle of the second epoch."""


def make_data_sets(folder: Path, options: DataBenchOptions, mosaicml: Mosaicml | None = None) -> DataSets:
    """Make all sets below `folder`; what is read then lies in the page cache.

    Args:
        folder: Of theirs; made here.
        options: How many samples, and how large.
        mosaicml: Who writes the shards of its kind.
    """
    # Imported here: a process that only reads the sets, and is timed from its start, has no use for them.
    from mrm_stream.bench.radiographs import make_bench_set
    from mrm_stream.formats.options import PackOptions
    from mrm_stream.packing.pack import pack
    from mrm_stream.packing.workers import Workers

    made = make_bench_set(folder / "images", options.count, width=options.width, workers=options.threads)
    for side, name in ((LARGE, "large"), (SMALL, "small")):
        choices = PackOptions(
            short_side=side, jpeg_quality=QUALITY, samples_per_shard=max(1, -(-options.count // _SHARDS))
        )
        pack("training-csv", made.root, folder / name, options=choices, workers=Workers(options.threads))
    shutil.rmtree(folder / "images")
    large, small, encoded, mds, long = (folder / name for name in ("large", "small", "encoded", "mds", "long"))
    sets = DataSets(large, small, encoded, mds, long, position=0)
    manifest = read_manifest(sets.large)
    _write_repeated(sets, manifest, options)
    if mosaicml is not None:
        mosaicml.write(tar_names(sets.encoded), sets.mds)
        warm(sets.mds)
    return dataclasses.replace(sets, position=_write_long(sets, manifest, options))


def warm(folder: Path) -> None:
    """Read every file of a set, so that it lies in the page cache."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.read_bytes()


def tar_names(directory: Path) -> list[str]:
    """Return the paths of a set's shards, in order."""
    return sorted(str(path) for path in directory.glob(f"{SPLIT}-*.tar"))


def _samples(directory: Path) -> Iterator[PackedSample]:
    """Yield the set's samples again and again, under new keys."""
    shards = ShardSet.open(directory, SPLIT)
    number = 0
    while True:
        for index in range(len(shards)):
            sample = shards.sample(index)
            assert sample.token_ids is not None
            yield PackedSample(f"s{number:09d}", bytes(sample.jpeg), b"{}", sample.token_ids.tobytes(), b"")
            number += 1


def _write_repeated(sets: DataSets, manifest: Manifest, options: DataBenchOptions) -> None:
    _copy_common(sets.large, sets.encoded)
    samples = islice(_samples(sets.large), options.encoded)
    entries: list[ShardEntry] = []
    while True:
        tar = sets.encoded / f"{SPLIT}-{len(entries):05d}.tar"
        entry = write_shard(tar, islice(samples, options.samples_per_shard))
        if entry is None:
            break
        entries.append(entry)
    write_manifest(sets.encoded, dataclasses.replace(manifest, splits={SPLIT: tuple(entries)}))
    warm(sets.encoded)


def _write_long(sets: DataSets, manifest: Manifest, options: DataBenchOptions) -> int:
    """Write the long set, and return the position of the resume.

    Each shard that is read is another name of one file, so that the disk holds it once; it is read and compared with
    its checksum as often as if it were its own. The others have the right size, and nothing in them.
    """
    _copy_common(sets.large, sets.long)
    first = sets.long / f"{SPLIT}-00000.tar"
    whole = write_shard(first, islice(_samples(sets.large), options.samples_per_shard))
    assert whole is not None
    count = max(1, options.resumed // whole.samples)
    entries = tuple(dataclasses.replace(whole, file=f"{SPLIT}-{number:05d}.tar") for number in range(count))
    order = Order([whole.samples] * count, SEED, WINDOW)
    position = order.samples + order.samples // 2
    # The batch after the resume, and those that are made ahead of use.
    read = {shard for _, shards in islice(order.windows_from(position), 2) for shard in shards}
    for number, entry in enumerate(entries):
        tar = sets.long / entry.file
        if number == 0:
            continue
        if number in read:
            os.link(first, tar)
            os.link(first.with_suffix(".idx"), tar.with_suffix(".idx"))
        else:
            with tar.open("wb") as file:
                file.truncate(entry.bytes)
            tar.with_suffix(".idx").touch()
    write_manifest(sets.long, dataclasses.replace(manifest, splits={SPLIT: entries}))
    first.read_bytes()
    return position


def _copy_common(source: Path, target: Path) -> None:
    target.mkdir()
    for name in (TOKENIZER, DICTIONARY):
        shutil.copyfile(source / name, target / name)
