"""YAML and `--set a.b=c` to a task's settings, and back: strict, and helpful about what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from mrm_stream.config.base import TrainConfig
from mrm_stream.errors import ConfigError
from mrm_stream.storage.access import storage_error
from mrm_stream.strict import DuplicateKeyError, parse_yaml

T = TypeVar("T")
C = TypeVar("C", bound=TrainConfig)

_NAME = re.compile(r"[\w.+-]{1,40}")
"""Text that a message may repeat: a name or a number. A report that is given as a configuration must not be."""
_QUOTED = re.compile(r"\s*(?:'(?!<[a-z ]+>')|\").*", re.DOTALL)
"""What follows the first quote in a parser's own words, unless it quotes its grammar, as in '<block end>'."""


@dataclass(frozen=True)
class _Origins:
    """Which settings stand in the file, and which were given as --set."""

    file: str
    overridden: tuple[str, ...] = ()

    def of(self, name: str) -> str:
        """Return where a setting was given."""
        if any(f"{name}.".startswith(f"{given}.") for given in self.overridden):
            return f"--set {name}"
        return self.file

    def of_check(self, name: str, section: str) -> str:
        """Return where a setting was given that contradicts others, perhaps, of its section."""
        where = self.of(name)
        others = any(given.startswith(section) for given in self.overridden)
        return f"{where} and --set" if others and not where.startswith("--set") else where


def load_config(kind: type[C], path: Path | None, overrides: Sequence[str] = ()) -> C:
    """Return the settings of a YAML file, over the defaults of its recipe, under the overrides.

    Args:
        kind: The task's settings: `PretrainConfig`, say.
        path: YAML file; None stands for an empty one.
        overrides: `section.key=value` each, the value written as in YAML; of two for one setting, the last counts. One
            for a whole section changes those of its settings that it names.

    Raises:
        ConfigError: The file cannot be read, a key is unknown (the nearest known one is named), a value is of the
            wrong type or out of range. Whether it stands in the file or in an override is said.
    """
    default = kind()
    given = _read_yaml(path) if path is not None else {}
    overridden = tuple(_apply_override(given, override, default) for override in overrides)
    origins = _Origins(str(path) if path is not None else "--set", overridden)
    return _replaced(default, _merged(_recipe(default, given, origins), given, default), origins, "")


def _recipe(default: TrainConfig, given: Mapping[str, Any], origins: _Origins) -> Mapping[str, Any]:
    """Return the defaults that the chosen recipe stands for; none where the task has no recipes."""
    if not default.recipes:
        return {}
    recipe = given.get("recipe", getattr(default, "recipe", None))
    if not isinstance(recipe, str) or recipe not in default.recipes:
        raise ConfigError(
            f"unknown recipe {_shown(recipe)}",
            where=origins.of("recipe"),
            remedy=f"Choose one of: {', '.join(default.recipes)}.",
        )
    return default.recipes[recipe]


def with_paths(config: C, *, shards: str | None, out: str | None) -> C:
    """Return the settings with these directories in place of data.shards and run.out, where they are given."""
    data = config.data if shards is None else dataclasses.replace(config.data, shards=shards)
    run = config.run if out is None else dataclasses.replace(config.run, out=out)
    return dataclasses.replace(config, data=data, run=run)


def with_absolute_paths(config: C) -> C:
    """Return the settings with all directories and files as absolute paths, where they are set; URLs stay."""
    return _with_each_path(config, lambda path: str(Path(path).absolute()) if path and "://" not in path else path)


def portable_settings(config: TrainConfig) -> str:
    """Return the settings as YAML without directories and files, which mean nothing on another machine."""
    return dump_config(_with_each_path(config, lambda _: ""))


def dump_config(config: TrainConfig) -> str:
    """Return the settings as YAML, every one of them, that `load_config` reads back to equal ones."""
    text: str = yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)
    return text


def _with_each_path(config: C, change: Callable[[str], str]) -> C:
    run = dataclasses.replace(config.run, out=change(config.run.out), init=change(config.run.init))
    mixture = {change(path): share for path, share in config.data.mixture.items()}
    data = dataclasses.replace(
        config.data,
        shards=change(config.data.shards),
        mixture=mixture if all(mixture) else {},
        cache=change(config.data.cache),
    )
    return dataclasses.replace(config, data=data, run=run)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", where=path) from None
    except OSError as error:
        raise storage_error(error, path) from error
    except DuplicateKeyError as error:
        raise ConfigError(str(error), where=path, remedy="Put the settings of both into one, or remove one.") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        # Not the parser's whole message: it repeats the line. Nor its traceback, which would.
        what = f"cannot be read as YAML: {_problem(error)}"
        raise ConfigError(what, where=path, remedy="Is it a configuration? See configs/ for some.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("must hold sections with settings (data:, model:, ...)", where=path)
    return content


def _problem(error: Exception) -> str:
    """Return what a parser found wrong, and at which line and column, without a word of the text."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {error.start}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"a character that YAML does not allow, at {error.position}"
    if not isinstance(error, yaml.MarkedYAMLError):
        return "a date that is none, or too many brackets"
    problem = _QUOTED.sub("", error.problem or error.context or "the parser gave up")
    mark = error.problem_mark or error.context_mark
    return problem if mark is None else f"{problem}, line {mark.line + 1}, column {mark.column + 1}"


def _shown(value: Any) -> str:
    """Return a value as a message may repeat it: what could be a sentence of a report is not."""
    return "a text" if isinstance(value, str) and not _NAME.fullmatch(value) else repr(value)


def _apply_override(given: dict[str, Any], override: str, default: Any) -> str:
    """Change one setting, or those of a section that are named; return the name of what was changed."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"{override!r} is not of the form section.key=value", where="--set")
    try:
        value = parse_yaml(text)
    except DuplicateKeyError as error:
        raise ConfigError(str(error), where=f"--set {name}", remedy="Remove one of the two.") from None
    except (ValueError, RecursionError, yaml.YAMLError):
        raise ConfigError("the value is not YAML", where=f"--set {override}") from None
    *sections, key = name.split(".")
    target: dict[str, Any] = given
    for section in sections:
        inner, default = target.get(section, {}), getattr(default, section, None)
        if not isinstance(inner, Mapping):
            raise ConfigError(f"{section!r} is a setting, not a section", where=f"--set {override}")
        target[section] = dict(inner)  # A copy: an alias may have put the same one elsewhere too.
        target = target[section]
    target.update(_merged({key: target[key]} if key in target else {}, {key: value}, default))
    return name


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], defaults: Any) -> dict[str, Any]:
    """Return the settings of both, section by section; a mapping that is itself a setting is not mixed of two."""
    result = dict(base)
    for key, value in over.items():
        default = getattr(defaults, str(key), None)
        both_sections = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value, default) if both_sections and is_dataclass(default) else value
    return result


def _replaced(default: T, given: Any, origins: _Origins, prefix: str) -> T:
    """Return `default` (a dataclass) with the given settings in place of its own, section by section."""
    if not isinstance(given, Mapping):
        section = prefix.rstrip(".")
        raise ConfigError(f"{section} is a section: it needs settings below it", where=origins.of(section))
    hints = typing.get_type_hints(type(default))
    types_by_name = {each.name: hints[each.name] for each in dataclasses.fields(default)}  # type: ignore[arg-type]
    values = {}
    for key, value in given.items():
        where = origins.of(f"{prefix}{key}")
        if key not in types_by_name:
            nearest = difflib.get_close_matches(str(key), types_by_name, n=1)
            hint = f"Did you mean {prefix}{nearest[0]}?" if nearest else f"Known here: {', '.join(types_by_name)}."
            unknown = f"{prefix}{key}" if _NAME.fullmatch(str(key)) else f"in {prefix[:-1] or 'the file'}: a sentence"
            raise ConfigError(f"unknown setting {unknown}", where=where, remedy=hint)
        current = getattr(default, key)
        if is_dataclass(current):
            values[key] = _replaced(current, value, origins, f"{prefix}{key}.")
        else:
            values[key] = _converted(types_by_name[key], value, where, f"{prefix}{key}")
    try:
        return dataclasses.replace(default, **values)  # type: ignore[type-var]
    except ConfigError as error:
        name = error.where or prefix[:-1]
        raise ConfigError(f"{name} {error.what}", where=origins.of_check(name, prefix), remedy=error.remedy) from None


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
    elif origin is Mapping:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: _converted(arguments[1], inner, where, f"{name}.{key}") for key, inner in value.items()}
        expected = "names with a number each"
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
    raise ConfigError(f"{name} must be {expected}, not {_shown(value)}", where=where)
