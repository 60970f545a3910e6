"""Files that are no checkpoint, or nearly one: what a download, a disk or a mistaken name can put in its place."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

Table = dict[str, Tensor]
Made = tuple[str, bytes]
"""Suffix and content of a file."""


def saved(content: Any, *, legacy: bool = False) -> bytes:
    """Return a file of torch.save."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def whole_files(reference: Table, encoder: Table) -> list[Made]:
    """Return one good file of each kind that is accepted: the reference's, MAE's and timm's, in each format."""
    mae = {"model": encoder, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "epoch": 3}
    return [
        (".pth", saved({"model": reference})),
        (".pt", saved({"model": reference}, legacy=True)),
        (".safetensors", safetensors.torch.save(reference)),
        (".pth", saved({**mae, "args": argparse.Namespace(lr=1e-3, data="data")})),
        (".pth", saved(mae, legacy=True)),
        (".pth", saved(OrderedDict(encoder))),
        (".safetensors", safetensors.torch.save(encoder, {"format": "pt"})),
    ]


def flipped(draw: random.Random, content: bytes) -> bytes:
    """Change some bytes; most of them where the structure is, at both ends."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16, 256))):
        near = min(len(changed), draw.choice((16, 200, 4_000, len(changed))))
        place = draw.randrange(near) if draw.random() < 0.6 else len(changed) - 1 - draw.randrange(near)
        changed[place] = draw.choice(
            (0, 0x7F, 0x80, 0xFF, draw.randrange(256), changed[place] ^ 1 << draw.randrange(8))
        )
    return bytes(changed)


def cut(draw: random.Random, content: bytes) -> bytes:
    """Cut a piece off or out, put one in, or lay a block of zeros over it, as an interrupted download does."""
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.choice((1, 8, 64, 4_096, len(content))))
    return draw.choice(
        (
            content[:start],
            content[start:],
            content[:start] + content[end:],
            content[:end] + content[start:],
            content[:start] + bytes(end - start) + content[end:],
            content + draw.randbytes(100),
        )
    )


def spliced(draw: random.Random, one: bytes, other: bytes) -> bytes:
    """Begin as one file and go on as another."""
    return one[: draw.randrange(len(one))] + other[draw.randrange(len(other)) :]


def rezipped(draw: random.Random, content: bytes) -> bytes:
    """Swap, rename, drop, compress or double the members of a zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(draw.randint(1, 3)):
        one, other = draw.randrange(len(members)), draw.randrange(len(members))
        (name, data), (second, more) = members[one], members[other]
        members[one] = draw.choice(
            (
                (name, more),
                (second, data),
                (name, b""),
                (name, data[: len(data) // 2]),
                (name, data * 2),
                (name, flipped(draw, data or b"0")),
                ("../" + name, data),
                (draw.choice((".format_version", "archive/byteorder", "archive/.storage_alignment", "x")), b"big"),
                (name, bytes(1 << 20)),
            )
        )
    buffer = io.BytesIO()
    method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def reheaded(draw: random.Random, content: bytes) -> bytes:
    """Tell other types, shapes and places in the header of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = draw.choice(sorted(header))
    told = header[name]
    field = draw.choice(sorted(told))
    told[field] = draw.choice(
        (None, [], [1 << 62, 4], [-1], [0, 1 << 63], "F4", "BF16", "C64", "BOOL", {"a": 1}, 1.5, [[1]], "", [0, 0])
    )
    text = json.dumps(header).encode()
    told_length = draw.choice((len(text), len(text) + 8, 0, 1 << 31, 1 << 63))
    return told_length.to_bytes(8, "little") + text + content[8 + length :]


def wrong_tables(table: Table) -> list[Callable[[random.Random], Any]]:
    """Return what makes a table that torch.save takes, with something wrong at one of its names."""
    names = sorted(table)

    def at(draw: random.Random, value: Callable[[Tensor], Any]) -> Any:
        name = draw.choice(names)
        content = {**table, name: value(table[name])}
        return draw.choice((content, {"model": content}))

    values: list[Callable[[Tensor], Any]] = [
        lambda value: value.tolist(),
        lambda value: {"weight": value},
        lambda value: value.numpy().tobytes(),
        lambda _: None,
        lambda _: 3,
        lambda _: torch.tensor(1.0),
        lambda value: value.flatten(),
        lambda value: value[None],
        lambda value: value.to(torch.int64),
        lambda value: value > 0,
        lambda value: value.to(torch.complex64),
        lambda value: value.to(torch.float8_e4m3fn),
        lambda value: value.double() * 1e300,
        lambda value: value * torch.nan,
        lambda value: value.to_sparse(),
        lambda value: value.to("meta"),
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        lambda value: torch.zeros(1).expand(1 << 40, *value.shape),
        lambda value: torch.empty(1 << 45, device="meta"),
        lambda _: torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (1 << 50,)),
        lambda value: torch.nn.Parameter(value),
        lambda value: value.to(torch.float16),
        lambda _: torch.zeros(0),
    ]
    changes: list[Callable[[random.Random], Any]] = [
        lambda draw, value=value: at(draw, value)  # type: ignore[misc]
        for value in values
    ]
    return [
        *changes,
        lambda draw: {**table, draw.choice((7, b"a", None, (1, 2), "\x1b[31m" * 3, "x" * 100_000)): torch.zeros(2)},
        lambda draw: {name: value for name, value in table.items() if draw.random() < 0.9},
        lambda draw: {"model": draw.choice((None, [], list(table.values()), {}, {"model": table}, table["cls_token"]))},
        lambda _: {1: table["cls_token"]},
        lambda draw: draw.choice(([], {}, "text", 7, None, [table], table["cls_token"], {"epoch": 3}, set(), 1.5)),
    ]


def foreign(draw: random.Random) -> bytes:
    """Return a file of another kind, with a tensor in it or not."""
    array = np.arange(12.0).reshape(3, 4)
    buffer = io.BytesIO()
    kind = draw.randrange(14)
    if kind == 0:
        np.savez(buffer, cls_token=array)
    elif kind == 1:
        np.save(buffer, array)
    elif kind == 2:
        Image.fromarray(array.astype(np.uint8)).save(buffer, "PNG")
    elif kind == 3:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in ("storages", "tensors", "pickle")[: draw.randint(1, 3)]:
                archive.addfile(tarfile.TarInfo(name))
    elif kind == 4:
        with zipfile.ZipFile(buffer, "w") as packed:
            packed.writestr(draw.choice(("data.pkl", "archive/data.pkl", "constants.pkl", "a")), draw.randbytes(64))
    elif kind == 5:
        return _bomb()
    elif kind == 6:
        return pickle.dumps(
            draw.choice((array.tolist(), {"model": {"a": 1}}, b"x", {"cls_token": array})), draw.randrange(6)
        )
    elif kind == 7:
        return json.dumps({"model": {"cls_token": [1, 2]}}).encode()
    elif kind == 8:
        return gzip.compress(draw.randbytes(100))
    elif kind == 9:
        return draw.randbytes(draw.choice((0, 1, 7, 8, 9, 64, 5_000)))
    elif kind == 10:
        return struct.pack("<Q", draw.choice((0, 1, 1 << 40, (1 << 64) - 1))) + b"{" * draw.randrange(2_000)
    elif kind == 11:  # A pickle that announces 4 GB of text, or nests without end.
        return draw.choice(
            (b"\x80\x02X\xff\xff\xff\xff" + b"a" * 99, b"\x80\x02" + b"(" * 99_999, b"\x80\x02" + b"]" * 99)
        )
    elif kind == 12:
        return b"<!DOCTYPE html><html><body>404: not found</body></html>"
    else:  # The beginnings of torch's own older formats.
        magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        rest = [1001, {"little_endian": True}, {"model": {"a": [1] * draw.randrange(9)}}, draw.choice(([], ["0"], 7))]
        return magic + b"".join(pickle.dumps(part, 2) for part in rest[: draw.randint(1, 4)]) + draw.randbytes(9)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    """Return a zip that unpacks to a thousand times its size."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", bytes(1 << 28))
        packed.writestr("archive/version", "3")
    return buffer.getvalue()


class Junk:
    """Draws one file after another, the same ones for the same seed."""

    def __init__(self, reference: Table, encoder: Table, seed: int) -> None:
        self._draw = random.Random(seed)
        self._whole = whole_files(reference, encoder)
        self._wrong = [*wrong_tables(reference), *wrong_tables(encoder)]
        self._tables = reference, encoder

    def next(self) -> Made:
        """Return a file."""
        draw = self._draw
        suffix, content = draw.choice(self._whole)
        kind = draw.randrange(8)
        if kind < 2:
            content = flipped(draw, content)
        elif kind == 2:
            content = cut(draw, content)
        elif kind == 3:
            content = spliced(draw, content, draw.choice(self._whole)[1])
        elif kind == 4:
            content = reheaded(draw, content) if suffix == ".safetensors" else self._rezipped(content)
        elif kind == 5:
            suffix, content = draw.choice((".pth", ".pt", ".safetensors", "")), foreign(draw)
        elif kind == 6:
            suffix, content = ".pth", saved(draw.choice(self._wrong)(draw), legacy=draw.random() < 0.3)
        else:  # A good file under the name of another kind.
            suffix = draw.choice((".pth", ".safetensors", ".npz", ""))
        return suffix, content

    def _rezipped(self, content: bytes) -> bytes:
        if not zipfile.is_zipfile(io.BytesIO(content)):
            content = self._whole[0][1]
        return rezipped(self._draw, content)
