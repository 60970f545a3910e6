"""Which settings may be others when a run is resumed: one table, of every setting, with the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mrm_stream.config.file import with_absolute_paths
from mrm_stream.config.pretrain import Config

Policy = Literal["may change", "checked", "warned", "refused"]
"""checked: names something that may lie elsewhere; whether it is the same is found by its content."""


@dataclass(frozen=True)
class OnResume:
    """What becomes of a resumed run in which a setting is another than before."""

    policy: Policy
    why: str


def _refused(why: str) -> OnResume:
    return OnResume("refused", why)


_SEEN = _refused("what the model sees of a sample")
_ORDER = _refused("which samples a step is made of")
_SIZES = _refused("the weights of a checkpoint have these sizes")
_LOSS = _refused("what is learned")
_RATE = _refused("the learning rate belongs to the whole run; start another from its weights, by `run.init`")
_STEP = _refused("how a step changes the weights")
_SPEED = OnResume("may change", "how fast, not what is trained")

# Where a change is allowed without a word, the run goes on as it would have, up to the rounding of sums in another
# order, as on another number of ranks. Where it is larger than that, and still may be wanted, a warning tells of it.
ON_RESUME: Mapping[str, OnResume] = {
    "recipe": OnResume("may change", "names defaults only: each of its settings is compared by itself"),
    "seed": _refused("every random draw"),
    "data.shards": OnResume("checked", "may lie elsewhere: the set's fingerprint must be the same"),
    "data.mixture": OnResume("checked", "the sets may lie elsewhere; which they are, their order and shares must stay"),
    "data.cache": OnResume("may change", "a copy of the shards, not what is in them"),
    "data.cache_gb": OnResume("may change", "a copy of the shards, not what is in them"),
    "data.split": _ORDER,
    "data.hr_size": _SEEN,
    "data.lr_size": _SEEN,
    "data.antialias": _SEEN,
    "data.crop_area": _SEEN,
    "data.crop_ratio": _SEEN,
    "data.flip": _SEEN,
    "data.mean": _SEEN,
    "data.std": _SEEN,
    "data.report_length": _SEEN,
    "data.window": _ORDER,
    "data.backend": OnResume("warned", "decoders round differently: pixels differ by a grey level here and there"),
    "data.threads": _SPEED,
    "data.prefetch": _SPEED,
    "data.max_bad_samples": OnResume("may change", "when to give up, not what is trained"),
    "model.patch": _SIZES,
    "model.image_encoder.width": _SIZES,
    "model.image_encoder.depth": _SIZES,
    "model.image_encoder.heads": _SIZES,
    "model.image_decoder.width": _SIZES,
    "model.image_decoder.depth": _SIZES,
    "model.image_decoder.heads": _SIZES,
    "model.report_decoder.width": _SIZES,
    "model.report_decoder.depth": _SIZES,
    "model.report_decoder.heads": _SIZES,
    "model.report_decoder.feed_forward": _SIZES,
    "model.report_decoder.dropout": _LOSS,
    "model.report_decoder.positions": _SIZES,
    "model.positions": _refused("the model was trained with these"),
    "method.mask_ratio": _LOSS,
    "method.report_mask_ratio": _LOSS,
    "method.token_masking": _LOSS,
    "method.pixel_target": _LOSS,
    "method.report_loss_over": _LOSS,
    "method.image_loss_weight": _LOSS,
    "method.report_loss_weight": _LOSS,
    "method.pooling": _LOSS,
    "method.super_resolution": _LOSS,
    "method.hybrid_features": _LOSS,
    "optim.batch_size": _ORDER,
    "optim.micro_batch_size": OnResume(
        "may change", "the same samples a step, summed in other parts; dropout is drawn for each part, as for each rank"
    ),
    "optim.epochs": _RATE,
    "optim.warmup_epochs": _RATE,
    "optim.base_lr": _RATE,
    "optim.min_lr": _RATE,
    "optim.weight_decay": _STEP,
    "optim.betas": _STEP,
    "optim.gradient_clip": OnResume("warned", "steps from here on are clipped otherwise: to save a run that diverges"),
    "engine.zero_stage": _SPEED,
    "engine.precision": OnResume("warned", "steps from here on are rounded otherwise, to 3 digits or to 7"),
    "engine.communication": OnResume("warned", "gradients from here on are rounded otherwise, to 3 digits or to 7"),
    "engine.compile": _SPEED,
    "run.out": OnResume("may change", "a run's directory may be moved"),
    "run.init": _refused("read once, when the run began; now the weights are the checkpoint's"),
    "run.log_every": OnResume("may change", "what is told and kept, not what is trained"),
    "run.save_every": OnResume("may change", "what is told and kept, not what is trained"),
    "run.keep": OnResume("may change", "what is told and kept, not what is trained"),
    "run.connect_s": OnResume("may change", "when to give up, not what is trained"),
}


@dataclass(frozen=True)
class Changes:
    """Settings that are others than before, each with both values, as a clause."""

    refused: tuple[str, ...]
    warned: tuple[str, ...]


def changes(earlier: Config, now: Config) -> Changes:
    """Return what differs and is refused, and what differs and is to be warned of.

    Whether the packed sets are the same ones is not seen here: their paths may differ, their fingerprints may not.

    Args:
        earlier: As the run was begun, or resumed last.
        now: As it is to be resumed.
    """
    before, after = flat_settings(with_absolute_paths(earlier)), flat_settings(with_absolute_paths(now))
    refused: list[str] = []
    warned: list[str] = []
    for name, value in after.items():
        was, is_now = _compared(name, before[name]), _compared(name, value)
        policy = ON_RESUME[name].policy
        if was != is_now and policy != "may change":
            (warned if policy == "warned" else refused).append(f"{name} was {was!r}, is {is_now!r}")
    return Changes(tuple(refused), tuple(warned))


def flat_settings(config: Config) -> dict[str, Any]:
    """Return the settings by their whole names, as `optim.epochs`; a mapping is one setting."""
    return dict(_flat(config, ""))


def _flat(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for each in dataclasses.fields(section):
        value = getattr(section, each.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", value


def _compared(name: str, value: Any) -> Any:
    """Return what of a setting must stay: of a file, which one it is; of sets that may lie elsewhere, their shares."""
    if name == "run.init" and value:
        return str(Path(value).resolve())
    if name == "data.mixture":
        return list(value.values())
    return None if name == "data.shards" else value


def markdown_table() -> str:
    """Return the table for people; neighbours with the same rule share a line."""
    lines = ["| setting | when a run is resumed | why |", "| --- | --- | --- |"]
    groups: list[tuple[OnResume, list[str]]] = []
    for name, rule in ON_RESUME.items():
        if not groups or groups[-1][0] != rule:
            groups.append((rule, []))
        groups[-1][1].append(f"`{name}`")
    lines += [f"| {', '.join(names)} | {rule.policy} | {rule.why} |" for rule, names in groups]
    return "\n".join(lines) + "\n"
