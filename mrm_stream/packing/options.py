"""What a packed set is like: together with the records, these decide every byte. The manifest repeats them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mrm_stream.errors import ConfigError
from mrm_stream.packing.images.checks import BITS, Blank
from mrm_stream.packing.images.rendering import Rendering
from mrm_stream.packing.labels import Policy
from mrm_stream.packing.sections import check_sections
from mrm_stream.packing.tokenizer import VOCABULARY_LIMIT

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
    """frontal: views that begin with AP, PA or frontal; a record whose view is not known is left out."""
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
