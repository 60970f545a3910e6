from __future__ import annotations

import pytest

from mrm_stream.formats.options import Policy
from mrm_stream.packing.labels import POLICIES, apply_policy
from mrm_stream.sources.mimic_tables import FINDINGS


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("keep", {"Fracture": 1, "Edema": -1, "Pneumonia": -1, "Pneumothorax": 0, "Consolidation": -1}),
        ("ignore", {"Fracture": 1, "Pneumothorax": 0}),
        ("zero", {"Fracture": 1, "Edema": 0, "Pneumonia": 0, "Pneumothorax": 0, "Consolidation": 0}),
        ("one", {"Fracture": 1, "Edema": 1, "Pneumonia": 1, "Pneumothorax": 0, "Consolidation": 1}),
        ("mixed", {"Fracture": 1, "Edema": 1, "Pneumothorax": 0, "Consolidation": 0}),
    ],
)
def test_a_policy_changes_the_uncertain_labels_only(policy: Policy, expected: dict[str, int]) -> None:
    labels = {"Fracture": 1, "Edema": -1, "Pneumonia": -1, "Pneumothorax": 0, "Consolidation": -1}
    before = dict(labels)
    treated = apply_policy(labels, policy)
    assert list(treated.items()) == list(expected.items())
    assert labels == before
    assert treated is not labels


def test_mixed_settles_the_five_findings_of_the_competition_and_leaves_out_the_others() -> None:
    assert apply_policy(dict.fromkeys(FINDINGS, -1), "mixed") == {
        "Atelectasis": 1,
        "Cardiomegaly": 0,
        "Consolidation": 0,
        "Edema": 1,
        "Pleural Effusion": 0,
    }


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("label", [0, 1])
def test_certain_labels_stay(policy: Policy, label: int) -> None:
    labels = dict.fromkeys(FINDINGS, label)
    assert apply_policy(labels, policy) == labels
    assert apply_policy({}, policy) == {}
