"""What a data set's file in this folder offers: one `Source`, under the name `SOURCE`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mrm_stream.records import Record
from mrm_stream.storage.paths import AnyPath


@dataclass(frozen=True, slots=True)
class Source:
    """One data set's layout, and what is in it."""

    list_records: Callable[[AnyPath], Iterator[Record]]
    """Root directory -> its records, in the data set's own order; SourceError where the layout is another."""
    list_by_files: Callable[[AnyPath, AnyPath], Iterator[Record]] | None = None
    """(root, folder of the reference code's list files) -> the records on those lists, where there are such lists."""
    has_reports: bool = True
    """Else no record has one, and shards hold neither text nor tokens."""
    has_masks: bool = False
    """Else no record has one. With masks, every record has one, empty or not."""
    conditions: str = ""
    """What its users have agreed to, in a sentence or two; shown once when it is packed."""
