from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrm_stream.bench.pack import PLOT, RESULT, bench_pack
from mrm_stream.bench.pack_figure import draw_pack_bench, pack_table
from mrm_stream.bench.pack_result import FLOORS, PackBench, PackBenchOptions
from mrm_stream.bench.peers import CONTENDERS, OURS, Job, Run, run_contender
from mrm_stream.bench.radiographs import BenchSet, image_path, make_bench_set
from mrm_stream.errors import ConfigError, MrmStreamError

TINY = PackBenchOptions(count=8, width=200, rounds=1, workers=1, short_side=96)
COUNT = 60
"""Over twice the chests that are rendered: some image is shifted, but not mirrored."""
PEERS = [name for name in CONTENDERS if name != OURS]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PackBench, list[tuple[int, int | None, str]]]:
    out = tmp_path_factory.mktemp("bench")
    steps: list[tuple[int, int | None, str]] = []
    result = bench_pack(out, options=TINY, progress=lambda *step: steps.append(step))
    return out, result, steps


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> BenchSet:
    return make_bench_set(tmp_path_factory.mktemp("set") / "set", COUNT, width=120, workers=2)


def test_json_holds_every_contender_and_where_it_ran(measured: Any) -> None:
    out, result, _ = measured
    content = json.loads((out / RESULT).read_text())
    assert content == json.loads(json.dumps(result.to_json()))
    assert content["machine"]["cores"] >= 1
    assert all(content["machine"].values())
    assert content["versions"].keys() == {"python", "numpy", "pillow", "simplejpeg", "tokenizers", "webdataset"}
    assert content["settings"]["count"] == 8
    assert content["settings"]["mean_image_bytes"] > 1000
    (only,) = content["rounds"]
    assert list(only) == list(content["contenders"]) == [OURS, *PEERS]
    for name, run in only.items():
        assert run["records_per_s"] == pytest.approx(8 / run["seconds"])
        assert run["records_per_s"] > 0
        assert 0 < content["contenders"][name]["cpu_ms_per_record"] == pytest.approx(1000 * run["cpu_seconds"] / 8)
        assert 10_000_000 < run["peak_bytes"] < 10_000_000_000
        # Only the decoders write nothing.
        assert (run["bytes_out"] > 8000) == (not name.startswith("libjpeg-turbo"))


def test_ratios_are_ours_over_theirs_and_stand_beside_their_floors(measured: Any) -> None:
    _, result, _ = measured
    content = result.to_json()
    assert list(content["ratios"]) == PEERS
    for peer, ratio in content["ratios"].items():
        theirs = content["rounds"][0][peer]["records_per_s"]
        assert ratio["rounds"] == [pytest.approx(content["rounds"][0][OURS]["records_per_s"] / theirs)]
        assert ratio["floor"] == FLOORS.get(peer)


def test_only_the_results_are_left_and_each_step_is_told(measured: Any) -> None:
    out, _, steps = measured
    assert sorted(path.name for path in out.iterdir()) == [RESULT, PLOT]
    assert [done for done, _, _ in steps] == list(range(len(CONTENDERS) + 2))
    assert {total for _, total, _ in steps} == {len(CONTENDERS) + 1}


def made_up(*rounds: tuple[float, ...]) -> PackBench:
    """A result with these records/s for each contender, round by round."""
    runs = tuple(
        {
            name: Run(100 / rate, 4 / rate, rate, int(rate) * 1_000_000, 0)
            for name, rate in zip(CONTENDERS, rates, strict=True)
        }
        for rates in rounds
    )
    return PackBench(replace(TINY, rounds=len(rounds)), 1_500_000, "2026-01-01", {"cpu": "Some CPU"}, {}, runs)


def test_the_ratio_is_the_median_of_the_rounds_not_of_the_rates() -> None:
    result = made_up((100, 50, 60, 200, 300), (10, 10, 20, 20, 30), (40, 10, 20, 80, 90))
    assert result.ratios("pil+webdataset") == [2, 1, 4]
    content = result.to_json()
    assert content["ratios"]["pil+webdataset"]["median"] == 2
    assert content["contenders"][OURS]["records_per_s"] == {"median": 40, "min": 10, "max": 100}
    assert content["contenders"][OURS]["peak_bytes"] == 100_000_000


def test_the_table_shows_rates_ratios_and_floors() -> None:
    result = made_up((90, 50, 60, 200, 300))
    plain = pack_table(result, terminal=False)
    assert plain.isascii()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in plain.splitlines()
        if line.count("|") > 5
    }
    assert cells["pil+webdataset"] == ["50.0", "50.0-50.0", "1.80", "1.80", "10", "50 MB"]
    assert cells["libjpeg-turbo"] == ["200.0", "200.0-200.0", "0.45", "0.65", "2", "200 MB"]
    assert cells[OURS] == ["90.0", "90.0-90.0", "", "", "6", "90 MB"]
    assert "\x1b[" in pack_table(result, terminal=True)


def test_the_plot_s_bars_are_as_long_as_the_rates() -> None:
    picture = np.asarray(Image.open(io.BytesIO(draw_pack_bench(made_up((90, 45, 45, 45, 45))))).convert("RGB"))
    lengths = [int((picture == colour).all(-1).sum(1).max()) for colour in ((0x1F, 0x5F, 0x8B), (0xB8, 0xC4, 0xCC))]
    assert lengths[0] > 150
    assert lengths[0] == pytest.approx(2 * lengths[1], abs=4)


def test_the_set_has_distinct_images_of_the_right_shape_and_reports(tiny_set: BenchSet) -> None:
    contents = [(tiny_set.root / image_path(number)).read_bytes() for number in range(COUNT)]
    assert len(set(contents)) == COUNT
    assert tiny_set.mean_bytes == sum(map(len, contents)) // COUNT
    assert {Image.open(io.BytesIO(content)).size for content in contents} == {(120, 144)}
    assert {Image.open(io.BytesIO(content)).mode for content in contents} == {"L"}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", [OURS, "pil+webdataset", "pil-draft+webdataset"])
def test_every_packer_packs_every_record(name: str, workers: int, tiny_set: BenchSet, tmp_path: Path) -> None:
    import webdataset

    job = Job(tiny_set.root, tiny_set.tokenizer, tmp_path, COUNT, workers, short_side=64, quality=95)
    run_contender(name, job)
    tars = sorted(str(path) for path in tmp_path.rglob("*.tar"))
    assert len(tars) == min(COUNT, 4 * workers) or name == OURS
    assert len(tars) >= workers
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert sorted(sample["__key__"] for sample in samples) == [f"{number:06d}" for number in range(COUNT)]
    for sample in samples:
        image = Image.open(io.BytesIO(sample["jpg"]))
        assert (image.mode, image.size) == ("L", (64, 77))


def test_packers_make_much_the_same_image(tiny_set: BenchSet, tmp_path: Path) -> None:
    import webdataset

    images: dict[str, np.ndarray] = {}
    for name in (OURS, "pil+webdataset", "pil-draft+webdataset"):
        out = tmp_path / name
        out.mkdir()
        run_contender(name, Job(tiny_set.root, tiny_set.tokenizer, out, COUNT, 1, short_side=64, quality=95))
        tars = sorted(str(path) for path in out.rglob("*.tar"))
        by_key = {sample["__key__"]: sample["jpg"] for sample in webdataset.WebDataset(tars, shardshuffle=False)}
        images[name] = np.stack([np.asarray(Image.open(io.BytesIO(by_key[key]))) for key in sorted(by_key)]).astype(int)
    for name, stack in images.items():
        assert np.abs(stack - images[OURS]).mean() < 3, name


def test_without_webdataset_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MrmStreamError, match=r"pip install 'mrm-stream\[bench\]'"):
        bench_pack(tmp_path, options=TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["count", "width", "rounds", "workers", "short_side"])
def test_a_setting_out_of_range_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: must be between"):
        replace(TINY, **{name: 0})
