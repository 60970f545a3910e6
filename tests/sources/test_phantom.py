from __future__ import annotations

import csv
import errno
import gzip
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mrm_stream.errors import SourceError
from mrm_stream.sources.mimic_tables import FINDINGS
from mrm_stream.sources.phantom.exposure import pose
from mrm_stream.sources.phantom.grid import LEFT_EDGE, PIXELS_PER_UNIT, TOP_EDGE
from mrm_stream.sources.phantom.report import Report, write_report
from mrm_stream.sources.phantom.subject import (
    CM_PER_UNIT,
    LEFT,
    RIGHT,
    Exposure,
    Finding,
    Kind,
    Study,
    draw_exposure,
    draw_study,
    without,
)
from mrm_stream.sources.phantom.tree import render, write_phantom_tree

TABLES = ("metadata", "split", "chexpert")
SIZE = 96


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "set"
    write_phantom_tree(out, 40, seed=3, size=SIZE, workers=1)
    return out


def read_table(root: Path, name: str) -> list[dict[str, str]]:
    with gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "rt", encoding="ascii", newline="") as stream:
        return list(csv.DictReader(stream))


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def a_study(*findings: Finding, number: int = 0) -> Study:
    return replace(draw_study(1, number, number), findings=findings)


# --- the tree ---------------------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_the_number_of_workers(tree: Path, tmp_path: Path) -> None:
    written: list[int] = []
    write_phantom_tree(tmp_path / "two", 40, seed=3, size=SIZE, workers=2, progress=written.append)
    assert contents(tmp_path / "two") == contents(tree)
    assert sum(written) == 40


def test_a_smaller_set_begins_a_larger_one(tree: Path, tmp_path: Path) -> None:
    write_phantom_tree(tmp_path / "few", 17, seed=3, size=SIZE, workers=1)
    few, many = contents(tmp_path / "few"), contents(tree)
    tables = {name for name in few if "/" not in name}
    assert len(tables) == 4
    assert {name: few[name] for name in few.keys() - tables} == {name: many[name] for name in few.keys() - tables}
    assert many["IMAGE_FILENAMES"].startswith(few["IMAGE_FILENAMES"])
    for name in TABLES:
        rows = read_table(tmp_path / "few", name)
        assert read_table(tree, name)[: len(rows)] == rows


def test_another_seed_gives_other_records(tree: Path, tmp_path: Path) -> None:
    write_phantom_tree(tmp_path / "other", 2, seed=4, size=SIZE, workers=1)
    other = {name for name in contents(tmp_path / "other") if "/" in name}
    assert other.isdisjoint(contents(tree))


def test_layout_is_that_of_mimic_cxr_jpg(tree: Path) -> None:
    images = (tree / "IMAGE_FILENAMES").read_text().splitlines()
    assert len(images) == len(set(images)) == 40
    pattern = re.compile(r"files/(p1\d)/(\1\d{6})/(s5\d{7})/((?:[0-9a-f]{8}-){4}[0-9a-f]{8})\.jpg")
    expected = {"IMAGE_FILENAMES", *(f"mimic-cxr-2.0.0-{name}.csv.gz" for name in TABLES)}
    metadata, splits = read_table(tree, "metadata"), read_table(tree, "split")
    for image, row, split in zip(images, metadata, splits, strict=True):
        match = pattern.fullmatch(image)
        assert match is not None, image
        folder, subject, study, dicom = match.groups()
        expected |= {image, f"files/{folder}/{subject}/{study}.txt", f"masks/{folder}/{subject}/{study}/{dicom}.png"}
        ids = {"dicom_id": dicom, "subject_id": subject[1:], "study_id": study[1:]}
        assert ids.items() <= row.items()
        assert ids.items() <= split.items()
    assert contents(tree).keys() == expected


def test_tables_have_the_columns_and_plausible_values(tree: Path) -> None:
    metadata, labels = read_table(tree, "metadata"), read_table(tree, "chexpert")
    assert list(metadata[0]) == [
        "dicom_id",
        "subject_id",
        "study_id",
        "PerformedProcedureStepDescription",
        "ViewPosition",
        "Rows",
        "Columns",
        "StudyDate",
        "StudyTime",
        "ProcedureCodeSequence_CodeMeaning",
        "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    ]
    assert {row["ViewPosition"] for row in metadata} == {"PA", "AP"}
    assert all(re.fullmatch(r"2[12]\d\d(0[1-9]|1[0-2])[0-3]\d", row["StudyDate"]) for row in metadata)
    assert list(labels[0]) == ["subject_id", "study_id", *FINDINGS]
    assert [row["study_id"] for row in labels] == list(dict.fromkeys(row["study_id"] for row in metadata))
    assert {row[label] for row in labels for label in FINDINGS} == {"1.0", "0.0", "-1.0", ""}
    header = (tree / "mimic-cxr-2.0.0-split.csv.gz").read_bytes()[:10]
    assert header[4:8] == bytes(4), "a time in the gzip header changes the bytes from run to run"


def test_images_are_as_the_table_says(tree: Path) -> None:
    sizes = set()
    for row, image in zip(read_table(tree, "metadata"), (tree / "IMAGE_FILENAMES").read_text().split(), strict=True):
        grey_HW: NDArray[np.uint8] | None = cv2.imread(str(tree / image), cv2.IMREAD_UNCHANGED)
        mask_HW: NDArray[np.uint8] | None = cv2.imread(
            str(tree / image.replace("files/", "masks/").replace(".jpg", ".png")), -1
        )
        assert grey_HW is not None
        assert mask_HW is not None
        assert grey_HW.shape == (int(row["Rows"]), int(row["Columns"]))
        assert min(grey_HW.shape) == SIZE <= max(grey_HW.shape) <= round(SIZE / 0.82)
        assert mask_HW.shape == grey_HW.shape
        sizes.add(grey_HW.shape)
    assert len(sizes) > 10


@pytest.mark.parametrize("seed", range(5))
def test_twenty_records_hold_all_splits_and_no_subject_is_in_two(tmp_path: Path, seed: int) -> None:
    write_phantom_tree(tmp_path / "set", 20, seed=seed, size=64, workers=1)
    rows = read_table(tmp_path / "set", "split")
    assert {row["split"] for row in rows} == {"train", "validate", "test"}
    assert len({(row["subject_id"], row["split"]) for row in rows}) == len({row["subject_id"] for row in rows})


# --- the reports ------------------------------------------------------------------------------------------------------

GRADES = {
    Kind.EFFUSION: ("small", "moderate", "large"),
    Kind.PNEUMOTHORAX: ("small|tiny", "moderate", "large|sizable"),
    Kind.CARDIOMEGALY: ("mild", "moderate", "severe|marked"),
    Kind.CONSOLIDATION: ("focal|patchy", "confluent|dense", "extensive|widespread"),
}
WORDS = {
    Kind.EFFUSION: "effusion",
    Kind.PNEUMOTHORAX: "pneumothorax",
    Kind.CARDIOMEGALY: "cardiomegaly|ly enlarged|enlargement of",
    Kind.NODULE: "nodule|nodular",
    Kind.CONSOLIDATION: "consolidation|airspace opacity|pneumonia|opacity may",
}
LABEL_OF = {
    Kind.EFFUSION: "Pleural Effusion",
    Kind.PNEUMOTHORAX: "Pneumothorax",
    Kind.CARDIOMEGALY: "Cardiomegaly",
    Kind.NODULE: "Lung Lesion",
    Kind.CONSOLIDATION: "Consolidation",
}


@pytest.fixture(scope="module")
def reports() -> list[tuple[Study, Report]]:
    studies = [draw_study(8, number, number) for number in range(600)]
    return [(study, write_report(8, study, earlier=0)) for study in studies]


def section(report: Report, name: str) -> str:
    body = re.split(rf"\n {name}:", report.text)[1]
    return " ".join(re.split(r"\n [A-Z]+:", body)[0].split())


def sentences(report: Report) -> list[str]:
    """All that FINDINGS and IMPRESSION state."""
    text = section(report, "FINDINGS") + " " + section(report, "IMPRESSION")
    return [sentence.lower() for sentence in re.split(r"(?<=\.)\s+(?:\d\. )?", text) if sentence]


def is_denial(sentence: str) -> bool:
    return re.search(r"\bno\b|\bnot\b|\bnormal\b", sentence) is not None


def test_reports_state_just_the_findings(reports: list[tuple[Study, Report]]) -> None:
    for study, report in reports:
        for kind, words in WORDS.items():
            told = [text for text in sentences(report) if re.search(words, text) and not is_denial(text)]
            assert bool(told) == bool(study.having(kind)), (kind, sentences(report))
            denied = any(re.search(words, text) and is_denial(text) for text in sentences(report))
            assert not (denied and study.having(kind)), sentences(report)


def test_reports_name_the_side(reports: list[tuple[Study, Report]]) -> None:
    for study, report in reports:
        for kind in WORDS.keys() - {Kind.CARDIOMEGALY}:
            sides = {finding.side for finding in study.having(kind)}
            said: set[int] = set()
            for text in sentences(report):
                if re.search(WORDS[kind], text) and not is_denial(text):
                    both = re.search("bilateral|both sides", text)
                    here = {side for side, word in ((RIGHT, "right"), (LEFT, "left")) if both or word in text}
                    assert here == sides, text
                    said |= here
            assert said == sides


def test_reports_grade_by_the_drawn_size(reports: list[tuple[Study, Report]]) -> None:
    for study, report in reports:
        for kind, grades in GRADES.items():
            found = study.having(kind)
            told = " ".join(text for text in sentences(report) if re.search(WORDS[kind], text) and not is_denial(text))
            expected = {0 if finding.size < 0.33 else 1 if finding.size < 0.67 else 2 for finding in found}
            said = {grade for grade, words in enumerate(grades) if re.search(rf"\b(?:{words})", told)}
            assert said == expected, told
        for finding in study.having(Kind.NODULE):
            assert re.findall(r"(\d+)\s+mm", report.text) == [str(finding.diameter_mm)] * 2


def test_labels_say_what_the_report_says(reports: list[tuple[Study, Report]]) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    for study, report in reports:
        assert report.labels.keys() <= set(FINDINGS)
        seen.update(report.labels.items())
        for kind, label in LABEL_OF.items():
            denied = any(re.search(WORDS[kind], text) and is_denial(text) for text in sentences(report))
            expected = 1 if study.having(kind) else 0 if denied else None
            if kind is not Kind.CARDIOMEGALY:
                assert report.labels.get(label) == expected, sentences(report)
        assert report.labels["Cardiomegaly"] == len(study.having(Kind.CARDIOMEGALY))
        assert ("No Finding" in report.labels) == (not study.findings)
        uncertain = re.search("possibly pneumonia|may represent pneumonia", report.text) is not None
        assert (report.labels.get("Pneumonia") == -1) == uncertain
    assert {value for (_, value) in seen} == {1, 0, -1}
    assert 0.25 < seen["No Finding", 1] / len(reports) < 0.42, "a third of the studies is normal"


def test_reports_look_like_mimics_and_vary(reports: list[tuple[Study, Report]]) -> None:
    for study, report in reports:
        lines = report.text.splitlines()
        assert lines[0].strip() == "FINAL REPORT"
        assert all(line.startswith(" ") and len(line) <= 79 for line in lines), report.text
        headers = re.findall(r"\n ([A-Z ()/,-]+):\s", report.text)
        assert headers == ["EXAMINATION", "INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION"]
        assert ("AP" in section(report, "EXAMINATION")) == study.portable
        low = re.search(r"volumes are low|low lung volumes|effort is poor", section(report, "FINDINGS"))
        assert (low is not None) == study.low_volumes
        assert ("___F" in report.text or "woman" in report.text) == study.anatomy.female
    assert len({report.text for _, report in reports}) > 0.97 * len(reports)


# --- the images -------------------------------------------------------------------------------------------------------


def with_and_without(study: Study, kind: Kind, size: int = 384) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The change in grey that a kind of finding makes, and its mask."""
    image_HW, mask_HW = render(1, study, study.index, size)
    plain_HW, _ = render(1, without(study, kind), study.index, size)
    change_HW = cv2.GaussianBlur(image_HW.astype(np.float32) - plain_HW, (0, 0), 1.5)
    return change_HW, (mask_HW & int(kind)) > 0


@pytest.mark.parametrize("side", [RIGHT, LEFT])
@pytest.mark.parametrize("size", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(
    ("kind", "direction"),
    [(Kind.EFFUSION, 1), (Kind.PNEUMOTHORAX, -1), (Kind.NODULE, 1), (Kind.CONSOLIDATION, 1)],
)
def test_findings_change_the_image_where_the_mask_says(kind: Kind, direction: int, size: float, side: int) -> None:
    for number in range(3):
        finding = Finding(kind, side, size, height=0.45, lateral=0.6)
        change_HW, mask_HW = with_and_without(a_study(finding, number=number), kind)
        inside = direction * change_HW[mask_HW]
        assert mask_HW.sum() > 40
        assert np.median(inside) > 7.0
        assert (inside > 1.0).mean() > 0.8
        columns = np.nonzero(mask_HW)[1]
        assert (columns.mean() > mask_HW.shape[1] / 2) == (side == LEFT), "the patient's left is on the image's right"
        strong_HW = direction * change_HW > 0.6 * np.percentile(inside, 90)
        near_HW = cv2.dilate(mask_HW.astype(np.uint8), np.ones((17, 17))) > 0
        assert strong_HW[near_HW].sum() > 0.85 * strong_HW.sum()


@pytest.mark.parametrize("size", [0.05, 0.95])
def test_cardiomegaly_widens_the_heart_within_its_mask(size: float) -> None:
    for number in range(4):
        study = a_study(Finding(Kind.CARDIOMEGALY, LEFT, size), number=number)
        change_HW, mask_HW = with_and_without(study, Kind.CARDIOMEGALY)
        strong_HW = change_HW > 15.0
        assert strong_HW.sum() > 0.02 * mask_HW.sum()
        near_HW = cv2.dilate(mask_HW.astype(np.uint8), np.ones((13, 13))) > 0
        assert strong_HW[near_HW].sum() > 0.85 * strong_HW.sum()


def test_larger_findings_have_larger_masks() -> None:
    for kind in Kind:
        areas = []
        for size in (0.05, 0.35, 0.65, 0.95):
            _, mask_HW = render(1, a_study(Finding(kind, LEFT, size, height=0.4)), 0, 256)
            assert set(np.unique(mask_HW)) == {0, int(kind)}
            areas.append(int((mask_HW > 0).sum()))
        assert areas == sorted(areas)
        assert areas[-1] > 1.25 * areas[0]


def test_a_nodule_is_as_large_as_the_report_says() -> None:
    for size in (0.0, 0.5, 1.0):
        study = a_study(Finding(Kind.NODULE, RIGHT, size, height=0.4))
        _, mask_HW = render(1, study, 0, 768)
        units_mm = CM_PER_UNIT * 10.0
        pixels_mm = pose(draw_exposure(1, 0, portable=study.portable, size=768))[0, 0] * PIXELS_PER_UNIT / units_mm
        diameter_mm = 2.0 * np.sqrt((mask_HW > 0).sum() / np.pi) / pixels_mm
        assert f"{round(12 + 18 * size)} mm" in " ".join(write_report(1, study, earlier=0).text.split())
        assert diameter_mm == pytest.approx(12 + 18 * size, rel=0.12)


def test_every_drawn_finding_has_a_mask_and_nothing_else_has() -> None:
    for number in range(60):
        study = draw_study(2, number, number)
        _, mask_HW = render(2, study, number, 192)
        bits = int(np.bitwise_or.reduce(mask_HW, axis=None))
        assert bits == sum({int(finding.kind) for finding in study.findings}), study.findings


def patch_mean(image_HW: NDArray[np.uint8], exposure: Exposure, x: float, y: float) -> float:
    """Mean grey about a point of the chest, given in chest units."""
    grid = (np.array([x, y]) - (LEFT_EDGE, TOP_EDGE)) * PIXELS_PER_UNIT
    column, row = (round(value) for value in pose(exposure) @ (*grid, 1.0))
    return float(image_HW[row - 8 : row + 9, column - 8 : column + 9].mean())


def test_images_are_radiographs_of_varied_chests() -> None:
    means = []
    for number in range(24):
        study = replace(draw_study(6, number, number), findings=())
        image_HW, _ = render(6, study, number, 192)
        assert image_HW.std() > 35.0
        assert (image_HW >= 254).mean() < 0.05
        assert len(np.unique(image_HW)) > 150
        exposure = draw_exposure(6, number, portable=study.portable, size=192)
        right, left, heart = (patch_mean(image_HW, exposure, x, 1.0) for x in (-0.6, 0.6, 0.0))
        assert heart > 1.3 * max(right, left), "lungs are darker than the mediastinum"
        means.append(float(image_HW.mean()))
    assert np.std(means) > 4.0, "exposure varies"


def test_the_images_of_a_study_differ_in_pose_only() -> None:
    study = draw_study(1, 5, 5)
    first_HW, _ = render(1, study, 10, 128)
    second_HW, _ = render(1, study, 11, 128)
    assert first_HW.shape != second_HW.shape or bool((first_HW != second_HW).any())


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("kept")
    with pytest.raises(SourceError, match="not an empty folder") as caught:
        write_phantom_tree(tmp_path, 1, workers=1)
    assert caught.value.where == str(tmp_path)
    assert caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize(("count", "size", "seed"), [(0, 64, 0), (-5, 64, 0), (10**8, 64, 0), (1, 63, 0), (1, 64, -1)])
def test_numbers_out_of_range_are_refused(tmp_path: Path, count: int, size: int, seed: int) -> None:
    with pytest.raises(SourceError) as caught:
        write_phantom_tree(tmp_path / "set", count, seed=seed, size=size, workers=1)
    assert caught.value.remedy
    assert not (tmp_path / "set").exists()


def test_a_full_disk_is_named_and_leaves_no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_bytes, []

    def until_full(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) > 9:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", until_full)
    with pytest.raises(SourceError, match="No space left") as caught:
        write_phantom_tree(tmp_path / "set", 40, size=64, workers=1)
    assert caught.value.where == str(written[-1])
    assert not any((tmp_path / "set").glob("*.csv.gz"))
    assert not (tmp_path / "set" / "IMAGE_FILENAMES").exists()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError) as caught:
        write_phantom_tree(tmp_path / "file" / "set", 1, size=64, workers=1)
    assert "file" in str(caught.value.where)
