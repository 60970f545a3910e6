"""A campaign of damage: bits, lengths and whole files of a finished set, one at a time; `verify` must name each."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mrm_stream.errors import ShardError
from mrm_stream.formats.folder import MANIFEST
from mrm_stream.formats.shard import index_path, read_index
from mrm_stream.packing.verify import verify


@dataclass
class DamageReport:
    """What `verify` made of a damaged set."""

    found: Counter[str] = field(default_factory=Counter)
    """By kind of damage."""
    missed: list[str] = field(default_factory=list)
    """What it did not find, blamed on another file, or ended with another error on."""


_FILES = {"index": "*.idx", "tar": "*.tar", "tokenizer": "tokenizer.json", "dictionary": "reports.zdict"}
_FILES |= {"manifest": MANIFEST, "quarantine": "quarantine.jsonl"}
_REGIONS = ("header", "jpg", "tok", "json", "txt.zst", "padding", "end")
KINDS = [
    *(f"bit of tar: {region}" for region in _REGIONS),
    *(f"bit of {name}" for name in _FILES if name != "tar"),
    *(f"{what} {name}" for what in ("cut", "longer", "missing") for name in _FILES),
    *("stray tar", "stray index", "renamed tar", "exchanged tars", "exchanged indexes"),
]
"""Of damage; the last ones are of whole files."""


def damage_campaign(packed: Path, scratch: Path, *, count: int, seed: int = 0) -> DamageReport:
    """Damage a copy of a set in so many ways, one at a time, and let `verify` name the file each time."""
    draw, report = random.Random(seed), DamageReport()
    copy = scratch / "copy"
    shutil.copytree(packed, copy)
    pristine = {path.name: path.read_bytes() for path in packed.iterdir()}
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        expected = damage_one(copy, kind, draw)
        try:
            blamed = {fault.file for fault in verify(copy)}
        except ShardError as error:
            blamed = {Path(str(error.where)).name}
        except Exception as error:  # what `verify` lets through is a finding like any other
            blamed = {repr(error)}
        # A tar of another length may be told as its index's fault: only the two together show it.
        partners = {Path(name).with_suffix(end).name for name in expected for end in (".tar", ".idx")}
        is_length = kind in ("cut tar", "longer tar", "exchanged indexes", "exchanged tars")
        if expected <= blamed or (is_length and {Path(b).stem for b in blamed} >= {Path(e).stem for e in expected}):
            if blamed <= expected | partners:
                report.found[kind] += 1
            else:
                report.missed.append(f"{kind} of {expected}: blamed {blamed} too")
        else:
            report.missed.append(f"{kind} of {expected}: blamed {blamed}")
        for path in list(copy.iterdir()):
            if path.name not in pristine:
                path.unlink()
        for name, content in pristine.items():
            if not (copy / name).exists() or (copy / name).read_bytes() != content:
                (copy / name).write_bytes(content)
    return report


def damage_one(copy: Path, kind: str, draw: random.Random) -> set[str]:
    """Do damage of this kind; return the files that are to be blamed."""
    what, _, name = kind.partition(" ")
    tars = draw.sample(sorted(copy.glob("*.tar")), 2)
    if what == "stray":
        stray = copy / ("train-00099.tar" if name == "tar" else "train-00099.idx")
        stray.write_bytes(tars[0].read_bytes())
        return {stray.name}
    if what == "renamed":
        return {tars[0].name, tars[0].rename(copy / "train-00099.tar").name}
    if what == "exchanged":
        first, second = tars if name == "tars" else map(index_path, tars)
        contents = second.read_bytes(), first.read_bytes()
        first.write_bytes(contents[0])
        second.write_bytes(contents[1])
        return {first.name, second.name}
    path = tars[0] if "tar" in name else draw.choice(sorted(copy.glob(_FILES[name.removeprefix("of ")])))
    content = bytearray(path.read_bytes())
    if what == "missing":
        path.unlink()
    elif what == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif what == "longer":
        path.write_bytes(content + draw.randbytes(draw.choice((1, 512, 10_240))))
    else:
        start, end = (0, len(content)) if path.suffix != ".tar" else _span(path, name.rpartition(" ")[2], draw)
        content[draw.randrange(start, end)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    return {path.name}


def _span(tar: Path, region: str, draw: random.Random) -> tuple[int, int]:
    """Return where in a tar some part of this kind begins and ends."""
    index = read_index(tar)
    spans = []
    for offsets, sizes in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True):
        for member, offset, size in zip(index.members, offsets, sizes, strict=True):
            end = offset + size
            padded = end + -size % 512
            spans += [("header", offset - 512, offset), (member, offset, end), ("padding", end, padded)]
    spans.append(("end", spans[-1][2], tar.stat().st_size))
    return draw.choice([(start, end) for name, start, end in spans if name == region and end > start])
