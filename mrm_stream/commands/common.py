"""What the commands share: kinds of arguments, and how one begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from mrm_stream.packing.workers import Workers
    from mrm_stream.storage.paths import AnyPath

F = TypeVar("F", bound=Callable[..., Any])


class LocalPath(click.Path):
    """A file or directory of this machine; what only looks like one would become a folder named `s3:`, or `~`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        from mrm_stream.storage.paths import local_fault

        fault = local_fault(value) if isinstance(value, str) else None
        if fault is not None:
            self.fail(f"{value!r} {fault}.", param, ctx)
        return super().convert(value, param, ctx)


DIRECTORY = LocalPath(path_type=Path, file_okay=False)
FILE = LocalPath(path_type=Path, dir_okay=False)


class PathOrUrl(click.ParamType["AnyPath"]):
    """A directory, here (a path) or elsewhere (a URL)."""

    name = "PATH|URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> AnyPath:
        """Return the path."""
        from mrm_stream.errors import StorageError
        from mrm_stream.storage.paths import parse_path

        try:
            return parse_path(value) if isinstance(value, str) else value
        except StorageError as error:
            self.fail(str(error), param, ctx)


PATH_OR_URL = PathOrUrl()


def check_output(path: Path) -> None:
    """Raise what keeps a result from being written at a path, before anything is computed; make nothing.

    Raises:
        ConfigError: It would lie in a packed set, or in a checkpoint of a run.
        StorageError: Its folder cannot be made, or written to.
    """
    from mrm_stream.errors import ConfigError
    from mrm_stream.formats.folder import set_around
    from mrm_stream.storage.access import is_file
    from mrm_stream.storage.publish import check_folder

    found = set_around(path)
    if found is None and path.resolve().parent.name.startswith("step-") and is_file(path.parent / "state.json"):
        found = path.parent
    if found is not None:
        raise ConfigError("is, or lies in, a packed set or a checkpoint", where=path, remedy="Choose another path.")
    check_folder(path.parent)


def with_workers(command: F) -> F:
    """Add --workers and --scheduler; the command gets what they mean, `workers`."""

    @wraps(command)
    def run(*, processes: int | None, scheduler: str | None, **given: Any) -> Any:
        return command(workers=chosen_workers(processes, scheduler), **given)

    scheduler = click.option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster to work on, as tcp://node:8786.")
    processes = click.option(
        "--workers", "processes", type=click.IntRange(min=1), default=None, help="Processes.  [default: one a core]"
    )
    return processes(scheduler(cast(F, run)))


def with_links(command: F) -> F:
    """Add --follow-links; the command gets `root` and `lists`, options of its own, as paths that do as it says."""

    @wraps(command)
    def run(*, root: AnyPath, lists: AnyPath | None, follow_links: bool, **given: Any) -> Any:
        root, lists = source_paths(root, lists, follow_links)
        return command(root=root, lists=lists, **given)

    what = "Follow links below --root and --lists that lead out of them."
    return click.option("--follow-links", is_flag=True, help=what)(cast(F, run))


def source_paths(root: AnyPath, lists: AnyPath | None, follow_links: bool) -> tuple[AnyPath, AnyPath | None]:
    """Return the paths that a source is read from; if so asked, links that lead out of them are followed.

    Raises:
        ConfigError: There are no links to follow.
    """
    from mrm_stream.errors import ConfigError
    from mrm_stream.storage.links import followed
    from mrm_stream.storage.paths import is_remote

    if not follow_links:
        return root, lists
    if is_remote(root) and (lists is None or is_remote(lists)):
        raise ConfigError("would change nothing: a URL has no links", where="--follow-links", remedy="Omit it.")
    return followed(root), None if lists is None else followed(lists)


def with_permission(name: str, called: str) -> Callable[[F], F]:
    """Add --i-may-store-this-there: without it the command refuses to write to a remote path.

    Args:
        name: Parameter of the command that holds the path it writes to.
        called: What the help calls it.
    """

    def add(command: F) -> F:
        @wraps(command)
        def run(*, may_store: bool, **given: Any) -> Any:
            check_destination(given[name], may_store)
            return command(**given)

        what = f"Needed where {called} is not a local path."
        return click.option("--i-may-store-this-there", "may_store", is_flag=True, help=what)(cast(F, run))

    return add


def check_destination(out: AnyPath, may_store: bool) -> None:
    """Refuse to send patients' data away unless that was said in so many words.

    Raises:
        StorageError: `out` is remote, and it was not.
    """
    from mrm_stream.errors import StorageError
    from mrm_stream.storage.paths import is_remote

    if is_remote(out) and not may_store:
        raise StorageError(
            "radiographs and reports would leave this machine",
            where=out,
            remedy="If the data set's conditions allow it, and only those who may see it can read that path, "
            "add --i-may-store-this-there.",
        )


def check_one_tokenizer(tokenizer: Path | None, vocabulary: int | None) -> None:
    """Raise ConfigError if both a tokenizer and the size of one to train were given."""
    from mrm_stream.errors import ConfigError

    if tokenizer is not None and vocabulary is not None:
        raise ConfigError(
            "are two tokenizers", where="--tokenizer, --vocabulary", remedy="Give one, or train one: not both."
        )


def chosen_workers(processes: int | None, scheduler: str | None) -> Workers:
    """Return the workers that the two options mean; a cluster decides itself how many it has."""
    from mrm_stream.errors import ConfigError
    from mrm_stream.packing.workers import Workers

    if scheduler is not None and processes is not None:
        raise ConfigError(
            "are two ways to say who works", where="--workers, --scheduler", remedy="A cluster has workers of its own."
        )
    return Workers(processes or cores(), scheduler)


@contextmanager
def resumable() -> Iterator[None]:
    """Tell who stops a job by Ctrl-C that it can go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.ClickException("stopped; the same command goes on where it stopped") from None


def start() -> None:
    """Begin a command that does something."""
    from mrm_stream.distributed.runtime import set_up_logging

    set_up_logging()


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "fault"), counted(1200, "fault")
        ('1 fault', '1,200 faults')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))
