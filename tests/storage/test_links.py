"""Trees of symbolic links: read as plain trees are where the user says so, and refused in one sentence where not."""

from __future__ import annotations

import copy
import multiprocessing
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from mrm_stream.cli import main
from mrm_stream.errors import ConfigError, MrmStreamError, RecordError, SourceError, StorageError
from mrm_stream.formats.folder import FOLDER
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import Progress, Supervision, pack
from mrm_stream.packing.plan import plan_set
from mrm_stream.records import Record
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.sources.reading import read_image, read_mask, read_report
from mrm_stream.sources.registry import list_records
from mrm_stream.storage.files import names_below
from mrm_stream.storage.links import FollowedPath, followed
from mrm_stream.storage.paths import parse_path
from tests.packing.hostile_images import dicom
from tests.packing.torture import digests
from tests.sources import test_mimic_dicom as dicoms
from tests.sources import test_openi, test_siim
from tests.sources.test_two_forms import TREES

OPTIONS = PackOptions(short_side=64, samples_per_shard=3, vocabulary=200, blank="keep")
CHOICES = ("--short-side", "64", "--vocabulary", "200", "--blank", "keep", "--workers", "1")


@dataclass(frozen=True)
class Tree:
    """A data set, and what is packed of it."""

    source: str
    root: Path
    packed: Path


def _mimic(root: Path, *, zipped: bool = False) -> None:
    write_phantom_tree(root, 8, size=64, workers=1, progress=None)
    if zipped:
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
            for report in sorted(root.rglob("*.txt")):
                archive.write(report, report.relative_to(root))
                report.unlink()


def _mimic_dicom(root: Path) -> None:
    dicoms.write_table(root / "cxr-record-list.csv.gz", dicoms.RECORD_HEADER, dicoms.RECORDS)
    dicoms.write_table(root / "cxr-study-list.csv.gz", ["subject_id", "study_id", "path"], dicoms.STUDIES)
    for *_, path in dicoms.RECORDS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(dicom(25, 40))
    for _, study, path in dicoms.STUDIES:
        (root / path).write_text(f" FINAL REPORT\n The heart of study {study} is large.")


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "mimic": ("mimic", _mimic),
    "mimic-zip": ("mimic", lambda root: _mimic(root, zipped=True)),
    "mimic-dicom": ("mimic-dicom", _mimic_dicom),
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tree]:
    """Name -> plain tree and its set, made once."""
    made: dict[str, Tree] = {}

    def make(name: str) -> Tree:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            (folder / "root").mkdir()
            source, write = MAKERS[name]
            write(folder / "root")
            assert shard(source, folder / "root", folder / "set") == ""
            made[name] = Tree(source, folder / "root", folder / "set")
        return made[name]

    return make


def shard(source: str, root: Path, out: Path, *words: str) -> str:
    """Pack; return the error, if it ends with one."""
    return run("shard", "--src", source, "--root", str(root), "--out", str(out), *CHOICES, *words)


def run(*words: str) -> str:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code in (0, 1), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output if result.exit_code else ""


def _linked_files(plain: Path, root: Path) -> Path:
    """The tables at the root, the images elsewhere; returns the link."""
    root.mkdir()
    for path in plain.iterdir():
        if path.is_file():
            shutil.copy(path, root)
    (root / "files").symlink_to(plain / "files")
    return root / "files"


def _farm(plain: Path, root: Path) -> Path:
    """As `cp -rs` makes it; returns the link that is met first."""
    shutil.copytree(plain, root, copy_function=lambda one, other: Path(other).symlink_to(one))
    return min(path for path in root.iterdir() if path.is_symlink() and ("split" in path.name or "record" in path.name))


WAYS = {"linked files": _linked_files, "farm": _farm}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MAKERS)
def test_a_tree_of_links_is_packed_as_the_plain_one_or_refused_in_one_sentence(
    trees: Callable[[str], Tree], tmp_path: Path, name: str, way: str
) -> None:
    tree = trees(name)
    link = WAYS[way](tree.root, tmp_path / "root")
    for words in ((), ("--dry-run",)):
        told = shard(tree.source, tmp_path / "root", tmp_path / "set", *words)
        assert f"{link}, a link to {link.readlink()}: a link leads out of the root: see --follow-links\n" in told
        assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]
    assert shard(tree.source, tmp_path / "root", tmp_path / "set", "--follow-links") == ""
    assert digests(tmp_path / "set") == digests(tree.packed)
    plain, linked = (
        plan_set(tree.source, root, OPTIONS).fingerprint(None) for root in (tree.root, followed(tmp_path / "root"))
    )
    assert plain == linked


def test_linked_reports_beside_plain_images_are_refused_at_once(trees: Callable[[str], Tree], tmp_path: Path) -> None:
    root = Path(shutil.copytree(trees("mimic").root, tmp_path / "root"))
    for report in root.rglob("*.txt"):
        _move_away(report, tmp_path / report.name)
    assert "see --follow-links" in shard("mimic", root, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert shard("mimic", root, tmp_path / "set", "--follow-links") == ""


def test_linked_copies_of_zipped_reports_are_refused_at_once(trees: Callable[[str], Tree], tmp_path: Path) -> None:
    root = Path(shutil.copytree(trees("mimic-zip").root, tmp_path / "root"))
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    for report in (tmp_path / "unpacked").rglob("*.txt"):
        (root / report.relative_to(tmp_path / "unpacked")).symlink_to(report)
    assert "see --follow-links" in shard("mimic", root, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert shard("mimic", root, tmp_path / "set", "--follow-links") == ""
    assert digests(tmp_path / "set") == digests(trees("mimic-zip").packed)


def test_a_job_begun_by_links_is_finished_without_them(trees: Callable[[str], Tree], tmp_path: Path) -> None:
    tree = trees("mimic")
    link = _linked_files(tree.root, tmp_path / "root")
    out, kept = tmp_path / "set", []

    def stop(state: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack("mimic", followed(tmp_path / "root"), out, options=OPTIONS, supervision=Supervision(progress=stop))
    assert (out / FOLDER).is_dir()
    link.unlink()
    shutil.copytree(tree.root / "files", link)
    pack(
        "mimic",
        tmp_path / "root",
        out,
        options=OPTIONS,
        supervision=Supervision(progress=lambda state: kept.append(state.kept)),
    )
    assert max(kept) > 0
    plain = tmp_path / "plain"
    pack("mimic", tree.root, plain, options=OPTIONS)
    assert digests(out) == digests(plain)


def test_repair_follows_links_where_it_is_told_to(trees: Callable[[str], Tree], tmp_path: Path) -> None:
    tree = trees("mimic")
    damaged = Path(shutil.copytree(tree.packed, tmp_path / "set"))
    (damaged / "train-00000.tar").unlink()
    _farm(tree.root, tmp_path / "root")
    before = digests(damaged)
    words = ("repair", str(damaged), "--root", str(tmp_path / "root"), "--workers", "1")
    assert "see --follow-links" in run(*words)
    assert digests(damaged) == before
    assert run(*words, "--follow-links") == ""
    assert digests(damaged) == digests(tree.packed)


def test_another_process_is_permitted_what_this_one_is(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/b.jpg").symlink_to(tmp_path / "a.jpg")
    record = Record(key="b", image_path="b.jpg")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_image, (followed(tmp_path / "root").resolve(), record)) == b"image"
        with pytest.raises(RecordError, match="--follow-links"):
            pool.apply(read_image, (tmp_path / "root", record))


def test_the_permission_goes_with_a_path_and_shows_nowhere_else(tmp_path: Path) -> None:
    root = followed(tmp_path)
    assert isinstance(root, Path)
    for path in (root / "a" / "b", root.resolve(), copy.copy(root), root.parent):
        assert isinstance(path, FollowedPath)
    assert root == tmp_path
    assert (hash(root), str(root)) == (hash(tmp_path), str(tmp_path))
    assert not isinstance(Path(root), FollowedPath)
    assert followed(parse_path("memory://set")) == parse_path("memory://set")


@pytest.mark.parametrize("path", ["../a.jpg", "files/../../a.jpg", "files/../b.jpg", "{}/a.jpg"])
def test_no_path_of_a_table_leads_out_whatever_is_permitted(tmp_path: Path, path: str) -> None:
    (tmp_path / "root/files").mkdir(parents=True)
    (tmp_path / "a.jpg").write_bytes(b"secret")
    (tmp_path / "root/b.jpg").symlink_to(tmp_path / "a.jpg")
    record = Record(key="a", image_path=path.format(tmp_path), report_path=path.format(tmp_path), mask_path=path)
    for read in (read_image, read_report, read_mask):
        with pytest.raises(RecordError, match=r"the (path leads out of the root|mask is missing)"):
            read(followed(tmp_path / "root"), record)


def test_masks_are_refused_and_followed_too(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "a.png").write_bytes(b"mask")
    (tmp_path / "root/a.png").symlink_to(tmp_path / "a.png")
    record = Record(key="a", image_path="a.png", mask_path="a.png")
    with pytest.raises(RecordError, match="--follow-links"):
        read_mask(tmp_path / "root", record)
    assert read_mask(followed(tmp_path / "root"), record) == b"mask"


def test_the_link_that_leads_out_is_named_and_not_one_before_it(tmp_path: Path) -> None:
    (tmp_path / "root/real").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").write_bytes(b"image")
    (tmp_path / "root/files").symlink_to("real")
    (tmp_path / "root/real/p10").symlink_to("../../elsewhere")
    with pytest.raises(RecordError) as caught:
        read_image(tmp_path / "root", Record(key="a", image_path="files/p10/a.jpg"))
    assert caught.value.where == f"{tmp_path / 'root' / 'files' / 'p10'}, a link to ../../elsewhere"


def _move_away(path: Path, to: Path) -> None:
    shutil.move(path, to)
    path.symlink_to(to)


@pytest.mark.parametrize(
    ("source", "table"), [(name, table) for name, (_, tables) in TREES.items() for table in tables]
)
def test_a_linked_table_is_refused_and_followed(tmp_path: Path, source: str, table: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    TREES[source][0](root)
    expected = list_records(source, root)
    folder = (root / table).parent
    # Where a folder of tables is a link, it is as much below the root as a table is.
    _move_away(root / table if folder == root else folder, tmp_path / "away")
    with pytest.raises(SourceError, match=r"away: a link leads out of the root: see --follow-links"):
        list_records(source, root)
    assert list_records(source, followed(root)) == expected


@pytest.mark.parametrize("what", ["NLMCXR_reports.tgz", "ecgen-radiology/2.xml", "both"])
def test_linked_reports_of_open_i_are_refused_and_followed(tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for form in ("archive", "tree") if what == "both" else ("archive" if what.endswith("tgz") else "tree",):
        test_openi.write(root, test_openi.REPORTS, form)
    (root / "CXR2_IM-0001-1001.png").write_bytes(b"image")
    expected = list_records("openi", root)
    _move_away(root / ("ecgen-radiology/2.xml" if what == "both" else what), tmp_path / "away")
    with pytest.raises(SourceError, match=r"away: a link leads out of the root: see --follow-links"):
        list_records("openi", root)
    assert list_records("openi", followed(root)) == expected


def test_list_files_are_refused_and_followed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    TREES["siim"][0](tmp_path / "root")
    lists = test_siim._write_lists(tmp_path / "lists", train_list=[test_siim.A])
    expected = list_records("siim", tmp_path / "root", lists)
    (tmp_path / "link").symlink_to(lists)
    assert list_records("siim", tmp_path / "root", tmp_path / "link") == expected
    _move_away(lists / "train_list.txt", tmp_path / "away")
    with pytest.raises(SourceError, match=r"away: a link leads out of the root: see --follow-links"):
        list_records("siim", tmp_path / "root", lists)
    assert list_records("siim", tmp_path / "root", followed(lists)) == expected


@pytest.mark.parametrize("below", ["", "/series"])
def test_a_folder_that_is_walked_is_not_left_unless_it_may_be(tmp_path: Path, below: str) -> None:
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    (tmp_path / "series").mkdir()
    (tmp_path / "series/a.dcm").write_bytes(b"image")
    if not below:
        (root / "images").rmdir()
    (root / f"images{below}").symlink_to(tmp_path / "series")
    with pytest.raises(SourceError, match="--follow-links"):
        list(names_below(root, "images"))
    assert list(names_below(followed(root), "images")) == [f"images{below}/a.dcm"]


@pytest.mark.parametrize("permit", [Path, followed])
def test_a_circle_of_links_ends_a_walk_with_an_error(tmp_path: Path, permit: Callable[[Path], Path]) -> None:
    (tmp_path / "images/series").mkdir(parents=True)
    (tmp_path / "images/series/up").symlink_to("..")
    with pytest.raises(StorageError, match="a link leads back to a folder that it lies in"):
        list(names_below(permit(tmp_path), "images"))


def test_two_links_to_one_folder_are_no_circle(tmp_path: Path) -> None:
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "images/a/1.dcm").write_bytes(b"image")
    (tmp_path / "images/b").symlink_to("a")
    assert sorted(names_below(tmp_path, "images")) == ["images/a/1.dcm", "images/b/1.dcm"]


@pytest.mark.parametrize("loop", ["files", "mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-reports.zip"])
@pytest.mark.parametrize("permit", [Path, followed])
def test_a_loop_of_links_ends_with_an_error(
    trees: Callable[[str], Tree], tmp_path: Path, loop: str, permit: Callable[[Path], Path]
) -> None:
    root = Path(shutil.copytree(trees("mimic-zip").root, tmp_path / "root"))
    path = root / loop
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to("other")
    (root / "other").symlink_to(loop)
    with pytest.raises(MrmStreamError, match="too many levels of symbolic links"):
        list_records("mimic", permit(root))


def test_a_loop_of_links_in_place_of_one_image_is_that_records_fault(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    for root in (tmp_path, followed(tmp_path)):
        with pytest.raises(RecordError, match="the image cannot be read"):
            read_image(root, Record(key="a", image_path="a.jpg"))


def test_the_option_is_refused_where_there_are_no_links(tmp_path: Path) -> None:
    from mrm_stream.commands.common import source_paths

    remote = parse_path("memory://set")
    with pytest.raises(ConfigError, match="a URL has no links"):
        source_paths(remote, None, True)
    root, lists = source_paths(remote, tmp_path, True)
    assert root == remote
    assert isinstance(lists, FollowedPath)
