"""The optimizer step, by DeepSpeed: the only file that imports it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mrm_stream.config.base import EngineConfig, OptimConfig
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import CheckpointError, ConfigError
from mrm_stream.randomness import Purpose, words
from mrm_stream.records import Batch

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class BatchSizes:
    """How the samples of one step are shared out."""

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


class Engine:
    """A model, its optimizer, and the ranks that train it together.

    Every method is collective, but for `load_moments`: all ranks must call it.
    """

    def __init__(self, model: nn.Module, config: PretrainConfig, runtime: Runtime) -> None:
        """Distribute the model, whose weights must be the same on every rank; the ranks are connected already.

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

    @property
    def model(self) -> nn.Module:
        """The model that is trained; under ZeRO-3 its parameters are empty between steps."""
        module: nn.Module = self._engine.module
        return module

    @property
    def skipped_steps(self) -> int:
        """Steps skipped since the start, because a gradient was not finite; the same on every rank."""
        return int(self._engine.skipped_steps)

    def step(self, batch: Batch, *, step: int, learning_rate: float) -> dict[str, Tensor]:
        """Train on one rank's share of a step.

        Args:
            batch: The rank's whole share; it is cut into micro-batches here.
            step: Number of the step; keys the dropout, so that a resumed run repeats it.
            learning_rate: For this step.

        Returns:
            The model's scalars, averaged over the rank's micro-batches, detached, still on the device. Their means over
            the ranks are those of the step, however it is shared out.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.train()
        masked_tokens = self._masked_tokens(batch)
        sums: dict[str, Tensor] = {}
        for number, micro in enumerate(_micro_batches(batch, self._sizes.micro)):
            stream = self._rank * self._sizes.accumulation + number
            torch.manual_seed(int(words(self._seed, step, stream, Purpose.DROPOUT, 1)[0]))
            losses = self._engine(micro, masked_tokens)
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

    def _masked_tokens(self, batch: Batch) -> Tensor:
        """Return the masked tokens of the whole step, divided by its number of forward passes on all ranks.

        DeepSpeed averages over ranks and micro-batches, which have different numbers of masked tokens: where each
        divides its sum by this, the average is the mean over all masked tokens of the step. One number is exchanged,
        on the device and before anything is computed. Nobody waits longer for it: the gradients' exchange would have
        waited for the same slowest rank.
        """
        count = batch.token_is_masked_BL.sum(dtype=torch.float64)
        if self._world > 1:
            torch.distributed.all_reduce(count)
        return (count.clamp(min=1) / (self._world * self._sizes.accumulation)).float()

    def _is_finite(self) -> bool:
        """Return whether the gradients' norm is, at stage 0 after the last backward pass of a step.

        They have been averaged over the ranks by then: every rank finds the same.
        """
        gradients = [p.grad for _, p in self._named_parameters() if p.grad is not None]
        return bool(nn.utils.get_total_norm(gradients).isfinite())

    # Checkpoints hold whole tensors under the parameters' names, so that any number of ranks and any ZeRO stage can
    # take them up.

    def full_weights(self) -> dict[str, Tensor]:
        """Return the model's state, whole, on the CPU: on the first rank; elsewhere an empty dictionary."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = self._gathered(lambda p: p if self._stage == 0 else safe_get_full_fp32_param(p))
        if self._rank == 0:
            # Buffers are the same on every rank: the positions, which a run may have taken from another's checkpoint.
            state = self.model.state_dict()
            weights.update({name: state[name].cpu().clone() for name in state.keys() - weights.keys()})
        return weights

    def full_moments(self) -> dict[str, Tensor]:
        """Return Adam's moments, named `exp_avg.<parameter>` and so on, and `step`; on the first rank only."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._base.state:  # No step was taken yet, or every one was skipped.
            self._create_moments(0.0)
        self._link_moments()
        moments: dict[str, Tensor] = {}
        for moment in MOMENTS:
            found = self._gathered(
                lambda p, m=moment: self._base.state[p][m] if self._stage == 0 else safe_get_full_optimizer_state(p, m)
            )
            moments.update({f"{moment}.{name}": value for name, value in found.items()})
        if self._rank == 0:
            moments["step"] = next(iter(self._base.state.values()))["step"].detach().clone().cpu().reshape(1)
        return moments

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Take up what `full_moments` returned; every rank must pass all of it. It calls no other rank.

        Weights are loaded into the model before the engine is made: it copies them into its own partitions.

        Raises:
            CheckpointError: A tensor is absent, or has another shape than the model's.
        """
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self._create_moments(float(_tensor(moments, "step", (1,))))
        self._link_moments()
        for name, parameter in self._named_parameters():
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            for moment in MOMENTS:
                whole = _tensor(moments, f"{moment}.{name}", shape).to(self._engine.device)
                if self._stage == 0:
                    self._base.state[parameter][moment].copy_(whole)
                elif self._stage == 3:
                    # DeepSpeed 0.19 cannot take a whole tensor whose size the ranks do not divide.
                    safe_set_local_optimizer_state(parameter, _partition(whole, self._rank, self._world), moment)
                else:
                    safe_set_full_optimizer_state(parameter, whole, moment)

    @property
    def _optimizer(self) -> Any:
        return self._engine.optimizer

    @property
    def _base(self) -> torch.optim.Optimizer:
        """The AdamW below ZeRO's wrapper."""
        base: torch.optim.Optimizer = self._optimizer if self._stage == 0 else self._optimizer.optimizer
        return base

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def _gathered(self, whole: Any) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self._named_parameters():
            value = whole(parameter)
            if self._rank == 0:
                # A copy: a parameter's memory goes on changing, and safetensors refuses shared memory.
                found[name] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
        return found

    def _create_moments(self, step: float) -> None:
        """Give AdamW the state that its first step would have made."""
        flat = (
            self._optimizer.fp32_partitioned_groups_flat
            if self._stage == 3
            else [p for group in self._base.param_groups for p in group["params"]]
        )
        for parameter in flat:
            state: dict[str, Tensor] = {m: torch.zeros_like(parameter, dtype=torch.float32) for m in MOMENTS}
            # A fused AdamW keeps its step count beside the moments, on the device.
            state["step"] = torch.tensor(step, dtype=torch.float32, device=parameter.device)
            self._base.state[parameter] = state

    def _link_moments(self) -> None:
        if self._stage in (1, 2):
            # DeepSpeed 0.19 links all groups' moments when the first group has stepped, before the others have any.
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's two groups: matrices and larger, which decay, and biases and norms, which do not.

    As in the reference code, tensors of one dimension are biases and norms; CLS and mask tokens decay.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    count = len(batch.token_ids_BL)
    fields: Sequence[str] = Batch.__slots__
    for start in range(0, count, size):
        yield Batch(**{name: getattr(batch, name)[start : start + size] for name in fields})


def _partition(whole: Tensor, rank: int, world: int) -> Tensor:
    """Return a rank's part of a tensor as ZeRO-3 cuts it: flat, in equal parts, the last one padded with zeros."""
    size = -(-whole.numel() // world)
    return nn.functional.pad(whole.flatten(), (0, size * world - whole.numel()))[rank * size : (rank + 1) * size]


def _tensor(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"tensor {name} is absent", where="checkpoint", remedy="It is of another model.")
    if tuple(tensors[name].shape) != shape:
        raise CheckpointError(
            f"tensor {name} has shape {tuple(tensors[name].shape)}, the model's has {shape}",
            where="checkpoint",
            remedy="Continue with the configuration that the run was started with.",
        )
    return tensors[name]
