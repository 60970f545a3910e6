"""Lists what the reference code trains on: `training.csv`, with the reports in it, beside or above the images.

root/training.csv (or compressed, .csv.gz): image_path (relative to the root), report_content. The file knows neither
subjects nor splits, so every record is of the training split.
"""

from __future__ import annotations

from collections.abc import Iterator

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import claim, find_table, keys_from_paths, read_rows
from mrm_stream.storage.paths import AnyPath


def list_training_csv(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each row, in the file's order; its key comes from the name of the image.

    Raises:
        SourceError: The table is missing or damaged, lacks a column, or lists an image twice or none.
    """
    path = find_table(root, "training.csv")
    lines: dict[str, int] = {}
    reports = []
    for line, (image_path, report) in read_rows(path, ("image_path", "report_content")):
        if not image_path:
            raise SourceError("image_path is blank", where=f"{path}, line {line}", remedy="Remove or correct the row.")
        claim(lines, image_path, line, path)
        reports.append(report)
    for key, image_path, report in zip(keys_from_paths(list(lines)), lines, reports, strict=True):
        yield Record(key=key, image_path=image_path, report_text=report)


SOURCE = Source(list_training_csv)
