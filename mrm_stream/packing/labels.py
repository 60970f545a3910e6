"""What becomes of the uncertain labels (-1): the policy with which a set is packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from mrm_stream.formats.options import Policy

POLICIES: tuple[Policy, ...] = get_args(Policy)

_MIXED = {"Atelectasis": 1, "Edema": 1, "Cardiomegaly": 0, "Consolidation": 0, "Pleural Effusion": 0}


def apply_policy(labels: Mapping[str, int], policy: Policy) -> dict[str, int]:
    """Return the labels with the uncertain ones treated by the policy; the others, and the order, stay.

    Args:
        labels: Finding to 1 (present), 0 (absent) or -1 (uncertain).
        policy: `mixed` counts an uncertain Atelectasis or Edema as present, and an uncertain Cardiomegaly,
            Consolidation or Pleural Effusion as absent. These are the five findings of the CheXpert competition; for
            others practice differs, so that their uncertain labels are dropped.

    Source:
        Irvin et al., CheXpert, AAAI 2019, compare the policies (U-Ignore, U-Zeros, U-Ones), find that findings differ
        in which serves them best, and take U-Ones for Atelectasis and Edema. `mixed` as LibAUC's CheXpert data set has
        it (Yuan et al., ICCV 2021). Pham et al., Neurocomputing 2021, smooth U-Ones and U-Zeros instead, which takes
        labels between 0 and 1: not offered.

    Example:
        >>> apply_policy({"Edema": -1, "Consolidation": -1, "Fracture": -1, "Pneumonia": 1}, "mixed")
        {'Edema': 1, 'Consolidation': 0, 'Pneumonia': 1}
    """
    assert policy in POLICIES
    if policy == "keep":
        return dict(labels)
    certain = {finding: _made_certain(finding, label, policy) for finding, label in labels.items()}
    return {finding: label for finding, label in certain.items() if label is not None}


def _made_certain(finding: str, label: int, policy: Policy) -> int | None:
    """Return a label other than -1, or None where it is to be dropped."""
    if label != -1:
        return label
    if policy == "mixed":
        return _MIXED.get(finding)
    return {"zero": 0, "one": 1}.get(policy)
