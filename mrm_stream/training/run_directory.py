"""The directory of a run: what lies in it, and whether a run found there may be continued.

RUN/config.yaml           every setting, as resolved
    metrics.jsonl         losses, learning rate, samples/s, share of time waiting for data
    tensorboard/          the same as curves
    checkpoints/          see checkpoint.py
    encoder.safetensors   what is kept, once the run is complete
    complete.json         left last: the run is complete
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrm_stream.config import Config
from mrm_stream.config_file import dump_config, load_config
from mrm_stream.errors import ConfigError

CONFIG, ENCODER, COMPLETE = "config.yaml", "encoder.safetensors", "complete.json"

# These say where and how fast, not what is trained: they may change when a run is continued. That the shards are the
# same ones is checked by their fingerprint.
_MAY_CHANGE = (
    "data.shards",
    "data.backend",
    "data.threads",
    "data.prefetch",
    "data.max_bad_samples",
    "engine.",
    "run.",
)


def prepare_run(out: Path, config: Config) -> None:
    """Create a run's directory, or check that the run found there is this one; then save the settings.

    Raises:
        ConfigError: The run there has other settings; each one is named.
    """
    path = out / CONFIG
    if path.exists():
        earlier = _flat(asdict(load_config(path)))
        changed = [
            f"{name} was {earlier[name]!r}, is {value!r}"
            for name, value in _flat(asdict(config)).items()
            if earlier[name] != value and not name.startswith(_MAY_CHANGE)
        ]
        if changed:
            raise ConfigError(
                f"holds a run with other settings: {'; '.join(changed)}",
                where=out,
                remedy="Take the settings back to continue it, or choose another run.out.",
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(dump_config(config))
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=path, remedy="Choose another run.out."
        ) from error


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
