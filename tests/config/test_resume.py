"""What becomes of each setting when a run is resumed, as the table says, and the docs after it."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

import pytest

from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import ON_RESUME, PretrainConfig
from mrm_stream.config.resume import changes, flat_settings, markdown_table

DOCS = Path(__file__).parents[2] / "docs" / "resuming.md"
SETTINGS = flat_settings(PretrainConfig())

ANOTHER = {
    "data.shards": "elsewhere",
    "data.mixture": "{shards/a: 0.2}",
    "data.hr_size": 672,
    "data.lr_size": 112,
    "data.crop_area": "[0.3, 1.0]",
    "data.crop_ratio": "[0.8, 1.25]",
    "data.report_length": 90,
    "model.patch": 32,
    "model.image_encoder.width": 384,
    "model.image_encoder.heads": 6,
    "model.image_decoder.width": 384,
    "model.image_decoder.heads": 4,
    "model.report_decoder.width": 192,
    "model.report_decoder.heads": 4,
    "model.report_decoder.positions": 200,
    "optim.min_lr": 1e-5,
    "optim.micro_batch_size": 16,
    "optim.betas": "[0.9, 0.999]",
}
"""Values where half of a number, or another choice, would not do."""


def kind_of(name: str) -> Any:
    section: Any = PretrainConfig
    for part in name.split("."):
        section = typing.get_type_hints(section)[part]
    return section


def changed(name: str) -> PretrainConfig:
    """The default settings, but for one."""
    if name == "recipe":  # Of itself alone, without the defaults that it stands for.
        return dataclasses.replace(PretrainConfig(), recipe="paper")
    return load_config(PretrainConfig, None, [f"{name}={ANOTHER[name] if name in ANOTHER else another(name)}"])


def another(name: str) -> object:
    value = SETTINGS[name]
    if typing.get_origin(kind_of(name)) is Literal:
        return next(choice for choice in typing.get_args(kind_of(name)) if choice != value)
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, str):
        return "elsewhere"
    return value // 2 if isinstance(value, int) and value else value / 2 if value else 1


def test_every_setting_has_a_rule_and_every_rule_a_setting() -> None:
    assert ON_RESUME.keys() == SETTINGS.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_does_what_the_table_says(name: str) -> None:
    found = changes(PretrainConfig(), changed(name))
    told = {"refused": found.refused, "warned": found.warned}
    policy = ON_RESUME[name].policy
    if name == "data.mixture":  # Another share is another run, wherever the sets lie.
        policy = "refused"
    for kind, clauses in told.items():
        assert [clause.split(" was ")[0] for clause in clauses] == [name] * (kind == policy)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_stays_is_not_told(name: str) -> None:
    assert not any(vars(changes(changed(name), changed(name))).values())


def test_sets_may_lie_elsewhere_but_keep_their_shares() -> None:
    begun = load_config(PretrainConfig, None, ["data.shards=a", "data.mixture={b: 0.2, c: 0.1}"])
    moved = load_config(PretrainConfig, None, ["data.shards=/x/a", "data.mixture={/x/b: 0.2, /y/c: 0.1}"])
    assert changes(begun, moved).refused == ()
    other = load_config(PretrainConfig, None, ["data.shards=a", "data.mixture={b: 0.1, c: 0.2}"])
    assert changes(begun, other).refused == ("data.mixture was [0.2, 0.1], is [0.1, 0.2]",)


def test_initial_weights_are_the_same_file_by_whatever_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "weights")
    monkeypatch.chdir(tmp_path / "weights")
    begun = load_config(PretrainConfig, None, [f"run.init={tmp_path / 'weights' / 'mae.pth'}"])
    for path in ("mae.pth", "../weights/mae.pth", "../link/mae.pth"):
        assert changes(begun, load_config(PretrainConfig, None, [f"run.init={path}"])).refused == ()
    assert changes(begun, load_config(PretrainConfig, None, ["run.init=other.pth"])).refused != ()
    assert changes(begun, PretrainConfig()).refused != ()


def test_the_docs_hold_the_table() -> None:
    assert markdown_table(ON_RESUME) in DOCS.read_text(), f"{DOCS.name} needs this table:\n{markdown_table(ON_RESUME)}"
