"""What decides a job's bytes is in its fingerprint: an interrupted job is never finished with anything else."""

from __future__ import annotations

import ast
import sys
from dataclasses import fields, replace
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from mrm_stream.formats.options import PackOptions
from mrm_stream.packing import plan as planning
from mrm_stream.packing.plan import SetPlan, ShardPlan
from mrm_stream.records import Box, Record

BOX = Box("nodule", 1.0, 2.0, 3.0, 4.0)
RECORD = Record(
    key="a-1",
    image_path="images/a.jpg",
    report_path="reports/a.txt",
    report_text="no finding.",
    subject="p1",
    study="s1",
    view="PA",
    labels={"nodule": 1, "mass": 0},
    boxes=(BOX,),
    mask_path="masks/a.png",
    mask_runs="1 2",
    lists=("train_10",),
)
OTHER: dict[str, object] = {
    "key": "a-2",
    "image_path": "images/b.jpg",
    "report_path": "reports/b.txt",
    "report_text": "a nodule.",
    "subject": "p2",
    "study": "s2",
    "view": "AP",
    "split": "test",
    "labels": {"nodule": 1, "mass": -1},
    "boxes": (BOX._replace(left=1.5),),
    "annotated_size": (512, 512),
    "mask_path": "masks/b.png",
    "mask_runs": "1 3",
    "lists": ("train_1",),
}
"""One other value for each field of a record."""


def fingerprint(record: Record = RECORD, options: PackOptions | None = None, **changes: Any) -> str:
    plan = SetPlan(
        source="mimic",
        root=Path("source"),
        options=options or PackOptions(),
        by_lists=False,
        has_reports=True,
        has_masks=False,
        shards=(ShardPlan("train-00000", (record,)),),
    )
    tokenizer = changes.pop("tokenizer", "{}")
    return replace(plan, **changes).fingerprint(tokenizer)


def other_option(name: str) -> object:
    """Return a value that an option does not have by default."""
    default, hint = getattr(PackOptions(), name), get_type_hints(PackOptions)[name]
    if name == "sections":
        return ("findings",)
    choices = [choice for choice in get_args(hint) if isinstance(choice, str | int) and choice != default]
    if choices:
        return choices[0]
    return (default or 11) + 1 if isinstance(default, int | None) else None


@pytest.mark.parametrize("name", [field.name for field in fields(Record)])
def test_every_field_of_a_record_is_in_the_fingerprint(name: str) -> None:
    assert getattr(RECORD, name) != OTHER[name]
    assert fingerprint(replace(RECORD, **{name: OTHER[name]})) != fingerprint()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", Box._fields)
def test_every_field_of_a_box_is_in_the_fingerprint(name: str) -> None:
    values: dict[str, Any] = {name: "mass" if name == "finding" else 9.0}
    other = BOX._replace(**values)
    assert fingerprint(replace(RECORD, boxes=(other,))) != fingerprint()


@pytest.mark.parametrize("name", [field.name for field in fields(PackOptions)])
def test_every_option_is_in_the_fingerprint(name: str) -> None:
    other = replace(PackOptions(), **{name: other_option(name)})  # type: ignore[arg-type]
    assert getattr(other, name) != getattr(PackOptions(), name)
    assert fingerprint(options=other) != fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"source": "openi"},
        {"by_lists": True},
        {"has_reports": False},
        {"has_masks": True},
        {"tokenizer": None},
        {"tokenizer": '{"a": 1}'},
        {"shards": (ShardPlan("train-00000", (replace(RECORD, key="a-0"), RECORD)),)},
        {"shards": ()},
    ],
    ids=str,
)
def test_what_else_makes_other_bytes_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(**change) != fingerprint()


def test_the_order_of_records_is_in_the_fingerprint() -> None:
    second = replace(RECORD, key="a-2")
    there, back = (ShardPlan("train-00000", pair) for pair in ((RECORD, second), (second, RECORD)))
    assert fingerprint(shards=(there,)) != fingerprint(shards=(back,))


def test_another_release_of_a_library_does_not_finish_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint()
    versions = planning.libraries()
    for name in versions:
        monkeypatch.setattr(planning, "libraries", lambda name=name: {**versions, name: "0.0"})
        assert fingerprint() != before


def test_every_library_that_packing_imports_is_one_whose_release_counts() -> None:
    imported = {"gdcm"}  # by its name alone, in a process of its own
    package = Path(planning.__file__).parents[1]
    for path in (path for part in ("packing", "formats", "text") for path in (package / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported.add(node.module.partition(".")[0])
    # Dask hands tasks out, and makes no bytes.
    imported -= {*sys.stdlib_module_names, "mrm_stream", "distributed"}
    distributions, counted = packages_distributions(), planning.libraries().keys()
    assert {module for module in imported if counted.isdisjoint(distributions[module])} == set()
    assert len(imported) == len(counted)


def test_where_a_set_lies_does_not_change_its_bytes() -> None:
    assert fingerprint(root=Path("elsewhere")) == fingerprint()
