"""The zstd dictionary that the reports of a set share, and the codec that uses it.

Reports are a few hundred bytes of recurring phrases: alone they hardly shrink, with a dictionary they do.
"""

from __future__ import annotations

from collections.abc import Iterable

import zstandard

from mrm_stream.records import REPORT_LIMIT

DICTIONARY_BYTES = 112_640
"""zstd's own default."""
TRAINING_BYTES = 8 << 20
"""Of reports that the dictionary is learnt from; more hardly help it."""
_LEVEL = 19


def learn_dictionary(reports: Iterable[str]) -> bytes:
    """Return a dictionary learnt from the first reports; the same reports give the same bytes.

    A set too small for zstd's training gets the first reports themselves: a dictionary may be any typical content.
    """
    texts: list[bytes | bytearray | memoryview[int]] = []
    held = 0
    for report in reports:
        if held >= TRAINING_BYTES:
            break
        texts.append(report.encode())
        held += len(texts[-1])
    # A dictionary over a tenth of what it was learnt from repeats it rather than summing it up.
    size = min(DICTIONARY_BYTES, held // 10)
    try:
        return zstandard.train_dictionary(size, texts).as_bytes()
    except (zstandard.ZstdError, ValueError):  # Too few or too uniform reports, which only zstd can tell.
        return b"\n".join(texts)[:DICTIONARY_BYTES]


class ReportCodec:
    """Compresses and decompresses reports with one dictionary; not safe to share between threads."""

    def __init__(self, dictionary: bytes) -> None:
        content = zstandard.ZstdCompressionDict(dictionary)
        content.precompute_compress(level=_LEVEL)
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, dict_data=content, write_checksum=True)
        self._decompressor = zstandard.ZstdDecompressor(dict_data=content)

    def compress(self, report: str) -> bytes:
        """Return `report` as one zstd frame of its UTF-8 bytes."""
        return self._compressor.compress(report.encode())

    def decompress(self, frame: bytes) -> str:
        """Return the report of a frame.

        Raises:
            ValueError: The frame is damaged, needs another dictionary, or holds more than `REPORT_LIMIT`.
        """
        try:
            if zstandard.frame_content_size(frame) > REPORT_LIMIT:
                raise ValueError("a compressed report is larger than a report can be")
            return self._decompressor.decompress(frame, max_output_size=REPORT_LIMIT).decode()
        except (zstandard.ZstdError, UnicodeDecodeError):
            # The decoding error would carry the report's bytes.
            raise ValueError("a compressed report is damaged, or needs another dictionary") from None
