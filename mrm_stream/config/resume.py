"""What differs between a run and the settings with which it is to be resumed, by the policy of each setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrm_stream.config.base import TrainConfig
from mrm_stream.config.file import with_absolute_paths
from mrm_stream.config.on_resume import OnResume


@dataclass(frozen=True)
class Changes:
    """Settings that are others than before, each with both values, as a clause."""

    refused: tuple[str, ...]
    warned: tuple[str, ...]


def changes(earlier: TrainConfig, now: TrainConfig) -> Changes:
    """Return what differs and is refused, and what differs and is to be warned of.

    Whether the packed sets are the same ones is not seen here: their paths may differ, their fingerprints may not.

    Args:
        earlier: As the run was begun, or resumed last.
        now: As it is to be resumed.
    """
    before, after = flat_settings(with_absolute_paths(earlier)), flat_settings(with_absolute_paths(now))
    policies = now.on_resume
    refused: list[str] = []
    warned: list[str] = []
    for name, value in after.items():
        was, is_now = _compared(name, before[name]), _compared(name, value)
        # What has no rule must stay: a task that forgets one does no harm.
        policy = policies[name].policy if name in policies else "refused"
        if was != is_now and policy != "may change":
            (warned if policy == "warned" else refused).append(f"{name} was {was!r}, is {is_now!r}")
    return Changes(tuple(refused), tuple(warned))


def flat_settings(config: TrainConfig) -> dict[str, Any]:
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


def markdown_table(policies: Mapping[str, OnResume]) -> str:
    """Return the table for people; neighbours with the same rule share a line."""
    lines = ["| setting | when a run is resumed | why |", "| --- | --- | --- |"]
    groups: list[tuple[OnResume, list[str]]] = []
    for name, rule in policies.items():
        if not groups or groups[-1][0] != rule:
            groups.append((rule, []))
        groups[-1][1].append(f"`{name}`")
    lines += [f"| {', '.join(names)} | {rule.policy} | {rule.why} |" for rule, names in groups]
    return "\n".join(lines) + "\n"
