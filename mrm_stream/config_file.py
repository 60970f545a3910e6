"""YAML and `--set a.b=c` to a `Config`, and back: strict, and helpful about what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from mrm_stream.config import RECIPES, Config
from mrm_stream.errors import ConfigError

T = TypeVar("T")


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Return the settings of a YAML file, over the defaults of its recipe, under the overrides.

    Args:
        path: YAML file; None stands for an empty one.
        overrides: `section.key=value` each, the value written as in YAML.

    Raises:
        ConfigError: The file cannot be read, a key is unknown (the nearest known one is named), a value is of the
            wrong type or out of range.
    """
    given = _read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply_override(given, override)
    where = str(path) if path is not None else "--set"
    recipe = given.get("recipe", "reference")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise ConfigError(f"unknown recipe {recipe!r}", where=where, remedy=f"Choose one of: {', '.join(RECIPES)}.")
    return parse_config(_merged(RECIPES[recipe], given), where)


def with_places(config: Config, *, shards: str | None, out: str | None) -> Config:
    """Return the settings with these directories in place of data.shards and run.out, where they are given."""
    data = config.data if shards is None else dataclasses.replace(config.data, shards=shards)
    run = config.run if out is None else dataclasses.replace(config.run, out=out)
    return dataclasses.replace(config, data=data, run=run)


def parse_config(given: Mapping[str, Any], where: str) -> Config:
    """Return a `Config` of nested mappings; `where` is named in errors. See `load_config` for what is refused."""
    return _replaced(Config(), given, where, "")


def dump_config(config: Config) -> str:
    """Return the settings as YAML, every one of them, that `load_config` reads back to an equal `Config`."""
    text: str = yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", where=path) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read as YAML: {error}", where=path) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("must hold sections with settings (data:, model:, ...)", where=path)
    return content


def _apply_override(given: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"{override!r} is not of the form section.key=value", where="--set")
    *sections, key = name.split(".")
    target = given
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{section!r} is a setting, not a section", where=f"--set {override}")
    try:
        target[key] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError("the value is not YAML", where=f"--set {override}") from None


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both_sections = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both_sections else value
    return result


def _replaced(default: T, given: Any, where: str, prefix: str) -> T:
    """Return `default` (a dataclass) with the given settings in place of its own, section by section."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')} is a section: it needs settings below it", where=where)
    types_by_name = typing.get_type_hints(type(default))
    values = {}
    for key, value in given.items():
        if key not in types_by_name:
            nearest = difflib.get_close_matches(str(key), types_by_name, n=1)
            hint = f"Did you mean {prefix}{nearest[0]}?" if nearest else f"Known here: {', '.join(types_by_name)}."
            raise ConfigError(f"unknown setting {prefix}{key}", where=where, remedy=hint)
        current = getattr(default, key)
        if dataclasses.is_dataclass(current):
            values[key] = _replaced(current, value, where, f"{prefix}{key}.")
        else:
            values[key] = _converted(types_by_name[key], value, where, f"{prefix}{key}")
    try:
        return dataclasses.replace(default, **values)  # type: ignore[type-var]
    except ConfigError as error:
        raise ConfigError(f"{error.where or prefix[:-1]} {error.what}", where=where, remedy=error.remedy) from None


def _converted(kind: Any, value: Any, where: str, name: str) -> Any:
    """Return `value` as `kind`, one of the few types that settings have."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        expected = " or ".join(repr(choice) for choice in arguments)
    elif origin is types.UnionType:
        if value is None:
            return None
        return _converted(arguments[0], value, where, name)
    elif origin is tuple:
        if isinstance(value, list | tuple) and len(value) == len(arguments):
            pairs = zip(arguments, value, strict=True)
            return tuple(_converted(inner, item, where, name) for inner, item in pairs)
        expected = f"a list of {len(arguments)} numbers"
    elif kind is float:
        # YAML 1.1 reads 1e-3, without a dot, as text.
        with contextlib.suppress(TypeError, ValueError):
            number = math.nan if isinstance(value, bool) else float(value)
            if math.isfinite(number):
                return number
        expected = "a number"
    else:
        if type(value) is kind:
            return value
        expected = {int: "a whole number", bool: "true or false", str: "text"}[kind]
    raise ConfigError(f"{name} must be {expected}, not {value!r}", where=where)
