"""Run below torchrun: what a step does, shared out over ranks and micro-batches, beside one process without DeepSpeed.

The arguments name the checks. The first rank prints a line of JSON for each case, all ranks one for each skipped step.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor

from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.connection import disconnect
from mrm_stream.distributed.ranks import Ranks
from mrm_stream.distributed.runtime import Runtime, start_runtime
from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.records import Batch
from mrm_stream.tasks.pretrain import masked_tokens
from mrm_stream.training.engine import Engine
from mrm_stream.training.metrics import LossSums

SAMPLES, LENGTH, VOCABULARY = 8, 12, 40
SMALL = [
    "data.hr_size=32",
    "data.lr_size=16",
    f"data.report_length={LENGTH}",
    "model.patch=4",
    "model.image_encoder={width: 16, depth: 1, heads: 2}",
    "model.image_decoder={width: 16, depth: 1, heads: 2}",
    "model.report_decoder={width: 16, depth: 1, heads: 2, feed_forward: 32, dropout: 0.0}",
    f"optim.batch_size={SAMPLES}",
]
GRADIENTS = ["optim.betas=[0, 0]"]  # The first moment is the gradient then.


def make_batch(masked: Sequence[int]) -> Batch:
    """A whole step's samples: so many tokens are masked in each."""
    generator = torch.Generator().manual_seed(7)
    return Batch(
        image_hr_BCHW=torch.randn(SAMPLES, 1, 32, 32, generator=generator),
        image_lr_BCHW=torch.randn(SAMPLES, 1, 16, 16, generator=generator),
        patch_noise_BN=torch.rand(SAMPLES, 16, generator=generator),
        token_ids_BL=torch.randint(4, VOCABULARY, (SAMPLES, LENGTH), generator=generator),
        token_is_masked_BL=torch.arange(LENGTH).expand(SAMPLES, -1) < torch.tensor(masked)[:, None],
    )


UNEQUAL, NONE = make_batch([3, 1, 5, 2, 4, 6, 0, 9]), make_batch([0] * SAMPLES)


def part(batch: Batch, number: int, parts: int) -> Batch:
    size = SAMPLES // parts
    return Batch(**{name: getattr(batch, name)[number * size : (number + 1) * size] for name in Batch.__slots__})


def make_model(config: PretrainConfig) -> MaskedRecordModel:
    torch.manual_seed(0)
    return MaskedRecordModel(config.model, config.method, config.data, vocabulary=VOCABULARY)


def expected_step(config: PretrainConfig, batch: Batch, passes: int) -> tuple[dict[str, float], Tensor]:
    """One process's losses and gradient, added up in float32 over so many passes."""
    model, bf16 = make_model(config), config.engine.precision == "bf16"
    masked_tokens = batch.token_is_masked_BL.sum().clamp(min=1) / passes
    losses: dict[str, float] = {}
    for number in range(passes):
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            found = model(part(batch, number, passes), masked_tokens)
        torch.autograd.backward(found["loss"] / passes)
        losses = {name: losses.get(name, 0) + value.item() / passes for name, value in found.items()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return losses, torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def compare_step(
    check: str,
    case: str,
    engine: Engine[Batch],
    batch: Batch,
    runtime: Runtime,
    expected: tuple[dict[str, float], Tensor],
) -> None:
    window, (losses, gradient) = LossSums(), expected
    window.add(engine.step(part(batch, runtime.rank, runtime.world), step=0, learning_rate=0.0))
    found, moments = window.means(), engine.state.moments()
    if runtime.rank:
        return
    assert found.keys() == losses.keys()
    names = sorted(name for name in moments if name.startswith("exp_avg."))
    apart = torch.cat([moments[name].flatten() for name in names]) - gradient
    apart_losses = max(abs(found[name] - value) / max(value, 1e-9) for name, value in losses.items())
    say({"check": check, "case": case, "losses": apart_losses, "gradient": float(apart.norm() / gradient.norm())})


def say(line: dict[str, object]) -> None:
    print(json.dumps(line) + "\n", end="", flush=True)  # noqa: T201


def check_sharing(runtime: Runtime) -> None:
    """Losses and gradients of a step are the same whatever ranks and micro-batches share it."""
    for over in ("masked", "all"):
        settings = [*SMALL, *GRADIENTS, f"method.report_loss_over={over}", "engine.precision=fp32"]
        whole = [expected_step(load_config(PretrainConfig, None, settings), batch, 1) for batch in (UNEQUAL, NONE)]
        for micro in sorted({1, SAMPLES // runtime.world}):
            config = load_config(PretrainConfig, None, [*settings, f"optim.micro_batch_size={micro}"])
            engine = Engine(make_model(config), config, runtime, masked_tokens)
            for batch, expected, name in zip((UNEQUAL, NONE), whole, ("unequal", "none masked"), strict=True):
                compare_step("sharing", f"{over}, micro-batch {micro}, {name}", engine, batch, runtime, expected)


def check_communication(runtime: Runtime) -> None:
    """Each sample's gradient is computed in bf16; what adds them up is float32, or else bf16."""
    settings = [*SMALL, *GRADIENTS, "method.report_loss_over=masked", "optim.micro_batch_size=1"]
    expected = expected_step(load_config(PretrainConfig, None, settings), UNEQUAL, SAMPLES)
    for stage in range(4):
        for dtype in ("fp32", "bf16"):
            config = load_config(
                PretrainConfig, None, [*settings, f"engine.zero_stage={stage}", f"engine.communication={dtype}"]
            )
            engine = Engine(make_model(config), config, runtime, masked_tokens)
            compare_step("communication", f"stage {stage}, {dtype}", engine, UNEQUAL, runtime, expected)


def check_skipping(runtime: Runtime) -> None:
    """A gradient that is not finite, on the last rank alone, changes nothing on any rank."""
    cases = [(stage, precision, 0.0) for stage in range(4) for precision in ("bf16", "fp32")]
    for stage, precision, clip in [*cases, (0, "bf16", 1.0), (2, "bf16", 1.0)]:
        settings = [f"engine.zero_stage={stage}", f"engine.precision={precision}", f"optim.gradient_clip={clip}"]
        config = load_config(PretrainConfig, None, [*SMALL, *settings, "optim.micro_batch_size=2"])
        model = make_model(config)
        engine, poisoned, states = Engine(model, config, runtime, masked_tokens), False, []

        def poison(_module: object, _inputs: object, latent: Tensor) -> None:
            if poisoned:  # noqa: B023  # The loop's own, on purpose.
                latent.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[no-untyped-call]

        model.image_encoder.register_forward_hook(poison)
        for step in range(3):
            poisoned = step == 1 and runtime.rank == runtime.world - 1
            engine.step(part(UNEQUAL, runtime.rank, runtime.world), step=step, learning_rate=1e-2)
            states.append({**engine.state.weights(), **engine.state.moments()})
        case = f"stage {stage}, {precision}, clip {clip}"
        line: dict[str, object] = {"check": "skipping", "case": case, "skipped": engine.skipped_steps}
        if runtime.rank == 0:
            before, after, later = states
            line["unchanged"] = all(torch.equal(after[name], value) for name, value in before.items())
            trained = [not torch.equal(later[name], value) for name, value in before.items() if "exp_avg" in name]
            line["trains on"] = all(trained) and all(bool(value.isfinite().all()) for value in later.values())
        say(line)


CHECKS = {"sharing": check_sharing, "communication": check_communication, "skipping": check_skipping}


def check(runtime: Runtime, *names: str) -> None:
    """Make the checks of these names."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # It says that it skips, on standard output.
    for name in names:
        CHECKS[name](runtime)
        dist.barrier()


def main() -> None:
    runtime = start_runtime()
    torch.set_num_threads(1)
    Ranks(runtime)
    check(runtime, *sys.argv[1:])
    disconnect()


if __name__ == "__main__":
    main()
