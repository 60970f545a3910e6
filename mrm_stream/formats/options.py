"""What a packed set is like: together with the records, these decide every byte. The manifest repeats them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mrm_stream.errors import ConfigError
from mrm_stream.text.sections import check_sections
from mrm_stream.text.tokenizer import VOCABULARY_LIMIT

Rendering = Literal["window", "equalized"]
"""How a DICOM becomes 8-bit grey; MONOCHROME1 is inverted either way.

window: as its maker meant it to be seen (DICOM PS3.3, C.11): modality LUT or rescaling, then the first VOI LUT or else
the first window. Where the file has neither, or a window that is none (narrower than 1), the least value becomes black
and the greatest white.

equalized: as the images of MIMIC-CXR-JPG were made: least to greatest stored value over 0 to 255, fractions dropped,
then the histogram equalized. It is OpenCV's `equalizeHist`, in integers: levels differ from its floats by 1 at most.
(What is inverted is so first of all, not after fractions are dropped: a picture and its negative come out the same.)

Padding is no part of the picture: it is neither the least nor the greatest value, is not counted, and becomes black.
"""
BITS = range(8, 17)
"""That the values in a PNG of 16 bits may have."""
Blank = Literal["quarantine", "keep"]
"""What becomes of images with nothing on them; see `check_not_blank`."""
Policy = Literal["keep", "ignore", "zero", "one", "mixed"]
"""keep: stay -1. ignore: dropped, as if not mentioned. zero: absent. one: present. mixed: by the finding."""
Views = Literal["all", "frontal"]


@dataclass(frozen=True)
class PackOptions:
    """What was chosen."""

    short_side: int = 1024
    """Height or width of the packed images, whichever is less, in pixels; smaller ones keep their size."""
    jpeg_quality: int = 95
    rendering: Rendering = "window"
    """How a DICOM becomes 8 bits: by its own window, or equalized, as MIMIC-CXR-JPG was made."""
    bits: int | None = None
    """Of the values in 16-bit PNGs; None: the fewest that hold each picture, all but one pixel in a thousand of it."""
    blank: Blank = "quarantine"
    """What becomes of images with nothing on them: all pixels but one in a thousand within 20 of 256 grey levels."""
    samples_per_shard: int = 512
    """At most; the shards of a split differ by one record."""
    seed: int = 0
    """Of the order in which records are dealt out to shards."""
    vocabulary: int = 30_000
    """Entries of the tokenizer that is trained, at most."""
    sections: tuple[str, ...] = ()
    """Of a report, in the order in which they become tokens; none: the whole report. Its text is kept whole."""
    views: Views = "all"
    """frontal: views that begin with AP, PA or frontal; a record whose view is not known is skipped."""
    uncertain: Policy = "keep"
    """What becomes of labels that say uncertain (-1)."""

    def __post_init__(self) -> None:
        """Check each range."""
        for name, low, high in (
            ("short_side", 16, 1 << 14),
            ("jpeg_quality", 1, 100),
            ("bits", BITS[0], BITS[-1]),
            ("samples_per_shard", 1, 1 << 20),
            ("seed", 0, 2**63 - 1),
            ("vocabulary", 1, VOCABULARY_LIMIT),
        ):
            value = getattr(self, name)
            if name == "bits" and value is None:
                continue
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"must be between {low} and {high}", where=name, remedy="Give a whole number.")
        for name, choices in (("rendering", Rendering), ("blank", Blank), ("views", Views), ("uncertain", Policy)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"must be one of {', '.join(get_args(choices))}", where=name)
        if self.sections:
            object.__setattr__(self, "sections", check_sections(self.sections))
