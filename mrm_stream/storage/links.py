"""Symbolic links below a source's root: one that leads out of it is followed only where the user said so."""

from __future__ import annotations

import os
from pathlib import Path, PosixPath, PurePosixPath
from typing import TYPE_CHECKING

from mrm_stream.errors import RecordError, SourceError

if TYPE_CHECKING:
    from mrm_stream.storage.paths import AnyPath

_LEADS_OUT = "the path leads out of the root"


class FollowedPath(PosixPath):
    """A root below which links may lead anywhere.

    The permission is the type: what is joined to such a path has it too, it goes with a task to whatever process or
    machine does it, and is lost, rather than gained, where somebody makes a plain `Path` of it. It compares, hashes and
    prints as the plain path does, so nothing that is made of a source's bytes depends on it.
    """

    __slots__ = ()


def followed(path: AnyPath) -> AnyPath:
    """Return a root below which links are followed wherever they lead; a URL has no links."""
    return FollowedPath(path) if isinstance(path, Path) else path


def resolve_below(root: Path, path: str) -> Path:
    """Return the file that a table's path names, every link followed.

    The root itself may be a link, and links below it may lead to elsewhere below it. A path is never one that leads out
    by its spelling, whatever the root permits: a table is not the user.

    Raises:
        RecordError: It leads out of the root; where a link does so, `where` names the link.
        OSError, ValueError: There is no such file, or no such name; links lead round in a circle.
    """
    where = str(root / path)
    if ".." in PurePosixPath(path).parts:
        raise RecordError(_LEADS_OUT, where=where)
    resolved = Path(os.path.realpath(root / path, strict=True))
    top = os.path.realpath(root)
    if resolved.is_relative_to(top):
        return resolved
    if PurePosixPath(path).is_absolute():
        raise RecordError(_LEADS_OUT, where=where)
    if isinstance(root, FollowedPath):
        return resolved
    link = _first_link_out(root, path, top)
    raise RecordError(
        "a link leads out of the root: see --follow-links",
        where=f"{link}, a link to {link.readlink()}",
        remedy="If such links are meant, add --follow-links; or give the directory that they lead to as root.",
    )


def checked(root: AnyPath, path: str) -> AnyPath:
    """Return a file of the data set's own layout: a table, an archive, a folder to walk.

    Raises:
        SourceError: A link leads out of the root, and it is not one of which links are followed.
    """
    if isinstance(root, Path):
        try:
            resolve_below(root, path)
        except RecordError as error:
            raise SourceError(error.what, where=error.where, remedy=error.remedy) from None
        except (OSError, ValueError):
            pass  # whoever reads it tells what is wrong with it
    return root / path


def _first_link_out(root: Path, path: str, top: str) -> Path:
    link = root
    for part in PurePosixPath(path).parts:
        link = link / part
        if not Path(os.path.realpath(link)).is_relative_to(top):
            break
    return link
