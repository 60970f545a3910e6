"""Files and folders behind a URL, as paths whose questions are asked again while storage fails with transient errors.

A question that storage did not answer is not answered with no: a shard taken for absent would be packed again, a set
taken for absent would end a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from upath.extensions import ProxyUPath

from mrm_stream.storage.retries import permitted


class RemotePath(ProxyUPath):
    """A file or folder behind a URL, used like a `pathlib.Path`.

    UPath itself answers False to `is_file` whatever went wrong. All methods here raise StorageError where storage fails
    for good or denies the answer.
    """

    __slots__ = ()

    @property
    def fs(self) -> Any:
        """The fsspec file system; shared by all paths of a process that were made with the same options."""
        system = self.__wrapped__.fs
        if self.protocol in ("s3", "s3a"):
            system.retries = 1  # Its own five would multiply with ours.
        return system

    def is_file(self) -> bool:
        """Return whether there is a file."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Return whether there is a folder: on an object store, something below it."""
        return self._kind() == "directory"

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether there is a file or a folder; nothing is known of links here."""
        return self._kind() is not None

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the folder's entries.

        Raises:
            FileNotFoundError: It is absent.
            NotADirectoryError: It is a file.
        """
        own = str(self.path).rstrip("/")
        entries = permitted(lambda: list(self.fs.ls(self.path, detail=True)), self)
        # A folder may be listed as one of its own entries, where someone has made it as an empty object.
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries if not _is_same(entry, own)]
        if not names and any(entry["type"] == "file" and not entry["name"].endswith("/") for entry in entries):
            raise NotADirectoryError(str(self))
        return (self / name for name in names)

    def rglob(
        self, pattern: str, *, case_sensitive: bool | None = None, recurse_symlinks: bool = False
    ) -> Iterator[RemotePath]:
        """Yield what is below the folder, at any depth, and matches; case decides, and there are no links."""
        return iter(permitted(lambda: list(ProxyUPath.rglob(self, pattern)), self))

    def _kind(self) -> str | None:
        """Return file, directory, or None where there is neither."""
        try:
            return str(permitted(lambda: self.fs.info(self.path), self)["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None


def _is_same(entry: dict[str, Any], path: str) -> bool:
    return str(entry["name"]).strip("/") == path.strip("/")
