"""Shuffle quality: what is compared shuffles indeed, and the measures say what they should of known orders."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mrm_stream.bench.order import PLOT, RESULT, bench_order, deal, shuffles_of
from mrm_stream.bench.order_figure import draw_order_bench, order_table
from mrm_stream.bench.order_result import (
    ARRANGEMENTS,
    FULL,
    NONE,
    OrderBench,
    OrderBenchOptions,
    Quality,
    measure_quality,
    neighbour_distance,
)
from mrm_stream.commands import bench_order as command
from mrm_stream.errors import ConfigError, MrmStreamError
from mrm_stream.stream.order import Order

SMALL = OrderBenchOptions(samples=20_011, samples_per_shard=50, batch_size=64, seeds=3, buffers=(100, 1000))
NAMES = [
    FULL,
    *(f"ours, window {window}" for window in (4, 16, 64)),
    "webdataset, buffer 1,000",
    "webdataset, buffer 100",
    NONE,
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OrderBench, list[tuple[int, int | None, str]]]:
    out = tmp_path_factory.mktemp("bench")
    steps: list[tuple[int, int | None, str]] = []
    result = bench_order(out, options=SMALL, progress=lambda *step: steps.append(step))
    return out, result, steps


def test_files_and_steps(measured: Any) -> None:
    out, result, steps = measured
    assert sorted(path.name for path in out.iterdir()) == [RESULT, PLOT]
    content = json.loads((out / RESULT).read_text())
    assert content == json.loads(json.dumps(result.to_json()))
    assert content["settings"]["samples"] == 20_011
    assert content["versions"].keys() == {"numpy", "webdataset"}
    assert list(content["shuffles"]) == list(ARRANGEMENTS)
    for by_name in content["shuffles"].values():
        assert list(by_name) == NAMES
        for each in by_name.values():
            assert len(each["seeds"]) == 3
            for measure, value in each["mean"].items():
                assert value == pytest.approx(sum(seed[measure] for seed in each["seeds"]) / 3)
    assert [done for done, _, _ in steps] == list(range(3 * len(NAMES) + 1))


def test_a_sorted_source_is_mixed_as_well_as_expected(measured: Any) -> None:
    """Known ends of each scale, and between them: the wider the window or the buffer, the nearer to a full shuffle."""
    _, result, _ = measured

    def means(measure: str) -> dict[str, float]:
        return {name: result.mean("sorted", name, measure) for name in NAMES}

    spread = means("label_spread")
    assert spread[FULL] == pytest.approx(1, abs=0.15)
    assert spread[NONE] == pytest.approx(8, rel=0.03)  # the root of the batch size: each batch is all or nothing
    shard = means("one_shard")
    assert shard[NONE] > 0.6  # 50 of 64, but where a batch begins within a shard
    assert 2 / 64 <= shard[FULL] < 4 / 64
    for measure in (spread, shard):
        ours = [measure[f"ours, window {window}"] for window in (64, 16, 4)]
        theirs = [measure[f"webdataset, buffer {size}"] for size in ("1,000", "100")]
        assert sorted(ours) == ours
        assert sorted(theirs) == theirs
        assert measure[FULL] < min(ours + theirs) < max(ours + theirs) < measure[NONE]
    near = means("neighbours")
    assert near[FULL] == pytest.approx(1, abs=0.05)
    assert near["ours, window 64"] > near["ours, window 4"] > near[NONE]
    assert means("correlation")[NONE] == pytest.approx(1)
    # Of a ramp and a step at a fifth of it.
    assert means("label_correlation")[NONE] == pytest.approx(np.sqrt(3 * 0.2 * 0.8), abs=0.002)
    assert max(value for name, value in means("correlation").items() if name != NONE) < 0.2


def test_dealing_records_out_leaves_nothing_to_mend(measured: Any) -> None:
    _, result, _ = measured
    for name in NAMES:
        assert result.mean("packed", name, "label_spread") == pytest.approx(1, abs=0.15)
        assert result.mean("packed", name, "neighbours") == pytest.approx(1, abs=0.05)
        assert result.mean("packed", name, "correlation") < 0.03
        assert result.mean("packed", name, "one_shard") == result.mean("sorted", name, "one_shard")


def test_every_shuffle_has_each_sample_once() -> None:
    sizes = np.array([3, 50, 1, 17, 40])
    for name, shuffle in shuffles_of(SMALL).items():
        order = shuffle(sizes, 1)
        assert sorted(order.tolist()) == list(range(111)), name
        assert order.tolist() == shuffle(sizes, 1).tolist()
        assert (order != shuffle(sizes, 2)).any() == (name != NONE)


def test_ours_is_what_a_run_follows() -> None:
    _, sizes = deal(SMALL, 2)
    expected = Order(sizes, 2, 16).indexes(np.arange(20_011))[1]
    assert shuffles_of(SMALL)["ours, window 16"](sizes, 2).tolist() == expected.tolist()


def test_webdataset_reads_shard_by_shard_through_its_buffer() -> None:
    """A sample cannot leave before it was read, nor a shard be read before those drawn earlier."""
    sizes = np.full(200, 50)
    order = shuffles_of(SMALL)["webdataset, buffer 100"](sizes, 0)
    met = list(dict.fromkeys((order // 50).tolist()))
    assert sorted(met) == list(range(200))
    assert met[:100] != sorted(met[:100])
    read = np.empty(200, np.int64)
    read[met] = np.arange(200)
    # Shards may first be met out of turn by as many as the buffer holds.
    assert (read[order // 50] * 50 <= np.arange(10_000) + 100 + 3 * 50).all()


def test_packing_deals_every_record_once() -> None:
    places, sizes = deal(SMALL, 0)
    assert sorted(places.tolist()) == list(range(20_011))
    assert set(sizes.tolist()) == {49, 50}
    assert places.tolist() != deal(SMALL, 1)[0].tolist()


def test_the_measures_of_a_known_order() -> None:
    options = OrderBenchOptions(samples=8, samples_per_shard=2, batch_size=4, positive=0.5)
    order = np.array([0, 1, 4, 7, 6, 5, 2, 3])
    quality = measure_quality(order, np.arange(8), np.array([2, 2, 2, 2]), 2.0, options)
    assert neighbour_distance(order) == 1
    assert quality.neighbours == 0.5
    assert quality.one_shard == 0.5
    # Both batches are half and half.
    assert quality.label_spread == 0
    assert quality.correlation == pytest.approx(np.corrcoef(np.arange(8), order)[0, 1])
    assert quality.label_correlation == pytest.approx(0)
    # What shards hold is another matter than what batches do.
    dealt = measure_quality(np.arange(8), order, np.array([5, 3]), 2.0, options)
    assert dealt.one_shard == (4 + 3) / 2 / 4
    assert dealt.label_spread == 0
    assert measure_quality(np.arange(8), np.arange(8), np.array([8]), 2.0, options).label_spread == pytest.approx(2)


def made_up() -> OrderBench:
    """A result in which each number is another one."""
    qualities: dict[str, dict[str, tuple[Quality, ...]]] = {
        arrangement: {
            name: (Quality(*(0.01 * (10 * row + column) + (arrangement == "packed") for column in range(1, 6))),)
            for row, name in enumerate(NAMES)
        }
        for arrangement in ARRANGEMENTS
    }
    examples = {name: np.arange(100) for name in NAMES}
    return OrderBench(replace(SMALL, samples=100, seeds=1), "2026-01-01", {}, qualities, examples)


def test_the_table_shows_each_measure_in_its_column() -> None:
    plain = order_table(made_up(), terminal=False)
    assert plain.isascii()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in plain.splitlines() if line.count("|") > 5]
    assert ["sorted", FULL, "0.010", "0.020", "0.030", "4.0%", "0.05"] in rows
    assert ["packed", NONE, "1.610", "1.620", "1.630", "164.0%", "1.65"] in rows
    assert len(rows) == 1 + 2 * len(NAMES)
    assert "\x1b[" in order_table(made_up(), terminal=True)


def test_the_plot_marks_each_value_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    marks = []
    plot = Axes.plot

    def noting(self: Axes, x: Any, y: Any, mark: str, **how: Any) -> Any:
        marks.append((x, y, mark, how["mfc"]))
        return plot(self, x, y, mark, **how)

    monkeypatch.setattr(Axes, "plot", noting)
    picture = Image.open(io.BytesIO(draw_order_bench(made_up())))
    assert picture.width > 1000
    assert (pytest.approx(0.05), 0, "o", "#7d8a93") in marks
    assert (pytest.approx(0.15), 1, "o", "#1f5f8b") in marks
    assert (pytest.approx(1.44), 4, "D", "none") in marks
    assert len(marks) == 3 * 2 * len(NAMES) + 2


def test_the_command_prints_the_table(tmp_path: Path) -> None:
    result = CliRunner().invoke(command.bench_order, ["--out", str(tmp_path), "-n", "3000", "--seeds", "1"])
    assert result.exit_code == 0, result.output
    assert "3,000 samples, 512 a shard" in result.output
    assert "ours, window 16" in result.output
    assert (tmp_path / PLOT).exists()


def test_without_webdataset_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mrm_stream.bench.order.find_spec", lambda name: None)
    with pytest.raises(MrmStreamError, match=r"pip install 'mrm-stream\[bench\]'"):
        bench_order(tmp_path, options=SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("samples", 1),
        ("samples_per_shard", 0),
        ("batch_size", 20_012),
        ("seeds", 0),
        ("positive", 0.0),
        ("positive", 1.0),
        ("windows", (4, 0)),
        ("buffers", (0,)),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: must "):
        replace(SMALL, **{name: value})
