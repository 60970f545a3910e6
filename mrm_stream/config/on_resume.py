"""Which settings may be others when a run is resumed: a rule for each that every task has, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Policy = Literal["may change", "checked", "warned", "refused"]
"""checked: names something that may lie elsewhere; whether it is the same is found by its content."""


@dataclass(frozen=True)
class OnResume:
    """What becomes of a resumed run in which a setting is another than before."""

    policy: Policy
    why: str


def refused(why: str) -> OnResume:
    """Return the rule of a setting that must stay."""
    return OnResume("refused", why)


_ORDER = refused("which samples a step is made of")
_RATE = refused("the learning rate belongs to the whole run; start another from its weights, by `run.init`")
_STEP = refused("how a step changes the weights")
_SPEED = OnResume("may change", "how fast, not what is trained")

# Where a change is allowed without a word, the run goes on as it would have, up to the rounding of sums in another
# order, as on another number of ranks. Where it is larger than that, and still may be wanted, a warning tells of it.
SHARED: Mapping[str, OnResume] = {
    "seed": refused("every random draw"),
    "data.shards": OnResume("checked", "may lie elsewhere: the set's fingerprint must be the same"),
    "data.mixture": OnResume("checked", "the sets may lie elsewhere; which they are, their order and shares must stay"),
    "data.cache": OnResume("may change", "a copy of the shards, not what is in them"),
    "data.cache_gb": OnResume("may change", "a copy of the shards, not what is in them"),
    "data.split": _ORDER,
    "data.window": _ORDER,
    "data.backend": OnResume("warned", "decoders round differently: pixels differ by a grey level here and there"),
    "data.threads": _SPEED,
    "data.prefetch": _SPEED,
    "data.max_bad_samples": OnResume("may change", "when to give up, not what is trained"),
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
    "run.init": refused("read once, when the run began; now the weights are the checkpoint's"),
    "run.log_every": OnResume("may change", "what is told and kept, not what is trained"),
    "run.save_every": OnResume("may change", "what is told and kept, not what is trained"),
    "run.keep": OnResume("may change", "what is told and kept, not what is trained"),
    "run.connect_s": OnResume("may change", "when to give up, not what is trained"),
}
