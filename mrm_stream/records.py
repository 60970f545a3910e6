"""The nouns that the parts hand to each other, and the legend of shapes.

A *record* is one radiograph and its report, as a source lists it. A *sample* is a packed record, as a shard holds it.
A *batch* is what the model takes.

Shape suffixes, in every name of the project:

    B  samples in a batch          N  patches of one image (196)      V  visible patches (49); vocabulary
    C  channels (1 grey, 3 model)  H, W  height and width in pixels   L  report length in tokens (100)
    D  width of a token            P  values in a patch (16*16*3 or 32*32*3)
    K  patches to be decoded       M  masked patches or tokens        1, 2  a dimension of that size
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SPLITS = ("train", "validate", "test")
REPORT_LIMIT = 1 << 20
"""Bytes in a report, at most."""


class Box(NamedTuple):
    """A rectangle around a finding, in pixels of the image that it was drawn on."""

    finding: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Record:
    """One radiograph and its report, as listed by a source; the files themselves are not read yet."""

    key: str
    """Unique in the set; ASCII letters, digits, `-` and `_` only, at most 80 characters: it names members of a tar."""
    image_path: str
    """POSIX path below the source's root."""
    report_path: str | None = None
    """POSIX path below the root; `reports.zip::member` names a member of a zip."""
    report_text: str | None = field(default=None, repr=False)
    """The report itself, where the listing already holds it (a CSV); used instead of `report_path`."""
    subject: str = ""
    study: str = ""
    view: str = ""
    """As the data set writes it (PA, AP, LATERAL, ...); empty where it is not known."""
    split: str = "train"
    """One of `SPLITS`."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Finding to 1 (present), 0 (absent) or -1 (uncertain); findings that were not mentioned have no entry."""
    boxes: tuple[Box, ...] = ()
    """Where findings are, as readers drew them."""
    mask_path: str | None = None
    """POSIX path below the root of an image as large as the radiograph (or `annotated_size`); what is not 0 belongs to
    the finding."""
    mask_runs: str | None = None
    """The mask itself, instead of `mask_path`: pairs of first pixel and length, numbered from 1, down the columns,
    left to right, of the image that it was drawn on (Kaggle's run-length encoding); empty where there is no finding."""
    annotated_size: tuple[int, int] | None = None
    """(height, width) in pixels of the image that boxes and mask were drawn on, where the data set tells it: they are
    scaled where the image at hand is another copy. None: they were drawn on the image at hand."""
    lists: tuple[str, ...] = ()
    """Published lists that the record is on, such as `train_10` for a tenth of the training split."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One packed record: still encoded, and a view of the shard where it can be."""

    index: int
    """Position in the shard set's split, 0-based; with seed and epoch it keys the sample's random draws."""
    key: str
    jpeg: bytes | memoryview = field(repr=False)
    """8-bit grey baseline JPEG."""
    token_ids: np.ndarray | None = field(default=None, repr=False)
    """The whole report as uint16, without special tokens, shape (tokens,); None in a set without reports."""
    labels: Mapping[str, int] | None = None
    """Finding to 1 (present), 0 (absent) or -1 (uncertain); None where they were not asked for: reading them costs."""
    mask: bytes | memoryview | None = field(default=None, repr=False)
    """A grey PNG as large as the JPEG, 255 within the finding and 0 without; None where it was not asked for."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model takes, on one device."""

    image_hr_BCHW: Tensor
    """Normalised crop at the resolution that the image decoder reconstructs, one channel, float, (B, 1, 448, 448)."""
    image_lr_BCHW: Tensor
    """The same field at the encoder's resolution, (B, 1, 224, 224)."""
    patch_noise_BN: Tensor
    """Uniform noise; the patches with the least of it stay visible."""
    token_ids_BL: Tensor
    """int64; [CLS] first, cut or padded to L."""
    token_is_masked_BL: Tensor
    """bool; these tokens are replaced by [MASK] at the report decoder's input."""
