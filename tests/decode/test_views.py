from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrm_stream.decode.cpu import TurboJpegDecoder
from mrm_stream.decode.crops import Crops, random_crops
from mrm_stream.decode.decoder import Decoder, make_decoder
from mrm_stream.decode.jpeg import jpeg_sizes
from mrm_stream.decode.pair import make_lr_hr_pair, normalise
from mrm_stream.decode.views import ViewMaker
from mrm_stream.errors import DamagedSamplesError

MakeJpeg = Callable[..., bytes]
MEAN, STD = 0.4978, 0.2449
CPU = torch.device("cpu")


@pytest.fixture
def decoder() -> Iterator[TurboJpegDecoder]:
    made = TurboJpegDecoder(size=96, threads=2, device=CPU)
    yield made
    made.close()


@pytest.fixture
def maker(decoder: TurboJpegDecoder) -> ViewMaker:
    return ViewMaker(decoder, mean=MEAN, std=STD, lr_size=48)


@pytest.fixture(scope="module")
def jpegs(make_jpeg: MakeJpeg) -> list[bytes]:
    return [make_jpeg(120 + 7 * number, 150 + 3 * number) for number in range(40)]


def crops_of(jpegs: list[bytes], seed: int = 0) -> Crops:
    return random_crops(jpeg_sizes(jpegs), 0, np.arange(len(jpegs)), seed=seed)


def plain(decoder: Decoder, jpegs: list[bytes], crops: Crops, lr_size: int, antialias: bool) -> tuple[Tensor, Tensor]:
    image = decoder.decode(jpegs, crops)
    return make_lr_hr_pair(normalise(image, MEAN, STD), lr_size=lr_size, antialias=antialias)


@pytest.mark.parametrize(("size", "lr_size"), [(96, 48), (96, 32), (448, 224), (96, 96), (60, 12), (8, 1)])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_views_are_those_of_the_plain_steps(
    jpegs: list[bytes], size: int, lr_size: int, antialias: bool, count: int
) -> None:
    decoder = TurboJpegDecoder(size=size, threads=2, device=CPU)
    some = jpegs[:count]
    lr, hr = ViewMaker(decoder, mean=MEAN, std=STD, lr_size=lr_size, antialias=antialias)(some, crops_of(some))
    expected_lr, expected_hr = plain(decoder, some, crops_of(some), lr_size, antialias)
    assert torch.equal(hr, expected_hr)
    torch.testing.assert_close(lr, expected_lr, rtol=0, atol=2e-6)
    decoder.close()


def test_dali_s_crops_go_through_the_plain_steps(jpegs: list[bytes]) -> None:
    pytest.importorskip("nvidia.dali")
    decoder = make_decoder("dali", size=96, threads=1, device=CPU)
    lr, hr = ViewMaker(decoder, mean=MEAN, std=STD, lr_size=48)(jpegs, crops_of(jpegs))
    expected = plain(decoder, jpegs, crops_of(jpegs), 48, False)
    assert torch.equal(lr, expected[0])
    assert torch.equal(hr, expected[1])
    decoder.close()


def test_a_size_that_does_not_divide_the_crop_is_refused(decoder: TurboJpegDecoder, jpegs: list[bytes]) -> None:
    with pytest.raises(ValueError, match="multiple"):
        ViewMaker(decoder, mean=MEAN, std=STD, lr_size=50)(jpegs, crops_of(jpegs))


def test_every_damaged_slot_is_named_and_the_next_batch_is_whole(maker: ViewMaker, jpegs: list[bytes]) -> None:
    bad = list(jpegs)
    for slot in (0, 17, 39):
        middle = len(jpegs[slot]) // 2
        bad[slot] = jpegs[slot][:middle] + jpegs[slot][middle + 200 :]
    with pytest.raises(DamagedSamplesError) as caught:
        maker(bad, crops_of(jpegs))
    assert sorted(caught.value.reasons) == [0, 17, 39]
    assert maker(jpegs, crops_of(jpegs))[1].std() > 0.1


def test_an_empty_batch_is_empty(maker: ViewMaker) -> None:
    assert [view.shape for view in maker([], crops_of([]))] == [(0, 1, 48, 48), (0, 1, 96, 96)]


def test_a_view_that_somebody_holds_is_never_written_again(maker: ViewMaker, jpegs: list[bytes]) -> None:
    some = jpegs[:3]
    held = [view for seed in range(6) for view in maker(some, crops_of(some, seed))]
    # Parts of batches that are gone.
    held += [maker(some, crops_of(some, 20))[1][1, 0, 5:9], maker(some, crops_of(some, 21))[1].flatten()]
    held.append(torch.from_numpy(maker(some, crops_of(some, 22))[0].numpy()[2]))
    kept = [view.clone() for view in held]
    gc.collect()
    for seed in range(6, 18):
        maker(some, crops_of(some, seed))
    assert all(torch.equal(view, copy) for view, copy in zip(held, kept, strict=True))


def test_memory_that_nobody_holds_is_used_again(
    maker: ViewMaker, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = jpegs[:3]
    fresh: list[Any] = []
    empty = np.empty

    def counted(size: Any, dtype: Any = float) -> Any:
        if dtype is np.float32:
            fresh.append(size)
        return empty(size, dtype)

    monkeypatch.setattr(np, "empty", counted)
    for seed in range(20):
        maker(some, crops_of(some, seed))
    # Two views of 20 batches; a thread may hold on to its last images for a moment.
    assert 2 <= len(fresh) <= 12


def test_no_more_memory_is_kept_than_a_few_batches(maker: ViewMaker, jpegs: list[bytes]) -> None:
    for count in range(1, 40):
        maker(jpegs[:count], crops_of(jpegs[:count]))
    held = [maker(jpegs[:2], crops_of(jpegs[:2], seed)) for seed in range(20)]
    held.clear()
    gc.collect()
    assert 0 < len(maker._memory._spare) <= 8


def test_threads_that_share_a_maker_do_not_share_a_batch(
    decoder: TurboJpegDecoder, maker: ViewMaker, jpegs: list[bytes]
) -> None:
    some = jpegs[:6]
    expected = {seed: plain(decoder, some, crops_of(some, seed), 48, False)[1] for seed in range(4)}
    wrong: list[int] = []

    def make(seed: int) -> None:
        for _ in range(40):
            if not torch.equal(maker(some, crops_of(some, seed))[1], expected[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
