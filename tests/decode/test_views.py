from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrm_stream.decode.pair import make_lr_hr_pair, normalise
from mrm_stream.decode.views import ViewMaker

MEAN, STD = 0.4978, 0.2449


@pytest.fixture
def maker() -> Iterator[ViewMaker]:
    made = ViewMaker(mean=MEAN, std=STD, lr_size=48, threads=2)
    yield made
    made.close()


def crops(count: int, size: int = 96, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (count, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize(("size", "lr_size"), [(96, 48), (96, 32), (448, 224), (96, 96), (60, 12), (8, 1)])
@pytest.mark.parametrize("antialias", [False, True])
def test_views_are_those_of_the_two_plain_steps(size: int, lr_size: int, antialias: bool) -> None:
    maker = ViewMaker(mean=MEAN, std=STD, lr_size=lr_size, antialias=antialias, threads=2)
    image = crops(5, size)
    lr, hr = maker(image)
    expected_lr, expected_hr = make_lr_hr_pair(normalise(image, MEAN, STD), lr_size=lr_size, antialias=antialias)
    assert torch.equal(hr, expected_hr)
    torch.testing.assert_close(lr, expected_lr, rtol=0, atol=2e-6)
    maker.close()


def test_a_crop_that_cannot_be_halved_is_refused(maker: ViewMaker) -> None:
    with pytest.raises(ValueError, match="square"):
        maker(torch.zeros((1, 1, 96, 90), dtype=torch.uint8))
    with pytest.raises(ValueError, match="multiple"):
        maker(torch.zeros((1, 1, 100, 100), dtype=torch.uint8))


def test_an_empty_batch_is_empty(maker: ViewMaker) -> None:
    assert [view.shape for view in maker(crops(0))] == [(0, 1, 48, 48), (0, 1, 96, 96)]


def test_a_view_that_somebody_holds_is_never_written_again(maker: ViewMaker) -> None:
    held = [maker(crops(3, seed=seed)) for seed in range(6)]
    kept = [(lr.clone(), hr.clone()) for lr, hr in held]
    # Each of these shares the memory of one that is gone.
    parts = [
        maker(crops(3, seed=20))[1][1, 0, 5:9],
        maker(crops(3, seed=21))[0].numpy()[2],
        maker(crops(3, seed=22))[1].flatten(),
    ]
    copies = [torch.as_tensor(part).clone() for part in parts]
    gc.collect()
    for seed in range(6, 18):
        maker(crops(3, seed=seed))
    assert all(
        torch.equal(view, copy)
        for pair, copied in zip(held, kept, strict=True)
        for view, copy in zip(pair, copied, strict=True)
    )
    assert all(torch.equal(torch.as_tensor(part), copy) for part, copy in zip(parts, copies, strict=True))


def test_memory_that_nobody_holds_is_used_again(maker: ViewMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh: list[object] = []
    empty = np.empty

    def counted(*args: Any) -> Any:
        fresh.append(args)
        return empty(*args)

    monkeypatch.setattr(np, "empty", counted)
    for seed in range(20):
        maker(crops(3, seed=seed))
    # Two views of 20 batches; a thread may hold on to the last image of a batch for a moment.
    assert 2 <= len(fresh) <= 12


def test_no_more_memory_is_kept_than_a_few_batches(maker: ViewMaker) -> None:
    for count in range(1, 40):
        maker(crops(count))
    assert len(maker._memory._spare) <= 8
    held = [maker(crops(2, seed=seed)) for seed in range(20)]
    held.clear()
    assert len(maker._memory._spare) <= 8


def test_threads_that_share_a_maker_do_not_share_a_batch(maker: ViewMaker) -> None:
    wrong: list[int] = []

    def make(seed: int) -> None:
        for turn in range(40):
            image = crops(2, seed=1000 * seed + turn)
            lr, hr = maker(image)
            expected_lr, expected_hr = make_lr_hr_pair(normalise(image, MEAN, STD), lr_size=48)
            if not torch.equal(hr, expected_hr) or (lr - expected_lr).abs().max() > 2e-6:
                wrong.append(seed)

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
