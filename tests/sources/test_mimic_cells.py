"""A cell of MIMIC-CXR's tables that is wrong is not repeated: it may be a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.sources.mimic_tables import FINDINGS, read_labels, read_splits

SENTENCE = "the lungs are clear"


def test_a_split_is_not_repeated(tmp_path: Path) -> None:
    table = tmp_path / "split.csv"
    table.write_text(f"dicom_id,study_id,split\na,1,{SENTENCE}\n")
    with pytest.raises(SourceError, match="unknown split") as caught:
        read_splits(table)
    assert "lungs" not in str(caught.value)


def test_a_label_is_not_repeated(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    cells = [SENTENCE, *[""] * (len(FINDINGS) - 1)]
    table.write_text(f"study_id,{','.join(FINDINGS)}\n1,{','.join(cells)}\n")
    with pytest.raises(SourceError, match=r"label .* of Atelectasis") as caught:
        read_labels(tmp_path, table, None)
    assert "lungs" not in str(caught.value)
