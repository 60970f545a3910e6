"""Whole weights and moments out of an engine, and moments back into one, at any ZeRO stage.

Checkpoints hold whole tensors under the parameters' names, so that any number of ranks and any stage can resume from
them. DeepSpeed's own checkpoints are one file a rank, of the stage and the number of ranks that saved them. Gathering
costs a copy of the model to the first rank's memory at each save; a ViT-B with both decoders has 0.6 GB of weights and
twice that of moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mrm_stream.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")


class EngineState:
    """What of an engine must outlive it.

    Every method is collective, but for `load_moments`: all ranks must call it.

    Args:
        engine: DeepSpeed's.
        stage: Of ZeRO.
        rank: This rank.
        world: Ranks in all.
    """

    def __init__(self, engine: Any, *, stage: int, rank: int, world: int) -> None:
        self._optimizer: Any = engine.optimizer
        self._model: nn.Module = engine.module
        self._device: torch.device = engine.device
        self._stage, self._rank, self._world = stage, rank, world

    def weights(self) -> dict[str, Tensor]:
        """Return the model's state, whole, on the CPU: on the first rank; elsewhere an empty dictionary."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = self._gathered(lambda p: p if self._stage == 0 else safe_get_full_fp32_param(p))
        if self._rank == 0:
            # Buffers are the same on every rank: the positions, which a run may have taken from another's checkpoint.
            state = self._model.state_dict()
            weights.update({name: state[name].cpu().clone() for name in state.keys() - weights.keys()})
        return weights

    def moments(self) -> dict[str, Tensor]:
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
        """Load what `moments` returned; every rank must pass all of it. It calls no other rank.

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
                whole = _tensor(moments, f"{moment}.{name}", shape).to(self._device)
                if self._stage == 0:
                    self._base.state[parameter][moment].copy_(whole)
                elif self._stage == 3:
                    # DeepSpeed 0.19 cannot take a whole tensor whose size the ranks do not divide.
                    safe_set_local_optimizer_state(parameter, _partition(whole, self._rank, self._world), moment)
                else:
                    safe_set_full_optimizer_state(parameter, whole, moment)

    @property
    def _base(self) -> torch.optim.Optimizer:
        """The AdamW below ZeRO's wrapper."""
        base: torch.optim.Optimizer = self._optimizer if self._stage == 0 else self._optimizer.optimizer
        return base

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)

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
