"""The model's side of `mrm-stream bench gpu`: losses, ZeRO, compilation, and how fast the step is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mrm_stream.bench.gpu_pixels import loading
from mrm_stream.bench.gpu_setting import Found, Setting
from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.decode.pair import make_lr_hr_pair
from mrm_stream.distributed.connection import disconnect
from mrm_stream.distributed.ranks import Ranks
from mrm_stream.distributed.runtime import Runtime, start_runtime
from mrm_stream.formats.folder import MANIFEST
from mrm_stream.records import Batch
from mrm_stream.tasks.pretrain import make_model, masked_tokens
from mrm_stream.training.checkpoint import load_weights
from mrm_stream.training.engine import Engine

_NO_DROPOUT = "model.report_decoder.dropout=0.0"
_PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12}
"""Of bf16 without sparsity, by what the GPU's name holds; NVIDIA's data sheets."""


def check_losses(setting: Setting) -> Found:
    """Compare losses and gradients of one batch with the CPU's in float32."""
    torch.backends.cudnn.allow_tf32 = False  # The patches' convolution would be rounded to 10 bits.
    config = load_config(PretrainConfig, None, setting.settings())
    model = make_model(config, setting.vocabulary).eval()
    cpu, device = torch.device("cpu"), setting.device
    batch = made_up_batch(config, setting.vocabulary, 4, seed=0, device=cpu)
    expected, gradient = _losses(model, batch, cpu, bf16=False)
    found = Found({"parameters": sum(p.numel() for p in model.parameters())})
    for name, bf16, loss_limit, gradient_limit in (("fp32", False, 1e-4, 1e-3), ("bf16", True, 2e-2, 0.1)):
        losses, ours = _losses(model, batch, device, bf16=bf16)
        apart = _apart([losses[key] for key in expected], [*expected.values()])
        found.at_most(f"{name}_loss_relative", apart, loss_limit)
        found.at_most(f"{name}_gradient_relative", float((ours - gradient).norm() / gradient.norm()), gradient_limit)
    return found


def check_zero(setting: Setting) -> Found:
    """Train a tiny model at each ZeRO stage, take its state out, and go on from it in a new engine."""
    tiny = Setting(setting.out, tiny=True)
    runtime = _connected()
    found, first = Found(), None
    for stage in range(4):
        more = "optim.batch_size=8", "optim.micro_batch_size=4", f"engine.zero_stage={stage}", _NO_DROPOUT
        config = load_config(PretrainConfig, None, tiny.settings(*more))
        batches = [made_up_batch(config, tiny.vocabulary, 8, seed=step, device=runtime.device) for step in range(6)]
        engine = Engine(make_model(config, tiny.vocabulary), config, runtime, masked_tokens)
        losses = _train(engine, batches[:3])
        weights, moments = engine.state.weights(), engine.state.moments()
        losses += _train(engine, batches[3:], start=3)
        model = make_model(config, tiny.vocabulary)
        load_weights(model, weights, Path(f"stage {stage}"))
        continued = Engine(model, config, runtime, masked_tokens)
        continued.state.load_moments(moments)
        again = _train(continued, batches[3:], start=3)
        first = first or losses
        found.at_most(f"stage_{stage}_continued_relative", _apart(again, losses[3:]), 1e-3)
        found.at_most(f"stage_{stage}_beside_0_relative", _apart(losses, first), 1e-2)
    disconnect()
    return found


def check_compile(setting: Setting) -> Found:
    """Compare the losses of some steps with and without compilation, and time both."""
    count, steps = (4, 3) if setting.tiny else (64, 8)
    runtime = _connected()
    found, losses = Found({"batch": count}), {}
    for name in ("eager", "compiled"):
        more = f"optim.batch_size={count}", f"engine.compile={str(name == 'compiled').lower()}", _NO_DROPOUT
        config = load_config(PretrainConfig, None, setting.settings(*more))
        batch = made_up_batch(config, setting.vocabulary, count, seed=0, device=runtime.device)
        engine = Engine(make_model(config, setting.vocabulary), config, runtime, masked_tokens)
        started = time.perf_counter()
        losses[name] = _train(engine, [batch] * 3)
        found.numbers[f"{name}_first_steps_s"] = time.perf_counter() - started
        found.numbers[f"{name}_per_s"] = count * steps / _seconds(engine, batch, steps)
        del engine
    found.at_most("loss_relative", _apart(losses["compiled"], losses["eager"]), 1e-2)
    disconnect()
    return found


def check_training(setting: Setting) -> Found:
    """Time the step on a batch that lies on the device, and then a whole run's loop with its data."""
    count, steps = (8, 2) if setting.tiny else (256, 10)
    config = load_config(PretrainConfig, None, setting.settings(f"optim.batch_size={count}", "data.prefetch=4"))
    runtime = _connected()
    flops = flops_a_sample(config, setting.vocabulary)
    found = Found({"batch": count, "gflop_a_sample": flops / 1e9})
    engine = Engine(make_model(config, setting.vocabulary), config, runtime, masked_tokens)
    batch = made_up_batch(config, setting.vocabulary, count, seed=0, device=runtime.device)
    losses = _train(engine, [batch] * 3)
    found.holds(losses[-1] < losses[0], f"the loss of one batch does not fall: {losses}")
    rate = count * steps / _seconds(engine, batch, steps)
    found.numbers["step_per_s"] = rate
    if runtime.device.type == "cuda":
        name = torch.cuda.get_device_name(runtime.device)
        peak = next((peak for part, peak in _PEAK_FLOPS.items() if part in name), None)
        found.numbers["share_of_peak"] = None if peak is None else rate * flops / peak
        found.numbers["peak_memory_gb"] = torch.cuda.max_memory_allocated(runtime.device) / 1e9
    if (setting.shards / MANIFEST).exists():
        _with_data(found, config, setting, engine, steps)
    else:
        found.numbers["with_data_per_s"] = "no packed set"
    disconnect()
    return found


def made_up_batch(config: PretrainConfig, vocabulary: int, count: int, *, seed: int, device: torch.device) -> Batch:
    """Return a batch of smooth noise and random words, the same on every machine."""
    draws = torch.Generator().manual_seed(seed)
    hr_size, length = config.data.hr_size, config.data.report_length
    coarse = torch.randn(count, 1, hr_size // 16, hr_size // 16, generator=draws)
    lr_BCHW, hr_BCHW = make_lr_hr_pair(
        functional.interpolate(coarse, (hr_size, hr_size), mode="bicubic"), lr_size=config.data.lr_size
    )
    patches = (config.data.lr_size // config.model.patch) ** 2
    tensors = {
        "image_hr_BCHW": hr_BCHW,
        "image_lr_BCHW": lr_BCHW,
        "patch_noise_BN": torch.rand(count, patches, generator=draws),
        "token_ids_BL": torch.randint(5, vocabulary, (count, length), generator=draws),
        "token_is_masked_BL": torch.rand(count, length, generator=draws) < 0.5,
    }
    return Batch(**{name: tensor.to(device) for name, tensor in tensors.items()})


def flops_a_sample(config: PretrainConfig, vocabulary: int) -> float:
    """Return the operations of a forward and backward pass of one sample, as torch counts them."""
    with torch.device("meta"):
        model = make_model(config, vocabulary)
    batch = made_up_batch(config, vocabulary, 1, seed=0, device=torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        model(batch)["loss"].backward()
    return float(counter.get_total_flops())


def _with_data(found: Found, config: PretrainConfig, setting: Setting, engine: Engine[Batch], steps: int) -> None:
    with loading(config, setting) as (loader, _):
        for step in range(3):
            engine.step(next(loader).take(), step=step, learning_rate=1e-5)["loss"].item()
        started, waited = time.perf_counter(), loader.seconds_waited
        for step in range(2 * steps):
            losses = engine.step(next(loader).take(), step=step, learning_rate=1e-5)
        last = losses["loss"].item()
        elapsed = time.perf_counter() - started
    found.holds(last == last, "the loss is not a number")
    found.numbers["with_data_per_s"] = 2 * steps * config.optim.batch_size / elapsed
    found.numbers["waiting_share"] = (loader.seconds_waited - waited) / elapsed


def _connected() -> Runtime:
    runtime = start_runtime()
    Ranks(runtime)
    return runtime


def _train(engine: Engine[Batch], batches: Sequence[Batch], *, start: int = 0) -> list[float]:
    return [
        float(engine.step(batch, step=start + number, learning_rate=1e-4)["loss"])
        for number, batch in enumerate(batches)
    ]


def _seconds(engine: Engine[Batch], batch: Batch, steps: int) -> float:
    started = time.perf_counter()
    for step in range(steps):
        losses = engine.step(batch, step=step, learning_rate=1e-5)
    losses["loss"].item()  # Waits for the GPU.
    return time.perf_counter() - started


def _losses(model: nn.Module, batch: Batch, device: torch.device, *, bf16: bool) -> tuple[dict[str, float], Tensor]:
    """Return the losses, and the whole gradient as one vector on the CPU."""
    model.to(device).zero_grad(set_to_none=True)
    moved = Batch(**{name: getattr(batch, name).to(device) for name in Batch.__slots__})
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        losses = model(moved)
    losses["loss"].backward()
    gradient = torch.cat([p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None])
    return {name: float(value.detach()) for name, value in losses.items()}, gradient


def _apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    # By torch: Python's own max() would pass over what is not a number.
    return float((torch.tensor(ours).double() / torch.tensor(theirs).double() - 1).abs().max())
