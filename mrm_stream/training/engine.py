"""The optimizer step, by DeepSpeed.

One step of the run is one step of AdamW over `optim.batch_size` samples, however many ranks and passes they are spread
over. The losses and gradients of a step must not depend on that: so dropout is keyed by seed, step and pass, the
learning rate is set from outside for each step, and losses are means over the items of the whole step, whose number is
exchanged before the first pass. What does depend on it is the order in which numbers are added up, that is, rounding.

DeepSpeed's dictionary is derived from our settings here, so that a value is written in one place; each entry that is
not its default says why. Only this file, `engine_state.py` and `distributed/connection.py` import it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mrm_stream.config.base import EngineConfig, OptimConfig, TrainConfig
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import ConfigError
from mrm_stream.randomness import Purpose, words
from mrm_stream.training.engine_state import EngineState

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

B = TypeVar("B", bound="DataclassInstance")


@dataclass(frozen=True)
class BatchSizes:
    """How the samples of one step are spread over ranks and passes."""

    share: int
    """Samples of a step on one rank."""
    micro: int
    """Samples of one forward pass."""

    @property
    def accumulation(self) -> int:
        """Forward passes of one step."""
        return self.share // self.micro


def batch_sizes(optim: OptimConfig, world: int) -> BatchSizes:
    """Return each rank's share of a step.

    Raises:
        ConfigError: The ranks do not divide the batch, or the micro-batch does not divide a rank's share.
    """
    if optim.batch_size % world:
        raise ConfigError(
            f"{world} ranks do not divide a batch of {optim.batch_size} samples",
            where="optim.batch_size",
            remedy=f"Take {max(1, round(optim.batch_size / world)) * world}, or another number of ranks.",
        )
    share = optim.batch_size // world
    micro = optim.micro_batch_size or share
    if share % micro:
        raise ConfigError(
            f"{micro} does not divide the {share} samples of a step that each of {world} ranks takes",
            where="optim.micro_batch_size",
        )
    return BatchSizes(share, micro)


def deepspeed_settings(optim: OptimConfig, engine: EngineConfig, world: int) -> dict[str, Any]:
    """Return DeepSpeed's dictionary; batch sizes and precision live in our configuration alone."""
    sizes = batch_sizes(optim, world)
    settings: dict[str, Any] = {
        "train_batch_size": optim.batch_size,
        "train_micro_batch_size_per_gpu": sizes.micro,
        "gradient_accumulation_steps": sizes.accumulation,
        "gradient_clipping": optim.gradient_clip,  # DeepSpeed clips at 1.0 unless told otherwise.
        "communication_data_type": engine.communication,  # At stage 0; for the others see below.
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": engine.zero_stage,
            # At the default of 5e8 elements the whole gradient is one bucket, and nothing overlaps.
            "reduce_bucket_size": 25_000_000,
            "allgather_bucket_size": 25_000_000,
            # Its own linear layer of stage 3 rounds once more than torch's (a matrix product, then a bias): losses in
            # bf16 would differ from those of the other stages. It also takes the place of torch's in the whole process.
            "memory_efficient_linear": False,
            "overlap_comm": engine.zero_stage in (1, 2) and torch.cuda.is_available(),
        },
        "timers": {"throughput": {"enabled": False}},  # It synchronises the device twice a forward pass.
        "steps_per_print": 2**62,
    }
    if engine.precision == "bf16":
        # Autocast keeps parameters, gradients and moments in float32: what is saved is what is trained.
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        if engine.communication == "fp32":
            # DeepSpeed would round the gradients of linear layers wherever ranks or micro-batches are added up, and at
            # stage 3 their weights. The list is of that alone: what is computed in bf16 is autocast's own choice.
            settings["torch_autocast"]["lower_precision_safe_modules"] = []
    return settings


class Engine(Generic[B]):
    """A model, its optimizer, and the ranks that train it together.

    Every method is collective: all ranks must call it.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, runtime: Runtime, loss_items: Callable[[B], Tensor]
    ) -> None:
        """Distribute the model, whose weights must be the same on every rank; the ranks are connected already.

        Args:
            model: Called as `model(batch, loss_items)`; returns scalars, `loss` among them.
            config: Of the run.
            runtime: This rank.
            loss_items: Counts what the losses of a batch are means over; see `Task.loss_items`.

        Raises:
            ConfigError: The ranks do not divide the batch.
        """
        self._sizes = batch_sizes(config.optim, runtime.world)
        self._rank, self._world = runtime.rank, runtime.world
        self._seed, self._stage = config.seed, config.engine.zero_stage
        import deepspeed

        model.to(runtime.device)
        if config.engine.compile:
            # Block by block, so that the hooks between blocks can overlap communication with the backward pass.
            for blocks in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
                for block in blocks:
                    block.compile()
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.optim.weight_decay), lr=0.0, betas=config.optim.betas, fused=True
        )
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_settings(config.optim, config.engine, runtime.world),
        )
        self._loss_items = loss_items
        self.state = EngineState(self._engine, stage=self._stage, rank=self._rank, world=self._world)
        """Weights and moments, to be saved and loaded."""

    @property
    def model(self) -> nn.Module:
        """The model that is trained; under ZeRO-3 its parameters are empty between steps."""
        module: nn.Module = self._engine.module
        return module

    @property
    def skipped_steps(self) -> int:
        """Steps skipped since the start, because a gradient was not finite; the same on every rank."""
        return int(self._engine.skipped_steps)

    def step(self, batch: B, *, step: int, learning_rate: float) -> dict[str, Tensor]:
        """Train on one rank's share of a step.

        Args:
            batch: The rank's whole share; it is cut into micro-batches here.
            step: Number of the step; keys the dropout, so that a resumed run repeats it.
            learning_rate: For this step.

        Returns:
            The model's scalars, averaged over the rank's micro-batches, detached, still on the device. Their means over
            the ranks are those of the step, however it is spread.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.train()
        loss_items = self._items_per_pass(batch)
        sums: dict[str, Tensor] = {}
        for number, micro in enumerate(_micro_batches(batch, self._sizes.micro)):
            stream = self._rank * self._sizes.accumulation + number
            torch.manual_seed(int(words(self._seed, step, stream, Purpose.DROPOUT, 1)[0]))
            losses = self._engine(micro, loss_items)
            self._engine.backward(losses["loss"])
            if self._stage == 0 and number + 1 == self._sizes.accumulation and not self._is_finite():
                # DeepSpeed skips such a step at the other stages only. Nothing is left to do of its own but to count.
                self._engine.zero_grad()
                self._engine.skipped_steps += 1
                self._engine.micro_steps += 1
            else:
                self._engine.step()
            for name, value in losses.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        return {name: value / self._sizes.accumulation for name, value in sums.items()}

    def _items_per_pass(self, batch: B) -> Tensor:
        """Return the loss items of the whole step, divided by its number of forward passes on all ranks.

        DeepSpeed averages over ranks and micro-batches, which have different numbers of items: where each divides its
        sum by this, the average is the mean over all items of the step. One number is exchanged, on the device and
        before anything is computed. Nobody waits longer for it: the gradients' exchange would have waited for the same
        slowest rank.
        """
        # A copy: what is exchanged is added up in place, and the task may keep what it has returned.
        count = self._loss_items(batch).to(self._engine.device, torch.float64, copy=True)
        if self._world > 1:
            torch.distributed.all_reduce(count)
        return (count.clamp(min=1) / (self._world * self._sizes.accumulation)).float()

    def _is_finite(self) -> bool:
        """Return whether the gradients' norm is, at stage 0 after the last backward pass of a step.

        They have been averaged over the ranks by then: every rank finds the same.
        """
        gradients = [p.grad for _, p in self.model.named_parameters() if p.grad is not None]
        return bool(nn.utils.get_total_norm(gradients).isfinite())


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's two groups: matrices and larger, which decay, and biases and norms, which do not.

    As in the reference code, tensors of one dimension are biases and norms; CLS and mask tokens decay.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _micro_batches(batch: B, size: int) -> Iterator[B]:
    names = [field.name for field in fields(batch)]
    count = len(getattr(batch, names[0]))
    for start in range(0, count, size):
        yield type(batch)(**{name: getattr(batch, name)[start : start + size] for name in names})
