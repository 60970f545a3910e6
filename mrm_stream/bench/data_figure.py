"""Shows what `bench data` measured: a table for the terminal, or as plain text, and a plot with a panel a stage."""

from __future__ import annotations

import io
from statistics import median

from mrm_stream.bench.data_result import (
    ENCODED,
    FLOORS,
    LEAST_ENCODED,
    MOST_BYTES,
    MOST_SECONDS,
    OURS,
    RESUME,
    STAGES,
    TITLES,
    DataBench,
)
from mrm_stream.bench.tables import as_text, new_table

_COLOURS = {OURS: "#1f5f8b", "ours, DALI": "#7ba6c4", "ours, unverified": "#7ba6c4", "libjpeg-turbo": "#e0d8c8"}
_OTHER = "#b8c4cc"


def data_table(result: DataBench, *, terminal: bool) -> str:
    """Return the tables as text, then what was skipped.

    `CPU ms` is a sample's, of all processes; `ours/it` the ratio of samples/s, and `by CPU` that of the processor's
    time, which other work on the machine disturbs less; `memory` the largest process's.

    Args:
        result: What was measured.
        terminal: With lines and colours, as wide as the terminal; else plain ASCII.
    """
    stages = [_stage_table(result, stage, terminal=terminal) for stage in STAGES if stage != RESUME]
    return "\n".join([describe(result), *stages, _resume_table(result, terminal=terminal), *result.notes])


def _stage_table(result: DataBench, stage: str, *, terminal: bool) -> str:
    table = new_table(TITLES[stage], terminal=terminal)
    table.add_column("contender", no_wrap=True)
    for column in ("samples/s", "min-max", "ours/it", "by CPU", "floor", "CPU ms", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in result.contenders(stage):
        runs = result.runs(stage, name)
        rates = [run.rate for run in runs]
        floor = FLOORS[stage].get(name)
        least = f"{LEAST_ENCODED:,}/s" if stage == ENCODED else ""
        table.add_row(
            name,
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f}-{max(rates):,.0f}",
            "" if name == OURS else f"{median(result.ratios(stage, name)):.2f}",
            "" if name == OURS else f"{result.cpu_ratio(stage, name):.2f}",
            least if name == OURS else "" if floor is None else f"{floor:.2f}",
            f"{median(run.cpu_ms for run in runs):.3f}",
            _megabytes(result.peak_bytes(stage, name)),
            style="bold" if name == OURS else None,
        )
    return as_text(table, terminal=terminal)


def _resume_table(result: DataBench, *, terminal: bool) -> str:
    title = f"{TITLES[RESUME]} in the middle of an epoch of {result.options.resumed:,} samples"
    table = new_table(title, terminal=terminal)
    table.add_column("contender", no_wrap=True)
    for column in ("seconds", "min-max", "at most", "memory", "at most", "torch before: s", "memory"):
        table.add_column(column, justify="right")
    for name in result.contenders(RESUME):
        runs = result.runs(RESUME, name)
        seconds = [run.seconds for run in runs]
        table.add_row(
            name,
            f"{median(seconds):.2f}",
            f"{min(seconds):.2f}-{max(seconds):.2f}",
            f"{MOST_SECONDS:.0f}" if name == OURS else "",
            _megabytes(result.peak_bytes(RESUME, name)),
            _megabytes(MOST_BYTES) if name == OURS else "",
            f"{median(run.import_seconds for run in runs):.2f}",
            _megabytes(max(run.import_bytes or 0 for run in runs)),
            style="bold" if name == OURS else None,
        )
    return as_text(table, terminal=terminal)


def describe(result: DataBench) -> str:
    """Return in one line what was measured, and on what."""
    options = result.options
    sizes = " and ".join(f"{size / 1000:.0f} kB" for size in result.mean_bytes.values())
    rounds = f"{options.rounds} round{'s' if options.rounds > 1 else ''}"
    return (
        f"Data: {options.count} radiographs, {sizes} a sample; {options.threads} threads or workers, "
        f"{rounds}; {result.machine['cpu']}"
    )


def draw_data_bench(result: DataBench) -> bytes:
    """Return a PNG, a panel a stage: a bar for each contender's median, a line from the least to the most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.6), dpi=130, layout="constrained")
    for axis, stage in zip(figure.subplots(2, 2).flat, STAGES, strict=True):
        names = result.contenders(stage)
        most = 0.0
        for row, name in enumerate(names):
            values = [run.seconds if stage == RESUME else run.rate for run in result.runs(stage, name)]
            middle, most = median(values), max(most, *values)
            axis.barh(row, middle, height=0.62, color=_COLOURS.get(name, _OTHER))
            axis.hlines(row, min(values), max(values), color="#333333", lw=1.2)
            axis.text(max(values), row, f"  {_label(result, stage, name, middle)}", va="center", fontsize=8)
        labels = [f"{name}\n(decodes only)" if name == "libjpeg-turbo" else name for name in names]
        axis.set_yticks(range(len(names)), labels, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.55 * most)
        axis.set_xlabel("seconds" if stage == RESUME else "samples/s", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(TITLES[stage], fontsize=9, loc="left")
    figure.suptitle(describe(result), fontsize=7.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _label(result: DataBench, stage: str, name: str, middle: float) -> str:
    if stage == RESUME:
        return f"{middle:.2f} s, {_megabytes(result.peak_bytes(stage, name))}"
    text = f"{middle:,.0f}"
    return text if name == OURS else f"{text}   (ours: {median(result.ratios(stage, name)):.2f} x)"


def _megabytes(size: int | None) -> str:
    return f"{size / 1e6:.0f} MB" if size else ""
