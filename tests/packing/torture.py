"""Campaigns that try to break packing, and the faults to plant in it that they must find.

    python -m tests.packing.torture kills 200             jobs killed at random instants, resumed by other workers
    python -m tests.packing.torture damage 1000           a finished set damaged at random, then verified
    python -m tests.packing.torture kills 40 in-place     with a planted fault: must end with problems

A campaign returns what it did and every promise that it saw broken. Its tests run it short in `make test` and long
under the mark `campaign`; they also plant each of `FAULTS` and expect problems, as a campaign that cannot fail proves
nothing.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrm_stream.errors import MrmStreamError
from mrm_stream.formats.folder import FOLDER, MANIFEST
from mrm_stream.formats.manifest import Manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import read_index
from mrm_stream.packing import verify as verify_module
from mrm_stream.packing import worker
from mrm_stream.packing.pack import Supervision, pack
from mrm_stream.packing.workers import Workers
from mrm_stream.storage import publish

OPTIONS = PackOptions(samples_per_shard=5, short_side=48, vocabulary=200)
REPOSITORY = Path(__file__).parents[2]
_PLANTED = "MRM_STREAM_PLANTED_FAULT"
_PATIENCE_S = 60.0


def pack_set(root: Path, out: Path, *, workers: int = 1, options: PackOptions = OPTIONS) -> Manifest:
    """Pack a set of layout training-csv, however many of its records are bad."""
    return pack(
        "training-csv", root, out, options=options, supervision=Supervision(max_bad=1.0), workers=Workers(workers)
    )


def start_job(root: Path, out: Path, workers: int, fault: str | None = None) -> subprocess.Popen[str]:
    """Start `pack_set` in a session of its own, so that it can be killed; it ends with 1 and says why if it fails."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.packing.torture", "job", str(root), str(out), str(workers)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=REPOSITORY,
        env={**os.environ, _PLANTED: fault or ""},
    )


def digests(directory: Path) -> dict[str, str]:
    """Every file below the directory, hidden ones too, by its SHA-256."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


# ---- faults to plant ----


@contextmanager
def publishing_in_place(path: Path, staging: Path) -> Iterator[publish.HashingFile]:
    """Stand in for publishing: what is cut short stands there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, publish.FILE_MODE)
    try:
        yield publish.HashingFile(descriptor, path)
    finally:
        os.close(descriptor)


def _plant_in_place() -> None:
    publish._publishing_locally = publishing_in_place


def _plant_trusting() -> None:
    setattr(worker, "verify_shard", lambda *_: None)  # noqa: B010 - mypy knows it as another module's
    setattr(verify_module, "verify_shard", lambda folder, entry, members: read_index(folder / entry.file, members))  # noqa: B010


def _plant_order() -> None:
    """Let what a process has packed before show in what it packs."""
    metadata, count = worker._metadata, iter(range(1 << 30))

    def counting(*arguments: Any) -> dict[str, Any]:
        return metadata(*arguments) | {"study": str(next(count))}

    setattr(worker, "_metadata", counting)  # noqa: B010 - of another signature


FAULTS: dict[str, Callable[[], None]] = {
    "in-place": _plant_in_place,
    "trusting": _plant_trusting,
    "order": _plant_order,
}
"""Files written under their final names; files kept and vouched for unread; a worker's order within its shards."""

# Here, not in `main`: the workers of a job import this module, and nothing else of it.
if os.environ.get(_PLANTED):
    FAULTS[os.environ[_PLANTED]]()


# ---- kills ----


@dataclass
class KillReport:
    """What a campaign of kills did."""

    kills: Counter[str] = field(default_factory=Counter)
    """By victim."""
    moments: Counter[str] = field(default_factory=Counter)
    """By what the job had done."""
    damaged: int = 0
    """Files changed between two runs, as a failing disk might."""
    finished: int = 0
    """Sets that were finished and found to be the same as an undisturbed one."""
    semaphores: int = 0
    """Left in /dev/shm by kills of the whole group, with which Python's own resource tracker dies."""
    problems: list[str] = field(default_factory=list)


def kill_campaign(
    root: Path, reference: Path, scratch: Path, *, kills: int, seed: int = 0, fault: str | None = None
) -> KillReport:
    """Kill packing jobs at random instants and resume them, until so many kills or the first problem.

    Args:
        root: The source.
        reference: What an undisturbed job made of it.
        scratch: Folder to work in.
        kills: How many.
        seed: Of the instants.
        fault: One of `FAULTS`, planted in the jobs.
    """
    draw, expected, report = random.Random(seed), digests(reference), KillReport()
    number, changed = 0, dict[str, str]()
    while report.kills.total() < kills and not report.problems:
        out = scratch / f"set-{number}"
        workers = draw.randint(1, 3)
        victim = draw.choice(["parent", "group", *["worker"] * 2 * (workers > 1)])
        job = start_job(root, out, workers, fault)
        _wait_for_an_instant(job, out, draw)
        semaphores = _semaphores(job.pid)
        was_killed = _kill(job, victim, draw)
        try:
            _, said = job.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            report.problems.append(f"hung after a kill of its {victim}")
            break
        if was_killed and job.returncode:
            report.kills[victim] += 1
            report.moments[_progress(out)] += 1
        fine = {0, 1, -signal.SIGKILL}
        # Killed between the last two steps of tidying up, the next job finds a finished set, not its own job.
        was_finished = "already holds shards" in said and (out / MANIFEST).exists()
        lost_worker = victim == "worker" and "ClusterError: a worker" in said
        if job.returncode not in fine or (job.returncode == 1 and not lost_worker and not was_finished):
            report.problems.append(f"ended with {job.returncode}: {said[-300:]}")
        report.problems += _left_alive(job.pid)
        left = _left_in_memory(semaphores)
        for path in left:
            path.unlink(missing_ok=True)
        if victim == "group":
            report.semaphores += len(left)
        elif left:
            report.problems.append(f"a kill of a {victim} left {len(left)} semaphores in /dev/shm")
        report.problems += _half_published(out, expected, changed)
        # A signal may also come when all is done and the process is on its way out.
        is_finished = (out / MANIFEST).exists() and not (out / FOLDER).exists()
        if job.returncode == 0 and not is_finished:
            report.problems.append("ended well, without a set")
        if is_finished and not report.problems:
            if digests(out) != expected:
                report.problems.append(f"the finished set differs: {_difference(digests(out), expected)}")
            report.finished += 1
            shutil.rmtree(out)
            number, changed = number + 1, {}
        elif draw.random() < 0.4:
            report.damaged += _damage_leftovers(out, draw, changed)
    return report


def _wait_for_an_instant(job: subprocess.Popen[str], out: Path, draw: random.Random) -> None:
    kind = draw.random()
    if kind < 0.15:
        time.sleep(draw.uniform(0, 1.5))
        return
    # Some shards further on than the last time, or the last steps; then any moment within the next one.
    target = len(list(out.glob("*.tar"))) + draw.randrange(4)
    deadline = time.monotonic() + _PATIENCE_S / 3
    while job.poll() is None and time.monotonic() < deadline:
        if kind < 0.3:
            if (out / "quarantine.jsonl").exists():
                time.sleep(draw.uniform(0, 0.01))
                return
        elif (out / FOLDER).exists() and len(list(out.glob("*.tar"))) >= target:
            break
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.06))


def _kill(job: subprocess.Popen[str], victim: str, draw: random.Random) -> bool:
    """Return whether there was a process to kill."""
    if job.poll() is not None:
        return False
    with suppress(ProcessLookupError):
        if victim == "group":
            os.killpg(job.pid, signal.SIGKILL)
            return True
        workers = worker_processes(job.pid)
        if victim == "worker" and not workers:
            return False
        os.kill(draw.choice(workers) if victim == "worker" else job.pid, signal.SIGKILL)
        return True
    return False


def worker_processes(parent: int) -> list[int]:
    """Return the pool's processes of a job."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children if _is_worker(int(child))]


def _is_worker(process: int) -> bool:
    try:
        return "spawn_main" in Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return False


def _alive(session: int) -> list[int]:
    """Return the processes of a session, those that are dead and not yet buried left out."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                alive.append(int(path.parent.name))
    return alive


def _left_alive(session: int) -> list[str]:
    deadline = time.monotonic() + 10
    while _alive(session) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [f"{len(_alive(session))} processes outlived the job"] if _alive(session) else []


def _semaphores(process: int) -> set[int]:
    """Return the inodes of those that a process has mapped; their names there are not those in the folder."""
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {int(line.split()[4]) for line in lines if "/dev/shm/" in line}


def _left_in_memory(inodes: set[int]) -> list[Path]:
    left = []
    for path in Path("/dev/shm").glob("sem.*"):
        with suppress(FileNotFoundError):  # other processes come and go
            left += [path] * (path.stat().st_ino in inodes)
    return left


def _progress(out: Path) -> str:
    if (out / MANIFEST).exists():
        return "manifest written"
    return f"{len(list(out.glob('*.tar')))} shards" if (out / FOLDER).exists() else "not begun"


def _half_published(out: Path, expected: dict[str, str], changed: dict[str, str]) -> Iterator[str]:
    """A file that stands under its final name must be whole, and a manifest the last of them."""
    visible = {name: digest for name, digest in digests(out).items() if not name.startswith(FOLDER)}
    for name, digest in visible.items():
        if digest != expected.get(name) and digest != changed.get(name):
            yield f"{name} stands there, but is not whole"
    if MANIFEST in visible and visible != expected:
        yield f"the manifest stands, but not the set: {_difference(visible, expected)}"


def _difference(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _damage_leftovers(out: Path, draw: random.Random, changed: dict[str, str]) -> int:
    """Change or cut short one file of an interrupted job."""
    if (out / MANIFEST).exists():
        return 0
    paths = [*out.glob("*.tar"), *out.glob("*.idx"), *out.glob("tokenizer.json"), *(out / FOLDER).glob("*.json")]
    if not paths:
        return 0
    path = draw.choice(sorted(paths))
    content = bytearray(path.read_bytes())
    if draw.random() < 0.5:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    else:
        del content[draw.randrange(len(content)) :]
    path.write_bytes(content)
    changed[path.name] = hashlib.sha256(content).hexdigest()
    return 1


def main(arguments: list[str]) -> int:
    """Run a job to be killed, or a campaign."""
    if arguments[0] == "job":
        try:
            pack_set(Path(arguments[1]), Path(arguments[2]), workers=int(arguments[3]))
        except MrmStreamError as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            return 1
        return 0
    from tests.packing.conftest import _make_set
    from tests.packing.damage import DamageReport, damage_campaign

    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        scratch = Path(folder)
        root = _make_set(scratch / "source", 40, truncated=1, missing=1, silent=1)
        pack_set(root, scratch / "reference")
        count, fault = int(arguments[1]), arguments[2] if len(arguments) > 2 else None
        report: KillReport | DamageReport
        if arguments[0] == "kills":
            report = kill_campaign(root, scratch / "reference", scratch, kills=count, fault=fault)
            problems = report.problems
        else:
            if fault:
                FAULTS[fault]()
            report = damage_campaign(scratch / "reference", scratch, count=count)
            problems = report.missed
        sys.stdout.write(f"{report}\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
