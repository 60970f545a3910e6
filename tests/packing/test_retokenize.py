"""A packed set written again with other tokens: nothing but the tokens changes, however often it is interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrm_stream.errors import ClusterError, ConfigError, MrmStreamError, ShardError, SourceError
from mrm_stream.formats.dictionary import ReportCodec
from mrm_stream.formats.folder import FOLDER
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import read_index
from mrm_stream.packing import retokenize as retokenize_module
from mrm_stream.packing.pack import Supervision, pack
from mrm_stream.packing.repair import repair
from mrm_stream.packing.retokenize import TokenChoice, retokenize
from mrm_stream.packing.verify import verify
from mrm_stream.packing.workers import Workers
from mrm_stream.storage.files import upload
from mrm_stream.storage.paths import parse_path
from mrm_stream.text.tokenizer import encode_report, load_tokenizer, train_tokenizer
from tests.packing.torture import digests, pack_set

Members = dict[str, dict[str, bytes]]

REPORT = "\n FINDINGS: Made-up study {n}, the lungs are clear.\n\n IMPRESSION: {n} times no acute process.\n"
PLAIN = "\n Made-up study {n} of some other kind, without any header.\n"


@pytest.fixture(scope="module")
def packed(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set"
    pack_set(mixed_set, out)
    return out


@pytest.fixture(scope="module")
def sectioned(make_set: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source whose reports have sections, all but two of 20, and what was packed from it."""
    root = make_set(tmp_path_factory.mktemp("sectioned") / "source", 20)
    lines = ["image_path,report_content"]
    for number, path in enumerate(sorted((root / "images").iterdir())):
        report = (PLAIN if number in (3, 11) else REPORT).format(n=number)
        lines.append(f'images/{path.name},"{report}"')
    (root / "training.csv").write_text("\n".join(lines) + "\n")
    out = root.parent / "set"
    pack("training-csv", root, out, options=PackOptions(samples_per_shard=4, short_side=48, vocabulary=200))
    return root, out


def members_of(directory: Path) -> Members:
    """Key to extension to content, of all samples."""
    samples: Members = {}
    for entry in read_manifest(directory).shards():
        index = read_index(directory / entry.file)
        content = (directory / entry.file).read_bytes()
        for row in range(len(index)):
            spans = zip(index.members, index.offsets[row].tolist(), index.sizes[row].tolist(), strict=True)
            samples[index.key(row)] = {member: content[start : start + size] for member, start, size in spans}
    return samples


def without_tokens(samples: Members) -> Members:
    return {
        key: {member: content for member, content in contents.items() if member != "tok"}
        for key, contents in samples.items()
    }


def check_tokens(directory: Path, length: int | None = None) -> None:
    """Each sample's tokens are its own stored report's, by the set's tokenizer."""
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    codec = ReportCodec((directory / "reports.zdict").read_bytes())
    for contents in members_of(directory).values():
        expected = encode_report(tokenizer, codec.decompress(contents["txt.zst"]))[:length]
        np.testing.assert_array_equal(np.frombuffer(contents["tok"], "<u2"), expected)


def test_with_nothing_asked_for_the_shards_are_the_same(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    retokenize(packed, out)
    changed = {name for name, digest in digests(out).items() if digests(packed)[name] != digest}
    assert changed == set()
    assert verify(out, decode=True) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_another_vocabulary_changes_tokens_alone(packed: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "again"
    before = digests(packed)
    manifest = retokenize(packed, out, TokenChoice(vocabulary=90), workers=Workers(workers))
    assert digests(packed) == before
    assert manifest.reports is not None
    assert manifest.reports.vocabulary == load_tokenizer(out / "tokenizer.json").get_vocab_size() == 90
    assert without_tokens(members_of(out)) == without_tokens(members_of(packed))
    assert members_of(out) != members_of(packed)
    check_tokens(out)
    assert verify(out, decode=True) == []
    assert (out / "quarantine.jsonl").read_bytes() == (packed / "quarantine.jsonl").read_bytes()
    assert manifest.quarantined == read_manifest(packed).quarantined


@pytest.mark.parametrize("length", [1, 5])
def test_another_tokenizer_and_another_length(packed: Path, tmp_path: Path, length: int) -> None:
    given = tmp_path / "given.json"
    given.write_text(train_tokenizer(["Made-up study number 0123456789: no acute pulmonary process."] * 3, 80).to_str())
    out = tmp_path / "again"
    manifest = retokenize(packed, out, TokenChoice(tokenizer=given, length=length))
    assert manifest.reports is not None
    assert manifest.reports.length == length
    assert load_tokenizer(out / "tokenizer.json").to_str() == load_tokenizer(given).to_str()
    check_tokens(out, length=length)
    assert {len(contents["tok"]) for contents in members_of(out).values()} == {2 * length}
    assert verify(out, decode=True) == []


def test_sections_and_samples_without_them(sectioned: tuple[Path, Path], tmp_path: Path) -> None:
    root, packed = sectioned
    out = tmp_path / "again"
    with pytest.raises(SourceError, match=r"2 of 20 samples have no tokens") as caught:
        retokenize(packed, out, TokenChoice(sections=("impression",)))
    assert "Made-up" not in str(caught.value)
    assert not (out / "manifest.json").exists()
    manifest = retokenize(packed, out, TokenChoice(sections=("impression",)), max_bad=0.2)
    assert manifest.samples("train") == 18
    assert manifest.options.sections == ("impression",)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == ["good-003", "good-011"]
    assert sum(manifest.quarantined.values()) == 2
    tokenizer = load_tokenizer(out / "tokenizer.json")
    for key, contents in members_of(out).items():
        expected = encode_report(tokenizer, f"{int(key[-3:])} times no acute process.")
        np.testing.assert_array_equal(np.frombuffer(contents["tok"], "<u2"), expected)
    assert verify(out, decode=True) == []
    # The set can be repaired from the source: with its sections, and without what they skipped.
    finished = digests(out)
    for entry in manifest.shards()[::2]:
        (out / entry.file).write_bytes(b"damaged")
    (out / "reports.zdict").unlink()
    assert repair(out, root)[1] == []
    assert digests(out) == finished


def test_a_set_with_other_tokens_can_be_repaired(mixed_set: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    retokenize(packed, out, TokenChoice(vocabulary=90, length=7))
    finished = digests(out)
    (out / "train-00000.tar").unlink()
    (out / "train-00004.idx").write_text("damaged")
    (out / "reports.zdict").write_bytes(b"damaged")
    assert repair(out, mixed_set)[1] == []
    assert digests(out) == finished


@pytest.mark.parametrize("stops", [(2, 5), pytest.param(tuple(range(1, 10)), marks=pytest.mark.campaign)])
def test_interrupted_and_run_again_the_bytes_are_the_same(packed: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    retokenize(packed, tmp_path / "undisturbed", TokenChoice(vocabulary=90, length=9))
    out = tmp_path / "again"
    for number, stop in enumerate(stops):

        def interrupt(done: int, of: int, stop: int = stop) -> None:
            if done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            retokenize(
                packed, out, TokenChoice(vocabulary=90, length=9), progress=interrupt, workers=Workers(1 + number % 2)
            )
        assert not (out / "manifest.json").exists()
        assert not list(out.rglob("*.tmp"))
    # Those that are noted: a worker may have been stopped between the shard and its note.
    shards = [path for path in sorted(out.glob("*.tar")) if (out / FOLDER / f"{path.stem}.json").exists()]
    assert len(shards) >= stops[0]
    content = bytearray(shards[0].read_bytes())
    content[600] ^= 1
    shards[0].write_bytes(content)
    kept = {path: path.stat().st_mtime_ns for path in shards[1:]}
    with pytest.raises(ShardError, match="another packing job"):
        retokenize(packed, out, TokenChoice(vocabulary=91, length=9))
    retokenize(packed, out, TokenChoice(vocabulary=90, length=9))
    assert digests(out) == digests(tmp_path / "undisturbed")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_worker_that_is_killed_leaves_what_can_be_gone_on_with(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "again"

    def lost(*_: object) -> None:
        raise ClusterError("a worker process was killed")

    with monkeypatch.context() as patch:
        patch.setattr(retokenize_module, "run_all", lost)
        with pytest.raises(ClusterError):
            retokenize(packed, out, TokenChoice(vocabulary=90))
    retokenize(packed, out, TokenChoice(vocabulary=90))
    retokenize(packed, tmp_path / "undisturbed", TokenChoice(vocabulary=90))
    assert digests(out) == digests(tmp_path / "undisturbed")


@pytest.mark.parametrize("name", ["train-00004.tar", "tokenizer.json", "reports.zdict", "quarantine.jsonl"])
def test_a_damaged_set_is_refused_rather_than_vouched_for(packed: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    content = bytearray((copy / name).read_bytes())
    place = len(content) // 2
    content[place] = ord("x") if content[place] != ord("x") else ord("y")
    (copy / name).write_bytes(content)
    with pytest.raises(ShardError, match="SHA-256 is not the manifest's") as caught:
        retokenize(copy, tmp_path / "again", TokenChoice(vocabulary=90 if name != "tokenizer.json" else None))
    assert str(caught.value.where).endswith(name)
    assert not (tmp_path / "again" / "manifest.json").exists()


def test_what_cannot_be_asked_for_is_refused_and_leaves_the_place_free(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    asked: list[tuple[Callable[[], object], type[MrmStreamError]]] = [
        (lambda: retokenize(packed, out, TokenChoice(length=0)), ConfigError),
        (lambda: retokenize(packed, out, TokenChoice(length=-3)), ConfigError),
        (lambda: retokenize(packed, out, TokenChoice(vocabulary=3)), SourceError),
        (lambda: retokenize(packed, out, TokenChoice(vocabulary=1 << 17)), SourceError),
        (lambda: retokenize(packed, out, TokenChoice(sections=("no such section",))), ConfigError),
        (lambda: retokenize(packed, packed, TokenChoice(vocabulary=90)), ShardError),
        (lambda: retokenize(packed, packed / "below" / "again", TokenChoice(vocabulary=90)), ShardError),
        (lambda: retokenize(tmp_path, out), ShardError),
    ]
    before = digests(packed)
    for ask, kind in asked:
        with pytest.raises(kind):
            ask()
        assert not out.exists() or not list(out.iterdir())
    assert digests(packed) == before
    retokenize(packed, out, TokenChoice(vocabulary=90))


def test_elsewhere_too_a_set_within_a_set_is_refused(packed: Path) -> None:
    there = parse_path("memory://sets/one")
    for path in packed.iterdir():
        upload(path, there / path.name)
    with pytest.raises(ShardError, match="a set within a set"):
        retokenize(there, there / "again")
    retokenize(there, parse_path("memory://sets/one-again"))


@pytest.fixture(scope="module")
def findings(sectioned: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of the sectioned source's findings, which two reports lack: packing left them out."""
    out = tmp_path_factory.mktemp("findings") / "set"
    options = PackOptions(samples_per_shard=4, short_side=48, vocabulary=200, sections=("findings",))
    pack("training-csv", sectioned[0], out, options=options, supervision=Supervision(max_bad=0.2))
    return out


def test_what_the_sections_of_packing_left_out_stays_out_when_others_are_repaired(
    sectioned: tuple[Path, Path], findings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    retokenize(findings, out, TokenChoice(sections=()))
    assert read_manifest(out).samples("train") == 18
    finished = digests(out)
    for path in out.glob("*.tar"):
        content = bytearray(path.read_bytes())
        content[700] ^= 1
        path.write_bytes(content)
    (out / "tokenizer.json").unlink()  # trained on the findings
    (out / "reports.zdict").unlink()
    assert repair(out, sectioned[0])[1] == []
    assert digests(out) == finished


def test_the_manifest_tells_where_the_tokenizer_came_from(findings: Path, tmp_path: Path) -> None:
    given = findings / "tokenizer.json"
    steps: list[tuple[Path, dict[str, Any], tuple[str, tuple[str, ...] | None, int]]] = [
        (findings, {}, ("trained", None, 200)),
        (findings, {"sections": ()}, ("trained", ("findings",), 200)),
        (findings, {"sections": (), "vocabulary": 80}, ("trained again", None, 80)),
        (findings, {"tokenizer": given}, ("given", None, 200)),
        (tmp_path / "1", {"sections": ("findings",)}, ("trained", None, 200)),
        (tmp_path / "1", {"sections": ("impression",)}, ("trained", ("findings",), 200)),
        (tmp_path / "2", {"sections": ("impression",)}, ("trained again", (), 80)),
        (tmp_path / "3", {"sections": ()}, ("given", None, 200)),
    ]
    for number, (source, choices, expected) in enumerate(steps):
        manifest = retokenize(source, tmp_path / str(number), TokenChoice(**choices))
        assert manifest == read_manifest(tmp_path / str(number))
        assert manifest.reports is not None
        assert (manifest.reports.made, manifest.reports.trained_sections, manifest.options.vocabulary) == expected


def test_a_tokenizer_that_was_trained_again_is_told_to_be_made_again(
    mixed_set: Path, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    retokenize(packed, out, TokenChoice(vocabulary=90))
    (out / "tokenizer.json").unlink()
    (fault,) = repair(out, mixed_set)[1]
    assert "tokenize the set anew" in str(fault.remedy)


def test_reports_that_say_nothing_are_skipped_and_counted(
    make_set: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a set that an earlier version packed may hold them, or in the sections that are asked for."""
    root = make_set(tmp_path / "source", 8)
    reports = ["nan", "FINDINGS: IMPRESSION:", "FINDINGS: Clear.\nIMPRESSION: ___"]
    reports += [f"FINDINGS: Clear.\nIMPRESSION: Made-up study {number} is normal." for number in range(5)]
    rows = [
        f'images/{path.name},"{text}"' for path, text in zip(sorted((root / "images").iterdir()), reports, strict=True)
    ]
    (root / "training.csv").write_text("\n".join(["image_path,report_content", *rows, ""]))
    options = PackOptions(samples_per_shard=4, short_side=48, vocabulary=200)
    manifest = pack("training-csv", root, tmp_path / "strict", options=options, supervision=Supervision(max_bad=0.5))
    assert manifest.quarantined == {"report-says-nothing": 2}
    with monkeypatch.context() as patch:  # as before there was the rule
        for module in ("sources.reading", "text.sections"):
            patch.setattr(f"mrm_stream.{module}.says_something", lambda text: True)
        pack("training-csv", root, tmp_path / "set", options=options)
    whole = retokenize(tmp_path / "set", tmp_path / "whole", max_bad=0.5)
    assert whole.quarantined == {"report-says-nothing": 2}
    impressions = retokenize(
        tmp_path / "set", tmp_path / "part", TokenChoice(sections=("impression",), vocabulary=100), max_bad=0.5
    )
    assert impressions.quarantined == {"report-says-nothing": 1, "report-none-of-the-sections-asked-for": 2}
    with pytest.raises(SourceError, match=r"2 of 8 samples have no tokens \(most often: the report says nothing"):
        retokenize(tmp_path / "set", tmp_path / "refused")
