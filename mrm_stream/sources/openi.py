"""Lists Open-I's chest radiographs of Indiana University (Demner-Fushman et al., 2016).

    root/NLMCXR_reports.tgz, or root/ecgen-radiology/1.xml
    root/NLMCXR_png/CXR1_1_IM-0001-3001.png                      (or root/images/..., or all images at the root)

The archive is read without unpacking it to the disk; where both forms of the reports are there, they must be equal.
Each XML file is one study of one person (`uId`) and names its images (`parentImage`); a record is one of those. Which
view an image shows is not published, nor is there a split: views are unknown, and every record is of the training
split.

The report is composed of the sections as they stand in the file, a line each, headed as in MIMIC-CXR's reports
(` FINDINGS: ...`). One whose findings and impression are absent or say nothing is no report: its records are listed
without.

Labels come from `MeSH/major`, which indexers wrote after reading the report. A term is `Opacity/lung/base/left`: its
part before the first slash is present, so that some labels name an organ (`Lung/hyperdistention`: `Lung`). `normal`
becomes `No Finding`; `No Indexing` and the term for a poor image are dropped. Nothing is ever absent or uncertain.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

from mrm_stream.errors import RecordError, SourceError
from mrm_stream.records import REPORT_LIMIT, Record
from mrm_stream.sources.openi_archive import read_archive
from mrm_stream.sources.reading import read_report
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import KEY_PATTERN
from mrm_stream.storage.access import is_file, is_folder
from mrm_stream.storage.files import names_in, read_whole
from mrm_stream.storage.links import checked
from mrm_stream.storage.paths import AnyPath
from mrm_stream.text.blank_reports import says_something

ARCHIVE = "NLMCXR_reports.tgz"
FOLDER = "ecgen-radiology"

# Not the `._1.xml` that some systems leave beside a file.
_XML_NAME = re.compile(r"[A-Za-z0-9_-]+\.xml")
_IMAGE_FOLDERS = ("NLMCXR_png", "images")
_LABEL_NAMES = {"normal": "No Finding"}
_NO_LABEL = {"", "no indexing", "technical quality of image unsatisfactory"}

_logger = logging.getLogger(__name__)


class Study(NamedTuple):
    """What one file of reports holds."""

    subject: str
    report: str | None
    labels: dict[str, int]
    images: tuple[str, ...]
    """Names of the image files, without suffix."""


def list_openi(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each image that a report names, in the order of the reports' numbers; no image is looked for.

    A record whose report is missing is listed; packing quarantines it.

    Raises:
        SourceError: There are no reports; the archive or a file in it is damaged, too large, or no report of this
            set; it declares entities; an id is blank or no plain name; an image or a study is listed twice.
    """
    folder = next((f"{name}/" for name in _IMAGE_FOLDERS if is_folder(root / name)), "")
    source = root / (ARCHIVE if is_file(root / ARCHIVE) else FOLDER)
    # Study or image to the file that names it.
    files: dict[str, str] = {}
    without_image = without_report = 0
    for name, text in _read_reports(root):
        study = parse_report(text, f"{source}, {name}")
        _claim(files, f"study {study.subject}", name, source)
        without_image += not study.images
        without_report += study.report is None
        for image in study.images:
            _claim(files, f"image {image}", name, source)
            yield Record(
                key=image,
                image_path=f"{folder}{image}.png",
                report_text=study.report,
                subject=study.subject,
                study=study.subject,
                labels=study.labels,
            )
    if without_image or without_report:
        _logger.info("%s: %d studies name no image, %d have no report", source, without_image, without_report)


def parse_report(text: str, where: str) -> Study:
    r"""Return what a file of reports holds.

    Raises:
        SourceError: It is no well-formed XML, declares a document type or entities, or holds no valid ids.

    Example:
        >>> study = parse_report(
        ...     '<e><uId id="CXR1"/><MeSH><major>normal</major></MeSH><parentImage id="CXR1_IM-1"/>'
        ...     '<AbstractText Label="FINDINGS">Clear.</AbstractText></e>', "1.xml")
        >>> study.subject, study.report, study.labels, study.images
        ('CXR1', '\n FINDINGS: Clear.\n', {'No Finding': 1}, ('CXR1_IM-1',))
    """
    # Entities that name entities grow to gigabytes, and some read other files: the set's own reports declare none.
    # Text is parsed, not bytes: what is searched here cannot be hidden by another encoding.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise SourceError("the report declares a document type or entities", where=where, remedy="Remove this file.")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        line, _ = error.position
        # Not the parser's own words: they could repeat some of the report.
        raise SourceError(
            f"the report is no well-formed XML (its line {line})", where=where, remedy="Fetch the reports again."
        ) from None
    uid = tree.find(".//uId")
    subject = uid.get("id", "").strip() if uid is not None else ""
    images = tuple(element.get("id", "").strip() for element in tree.iter("parentImage"))
    if not all(KEY_PATTERN.fullmatch(name) for name in (subject, *images)):
        raise SourceError(
            "the id of uId or of a parentImage is blank or no plain name",
            where=where,
            remedy="Expected 1 to 80 letters, digits, - and _.",
        )
    terms = [(element.text or "").partition("/")[0].strip() for element in tree.iterfind(".//MeSH/major")]
    labels = {_LABEL_NAMES.get(term, term): 1 for term in terms if term.lower() not in _NO_LABEL}
    return Study(subject, _compose(tree), labels, images)


def _claim(files: dict[str, str], what: str, name: str, source: AnyPath) -> None:
    if what in files:
        raise SourceError(
            f"{what} is listed twice, in {files[what]} and in {name}", where=source, remedy="Remove one of them."
        )
    files[what] = name


def _compose(tree: ElementTree.Element) -> str | None:
    """Return the sections that hold text, a line each under its header; None if findings and impression say nothing."""
    sections = []
    for element in tree.iter("AbstractText"):
        # What a header may hold, so that every one is found again in the text.
        header = re.sub(r"[^A-Z ()/,-]", "", element.get("Label", "").upper()).strip()
        body = " ".join("".join(element.itertext()).split())
        if header and body:
            sections.append((header, body))
    if not any(header in ("FINDINGS", "IMPRESSION") and says_something(body) for header, body in sections):
        return None
    return "".join(f"\n {header}: {body}" for header, body in sections) + "\n"


def _read_reports(root: AnyPath) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each XML file, in the order of their numbers, from the archive or from the folder."""
    if is_file(root / ARCHIVE):
        files = read_archive(checked(root, ARCHIVE), FOLDER)
        _check_unpacked_copy(root, files)
        for name in sorted(files, key=_by_number):
            try:
                yield name, files[name].decode("utf-8-sig")
            except UnicodeDecodeError:
                raise SourceError("the report is not UTF-8", where=f"{root / ARCHIVE}, {name}") from None
        return
    if not is_folder(root / FOLDER):
        raise SourceError(
            f"there is neither {ARCHIVE} nor {FOLDER}",
            where=root,
            remedy="Give the directory that holds the reports as root.",
        )
    for path in sorted(_unpacked(root), key=_by_number):
        name = PurePosixPath(path).name
        try:
            yield path, read_report(root, Record(key=name, image_path="", report_path=path))
        except RecordError as error:
            raise SourceError(error.what, where=error.where, remedy="Fetch the reports again.") from error


def _unpacked(root: AnyPath) -> list[str]:
    """Return the paths of the unpacked reports, below the root."""
    return [f"{FOLDER}/{name}" for name in names_in(root / FOLDER) if _XML_NAME.fullmatch(name)]


def _check_unpacked_copy(root: AnyPath, files: Mapping[str, bytes]) -> None:
    """Raise SourceError where the archive lies unpacked beside itself, and one of the two was edited since."""
    if not is_folder(root / FOLDER):
        return
    paths = _unpacked(root)
    differing = set(paths) ^ files.keys() if paths else set()
    for path in files.keys() & set(paths):
        file = checked(root, path)
        if not is_file(file) or read_whole(file, REPORT_LIMIT) != files[path]:  # a pipe would never end
            differing.add(path)
    if differing:
        raise SourceError(
            f"{len(differing):,} reports are not the same in {ARCHIVE} and in {FOLDER}, "
            f"{min(differing, key=_by_number)} among them",
            where=root,
            remedy="Move the one away that is not to be read.",
        )


def _by_number(name: str) -> tuple[int, str]:
    """Sort 2.xml before 10.xml."""
    stem = PurePosixPath(name).stem
    return len(stem), stem


SOURCE = Source(list_openi)
