"""JSON and YAML in which nothing is given twice: of two values for one key, no reader could tell which was meant."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable
from typing import Any

import yaml

_NAME = re.compile(r"[\w.+/-]{1,80}")
"""A key that a message may repeat: what could be a sentence of a report is not."""


class DuplicateKeyError(ValueError):
    """A key is given twice in one mapping."""


def parse_json(text: str | bytes | bytearray) -> Any:
    """Return what a JSON text holds.

    Raises:
        DuplicateKeyError: A key is given twice in one object, at whatever depth.
        ValueError: It is not JSON, or not in an encoding of JSON's.
        RecursionError: It is too deep.

    Example:
        >>> parse_json('{"a": {"b": 1, "c": 2}}')
        {'a': {'b': 1, 'c': 2}}
        >>> parse_json('[{"a": 1, "a": 1}]')
        Traceback (most recent call last):
        ...
        mrm_stream.strict.DuplicateKeyError: the key 'a' is given twice
    """
    return json.loads(text, object_pairs_hook=_object)


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds, one document.

    What a mapping merges (`<<: *other`) may be given anew beside it, as is usual.

    Raises:
        DuplicateKeyError: A key is given twice in one mapping, at whatever depth; the message has both lines.
        yaml.YAMLError: It is not YAML, or holds what only objects of a program could be made of.
        ValueError: It holds a date that is none.
        RecursionError: It is too deep.

    Example:
        >>> parse_yaml("data: {threads: 1}")
        {'data': {'threads': 1}}
        >>> parse_yaml("a: 1\\nb: 2\\na: 3")
        Traceback (most recent call last):
        ...
        mrm_stream.strict.DuplicateKeyError: the key 'a' is given twice, in lines 1 and 3
    """
    return yaml.load(text, _StrictLoader)


class _StrictLoader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Called for each mapping before it is made, with its keys as they are written: merged ones are not there yet.
        # A mapping that an alias repeats is flattened again, when its merged keys are among its own already.
        if not hasattr(node, "is_checked"):
            self._refuse_duplicates(node)
            node.is_checked = True  # type: ignore[attr-defined]
        super().flatten_mapping(node)

    def _refuse_duplicates(self, node: yaml.MappingNode) -> None:
        first_lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            # `<<` and `=` have no value of their own.
            is_mark = key_node.tag in ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
            key = key_node.value if is_mark else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # Which is refused when the mapping is made.
            line = key_node.start_mark.line + 1
            if key in first_lines:
                first = first_lines[key]
                lines = f"twice in line {line}" if first == line else f"twice, in lines {first} and {line}"
                raise DuplicateKeyError(f"{_named(key)} is given {lines}")
            first_lines[key] = line


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateKeyError(f"{_named(key)} is given twice")
        found[key] = value
    return found


def _named(key: object) -> str:
    return f"the key {key!r}" if _NAME.fullmatch(str(key)) else "a key"
