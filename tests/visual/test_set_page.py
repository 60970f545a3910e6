from __future__ import annotations

import base64
import io
import json
import re
import stat
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mrm_stream.errors import StorageError
from mrm_stream.formats.dictionary import ReportCodec
from mrm_stream.formats.folder import DICTIONARY
from mrm_stream.formats.manifest import Manifest, write_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import canonical_json, read_index
from mrm_stream.packing.pack import pack
from mrm_stream.packing.shard_writer import PackedSample, write_shard
from mrm_stream.packing.summary import Summary, summarise
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.visual.contact_sheet import OUTLINE, picture_of
from mrm_stream.visual.page import Section, axes_row, drawing, page, paragraph, write_page
from mrm_stream.visual.set_lines import summary_lines
from mrm_stream.visual.set_page import write_set_page

VOID = {"meta", "img", "br", "hr", "link"}


class Reader(HTMLParser):
    """Holds a page to its rules, and keeps what the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self._caption = self._text = ""
        self.feed(html)
        self.close()
        assert not self.open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        assert tag not in ("script", "iframe", "link"), "nothing that runs or fetches"
        assert not [name for name in known if name.startswith("on")]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img" or (tag == "svg" and "role" in known):
            assert known.get("alt") or known.get("aria-label")
            self.pictures.append(known)
        if tag == "th":
            assert known["scope"] in ("col", "row")
        if tag == "tr" and self._caption:
            self.tables[self._caption].append([])
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        self._text = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements do not nest"
        if tag == "caption":
            self._caption = self._text
            self.tables[self._caption] = []
        if tag in ("th", "td"):
            self.tables[self._caption][-1].append(self._text)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set-page")
    write_phantom_tree(folder / "tree", 40, size=80, workers=1, progress=None)
    pack("mimic", folder / "tree", folder / "shards", options=PackOptions(short_side=72, vocabulary=300))
    return folder / "shards"


def write_masks(directory: Path, **changes: Any) -> Path:
    """Twelve flat grey images of 100 x 160 pixels; every second has a square mask and a box elsewhere."""
    grey_HW1 = np.full((100, 160, 1), 90, np.uint8)
    jpeg = simplejpeg.encode_jpeg(grey_HW1, 95, "GRAY", "Gray")

    def samples(split: str) -> Iterator[PackedSample]:
        for number in range(6):
            mask_HW = np.zeros((100, 160), np.uint8)
            known: dict[str, Any] = {
                "subject": f"{split}{number}",
                "study": "1",
                "view": "",
                "split": split,
                "labels": {"Pneumothorax": number % 2},
                "original_size": [200, 320],
                "size": [100, 160],
            }
            if number % 2:
                mask_HW[20:40, 20:40] = 255
                known["boxes"] = [["Pneumothorax", 100.0, 50.0, 30.0, 40.0]]
            buffer = io.BytesIO()
            Image.fromarray(mask_HW).save(buffer, "PNG")
            yield PackedSample(f"{split}-{number}", jpeg, canonical_json(known | changes), mask=buffer.getvalue())

    directory.mkdir()
    splits = {}
    for split in ("train", "test"):
        entry = write_shard(directory / f"{split}-00000.tar", samples(split))
        assert entry is not None
        splits[split] = (entry,)
    quarantined = {"image-truncated": 3}
    manifest = Manifest("siim", PackOptions(), None, has_masks=True, quarantined=quarantined, splits=splits)
    write_manifest(directory, manifest)
    return directory


def read_page(directory: Path, out: Path, summary: Summary | None = None) -> tuple[str, Reader]:
    write_set_page(summary or summarise(directory), directory, out)
    html = out.read_text()
    return html, Reader(html)


def test_the_page_is_whole_private_and_asks_nobody(phantom: Path, tmp_path: Path) -> None:
    html, reader = read_page(phantom, tmp_path / "new" / "set.html")
    assert stat.S_IMODE((tmp_path / "new" / "set.html").stat().st_mode) == 0o600
    assert not re.findall(r"https?:|//[a-z]+\.", re.sub(r"base64,[A-Za-z0-9+/=]*", "", html))
    assert all(reference.startswith(("data:", "#")) for reference in reader.references)
    assert {reference[1:] for reference in reader.references if reference[0] == "#"} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.headings[0] == 1
    assert reader.headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(reader.headings, reader.headings[1:], strict=False))
    assert "shows patients' radiographs" in html.replace("&#x27;", "'")
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    # Matplotlib's black would be lost in the dark: every colour is one of the page's.
    assert not re.findall(r"#[0-9a-f]{6}\b", "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL)))


def test_the_page_s_numbers_are_those_of_the_set(phantom: Path, tmp_path: Path) -> None:
    _, reader = read_page(phantom, tmp_path / "set.html")
    listed: dict[str, list[dict[str, Any]]] = {}
    lengths: list[int] = []
    for tar in phantom.glob("*.tar"):
        index, content = read_index(tar), tar.read_bytes()
        for starts, sizes in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True):
            sample = json.loads(content[starts[2] : starts[2] + sizes[2]])
            listed.setdefault(sample["split"], []).append(sample)
            lengths.append(sizes[1] // 2)
    splits = {row[0]: row[1] for row in reader.tables["Samples by split"][1:]}
    assert splits == {split: str(len(samples)) for split, samples in listed.items()} | {"all": "40"}
    for split, samples in listed.items():
        table = reader.tables[f"Labels in {split}, {len(samples)} samples"]
        for finding, present, _, absent, uncertain, silent in table[1:]:
            counts = Counter(sample["labels"].get(finding) for sample in samples)
            expected = [str(counts[label]) for label in (1, 0, -1, None)]
            assert [present, absent, uncertain, silent] == expected
    tokens = reader.tables["Tokens of a report"]
    assert max(int(row[7].replace(",", "")) for row in tokens[1:]) == max(lengths)
    longer = sum(length > 99 for length in lengths) / len(lengths)
    assert f"{longer:.1%} have more than the 99" in "\n".join(summary_lines(summarise(phantom)))
    assert len(reader.pictures) == 24 + 3


def test_no_report_is_on_the_page_or_the_terminal(phantom: Path, tmp_path: Path) -> None:
    summary = summarise(phantom)
    html, _ = read_page(phantom, tmp_path / "set.html", summary)
    shown = " ".join([html, *summary_lines(summary)]).lower()
    codec = ReportCodec((phantom / DICTIONARY).read_bytes())
    sentences: set[str] = set()
    for tar in phantom.glob("*.tar"):
        index, content = read_index(tar), tar.read_bytes()
        for start, size in zip(index.offsets[:, 3].tolist(), index.sizes[:, 3].tolist(), strict=True):
            report = codec.decompress(content[start : start + size])
            sentences |= {" ".join(part.split()).lower() for part in report.split(".") if len(part.split()) > 2}
    assert len(sentences) > 20
    assert not [sentence for sentence in sentences if sentence in shown]


def picture_of_jpeg(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)


def test_masks_and_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    summary = summarise(write_masks(tmp_path / "set"))
    for sample in summary.shown:
        jpeg = picture_of(sample).jpeg
        assert jpeg is not None
        marked_HW = np.abs(picture_of_jpeg(jpeg) - np.array(OUTLINE)).sum(axis=-1) < 150
        if not sample.boxes:
            assert not marked_HW.any()
            continue
        # The image is smaller than a thumbnail, so it keeps its size.
        assert marked_HW.shape == (100, 160)
        assert marked_HW[30, 20:22].all()
        assert marked_HW[20:22, 30].all()
        assert not marked_HW[25:35, 25:35].any(), "the mask is outlined, not filled"
        assert marked_HW[70, 100]
        assert marked_HW[90, 115]
        assert not marked_HW[55:85, 105:125].any()
        assert not marked_HW[:15].any()


def test_the_page_of_a_set_with_masks_and_boxes(tmp_path: Path) -> None:
    html, reader = read_page(write_masks(tmp_path / "set"), tmp_path / "set.html")
    title = "Masks, and the share of the image that those which are not empty cover"
    assert reader.tables[title][1:] == [[split, "6", "3", "50.0%", *["2.5%"] * 3] for split in ("train", "test")]
    assert reader.tables["Boxes by finding"][1:] == [["Pneumothorax", "3", "3", "6", "100.0%"]]
    assert reader.tables["Records skipped, by reason; quarantine.jsonl names each"][1:] == [["image-truncated", "3"]]
    assert "Tokens of a report" not in reader.tables
    thumbnails = [known["src"] for known in reader.pictures if "src" in known]
    assert len(thumbnails) == 12
    assert thumbnails[0] is not None
    assert Image.open(io.BytesIO(base64.b64decode(thumbnails[0].partition(",")[2]))).format == "JPEG"
    assert "No subject is in more than one split." in html


def test_subjects_in_two_splits_are_told_of(tmp_path: Path) -> None:
    directory = write_masks(tmp_path / "set", subject="one")
    html, _ = read_page(directory, tmp_path / "set.html")
    assert "One subject is in more than one split" in html
    assert "  in more than one split: 1 subject" in summary_lines(summarise(directory))


def test_the_lines_name_subjects_and_studies_where_they_are_known(tmp_path: Path) -> None:
    known = summary_lines(summarise(write_masks(tmp_path / "known")))
    assert known[0].startswith("siim: 12 samples of 12 subjects, 12 studies; ")
    assert known[1] == "  train: 6 samples of 6 subjects, 6 studies; 1 shard"
    assert {"masks: 12, 6 of them empty", "boxes: 6 on 6 samples", "quarantined: 3 for image-truncated"} <= set(known)
    silent = summary_lines(summarise(write_masks(tmp_path / "silent", subject="", study="")))
    assert silent[1] == "  train: 6 samples; 1 shard"


def test_names_in_the_data_are_text_and_never_markup(tmp_path: Path) -> None:
    name = "</td><script>alert(1)</script>"
    directory = write_masks(tmp_path / "set", labels={name: 1, "a $\\frac$": 1}, view='"><img src=x onerror=y>')
    _, reader = read_page(directory, tmp_path / "set.html")
    assert [row[0] for row in reader.tables["Labels in train, 6 samples"][1:]] == [name, "a $\\frac$"]
    assert reader.tables["Samples by view"][1][0] == '"><img src=x onerror=y>'


def test_an_image_that_does_not_decode_leaves_a_gap_with_a_remedy(tmp_path: Path) -> None:
    directory = write_masks(tmp_path / "set")
    tar = directory / "train-00000.tar"
    index, content = read_index(tar, ("jpg", "json", "mask.png")), bytearray(tar.read_bytes())
    start = int(index.offsets[0, 0])
    content[start : start + 4] = b"none"
    tar.write_bytes(content)
    html, reader = read_page(directory, tmp_path / "set.html")
    assert len([known for known in reader.pictures if "src" in known]) == 11
    assert "does not decode: run mrm-stream verify --decode" in html


def test_boxes_far_outside_do_no_harm(tmp_path: Path) -> None:
    directory = write_masks(tmp_path / "set", boxes=[["Edema", -1e300, -1e300, 1e308, 1e308]])
    _, reader = read_page(directory, tmp_path / "set.html")
    assert len([known for known in reader.pictures if "src" in known]) == 12


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="the folder cannot be made"):
        write_page("", tmp_path / "file" / "set.html")


def test_dollars_in_a_figure_are_dollars() -> None:
    figure, (axis,) = axes_row(1, 2)
    axis.set_title("a $\\frac$")
    axis.barh(["b $\\frac$"], [1])
    html = drawing(figure, "dollars", "what it shows")
    assert "a $\\frac$" in html
    assert "b $\\frac$" in html


def test_headings_go_as_deep_as_sections() -> None:
    html = page("top", [paragraph("a < b", kind="lead")], [Section("2", (), [Section("3")]), Section("2")])
    assert Reader(html).headings == [1, 2, 3, 2]
    assert '<p class="lead">a &lt; b</p>' in html
