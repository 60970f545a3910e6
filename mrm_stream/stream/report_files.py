"""The two files that the reports of a set share: the tokenizer of their token ids, the dictionary of their texts."""

from __future__ import annotations

import threading
from pathlib import Path

from mrm_stream.errors import ShardError
from mrm_stream.formats.dictionary import ReportCodec
from mrm_stream.formats.folder import DICTIONARY, TOKENIZER
from mrm_stream.formats.manifest import DICTIONARY_LIMIT, ReportsEntry
from mrm_stream.storage.access import is_file, refuse_barred
from mrm_stream.storage.files import read_whole
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import sha256_of
from mrm_stream.stream.cache import ShardCache
from mrm_stream.stream.opened_shards import REMEDY


class ReportFiles:
    """Both files, each compared with the manifest's SHA-256 when it is used; safe to share between threads.

    Args:
        directory: Of the set.
        entry: What the manifest says of them.
        cache: Brings the tokenizer to this machine where the set lies elsewhere.
    """

    def __init__(self, directory: AnyPath, entry: ReportsEntry, cache: ShardCache | None) -> None:
        self._directory = directory
        self._entry = entry
        self._cache = cache
        self._codec: ReportCodec | None = None
        self._lock = threading.Lock()

    def tokenizer(self) -> Path:
        """Return the path of the tokenizer on this machine.

        Raises:
            ShardError: The file is absent, or another one has taken its place.
        """
        path = self._directory / TOKENIZER
        if not isinstance(path, Path):
            assert self._cache is not None, "a set that lies elsewhere is opened with one"
            return self._cache.bring_file(TOKENIZER, self._entry.tokenizer_sha256)
        if not is_file(path) or sha256_of(path) != self._entry.tokenizer_sha256:
            raise ShardError(
                "is not the tokenizer that these shards were packed with: their token ids would mean other words",
                where=path,
                remedy="Copy the file again from where the set came, or pack the set again with --tokenizer.",
            )
        return path

    def text(self, compressed: bytes) -> str:
        """Return the report that a sample holds as a zstd frame.

        Raises:
            ValueError: The frame is damaged.
            ShardError: The dictionary is absent or damaged.
        """
        with self._lock:  # zstd's contexts serve one thread at a time
            if self._codec is None:
                self._codec = self._load_codec()
            return self._codec.decompress(compressed)

    def _load_codec(self) -> ReportCodec:
        path = self._directory / DICTIONARY
        try:
            if sha256_of(path) != self._entry.dictionary_sha256:
                raise ShardError("the dictionary is not the manifest's", where=path, remedy=REMEDY)
            return ReportCodec(read_whole(path, DICTIONARY_LIMIT))
        except OSError as error:
            refuse_barred(error, path)
            raise ShardError(f"cannot be read: {error.strerror}", where=path, remedy=REMEDY) from error
