from __future__ import annotations

from pathlib import Path

import pytest

from mrm_stream.errors import RecordError, SourceError
from mrm_stream.sources.reading import read_image, read_report
from mrm_stream.sources.registry import list_records


def _write(root: Path, table: str, *images: str) -> Path:
    (root / "training.csv").write_text(table)
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(image.encode())
    return root


def test_each_row_becomes_a_record_of_the_training_split(tmp_path: Path) -> None:
    table = 'image_path,report_content\nfiles/a.jpg,"Clear,\nboth sides."\nfiles/b.jpg,Effusion.\n'
    root = _write(tmp_path, table, "files/a.jpg", "files/b.jpg")
    first, second = list_records("training-csv", root)
    assert (first.key, first.image_path, first.split) == ("a", "files/a.jpg", "train")
    assert (second.key, second.subject, second.labels) == ("b", "", {})
    assert read_image(root, first) == b"files/a.jpg"
    assert read_report(root, first) == "Clear,\nboth sides."


def test_a_report_never_shows_in_a_record_s_repr(tmp_path: Path) -> None:
    root = _write(tmp_path, "image_path,report_content\na.jpg,Effusion\n", "a.jpg")
    assert "Effusion" not in repr(list_records("training-csv", root))


def test_files_of_one_stem_get_keys_of_their_own_whatever_their_order(tmp_path: Path) -> None:
    paths = ["p1/view1.jpg", "p2/view1.jpg", "p3/view2.jpg", "p1/view 1.jpg"]
    keys = []
    for order in (paths, paths[::-1]):
        table = "image_path,report_content\n" + "".join(f"{path},x\n" for path in order)
        records = list_records("training-csv", _write(tmp_path, table, *paths))
        keys.append({record.image_path: record.key for record in records})
    assert keys[0] == keys[1]
    assert len(set(keys[0].values())) == 4
    assert keys[0]["p3/view2.jpg"] == "view2"


def test_an_empty_report_is_left_to_packing(tmp_path: Path) -> None:
    root = _write(tmp_path, 'image_path,report_content\na.jpg,\nb.jpg," "\n', "a.jpg", "b.jpg")
    for record in list_records("training-csv", root):
        with pytest.raises(RecordError, match="the report is empty"):
            read_report(root, record)


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ("image_path,report_content\na.jpg,x\nb.jpg,y\na.jpg,z\n", "key appears twice: 'a.jpg' on lines 2 and 4"),
        ("image_path,report_content\na.jpg,x\n,y\n", "line 3: image_path is blank"),
        ("image_path,report\na.jpg,x\n", "column 'report_content' is missing\n.*'report'"),
        ("image_path,report_content\n", "no images are listed"),
        ("image_path,report_content\nc.jpg,x\n", "no images under the root"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, table: str, what: str) -> None:
    with pytest.raises(SourceError, match=what):
        list_records("training-csv", _write(tmp_path, table, "a.jpg", "b.jpg"))


def test_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is neither training\.csv\.gz nor training\.csv"):
        list_records("training-csv", tmp_path)


def test_a_hostile_cell_is_refused(tmp_path: Path) -> None:
    root = _write(tmp_path, "image_path,report_content\na.jpg," + "x" * (50 << 20), "a.jpg")
    with pytest.raises(SourceError, match="line 2: the line is longer"):
        list_records("training-csv", root)


def test_the_real_file_is_listed_whole(shared: Path) -> None:
    root = shared / "data" / "covid-cxr"
    records = list_records("training-csv", root)
    assert len(records) == 511
    assert all(read_report(root, record) for record in records)
    assert all(read_image(root, record) for record in records[::50])
