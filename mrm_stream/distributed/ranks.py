"""What the ranks of a run must agree on; every method is called by all of them at the same point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mrm_stream.distributed.connection import connect
from mrm_stream.distributed.rendezvous import CONNECT_S
from mrm_stream.distributed.runtime import Runtime, ended_by_signals
from mrm_stream.errors import MrmStreamError, TrainingError
from mrm_stream.storage.access import naming_files

T = TypeVar("T")


class FirstRankFailedError(MrmStreamError):
    """The first rank, or the launcher, tells the error itself; the others end without repeating it."""


class Ranks:
    """The ranks of a run, connected.

    Messages between them travel over the CPU, beside the gradients: asking whether to stop never waits for the GPU.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        run: str = "",
        connect_s: float = CONNECT_S,
        refusal: MrmStreamError | None = None,
    ) -> None:
        """Join the others; returns when all have come.

        Args:
            runtime: This rank.
            run: What all of them must have in common: the run's directory.
            connect_s: Seconds to wait for them.
            refusal: Why this rank cannot take part, which is raised here once the others know.

        Raises:
            MrmStreamError: `refusal`; or another rank's, in its words.
            ConfigError: The launcher's variables lead nowhere, or two ranks share a GPU.
            TrainingError: Not all have come in time.
        """
        with ended_by_signals():  # Nothing has been written yet.
            connect(runtime, run, connect_s, refusal)
            self._group: Any = dist.new_group(backend="gloo") if runtime.device.type == "cuda" else None
        self._runtime = runtime

        def take_part() -> None:
            if refusal is not None:
                raise refusal

        self.all(take_part)  # Where they were connected before, nobody has been told yet.

    def first(self, action: Callable[[], T]) -> T:
        """Run `action` on the first rank alone, and return its result on every rank.

        Raises:
            MrmStreamError: On the first rank, what `action` raised.
            FirstRankFailedError: On the others, if it raised anything: none is left waiting.
        """
        box: list[T | FirstRankFailedError] = [FirstRankFailedError("the first rank has failed")]
        if self._runtime.is_first:
            try:
                box[0] = action()
            finally:
                dist.broadcast_object_list(box, 0, group=self._group)
        else:
            dist.broadcast_object_list(box, 0, group=self._group)
        result = box[0]
        if isinstance(result, FirstRankFailedError):
            raise result
        return result

    def all(self, action: Callable[[], T]) -> T:
        """Run `action`, which must not call the other ranks, on every rank, and return this rank's result.

        Raises:
            MrmStreamError: What `action` raised here.
            TrainingError: On the first rank, where it raised on others alone: the first of those, and what it said.
            FirstRankFailedError: On the rest, if it raised on any: none is left waiting.
        """
        failure: Exception | None = None
        told: tuple[str, str | None, str | None] | None = None
        try:
            with naming_files():
                result = action()
        except MrmStreamError as error:
            failure, told = error, (error.what, error.where, error.remedy)
        except Exception as error:  # A mistake of ours, too, must not leave the others waiting.
            failure, told = error, (type(error).__name__, None, None)
        said = self.gather(told)
        if failure is not None:
            raise failure
        for rank, other in enumerate(said):
            if other is not None:
                if not self._runtime.is_first:
                    raise FirstRankFailedError(f"rank {rank} failed")
                what, where, remedy = other
                raise TrainingError(f"rank {rank} failed: {what}", where=where, remedy=remedy)
        return result

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        count = torch.tensor([int(flag)])
        dist.all_reduce(count, group=self._group)
        return bool(count.item() > 0)

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in the order of the ranks."""
        values: list[T] = [value] * self._runtime.world
        dist.all_gather_object(values, value, group=self._group)
        return values
