"""On every rank: train, take the state out, put it into a new engine, train both on; every ZeRO stage."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.records import Batch
from mrm_stream.tasks.pretrain import masked_tokens
from mrm_stream.training.engine import Engine


class Odd(nn.Module):
    """Tensors of sizes that two ranks do not divide, one of them never used."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 63), nn.LayerNorm(63), nn.Dropout(0.1), nn.Linear(63, 16))
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.offset: Tensor
        self.register_buffer("offset", torch.zeros(16))

    def forward(self, batch: Batch, _masked_tokens: Tensor) -> dict[str, Tensor]:
        restored_BD = self.layers(batch.patch_noise_BN + self.token[0] + self.offset)
        return {"loss": ((restored_BD.float() - batch.patch_noise_BN) ** 2).mean()}


def check(runtime: Runtime) -> None:
    """Print a line for each stage."""

    def losses(engine: Engine[Batch], steps: range) -> list[float]:
        found = []
        for step in steps:
            noise_BN = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))[runtime.rank :: runtime.world]
            batch = Batch(noise_BN, noise_BN, noise_BN, noise_BN.long(), noise_BN.bool())
            found.append(float(engine.step(batch, step=step, learning_rate=1e-3 * (step + 1))["loss"]))
        return found

    for stage in range(4):
        settings = ["optim.batch_size=8", "optim.micro_batch_size=2", f"engine.zero_stage={stage}"]
        config = load_config(PretrainConfig, None, settings)
        torch.manual_seed(0)
        first = Odd()
        first.offset += 0.5  # As positions that came from another project's checkpoint.
        engine = Engine(first, config, runtime, masked_tokens)
        losses(engine, range(3))
        box = [engine.state.weights(), engine.state.moments()]
        expected = losses(engine, range(3, 7))
        dist.broadcast_object_list(box, 0)
        weights, moments = box
        model = Odd()
        model.load_state_dict(weights)
        continued = Engine(model, config, runtime, masked_tokens)
        continued.state.load_moments(moments)
        same = losses(continued, range(3, 7)) == expected
        print(json.dumps({"zero stage": stage, "rank": runtime.rank, "same": same}) + "\n", end="", flush=True)  # noqa: T201
