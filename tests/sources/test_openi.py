from __future__ import annotations

import gzip
import io
import logging
import re
import tarfile
import time
from pathlib import Path

import pytest

from mrm_stream.errors import RecordError, SourceError
from mrm_stream.records import REPORT_LIMIT
from mrm_stream.sources import openi_archive
from mrm_stream.sources.openi import list_openi, parse_report
from mrm_stream.sources.openi_archive import read_archive
from mrm_stream.sources.reading import read_report
from mrm_stream.sources.registry import list_records
from mrm_stream.storage.paths import parse_path

HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")


def xml(number: int, sections: dict[str, str], terms: list[str], images: list[str]) -> str:
    """A file as Open-I has it."""
    abstract = "".join(f'<AbstractText Label="{label}">{text}</AbstractText>\n' for label, text in sections.items())
    major = "".join(f"<major>{term}</major>\n" for term in terms)
    parents = "".join(
        f'<parentImage id="{image}"><figureId>F{i}</figureId><caption>Chest</caption><panel type="single">'
        f"<url>/hadoop/{image}.jpg</url></panel></parentImage>\n"
        for i, image in enumerate(images, start=1)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<eCitation><meta type="rr"/>'
        f'<uId id="CXR{number}"/><pmcId id="{number}"/><MedlineCitation><Article><Abstract>\n{abstract}</Abstract>'
        f"</Article></MedlineCitation>\n<MeSH>\n{major}<automatic>lung</automatic></MeSH>\n{parents}</eCitation>"
    )


REPORTS = {
    "ecgen-radiology/10.xml": xml(
        10,
        {"COMPARISON": "None.", "INDICATION": "", "FINDINGS": "Large heart.\n  Clear.", "IMPRESSION": "A &lt; B."},
        ["Cardiomegaly/borderline", "Opacity/lung/base/left", "No Indexing"],
        ["CXR10_IM-0002-1001", "CXR10_IM-0002-2001"],
    ),
    "ecgen-radiology/2.xml": xml(2, {"IMPRESSION": "Normal chest."}, ["normal"], ["CXR2_IM-0001-1001"]),
    "ecgen-radiology/3.xml": xml(3, {"COMPARISON": "None.", "FINDINGS": " "}, ["normal"], ["CXR3_IM-0003-1001"]),
    "ecgen-radiology/4.xml": xml(4, {"IMPRESSION": "No image."}, ["normal"], []),
}  # fmt: skip


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(params=["tree", "archive"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Four studies, their reports in either form."""
    write(tmp_path, REPORTS, request.param)
    (tmp_path / "NLMCXR_png").mkdir()
    (tmp_path / "NLMCXR_png" / "CXR2_IM-0001-1001.png").write_bytes(b"image")
    return tmp_path


def write(root: Path, reports: dict[str, str], form: str) -> None:
    if form == "archive":
        (root / "NLMCXR_reports.tgz").write_bytes(pack({name: text.encode() for name, text in reports.items()}))
        return
    (root / "ecgen-radiology").mkdir(exist_ok=True)
    for name, text in reports.items():
        (root / name).write_text(text, encoding="utf-8")


def replace(root: Path, text: str) -> None:
    """Put this text in the place of 2.xml, in the form that the root has."""
    form = "archive" if (root / "NLMCXR_reports.tgz").is_file() else "tree"
    write(root, {**REPORTS, "ecgen-radiology/2.xml": text}, form)


def test_each_image_becomes_a_record_in_the_order_of_the_numbers(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        records = list_records("openi", root)
    assert [record.key for record in records] == [
        "CXR2_IM-0001-1001", "CXR3_IM-0003-1001", "CXR10_IM-0002-1001", "CXR10_IM-0002-2001",
    ]  # fmt: skip
    assert records[0].image_path == "NLMCXR_png/CXR2_IM-0001-1001.png"
    assert [record.subject for record in records] == ["CXR2", "CXR3", "CXR10", "CXR10"]
    assert {(record.view, record.split) for record in records} == {("", "train")}
    assert "1 studies name no image, 1 have no report" in caplog.text


def test_sections_are_headed_so_that_the_parser_of_mimic_s_reports_finds_them(root: Path) -> None:
    first, second, third, fourth = list_records("openi", root)
    text = read_report(root, third)
    assert text == read_report(root, fourth)
    assert text == "\n COMPARISON: None.\n FINDINGS: Large heart. Clear.\n IMPRESSION: A < B.\n"
    assert HEADER.findall(text) == ["COMPARISON", "FINDINGS", "IMPRESSION"]
    assert HEADER.findall(read_report(root, first)) == ["IMPRESSION"]
    with pytest.raises(RecordError, match="the report is missing"):
        read_report(root, second)


def test_labels_are_the_heads_of_the_terms(root: Path) -> None:
    first, _, third, _ = list_records("openi", root)
    assert first.labels == {"No Finding": 1}
    assert third.labels == {"Cardiomegaly": 1, "Opacity": 1}


@pytest.mark.parametrize("folder", ["images", ""])
def test_images_may_lie_elsewhere(root: Path, folder: str) -> None:
    (root / "NLMCXR_png").rename(root / (folder or "other"))
    if not folder:
        (root / "other" / "CXR2_IM-0001-1001.png").rename(root / "CXR2_IM-0001-1001.png")
    first, *_ = list_records("openi", root)
    assert (root / first.image_path).is_file()


def test_a_root_may_be_remote(root: Path, request: pytest.FixtureRequest) -> None:
    remote = parse_path(f"memory://openi-test-{request.node.callspec.params['root']}")
    for path in root.rglob("*.*"):
        (remote / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())
    assert list_records("openi", remote) == list_records("openi", root)


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    + ']><eCitation><uId id="CXR2"/><AbstractText Label="FINDINGS">&a9;</AbstractText></eCitation>'
)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (LAUGHS, "declares a document type or entities"),
        ('<!DOCTYPE e SYSTEM "file:///etc/passwd"><e/>', "declares a document type or entities"),
        (REPORTS["ecgen-radiology/2.xml"][:300], r"no well-formed XML \(its line"),
        ("<e>secret &unknown; </e>", r"no well-formed XML \(its line 1\)"),
        (xml(2, {"IMPRESSION": "secret"}, [], ["../CXR2"]), "blank or no plain name"),
        (xml(2, {"IMPRESSION": "secret"}, [], [""]), "blank or no plain name"),
        ('<eCitation><uId id=" "/></eCitation>', "blank or no plain name"),
        ("<eCitation/>", "blank or no plain name"),
        (xml(2, {}, [], ["CXR3_IM-0003-1001"]), "image CXR3_IM-0003-1001 is listed twice, in .*2.xml and in .*3.xml"),
        (xml(3, {}, [], []), "study CXR3 is listed twice, in .*2.xml and in .*3.xml"),
        (f"<e>{'x' * REPORT_LIMIT}</e>", "the report is too large"),
    ],
)
def test_a_bad_report_is_named(root: Path, text: str, what: str) -> None:
    replace(root, text)
    start = time.monotonic()
    with pytest.raises(SourceError, match=what) as caught:
        list_records("openi", root)
    assert time.monotonic() - start < 5
    assert "2.xml" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_declaration_cannot_hide_in_another_encoding(root: Path, encoding: str) -> None:
    content = f'<?xml version="1.0" encoding="{encoding}"?>é{LAUGHS[21:]}'.encode(encoding)
    if (root / "NLMCXR_reports.tgz").is_file():
        files = {name: text.encode() for name, text in REPORTS.items()}
        (root / "NLMCXR_reports.tgz").write_bytes(pack({**files, "ecgen-radiology/2.xml": content}))
    else:
        (root / "ecgen-radiology/2.xml").write_bytes(content)
    with pytest.raises(SourceError, match=r"not UTF-8"):
        list_records("openi", root)


def test_a_declared_encoding_is_not_followed() -> None:
    """In cp037 the bytes of a harmless text would read as something else."""
    text = xml(2, {"FINDINGS": "Clear."}, [], []).replace("utf-8", "cp037")
    assert parse_report(text, "2.xml").report == "\n FINDINGS: Clear.\n"


def test_without_reports_both_forms_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"neither NLMCXR_reports\.tgz nor ecgen-radiology"):
        list_records("openi", tmp_path)


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write(root, REPORTS, "tree")
    (tmp_path / "5.xml").write_text(xml(5, {"FINDINGS": "x"}, [], []))
    (root / "ecgen-radiology/5.xml").symlink_to(tmp_path / "5.xml")
    with pytest.raises(SourceError, match="a link leads out of the root"):
        list(list_openi(root))


def archive_at(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_every_cut_of_an_archive_is_refused(tmp_path: Path) -> None:
    packed = pack({name: text.encode() for name, text in REPORTS.items()})
    for size in range(0, len(packed) - 1, 37):
        with pytest.raises(SourceError, match="the archive"):
            read_archive(archive_at(tmp_path / "a.tgz", packed[:size]), "ecgen-radiology")
    unpacked = gzip.decompress(packed)
    with pytest.raises(SourceError, match="the archive cannot be read"):
        read_archive(archive_at(tmp_path / "a.tgz", gzip.compress(unpacked[:700])), "ecgen-radiology")


@pytest.mark.parametrize("name", ["../ecgen-radiology/1.xml", "/ecgen-radiology/1.xml", "ecgen-radiology/../../1.xml"])
def test_a_path_that_leads_out_of_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="a path leads out of the archive"):
        read_archive(archive_at(tmp_path / "a.tgz", pack({name: b"<e/>"})), "ecgen-radiology")


def test_other_members_and_links_are_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("ecgen-radiology/9.xml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name in ("ecgen-radiology/._1.xml", "ecgen-radiology/sub/1.xml", "readme.txt", "./ecgen-radiology/1.xml"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"<e/>"))
    path = archive_at(tmp_path / "a.tgz", buffer.getvalue())
    assert read_archive(path, "ecgen-radiology") == {"ecgen-radiology/1.xml": b"<e/>"}
    with pytest.raises(SourceError, match=r"holds no other/\*\.xml"):
        read_archive(path, "other")


def test_a_file_that_the_archive_holds_twice_is_refused(tmp_path: Path) -> None:
    unpacked = gzip.decompress(pack({"ecgen-radiology/1.xml": b"<e/>"}))[:1024]
    path = archive_at(tmp_path / "a.tgz", gzip.compress(unpacked * 2 + bytes(1024)))
    with pytest.raises(SourceError, match=r"1\.xml: the archive holds this file twice"):
        read_archive(path, "ecgen-radiology")


def test_what_is_read_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive_at(tmp_path / "a.tgz", pack({"other": bytes(100_000), "ecgen-radiology/1.xml": b"<e/>"}))
    monkeypatch.setattr(openi_archive, "UNPACKED_LIMIT", 100_000)
    with pytest.raises(SourceError, match="unpacks to more than 100,000 bytes"):
        read_archive(path, "ecgen-radiology")
    monkeypatch.setattr(openi_archive, "PACKED_LIMIT", 100)
    with pytest.raises(SourceError, match="the archive is larger than 100 bytes"):
        read_archive(path, "ecgen-radiology")
