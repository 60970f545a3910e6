"""What a packed set holds, in lines for a terminal; no text of any report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mrm_stream.formats.manifest import tell_bits, tell_padded
from mrm_stream.packing.summary import TRAINED_TOKENS, SplitSummary, Summary, percentile, share_of


def summary_lines(summary: Summary) -> list[str]:
    """Return the most important numbers, a line each, for a terminal."""
    return list(_lines(summary))


def _lines(summary: Summary) -> Iterator[str]:
    whole, options = summary.whole, summary.manifest.options
    yield (
        f"{summary.manifest.source}: {_many(whole.samples, 'sample')}{_whose(whole)}; "
        f"{whole.bytes / 1e6:,.1f} MB in {_many(whole.shards, 'shard')}"
    )
    for split, part in summary.splits.items():
        yield (f"  {split}: {_many(part.samples, 'sample')}{_whose(part)}; {_many(part.shards, 'shard')}")
    if summary.shared_subjects:
        yield f"  in more than one split: {_many(summary.shared_subjects, 'subject')}"
    yield "views: " + ", ".join(f"{view} {count:,}" for view, count in whole.views.most_common(8))
    smaller = share_of(whole.original_short, lambda side: side < options.short_side)
    yield (
        f"images: short side {_range(whole.original_short)} pixels as found, {_range(whole.packed_short)} packed; "
        f"{smaller:.1%} were smaller than {options.short_side:,}"
    )
    if summary.manifest.assumed_bits:
        yield f"16-bit PNGs: {tell_bits(summary.manifest.assumed_bits)}"
    if summary.manifest.padded:
        yield tell_padded(summary.manifest.padded)
    if whole.tokens:
        longer = share_of(whole.tokens, lambda length: length > TRAINED_TOKENS)
        yield (
            f"reports: {percentile(whole.tokens, 0.5)} tokens in the middle, {max(whole.tokens)} at most; "
            f"{longer:.1%} have more than the {TRAINED_TOKENS} that training takes by default"
        )
    for finding, counts in sorted(whole.labels.items(), key=lambda item: (-item[1][1], item[0])):
        yield (
            f"  {finding}: {counts[1]:,} present, {counts[0]:,} absent, {counts[-1]:,} uncertain, "
            f"{whole.not_mentioned(finding):,} not mentioned"
        )
    if whole.masks:
        yield f"masks: {whole.masks:,}, {whole.empty_masks:,} of them empty"
    if summary.manifest.masks is not None:
        yield f"masks: {summary.manifest.masks}"
    if whole.boxes:
        yield f"boxes: {whole.boxes.total():,} on {_many(whole.boxed_samples, 'sample')}"
    for reason, count in sorted(summary.manifest.quarantined.items(), key=lambda item: (-item[1], item[0])):
        yield f"quarantined: {count:,} for {reason}"


def _whose(part: SplitSummary) -> str:
    """Return whose samples these are, as far as that is known."""
    known = [(len(part.subjects), "subject", "subjects"), (len(part.studies), "study", "studies")]
    named = ", ".join(_many(*names) for names in known if names[0])
    return f" of {named}" if named else ""


def _range(counts: Mapping[int, int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _many(count: int, one: str, more: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"
