"""What a packed set holds, on one HTML page: numbers, figures and a sheet of radiographs; no text of any report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrm_stream.packing.summary import TRAINED_TOKENS, SplitSummary, Summary, percentile, share_of
from mrm_stream.storage.paths import AnyPath
from mrm_stream.visual.contact_sheet import picture_of
from mrm_stream.visual.page import (
    ACCENT,
    FAINT,
    INK,
    SECOND,
    Markup,
    Section,
    axes_row,
    drawing,
    facts,
    gallery,
    page,
    paragraph,
    table,
    write_page,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NOTICE = (
    "This page shows patients' radiographs and figures about them. Treat it as you treat the data set itself: "
    "the same people may see it, and it goes nowhere the data may not go."
)
_MEMBERS = {
    "jpg": "images (jpg)",
    "tok": "tokens (tok)",
    "json": "ids, labels, sizes (json)",
    "txt.zst": "reports, compressed (txt.zst)",
    "mask.png": "masks (mask.png)",
}
_SHARES = {"least": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "most": 1.0}
_BARS = 40
_DRAWN_FINDINGS = 20


def write_set_page(summary: Summary, directory: AnyPath, out: Path) -> None:
    """Write the page of a set, readable by its owner only.

    Args:
        summary: Of the set.
        directory: Where the set lies, to be named on the page.
        out: The page; what lies there is replaced.

    Raises:
        StorageError: The page cannot be written.
    """
    whole = summary.whole
    above = [
        paragraph(f"A packed set of {summary.manifest.source} in {directory}", kind="lead"),
        paragraph(_NOTICE, kind="notice"),
        facts(
            [
                ("samples", f"{whole.samples:,}"),
                ("subjects", f"{len(whole.subjects):,}" if whole.subjects else "not known"),
                ("studies", f"{len(whole.studies):,}" if whole.studies else "not known"),
                ("shards", f"{whole.shards:,}"),
                ("size", _size(whole.bytes)),
                ("quarantined", f"{sum(summary.manifest.quarantined.values()):,}"),
            ]
        ),
    ]
    write_page(page(f"What the set holds: {summary.manifest.source}", above, list(_sections(summary))), out)


def _sections(summary: Summary) -> Iterator[Section]:
    if summary.shown:
        yield Section("Radiographs", _sheet(summary))
    yield Section("Splits", [_split_table(summary), *_shared_note(summary)])
    yield Section("Views", [_count_table(summary, "views", "view")])
    if summary.whole.lists:
        yield Section("Published lists", [_count_table(summary, "lists", "list")])
    if summary.whole.labels:
        labels = [Section(split, [_label_table(split, part)]) for split, part in summary.splits.items()]
        yield Section("Labels", [paragraph(_label_note(summary)), _label_drawing(summary)], labels)
    if summary.whole.tokens:
        yield Section("Reports", _report_parts(summary))
    yield Section("Images", _image_parts(summary))
    if summary.whole.masks:
        yield Section("Masks", _mask_parts(summary))
    if summary.whole.boxes:
        note = f"{summary.whole.boxed_samples:,} of {summary.whole.samples:,} samples have a box or more."
        yield Section("Boxes", [paragraph(note), _count_table(summary, "boxes", "finding", of="boxes")])
    yield Section("Bytes", [_byte_table(summary)])
    yield Section("Quarantine", [_quarantine(summary)])
    yield Section("How it was packed", [_recipe_table(summary)])


def _sheet(summary: Summary) -> list[Markup]:
    number = f"{len(summary.shown)} samples" if len(summary.shown) > 1 else "One sample"
    marks = " Masks and boxes are drawn in yellow." if summary.whole.masks or summary.whole.boxes else ""
    findings = " Findings are those labelled present." if summary.whole.labels else ""
    note = f"{number} of {summary.whole.samples:,}, drawn by lot.{findings}{marks}"
    return [paragraph(note), gallery([picture_of(sample) for sample in summary.shown])]


def _split_table(summary: Summary) -> Markup:
    parts = [*summary.splits.items(), *([("all", summary.whole)] if len(summary.splits) > 1 else [])]
    rows: list[Sequence[str | int]] = [
        (
            name,
            part.samples,
            _percent(part.samples, summary.whole.samples),
            len(part.subjects) or "not known",
            len(part.studies) or "not known",
            part.shards,
            _size(part.bytes),
        )
        for name, part in parts
    ]
    return table("Samples by split", ("split", "samples", "share", "subjects", "studies", "shards", "size"), rows)


def _shared_note(summary: Summary) -> list[Markup]:
    if not summary.whole.subjects or len(summary.splits) < 2:
        return []
    if not summary.shared_subjects:
        return [paragraph("No subject is in more than one split.")]
    shared = summary.shared_subjects
    subjects = f"{shared:,} subjects are" if shared > 1 else "One subject is"
    note = f"{subjects} in more than one split: a model tested on whom it was trained on looks better than it is."
    return [paragraph(note, kind="notice")]


def _count_table(summary: Summary, field: str, name: str, of: str = "samples") -> Markup:
    """Return how often each name of one of the counters occurs, by split."""
    counts: dict[str, Counter[str]] = {split: getattr(part, field) for split, part in summary.splits.items()}
    whole: Counter[str] = getattr(summary.whole, field)
    total = whole.total() if of == "boxes" else summary.whole.samples
    rows: list[Sequence[str | int]] = [
        (key, *(counts[split][key] for split in counts), number, _percent(number, total))
        for key, number in _ranked(whole)
    ]
    return table(f"{of.capitalize()} by {name}", (name, *counts, "all", "share"), rows)


def _label_note(summary: Summary) -> str:
    number = f"{len(summary.whole.labels)} findings" if len(summary.whole.labels) > 1 else "One finding"
    policy = summary.manifest.options.uncertain
    kept = "uncertain labels are kept as they are" if policy == "keep" else f"policy for uncertain labels: {policy}"
    return f"{number}; {kept}. A sample that says nothing of a finding has no label for it."


def _label_table(split: str, part: SplitSummary) -> Markup:
    rows = [
        (
            finding,
            counts[1],
            _percent(counts[1], part.samples),
            counts[0],
            counts[-1],
            part.not_mentioned(finding),
        )
        for finding, counts in _by_presence(part.labels)
    ]
    columns = ("finding", "present", "share", "absent", "uncertain", "not mentioned")
    return table(f"Labels in {split}, {part.samples:,} samples", columns, rows)


def _label_drawing(summary: Summary) -> Markup:
    findings = [finding for finding, _ in _by_presence(summary.whole.labels)][:_DRAWN_FINDINGS]
    figure, axes = axes_row(len(summary.splits), 0.9 + 0.25 * len(findings), share_y=True)
    for axis, (split, part) in zip(axes, summary.splits.items(), strict=True):
        left = np.zeros(len(findings))
        for label, colour, name in ((1, ACCENT, "present"), (-1, SECOND, "uncertain"), (0, FAINT, "absent")):
            counts = [part.labels.get(finding, Counter())[label] for finding in findings]
            widths = 100 * np.array(counts) / part.samples
            axis.barh(findings, widths, left=left, color=colour, height=0.7, label=name, clip_on=False)
            left += widths
        axis.set_xlim(0, 100)
        axis.set_title(split)
        axis.set_xlabel("% of samples")
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, labelcolor=INK
    )
    most = ", ".join(findings[:3])
    alt = (
        f"Bars: share of samples with each finding present, uncertain and absent, by split. Most often present: {most}."
    )
    others = len(summary.whole.labels) - len(findings)
    caption = f"The {len(findings)} findings most often present; the tables have {others} more." if others else ""
    return drawing(figure, "labels", alt, caption)


def _report_parts(summary: Summary) -> list[Markup]:
    tokens = summary.whole.tokens
    longer = share_of(tokens, lambda length: length > TRAINED_TOKENS)
    note = (
        f"{longer:.1%} of the reports have more than {TRAINED_TOKENS} tokens. Unless told otherwise, training takes "
        f"the first {TRAINED_TOKENS}, after [CLS], and cuts the rest."
    )
    figure, (axis,) = axes_row(1, 2.7)
    _bars(axis, tokens, split_at=TRAINED_TOKENS)
    axis.set_xlabel("tokens of a report")
    axis.axvline(TRAINED_TOKENS + 0.5, color=INK, lw=0.8, ls="--")
    alt = (
        f"Histogram of report lengths: half have up to {percentile(tokens, 0.5)} tokens, "
        f"95% up to {percentile(tokens, 0.95)}; {longer:.1%} lie beyond the line at {TRAINED_TOKENS}."
    )
    rows: list[Sequence[str | int]] = [
        (name, *_percentiles(part.tokens), f"{share_of(part.tokens, lambda length: length > TRAINED_TOKENS):.1%}")
        for name, part in summary.splits.items()
    ]
    columns = ("split", *_SHARES, f"longer than {TRAINED_TOKENS}")
    return [paragraph(note), drawing(figure, "tokens", alt), table("Tokens of a report", columns, rows)]


def _image_parts(summary: Summary) -> list[Markup]:
    whole, short_side = summary.whole, summary.manifest.options.short_side
    smaller = share_of(whole.original_short, lambda side: side < short_side)
    note = (
        f"{smaller:.1%} of the images are smaller than the short side of {short_side:,} pixels that the set was packed "
        "with, and kept their size."
        if smaller
        else f"The set was packed with a short side of {short_side:,} pixels; no image was smaller."
    )
    figure, axes = axes_row(2, 2.7)
    for axis, counts, name in zip(
        axes, (whole.original_short, whole.packed_short), ("as found", "packed"), strict=True
    ):
        _bars(axis, counts)
        axis.set_title(name)
        axis.set_xlabel("short side in pixels")
    alt = (
        f"Histograms of the short side: in the middle {percentile(whole.original_short, 0.5):,} pixels as found, "
        f"{percentile(whole.packed_short, 0.5):,} packed."
    )
    rows: list[Sequence[str | int]] = [
        (name, *_percentiles(counts))
        for name, counts in (
            ("short side as found", whole.original_short),
            ("short side packed", whole.packed_short),
            ("long side as found", whole.original_long),
            ("long side packed", whole.packed_long),
        )
    ]
    return [paragraph(note), drawing(figure, "sizes", alt), table("Sides in pixels", ("side", *_SHARES), rows)]


def _mask_parts(summary: Summary) -> list[Markup]:
    whole = summary.whole
    rows: list[Sequence[str | int]] = [
        (name, part.masks, part.empty_masks, _percent(part.empty_masks, part.masks), *_coverage(part.mask_permille))
        for name, part in summary.splits.items()
    ]
    columns = ("split", "masks", "empty", "share", "median", "95%", "most")
    parts = [table("Masks, and the share of the image that those which are not empty cover", columns, rows)]
    if whole.mask_permille:
        figure, (axis,) = axes_row(1, 2.7)
        _bars(axis, whole.mask_permille, unit=10)
        axis.set_xlabel("% of the image that a mask covers")
        half = f"{percentile(whole.mask_permille, 0.5) / 10:.1f}%"
        alt = f"Histogram of the masks' areas: half cover up to {half} of the image."
        parts.append(drawing(figure, "masks", alt, "Empty masks are not counted."))
    return parts


def _coverage(permille: Mapping[int, int]) -> list[str]:
    return [f"{percentile(permille, share) / 10:.1f}%" if permille else "" for share in (0.5, 0.95, 1)]


def _byte_table(summary: Summary) -> Markup:
    whole = summary.whole
    members = dict(whole.member_bytes)
    rows = [
        (_MEMBERS.get(member, member), _size(size), _percent(size, whole.bytes), _size(size / whole.samples))
        for member, size in (*members.items(), ("tar headers and padding", whole.bytes - sum(members.values())))
    ]
    return table("What takes the space", ("part", "size", "share", "a sample"), rows)


def _quarantine(summary: Summary) -> Markup:
    quarantined = summary.manifest.quarantined
    if not quarantined:
        return paragraph("Nothing: every record was packed.")
    rows = _ranked(quarantined)
    return table("Records skipped, by reason; quarantine.jsonl names each", ("reason", "records"), rows)


def _recipe_table(summary: Summary) -> Markup:
    manifest = summary.manifest
    rows = [("source", manifest.source), ("splits from", "list files" if manifest.by_lists else "the source")]
    for name, value in dataclasses.asdict(manifest.options).items():
        shown = ", ".join(value) or "all" if isinstance(value, tuple) else str(value)
        rows.append((name.replace("_", " "), shown))
    if manifest.reports is not None:
        rows.append(("tokenizer", f"{manifest.reports.made}; {manifest.reports.vocabulary:,} entries"))
        rows.append(("tokens kept of a report", str(manifest.reports.length or "all")))
    rows += [("members of a sample", ", ".join(manifest.members)), ("fingerprint", manifest.fingerprint[:16])]
    return table("Source, options and files", ("what", "value"), rows)


def _bars(axis: Axes, counts: Mapping[int, int], *, split_at: int | None = None, unit: int = 1) -> None:
    """Draw a histogram of whole numbers, divided by `unit`; bars beyond `split_at` in another colour."""
    least, most = min(counts), max(counts)
    width = next(width for width in _widths() if (most - least) // width < _BARS)
    heights: Counter[int] = Counter()
    # No bar covers both sides of the border.
    start = 0 if split_at is None else (split_at + 1) % width
    for number, count in counts.items():
        heights[(number - start) // width] += count
    colours = [SECOND if split_at is not None and number * width + start > split_at else ACCENT for number in heights]
    middles = [(number * width + start + (width - 1) / 2) / unit for number in heights]
    axis.bar(middles, list(heights.values()), width=0.9 * width / unit, color=colours, clip_on=False)
    if len(heights) == 1:
        axis.set_xlim(middles[0] - 20 * width / unit, middles[0] + 20 * width / unit)
    axis.set_ylabel("samples")


def _widths() -> Iterator[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def _percentiles(counts: Mapping[int, int]) -> list[int]:
    return [percentile(counts, share) for share in _SHARES.values()]


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return names and numbers, the largest first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _by_presence(labels: Mapping[str, Counter[int]]) -> list[tuple[str, Counter[int]]]:
    return sorted(labels.items(), key=lambda item: (-item[1][1], item[0]))


def _percent(part: int, of: int) -> str:
    return f"{part / of:.1%}" if of else ""


def _size(size: float) -> str:
    """Return bytes in the unit in which they are short to write.

    Example:
        >>> _size(250), _size(1_234_567)
        ('250 B', '1.2 MB')
    """
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:,.0f} B"
