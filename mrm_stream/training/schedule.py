"""The learning rate as a pure function of how much of the data has been seen."""

from __future__ import annotations

import math

from mrm_stream.config.base import OptimConfig


def learning_rate(epoch: float, optim: OptimConfig) -> float:
    """Return the learning rate at a point of the run: a linear rise from 0, then half a cosine down to `min_lr`.

    Args:
        epoch: Samples seen so far / samples of the data set. It comes from the order's position, not from a count of
            optimizer calls, so that neither a skipped step nor a change of the ranks shifts it.
        optim: Gives the peak, base_lr * batch_size / 256.

    Source:
        Loshchilov and Hutter, SGDR, ICLR 2017; stepped within epochs, as the reference code does.

    Example:
        >>> optim = OptimConfig(base_lr=1e-3, batch_size=256, epochs=10, warmup_epochs=2)
        >>> [round(learning_rate(e, optim), 6) for e in (0, 1, 2, 6, 10)]
        [0.0, 0.0005, 0.001, 0.0005, 0.0]
    """
    peak = optim.base_lr * optim.batch_size / 256
    if epoch < optim.warmup_epochs:
        return peak * epoch / optim.warmup_epochs
    length = optim.epochs - optim.warmup_epochs
    done = min(1.0, (epoch - optim.warmup_epochs) / length) if length else 1.0
    return optim.min_lr + (peak - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def total_steps(samples: int, optim: OptimConfig) -> int:
    """Return the steps of a whole run over a data set of `samples`.

    Example:
        >>> total_steps(1000, OptimConfig(batch_size=256, epochs=2, warmup_epochs=0))
        8
    """
    return math.ceil(optim.epochs * samples / optim.batch_size)
