"""Shows what `bench pack` measured: a table for the terminal, or as plain text, and a bar plot."""

from __future__ import annotations

import io
from statistics import median

from mrm_stream.bench.pack_result import FLOORS, PackBench
from mrm_stream.bench.peers import CONTENDERS, OURS
from mrm_stream.bench.tables import as_text, new_table

_COLOURS = {OURS: "#1f5f8b"}
_OTHER = "#b8c4cc"
_BOUND = "#e0d8c8"


def pack_table(result: PackBench, *, terminal: bool) -> str:
    """Return the table as text: `CPU ms` is a record's, of all processes; `memory` the largest process's.

    Args:
        result: What was measured.
        terminal: With lines and colours, as wide as the terminal; else plain ASCII.
    """
    table = new_table(describe(result), terminal=terminal)
    table.add_column("contender", no_wrap=True)
    for column in ("records/s", "min-max", "ours/it", "floor", "CPU ms", "memory"):
        table.add_column(column, justify="right")
    for name in CONTENDERS:
        rates = result.rates(name)
        peak = result.peak_bytes(name)
        table.add_row(
            name,
            f"{median(rates):.1f}",
            f"{min(rates):.1f}-{max(rates):.1f}",
            "" if name == OURS else f"{median(result.ratios(name)):.2f}",
            f"{FLOORS[name]:.2f}" if name in FLOORS else "",
            f"{result.cpu_ms(name):.0f}",
            f"{peak / 1e6:.0f} MB" if peak else "",
            style="bold" if name == OURS else None,
        )
    return as_text(table, terminal=terminal)


def describe(result: PackBench) -> str:
    """Return in one line what was measured, and on what."""
    options = result.options
    images = f"{options.count} images, {options.width:,} pixels wide, {result.mean_image_bytes / 1e6:.2f} MB on average"
    processes = f"{options.workers} process{'es' if options.workers > 1 else ''}"
    rounds = f"{options.rounds} round{'s' if options.rounds > 1 else ''}"
    return f"Packing: {images}; {processes}, {rounds}; {result.machine['cpu']}"


def draw_pack_bench(result: PackBench) -> bytes:
    """Return a PNG: a bar for each contender's median, a line from the least to the most, values beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.4), dpi=130, layout="constrained")
    axis = figure.subplots()
    most = max(max(result.rates(name)) for name in CONTENDERS)
    for row, name in enumerate(CONTENDERS):
        rates = result.rates(name)
        middle = median(rates)
        colour = _COLOURS.get(name, _OTHER if name.endswith("webdataset") else _BOUND)
        axis.barh(row, middle, height=0.62, color=colour)
        axis.hlines(row, min(rates), max(rates), color="#333333", lw=1.2)
        text = f"{middle:.1f}" if name == OURS else f"{middle:.1f}   (ours: {median(result.ratios(name)):.2f} x)"
        axis.text(max(rates) + 0.015 * most, row, text, va="center", fontsize=9)
    names = [name if name == OURS or name.endswith("webdataset") else f"{name}\n(decodes only)" for name in CONTENDERS]
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.3 * most)
    axis.set_xlabel("records/s (bar: median of the rounds; line: least to most)", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(describe(result), fontsize=8, loc="right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
