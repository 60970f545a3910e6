from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mrm_stream.bench import data, data_encoded
from mrm_stream.bench.data import PLOT, RESULT, bench_data
from mrm_stream.bench.data_figure import data_table, draw_data_bench
from mrm_stream.bench.data_pairs import _ReferenceTransforms, run_pairs
from mrm_stream.bench.data_result import (
    FLOORS,
    MOSAICML,
    OURS,
    PAIRS_LARGE,
    PAIRS_SMALL,
    RESUME,
    STAGES,
    DataBench,
    DataBenchOptions,
    Run,
)
from mrm_stream.bench.data_resume import run_resume
from mrm_stream.bench.data_sets import SPLIT, DataSets, make_data_sets
from mrm_stream.bench.machine import cpu_seconds, run_afresh
from mrm_stream.bench.trace import DECODE, MASK, PAIR, READ, WAIT, write_trace
from mrm_stream.decode.pair import make_lr_hr_pair
from mrm_stream.errors import ConfigError, MrmStreamError
from mrm_stream.stream.shard_set import ShardSet

TINY = DataBenchOptions(count=8, rounds=1, width=120, batch=4, threads=2, encoded=20, resumed=800, samples_per_shard=8)
FORKING = ("pil+torchvision", "the same, all grey")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> DataSets:
    return make_data_sets(tmp_path_factory.mktemp("data") / "sets", TINY)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The whole benchmark; what starts no processes of its own runs in this one, as importing torch takes seconds."""

    def run(name: str, work: Callable[..., Run], *args: Any) -> Run:
        return run_afresh(name, work, *args) if name in FORKING else work(*args)

    out = tmp_path_factory.mktemp("bench")
    steps: list[tuple[int, int | None, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "run_afresh", run)
        result = bench_data(out, options=TINY, trace=out / "trace.json", progress=lambda *step: steps.append(step))
    return out, result, steps


def test_json_holds_every_stage_and_contender(measured: Any) -> None:
    out, result, _ = measured
    content = json.loads((out / RESULT).read_text())
    assert content == json.loads(json.dumps(result.to_json()))
    assert all(content["machine"].values())
    assert {"python", "torch", "simplejpeg", "webdataset"} <= content["versions"].keys()
    assert content["notes"] == [f"{MOSAICML} was skipped: no Python that has it was given"]
    assert set(content["settings"]["mean_jpeg_bytes"]) == {PAIRS_LARGE, PAIRS_SMALL}
    (only,) = content["rounds"]
    for stage, names in STAGES.items():
        assert list(only[stage]) == [name for name in names if name != MOSAICML]
        for name, run in only[stage].items():
            contender = content["stages"][stage]["contenders"][name]
            assert run["seconds"] > 0
            assert run["cpu_ms"] > 0
            if stage == RESUME:
                assert contender["seconds"]["median"] == run["seconds"]
                assert run["samples"] == 4
                continue
            assert contender["samples_per_s"]["median"] == pytest.approx(run["samples"] / run["seconds"])
            if name != OURS:
                ratio = content["stages"][stage]["ratios"][name]
                ours = content["stages"][stage]["contenders"][OURS]["samples_per_s"]["median"]
                assert ratio["median"] == pytest.approx(ours / contender["samples_per_s"]["median"])
                assert ratio["floor"] == FLOORS[stage].get(name)


def test_only_the_results_are_left_and_each_step_is_told(measured: Any) -> None:
    out, _, steps = measured
    assert sorted(path.name for path in out.iterdir()) == [RESULT, PLOT, "trace.json"]
    runs = sum(len(names) for names in STAGES.values()) - 1
    assert [done for done, _, _ in steps] == list(range(runs + 2))
    assert {total for _, total, _ in steps} == {runs + 1}


def test_contenders_hand_on_the_same_samples(sets: DataSets) -> None:
    shards = ShardSet.open(sets.encoded, SPLIT)
    expected = sorted(len(shards.sample(index).jpeg) for index in range(len(shards)))
    assert len(expected) == TINY.encoded
    for one_pass in (data_encoded._ours(sets, 3), data_encoded._webdataset(sets)):
        for epoch in range(2):
            assert sorted(one_pass(epoch)) == expected


def test_a_contender_that_loses_a_sample_is_found_out(sets: DataSets) -> None:
    assert data_encoded.run_encoded(OURS, sets, TINY.encoded, 3).samples % TINY.encoded == 0
    with pytest.raises(AssertionError, match="a pass had 20 of 21 samples"):
        data_encoded.run_encoded(OURS, sets, TINY.encoded + 1, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_reference_s_views_are_a_pair(sets: DataSets, channels: int) -> None:
    torch.manual_seed(0)
    jpeg = bytes(ShardSet.open(sets.large, SPLIT).sample(0).jpeg)
    hr, lr = _ReferenceTransforms(channels)((jpeg, b""))
    assert (hr.shape, lr.shape) == ((channels, 448, 448), (channels, 224, 224))
    expected, _ = make_lr_hr_pair(hr[None])
    torch.testing.assert_close(lr, expected[0], rtol=0, atol=1e-5)
    assert -2.1 < hr.min() < hr.max() < 2.1
    assert hr.std() > 0.1


def test_every_maker_of_pairs_makes_as_many_as_it_says(sets: DataSets) -> None:
    for name in (OURS, "libjpeg-turbo"):
        run = run_pairs(name, sets.small, 8, 4, 3)
        # A multiple of three workers' batches, those that warm up among them.
        assert run.samples == 17 * 4
        assert run.rate > 0


def test_the_long_set_is_whole_where_a_resumed_run_reads_and_empty_elsewhere(sets: DataSets) -> None:
    tars = sorted(sets.long.glob("*.tar"))
    assert len(tars) == TINY.resumed // TINY.samples_per_shard
    assert len({tar.stat().st_size for tar in tars}) == 1
    empty = [tar for tar in tars if tar.stat().st_blocks == 0]
    assert 0 < len(tars) - len(empty) < 40 < len(empty)
    assert sets.position == TINY.resumed * 3 // 2
    assert run_resume(OURS, sets.long, sets.position, 4, 1).samples == 4


def test_a_resume_s_clock_starts_once_torch_is_imported(sets: DataSets) -> None:
    run = run_afresh("ours", run_resume, OURS, sets.long, sets.position, 4, 1)
    assert run.import_seconds > 0.2
    assert run.import_bytes is not None
    assert run.bytes is not None
    assert run.import_bytes > 50_000_000
    assert 1_000_000 < run.bytes < 500_000_000
    assert 0 < run.seconds < 60


def test_a_trace_shows_what_every_thread_did(sets: DataSets, tmp_path: Path) -> None:
    original = ShardSet.sample
    write_trace(tmp_path / "trace.json", sets.large, batch=4, count=3, threads=2)
    assert ShardSet.sample is original
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    threads = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    spans = [event for event in events if event["ph"] == "X"]
    assert {event["name"] for event in spans} == {READ, DECODE, PAIR, MASK, WAIT}
    assert sum(event["name"] == DECODE for event in spans) >= 12
    assert {threads[event["tid"]] for event in spans if event["name"] == WAIT} == {"MainThread"}
    assert {threads[event["tid"]] for event in spans if event["name"] == READ} == {"mrm-stream-prefetch"}
    assert all(threads[event["tid"]].startswith("decode") for event in spans if event["name"] == DECODE)
    for thread in threads:
        mine = sorted((event["ts"], event["ts"] + event["dur"]) for event in spans if event["tid"] == thread)
        assert all(end <= start for (_, end), (start, _) in pairwise(mine)), threads[thread]
        assert mine[0][0] >= 0


def made_up(*rounds: dict[str, float]) -> DataBench:
    """A result with these samples/s for the contenders of the pairs, round by round; all else is alike."""

    def run(rate: float) -> Run:
        return Run(100, 100 / rate, 1000 / rate, int(rate) * 1_000_000, 2.0, 300_000_000)

    stages = tuple(
        {
            stage: {name: run(rates.get(name, 10) if "pairs" in stage else 10) for name in STAGES[stage]}
            for stage in STAGES
        }
        for rates in rounds
    )
    options = replace(TINY, rounds=len(rounds))
    return DataBench(options, {PAIRS_LARGE: 190_000}, "2026-01-01", {"cpu": "Some CPU"}, {}, ("a note",), stages)


def test_the_ratio_is_the_median_of_the_rounds_not_of_the_rates() -> None:
    theirs = "pil+torchvision"
    result = made_up({OURS: 100, theirs: 50}, {OURS: 10, theirs: 10}, {OURS: 40, theirs: 10})
    assert result.ratios(PAIRS_LARGE, theirs) == [2, 1, 4]
    ratio = result.to_json()["stages"][PAIRS_LARGE]["ratios"][theirs]
    assert (ratio["median"], ratio["of_cpu_time"], ratio["floor"]) == (2, 2, 5)
    assert result.peak_bytes(PAIRS_LARGE, OURS) == 100_000_000


def test_the_tables_show_rates_ratios_floors_and_notes() -> None:
    plain = data_table(made_up({OURS: 90, "pil+torchvision": 45}), terminal=False)
    assert plain.isascii()
    assert plain.endswith("a note")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in plain.splitlines() if line.count("|") > 5]
    assert ["pil+torchvision", "45", "45-45", "2.00", "2.00", "5.00", "22.222", "45 MB"] in lines
    assert ["pil+torchvision", "45", "45-45", "2.00", "2.00", "8.00", "22.222", "45 MB"] in lines
    assert [OURS, "10", "10-10", "", "", "20,000/s", "100.000", "10 MB"] in lines
    assert [OURS, "10.00", "10.00-10.00", "1", "10 MB", "200 MB", "2.00", "300 MB"] in lines
    assert "\x1b[" in data_table(made_up({}), terminal=True)


def test_the_plot_s_bars_are_as_long_as_the_rates() -> None:
    def longest(rate: float, colour: tuple[int, int, int]) -> int:
        png = draw_data_bench(made_up({OURS: 90, "pil+torchvision": rate}))
        picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        # The panels of the pairs from 512: below, to the left.
        panel = picture[len(picture) // 2 :, : picture.shape[1] // 2]
        return int((panel == colour).all(-1).sum(1).max())

    ours, theirs = longest(45, (0x1F, 0x5F, 0x8B)), longest(45, (0xB8, 0xC4, 0xCC))
    assert ours > 100
    assert ours == pytest.approx(2 * theirs, abs=4)


def test_without_webdataset_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "find_spec", lambda module: None)
    with pytest.raises(MrmStreamError, match=r"pip install 'mrm-stream\[bench\]'"):
        bench_data(tmp_path, options=TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["count", "width", "rounds", "batch", "threads", "encoded", "resumed"])
def test_a_setting_out_of_range_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: must be between"):
        replace(TINY, **{name: 0})
    with pytest.raises(ConfigError, match="count: must be a multiple of 4"):
        replace(TINY, count=9)


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_processor_s_time_of_a_child_counts_while_it_lives_and_after() -> None:
    before = cpu_seconds()
    child = get_context("spawn").Process(target=spin, args=(0.6,))
    child.start()
    seen = []
    while child.is_alive():
        seen.append(cpu_seconds() - before)
        time.sleep(0.05)
    child.join()
    assert max(seen) > 0.3
    assert cpu_seconds() - before > 0.6
