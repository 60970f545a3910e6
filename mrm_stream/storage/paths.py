"""Paths as people give them: of this machine, or any URL that fsspec understands (s3://, gs://, memory://, ...).

Both are used like a `pathlib.Path`; what differs (bounded reads, whole writes) is in `files.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mrm_stream.errors import StorageError

if TYPE_CHECKING:
    from mrm_stream.storage.remote import RemotePath

    AnyPath: TypeAlias = Path | RemotePath
else:
    AnyPath = Path  # annotations alone use it: fsspec is not imported for data that lie on a local disk

# Of storage that can be set so: a connection that does not answer is given up, then tried again.
_CONNECT_S, _READ_S = 10, 30
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*)?:/")
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"}
"""Schemes of storage that has no folders, and where a file appears only when all of it has come."""
_SCHEMES = {*OBJECT_STORES, "file", "local", "http", "https", "hf", "ftp", "sftp", "hdfs", "webhdfs", "webdav", "smb"}
"""What before a colon is taken for a scheme, whatever follows: other names of folders may hold colons."""


def local_fault(text: str) -> str | None:
    """Return why a path is none of this machine's as it is written; None where it can be one.

    Taken as they stand, folders named `s3:` or `~` would be made here.

    Example:
        >>> local_fault("runs/first"), local_fault("s3:bucket/runs"), local_fault("~/runs")
        (None, 'is a URL, where a local path is needed', 'begins with ~, which nothing expands here')
    """
    if _is_meant_as_url(text):
        return "is a URL, where a local path is needed"
    return f"begins with {text[0]}, which nothing expands here" if text.startswith(("~", "$")) else None


def _is_meant_as_url(text: str) -> bool:
    scheme, separator, _ = text.partition(":")
    return _SCHEME.match(text) is not None or (bool(separator) and scheme.lower() in _SCHEMES)


def _url_remedy(text: str) -> str:
    """Return what to write in place of a URL whose slashes are missing."""
    scheme, _, rest = text.partition(":")
    scheme, rest = scheme.lower(), rest.lstrip("/\\")
    if scheme not in _SCHEMES - {"file", "local"} or not rest:
        return "Write a URL as s3://bucket/name, and a path in full."
    return f"Did you mean {scheme}://{rest}? A folder of this name is ./{text}."


def parse_path(text: str) -> AnyPath:
    """Return a directory or file, given as people type it: a path, or a URL with a scheme.

    Raises:
        StorageError: No fsspec implementation knows the scheme, or the package that serves it is not installed; or it
            is neither a path nor a URL.

    Example:
        >>> parse_path("shards/mimic"), parse_path("memory://bucket/mimic").name
        (PosixPath('shards/mimic'), 'mimic')
    """
    scheme, separator, rest = text.partition("://")
    if not (scheme and separator):
        if _is_meant_as_url(text):
            raise StorageError("is neither a path nor a URL", where=text, remedy=_url_remedy(text))
        fault = local_fault(text)
        if fault is not None:
            raise StorageError(fault, where=text, remedy="Write the path in full.")
        return Path(text)
    if scheme in ("file", "local"):
        return Path(rest)
    from mrm_stream.storage.remote import RemotePath

    # A cached listing would not show what another process has written since.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("s3", "s3a"):
        # Retries are ours: botocore's own would multiply with them. Spelt as botocore itself rewrites them, in place:
        # options that changed would no longer find the file system that was made with them.
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_S,
            "read_timeout": _READ_S,
            "retries": {"total_max_attempts": 1, "mode": "legacy"},
        }
    try:
        path = RemotePath(text, **options)
        _ = path.fs
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"cannot be reached: {error}", where=text, remedy="For s3://: pip install 'mrm-stream[s3]'."
        ) from error
    return path


def is_remote(path: AnyPath) -> bool:
    """Return whether a path is reached by URL."""
    return not isinstance(path, Path)
