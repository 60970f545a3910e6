"""One self-contained HTML page: headings, tables, figures and pictures; nothing is fetched, and no script runs."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType

from mrm_stream.errors import StorageError
from mrm_stream.storage.publish import publish_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Markup = NewType("Markup", str)
"""HTML in which all text is escaped already."""

INK, ACCENT, SECOND, FAINT = "#010203", "#010204", "#010205", "#010206"
"""Colours to draw figures with; on the page they are those of its text and its marks, by day and by night."""

_VARIABLES = {INK: "currentColor", ACCENT: "var(--accent)", SECOND: "var(--second)", FAINT: "var(--faint)"}

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2126; --quiet: #5b6670; --line: #d9dee3; --soft: #f4f6f8;
  --accent: #1f6f9f; --second: #d08a1d; --faint: #c3ccd4; --notice: #fff4d6; --notice-line: #d9a400; }
@media (prefers-color-scheme: dark) { :root { --page: #14181c; --ink: #e4e8ec; --quiet: #9aa6b1; --line: #313a43;
  --soft: #1c2228; --accent: #5fb0e0; --second: #e8a94a; --faint: #46525d; --notice: #33290c;
  --notice-line: #b98d0a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
.lead, figcaption, caption { color: var(--quiet); }
.lead { overflow-wrap: anywhere; }
.notice { max-width: none; margin: 1rem 0; padding: .7rem 1rem; background: var(--notice);
  border-left: .3rem solid var(--notice-line); border-radius: .2rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem; margin: 1.25rem 0; }
.facts div { background: var(--soft); border-radius: .4rem; padding: .7rem .9rem; }
.facts dt { color: var(--quiet); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: .75rem 0 1rem; }
table { border-collapse: collapse; font-size: .92rem; }
caption { text-align: left; white-space: nowrap; padding-bottom: .3rem; font-size: .9rem; }
th, td { padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { text-align: left; font-weight: 600; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line); }
tbody th { font-weight: 400; overflow-wrap: break-word; min-width: 7rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1rem 0; }
figure > svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .88rem; margin-top: .3rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1.1rem .9rem;
  padding: 0; margin: 1rem 0; list-style: none; }
.gallery figure { margin: 0; }
.gallery img, .gallery .absent { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #000;
  border-radius: .3rem; }
.gallery .absent { display: grid; place-items: center; color: #bbb; font-size: .85rem; text-align: center; }
.gallery figcaption { line-height: 1.35; overflow-wrap: anywhere; }
.gallery figcaption span { display: block; }
.gallery figcaption span:first-child { color: var(--ink); font-weight: 600; }
@media (max-width: 34rem) { body { padding: 1rem .8rem 3rem; } .scroll-figure { overflow-x: auto; }
  .scroll-figure > svg { min-width: 40rem; } .gallery { grid-template-columns: repeat(2, 1fr); } }
@media print { :root { color-scheme: light; --page: #fff; --ink: #000; --quiet: #444; --line: #bbb; --soft: #fff;
  --accent: #1f6f9f; --second: #d08a1d; --faint: #c3ccd4; --notice: #fff; }
  body { max-width: none; padding: 0; font-size: 10pt; } .scroll { overflow: visible; } h2, h3 { break-after: avoid; }
  .facts { grid-template-columns: repeat(6, 1fr); gap: .2rem; } .facts dd { font-size: 1.1rem; }
  thead { break-after: avoid; } figure, tr, .gallery li { break-inside: avoid; }
  .gallery { grid-template-columns: repeat(6, 1fr); } }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, what follows it, and the sections within."""

    title: str
    parts: Sequence[Markup] = ()
    sections: Sequence[Section] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a gallery."""

    jpeg: bytes | None
    """None: there is none to show; the alternative text is shown instead."""
    alt: str
    caption: Sequence[str]
    """Lines; the first is the picture's name."""


def paragraph(text: str, *, kind: str | None = None) -> Markup:
    """Return a paragraph; `kind` may be `notice` (set apart from all else) or `lead` (below a title)."""
    return Markup(f"<p{_class(kind)}>{escape(text)}</p>")


def facts(pairs: Sequence[tuple[str, str]]) -> Markup:
    """Return a row of large values, each below its name."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return Markup(f'<dl class="facts">{items}</dl>')


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str | int]]) -> Markup:
    """Return a table; the first cell of each row names it.

    Args:
        caption: What the table tells.
        columns: Names; that of the first column too.
        rows: As many cells each as there are columns. Numbers, and text that begins with a digit, are right-aligned.
    """
    assert all(len(row) == len(columns) for row in rows)
    numeric = [
        column > 0 and all(_is_number(row[column]) for row in rows if row[column] != "")
        for column in range(len(columns))
    ]
    kinds = [_class("number" if is_number else None) for is_number in numeric]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(columns, kinds, strict=True))
    body = "".join(
        f'<tr><th scope="row">{_cell(first)}</th>'
        + "".join(f"<td{kind}>{_cell(value)}</td>" for value, kind in zip(others, kinds[1:], strict=True))
        + "</tr>"
        for first, *others in rows
    )
    return Markup(
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def axes_row(columns: int, height: float, *, share_y: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure as wide as the page and `height` inches high, and its axes side by side, for `drawing`."""
    import matplotlib
    from matplotlib.figure import Figure

    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    style: Any = dict.fromkeys(coloured, INK) | {
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.axisbelow": True,
        "grid.color": FAINT,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, height), layout="constrained")
        axes = figure.subplots(1, columns, sharey=share_y, squeeze=False)[0]
        for axis in axes:
            axis.grid(axis="x" if share_y else "y", lw=0.5, alpha=0.6)
    return figure, list(axes)


def drawing(figure: Figure, name: str, alt: str, caption: str = "") -> Markup:
    """Return a Matplotlib figure as inline SVG, drawn in `INK`, `ACCENT`, `SECOND` and `FAINT`.

    Args:
        figure: What is drawn.
        name: Unique on the page; lower-case letters and hyphens.
        alt: What it shows, for those who do not see it.
        caption: Text below it.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows them; they look like addresses
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    shown = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Markup(f'<figure class="scroll-figure">{svg}{shown}</figure>')


def gallery(pictures: Sequence[Picture]) -> Markup:
    """Return pictures side by side, each above its caption."""
    return Markup(f'<ul class="gallery">{"".join(map(_picture, pictures))}</ul>')


def page(title: str, parts: Sequence[Markup], sections: Sequence[Section]) -> str:
    """Return the whole page as HTML.

    Args:
        title: Of the page; its heading too.
        parts: What comes before the first section.
        sections: In their order; headings go from level 2 down, as deep as sections lie in each other.
    """
    inside = "".join([*parts, *(_section(section, 2) for section in sections)])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        # Whatever a name in the data tried, the browser would run no script and ask no server.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>{inside}</main></body></html>\n"
    )


def write_page(html: str, out: Path) -> None:
    """Write a page, readable by its owner only: it may show patients' data.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder cannot be made: {error.strerror}", where=out.parent, remedy="Choose another folder."
        ) from error
    publish_bytes(out, html.encode())


def _section(section: Section, level: int) -> str:
    assert level <= 6
    inside = "".join([*section.parts, *(_section(inner, level + 1) for inner in section.sections)])
    return f"\n<section><h{level}>{escape(section.title)}</h{level}>{inside}</section>"


def _picture(picture: Picture) -> str:
    if picture.jpeg is None:
        shown = f'<div class="absent">{escape(picture.alt)}</div>'
    else:
        data = base64.b64encode(picture.jpeg).decode("ascii")
        shown = f'<img alt="{escape(picture.alt)}" src="data:image/jpeg;base64,{data}">'
    lines = "".join(f"<span>{escape(line)}</span>" for line in picture.caption)
    return f"<li><figure>{shown}<figcaption>{lines}</figcaption></figure></li>\n"


def _class(kind: str | None) -> str:
    return f' class="{kind}"' if kind else ""


def _cell(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else escape(value)


def _is_number(value: str | int) -> bool:
    return isinstance(value, int) or value[:1].isdigit()
