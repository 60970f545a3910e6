"""Shows what `bench order` measured: a table for the terminal, or as plain text, and a plot."""

from __future__ import annotations

import io

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from mrm_stream.bench.order_result import ARRANGEMENTS, OrderBench

_PLAIN_WIDTH = 120
_MEASURES = {
    "neighbours": ("neighbours", "distance of neighbours in the source\n(1: as in a full shuffle)", "{:.3f}"),
    "correlation": ("position r", "", "{:.3f}"),
    "label_correlation": ("label r", "", "{:.3f}"),
    "one_shard": ("one shard", "largest share of a batch\nthat comes from one shard", "{:.1%}"),
    "label_spread": ("label spread", "spread of the label's share in a batch\n(1: as if drawn at random)", "{:.2f}"),
}
"""Field of `Quality` to its column, its axis (none: not in the plot) and how it is written."""
_POINTS = 3000
_COLOURS = {"ours": "#1f5f8b", "webdataset": "#c2703d"}
_OTHER = "#7d8a93"
_MARKS = {"sorted": "o", "packed": "D"}


def order_table(result: OrderBench, *, terminal: bool) -> str:
    """Return the table as text.

    Args:
        result: What was measured.
        terminal: With lines and colours, as wide as the terminal; else plain ASCII.
    """
    table = Table(
        title=describe(result),
        box=box.SIMPLE_HEAD if terminal else box.ASCII,
        title_justify="left",
        padding=(0, 0 if terminal else 1),
    )
    for column in ("shards", "shuffle"):
        table.add_column(column, no_wrap=True)
    for column, _, _ in _MEASURES.values():
        table.add_column(column, justify="right")
    for arrangement in ARRANGEMENTS:
        for name in result.shuffles:
            cells = [written.format(result.mean(arrangement, name, key)) for key, (_, _, written) in _MEASURES.items()]
            table.add_row(arrangement, name, *cells, style="bold" if name.startswith("ours") else None)
        table.add_section()
    text = io.StringIO()
    console = Console(
        file=text, force_terminal=terminal, no_color=not terminal, width=None if terminal else _PLAIN_WIDTH
    )
    console.print(table)
    return text.getvalue().rstrip("\n")


def describe(result: OrderBench) -> str:
    """Return in one line what was measured."""
    options = result.options
    seeds = f"mean of {options.seeds} seeds" if options.seeds > 1 else "1 seed"
    return (
        f"Shuffling: {options.samples:,} samples, {options.samples_per_shard} a shard, the label on the first "
        f"{options.positive:.0%}; batches of {options.batch_size}, {seeds}"
    )


def draw_order_bench(result: OrderBench) -> bytes:
    """Return a PNG: above, where in the source an epoch is, for each shuffle; below, three measures of each."""
    from matplotlib.figure import Figure

    names = result.shuffles
    figure = Figure(figsize=(11, 6.4), dpi=130, layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.35))[:, 0]
    above.suptitle("One epoch of shards that hold a sorted source", fontsize=9)
    for column, (name, axis) in enumerate(zip(names, above.subplots(1, len(names), sharey=True), strict=True)):
        positions = result.examples[name]
        # Random ones: evenly spaced points would show stripes where there are none.
        chosen = np.random.default_rng(0).choice(len(positions), min(_POINTS, len(positions)), replace=False)
        axis.scatter(chosen, positions[chosen], s=0.7, linewidths=0, color=_colour(name))
        axis.set_title(name.replace(", ", "\n"), fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel("position", fontsize=7)
        if column == 0:
            axis.set_ylabel("position in the source", fontsize=8)
    shown = {key: label for key, (_, label, _) in _MEASURES.items() if label}
    for column, ((key, label), axis) in enumerate(zip(shown.items(), below.subplots(1, 3, sharey=True), strict=True)):
        for arrangement in ARRANGEMENTS:
            for row, name in enumerate(names):
                value = result.mean(arrangement, name, key)
                fill = _colour(name) if arrangement == "sorted" else "none"
                axis.plot(value, row, _MARKS[arrangement], ms=7, mfc=fill, mec=_colour(name), mew=1.3, clip_on=False)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlabel(label, fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="y", color="#e6e6e6", lw=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        if key == "neighbours":
            axis.set_xlim(0, 1.1)
        else:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
        if column == 0:
            for arrangement in ARRANGEMENTS:
                fill = _OTHER if arrangement == "sorted" else "none"
                axis.plot([], [], _MARKS[arrangement], mfc=fill, mec=_OTHER, label=f"{arrangement} shards")
            axis.legend(fontsize=7, loc="center left", frameon=False)
    figure.suptitle(describe(result), fontsize=8, x=0.99, ha="right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _colour(name: str) -> str:
    return _COLOURS.get(name.partition(",")[0], _OTHER)
