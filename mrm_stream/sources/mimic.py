"""Lists MIMIC-CXR-JPG, 2.0.0 or 2.1.0 (both keep "2.0.0" in the names of their tables).

    root/mimic-cxr-2.0.0-{metadata,split,chexpert}.csv.gz   (or unpacked, .csv)
    root/mimic-cxr-2.1.0-test-set-labeled.csv               (2.1.0: radiologists' labels, used where it is there)
    root/files/p10/p10000032/s50414267/<dicom_id>.jpg
    root/mimic-cxr-reports.zip, or root/files/p10/p10000032/s50414267.txt

MIMIC-CXR-JPG comes without reports: they are published with MIMIC-CXR, and must be put under the same root. Where both
forms are there, the zip is read, and each report compared with its unpacked copy. The labels of the NegBio labeler are
not read.
"""

from __future__ import annotations

from collections.abc import Iterator

from mrm_stream.records import Record
from mrm_stream.sources.mimic_tables import (
    MIMIC_CONDITIONS,
    TABLE,
    make_records,
    read_ids,
    read_labels,
    read_splits,
)
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import find_table, read_rows
from mrm_stream.storage.paths import AnyPath


def list_mimic(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each row of the metadata table, in its order; every view is listed.

    No image is looked for: 377,110 look-ups can take minutes on network storage.

    Raises:
        SourceError: A table is missing, damaged or of another form; an image has no split or is listed twice; no study
            has labels; there are no reports under the root.
    """
    splits = read_splits(find_table(root, TABLE.format("split")))
    labels = read_labels(root, find_table(root, TABLE.format("chexpert")), splits)
    path = find_table(root, TABLE.format("metadata"))
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    rows = ((line, (*read_ids(path, line, *ids), view)) for line, (*ids, view) in read_rows(path, columns))
    yield from make_records(root, path, rows, ".jpg", splits, labels)


SOURCE = Source(list_mimic, conditions=MIMIC_CONDITIONS)
