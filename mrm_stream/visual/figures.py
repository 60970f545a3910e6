"""Pictures: reconstructed radiographs and reports, and the curves of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mrm_stream.errors import MrmStreamError
from mrm_stream.storage.publish import check_folder, make_private_folder, publish_bytes
from mrm_stream.training.metrics import read_metrics
from mrm_stream.visual.reconstructions import ReconstructedSample, Word

PANEL = 336
"""Side of one radiograph in the figure, in pixels."""
MARGIN = 16
TEXT_WIDTH = 620
BACKGROUND, INK, FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)
RIGHT, WRONG = (0, 120, 60), (190, 30, 30)


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # Matplotlib brings a font along; a bare machine may have none.
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def reconstruction_figure(samples: Sequence[ReconstructedSample]) -> Image.Image:
    """Return one row a sample: masked radiograph, reconstruction, truth, and the report with its reconstructed words.

    Reconstructed words are green where they are right; where they are wrong, the reconstructed word is red and the true
    one follows it in grey brackets.
    """
    header, row = 34, PANEL + MARGIN
    width = 3 * (PANEL + MARGIN) + TEXT_WIDTH + 2 * MARGIN
    picture = Image.new("RGB", (width, header + row * len(samples) + 30), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    bold, small = _font(15, bold=True), _font(12)
    titles = ("masked radiograph", "reconstruction", "truth", "report")
    for number, title in enumerate(titles):
        draw.text((MARGIN + number * (PANEL + MARGIN), 10), title, INK, bold)
    for number, sample in enumerate(samples):
        top = header + number * row
        for column, image_HW in enumerate((sample.masked_HW, sample.reconstructed_HW, sample.truth_HW)):
            panel = Image.fromarray(image_HW).resize((PANEL, PANEL), Image.Resampling.LANCZOS)
            picture.paste(panel, (MARGIN + column * (PANEL + MARGIN), top))
        left = MARGIN + 3 * (PANEL + MARGIN)
        _write_words(draw, sample.words, left, top, bottom=top + PANEL)
    legend = "visible word      reconstructed correctly      reconstructed wrongly [truth]"
    x: float = MARGIN + 3 * (PANEL + MARGIN)
    for text, colour in zip(legend.split("      "), (INK, RIGHT, WRONG), strict=True):
        draw.text((x, picture.height - 22), text, colour, small)
        x += small.getlength(text) + 24
    note = "visible patches of the reconstruction are the true ones"
    draw.text((MARGIN, picture.height - 22), note, FAINT, small)
    return picture


def _write_words(draw: ImageDraw.ImageDraw, words: Sequence[Word], left: int, top: int, *, bottom: int) -> None:
    size = 15
    while size > 9 and not _fits(words, size, bottom - top):
        size -= 1
    for x, y, text, colour, bold in _layout(words, size):
        if top + y + size <= bottom:
            draw.text((left + x, top + y), text, colour, _font(size, bold=bold))


def _fits(words: Sequence[Word], size: int, height: int) -> bool:
    return max((y for _, y, *_ in _layout(words, size)), default=0) + size + 4 <= height


def _layout(words: Sequence[Word], size: int) -> list[tuple[float, int, str, tuple[int, int, int], bool]]:
    """Return each piece of text with its position (x, y) in the column, its colour, and whether it is bold."""
    fonts = {bold: _font(size, bold=bold) for bold in (False, True)}
    space, line = fonts[False].getlength(" "), round(size * 1.5)
    placed: list[tuple[float, int, str, tuple[int, int, int], bool]] = []
    x, y = 0.0, 0
    for word in words:
        if word.reconstructed is None:
            pieces = [(word.truth, INK, False)]
        elif word.reconstructed == word.truth:
            pieces = [(word.truth, RIGHT, True)]
        else:
            pieces = [(word.reconstructed, WRONG, True), (f"[{word.truth}]", FAINT, False)]
        for text, colour, bold in pieces:
            length = fonts[bold].getlength(text)
            if x + length > TEXT_WIDTH and x > 0:
                x, y = 0.0, y + line
            placed.append((x, y, text, colour, bold))
            x += length + space
    return placed


def curves_figure(run: Path) -> Image.Image:
    """Return a picture of a run's losses over epochs; two that are the same all along are drawn once.

    Raises:
        MrmStreamError: The run has logged nothing yet.
    """
    from matplotlib.figure import Figure

    lines = read_metrics(run)
    if not lines:
        raise MrmStreamError("has logged nothing yet", where=run, remedy="Wait until the run has logged some steps.")
    names = [name for name in ("image_loss", "report_loss", "report_loss_masked") if name in lines[0]]
    if names[-2:] == ["report_loss", "report_loss_masked"] and all(
        line[names[-1]] == line[names[-2]] for line in lines
    ):
        names.pop(-2)  # The loss is over masked words alone: the name of the other says so.
    figure = Figure(figsize=(4 * len(names), 3), dpi=110, layout="constrained")
    epochs = [line["epoch"] for line in lines]
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axis.plot(epochs, [line[name] for line in lines], lw=1.4, color="#1f5f8b")
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def check_picture(path: Path) -> None:
    """Raise MrmStreamError if a picture that is to be drawn is not to be a PNG, or its folder cannot be made."""
    if path.suffix != ".png":
        raise MrmStreamError("pictures are written as PNG", where=path, remedy="Give a name that ends in .png.")
    check_folder(path.parent)


def save_figure(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, and its folder, for its owner only: it may show a patient's data.

    Raises:
        StorageError: It cannot be written.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    make_private_folder(path.parent)
    publish_bytes(path, buffer.getvalue())
