"""Where the ranks of a run meet before torch.distributed connects them.

Its own way of meeting is silent, and does not hear signals. Here every rank says what it waits for, gives up in good
time, and makes sure that it has its rank and its GPU to itself.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import ConfigError, MrmStreamError, TrainingError
from mrm_stream.strict import parse_json

CONNECT_S = 600.0
"""Seconds to wait for the other ranks, by default."""
_FIRST_WORD_S, _LAST_WORDS_S = 1.0, 60.0
"""Ranks that start together come within a second or so; who waits longer says so, ever less often."""
_TELLING_S = 10.0
"""For how long a rank that cannot take part tries to tell the others."""
_POLL_S = 0.1
_PROBE_S = 2.0
_NAMED = 64
"""In a run of up to so many ranks, those that are missing are named: each costs a question at the store."""
_OTHER_PORT = "Choose another: `deepspeed --master_port N ...`, or MASTER_PORT=N with srun and torchrun."

_c10d: Any = torch.distributed  # Its stores are not annotated.

log = logging.getLogger(__name__)


def meet(runtime: Runtime, run: str, limit_s: float, refusal: MrmStreamError | None = None) -> Meeting:
    """Return when all ranks have come.

    Args:
        runtime: This rank.
        run: The run's directory: ranks of two runs that share a port must not mix.
        limit_s: Seconds to wait at each stage.
        refusal: Why this rank cannot take part: the others, who would wait for it, are told.

    Raises:
        MrmStreamError: `refusal`, told or not.
        ConfigError: The address cannot be found, its port is taken, or belongs to another run; a rank is there twice,
            or two ranks share a GPU; or another rank cannot take part.
        TrainingError: Not all have come in time.
    """
    if refusal is not None:
        with suppress(MrmStreamError):  # Whatever keeps it from them: this is what is wrong here.
            Meeting(runtime, min(limit_s, _TELLING_S)).refuse(run, refusal)
        raise refusal
    meeting = Meeting(runtime, limit_s)
    meeting.introduce(run)
    meeting.gather("come")
    return meeting


class Meeting:
    """A store that all ranks reach, and what this one has said in it."""

    def __init__(self, runtime: Runtime, limit_s: float) -> None:
        """Open the store, or reach the one that the first rank, or torchrun, has opened."""
        self._runtime, self._limit_s = runtime, limit_s
        self.store = _c10d.HashStore()
        if runtime.world == 1:
            return
        address, port = os.environ["MASTER_ADDR"], _port()
        self._where = f"{address}:{port}"
        try:
            socket.getaddrinfo(address, port)
        except OSError as error:
            raise ConfigError(
                f"{address} cannot be found: {error.strerror}",
                where="MASTER_ADDR",
                remedy="Name the first rank's host.",
            ) from None
        # torchrun keeps the store itself, and says so to its ranks.
        if runtime.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            opened = _open_store(port)
        else:
            opened = self._reach(address, port)
        # Ranks that torchrun starts again find what those before them have said.
        self.store = _c10d.PrefixStore(f"mrm-stream/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", opened)

    def introduce(self, run: str) -> None:
        """Claim the rank, and the GPU, that nobody else may have."""
        if self._runtime.world == 1:
            return
        rank, host = self._runtime.rank, socket.gethostname()
        whole = f"{self._runtime.world} ranks of {run}"
        with self._answered():
            if (found := self._claim("run", whole)) != whole:
                raise ConfigError(f"another run meets here: {found}", where=self._where, remedy=_OTHER_PORT)
            process = f"process {os.getpid()} on {host}"
            if (found := self._claim(f"rank/{rank}", process)) != process:
                self._refuse(ConfigError(f"two processes are rank {rank}: {found}, and {process}", where=self._where))
            if self._runtime.device.type == "cuda":
                # Slurm may show each task one GPU only, as number 0: that two have one number says nothing.
                uuid = torch.cuda.get_device_properties(self._runtime.device).uuid
                if (found := self._claim(f"gpu/{uuid}", f"rank {rank}")) != f"rank {rank}":
                    self._refuse(
                        ConfigError(
                            f"{found} and rank {rank} have the same GPU, {uuid} on {host}",
                            where="LOCAL_RANK",
                            remedy="Start as many ranks on a machine as it has GPUs; under srun: --gpus-per-task=1.",
                        )
                    )

    def gather(self, stage: str) -> None:
        """Return when all ranks have called this; a rank that has died since the stage before it is missed here."""
        world, waiting = self._runtime.world, _Waiting(self._runtime, self._limit_s)
        if world == 1:
            return
        with self._answered():
            self.store.set(f"{stage}/{self._runtime.rank}", "")
            count = self.store.add(stage, 1)
            while True:
                if self.store.check(["refused"]):
                    self.store.add("heard", 1)
                    said = parse_json(str(self.store.get("refused"), "utf-8"))
                    raise ConfigError(said["what"], where=said["where"], remedy=said["remedy"])
                if count >= world:
                    return
                if waiting.is_over or waiting.has_something_to_say:
                    missing = [r for r in range(world if world <= _NAMED else 0) if not self._has(f"{stage}/{r}")]
                    named = f"; missing: {', '.join(map(str, missing))}" if missing else ""
                    waiting.for_more(f"{count} of {world} ranks have come{named}", self._where)
                time.sleep(_POLL_S)
                count = self.store.add(stage, 0)

    def refuse(self, run: str, error: MrmStreamError) -> None:
        """Raise an error here, and on every rank that comes; the store, where it is this rank's, stays until they have.

        A rank that fails as well tells of itself, and hears nothing.
        """
        if self._runtime.world == 1:
            raise error
        self.introduce(run)
        with self._answered():
            self.store.add("heard", 1)
            what = f"rank {self._runtime.rank} failed: {error.what}"
            with suppress(ConfigError):
                self._refuse(ConfigError(what, where=error.where, remedy=error.remedy))
            waiting = _Waiting(self._runtime, self._limit_s)
            while self._runtime.is_first and self.store.add("heard", 0) < self._runtime.world and not waiting.is_over:
                time.sleep(_POLL_S)
        raise error

    def _has(self, key: str) -> bool:
        return bool(self.store.check([key]))

    def _claim(self, key: str, value: str) -> str:
        return str(self.store.compare_set(key, "", value), "utf-8")

    def _refuse(self, error: MrmStreamError) -> None:
        """Raise an error on every rank."""
        self.store.set("refused", json.dumps({"what": error.what, "where": error.where, "remedy": error.remedy}))
        raise error

    def _reach(self, address: str, port: int) -> Any:
        waiting = _Waiting(self._runtime, self._limit_s)
        while True:
            try:
                with socket.create_connection((address, port), timeout=_PROBE_S):
                    pass
            except OSError as error:
                waiting.for_more(f"the first rank is not there: {error.strerror or error}", self._where)
            else:
                store = _client(address, port, waiting, self._where)
                if store is not None:
                    return store
            time.sleep(_POLL_S)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except _c10d.DistError as error:
            raise TrainingError("the first rank had come, and is gone", where=self._where) from error


class _Waiting:
    """How long this rank has waited; says so now and then."""

    def __init__(self, runtime: Runtime, limit_s: float) -> None:
        self._rank, self._limit_s = runtime.rank, limit_s
        self._since, self._began = time.strftime("%H:%M:%S"), time.monotonic()
        self._next_word_s = _FIRST_WORD_S

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def is_over(self) -> bool:
        return self.seconds >= self._limit_s

    @property
    def has_something_to_say(self) -> bool:
        return self.seconds >= self._next_word_s

    def for_more(self, what: str, where: str) -> None:
        """Say what is still missing, if it is time to; raise TrainingError when it is time to give up."""
        if self.is_over:
            raise TrainingError(
                f"{what}, after {self._limit_s:.0f} s",
                where=where,
                remedy="See whether all ranks were started, with this MASTER_ADDR and MASTER_PORT, and what ended "
                "those that are missing; or raise run.connect_s.",
            )
        if self.has_something_to_say:
            # A warning: the other ranks' logs hold nothing less.
            log.warning("rank %d waits at %s since %s: %s", self._rank, where, self._since, what)
            self._next_word_s = self.seconds + min(10 * self._next_word_s, _LAST_WORDS_S)


def _port() -> int:
    value = os.environ["MASTER_PORT"]
    if not value.isdecimal() or not 0 < int(value) < 1 << 16:
        raise ConfigError(f"{value!r} is not a port", where="MASTER_PORT", remedy="Give a number from 1024 to 65535.")
    return int(value)


def _open_store(port: int) -> Any:
    try:
        if socket.has_dualstack_ipv6():
            listening = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            listening = socket.create_server(("", port))
    except OSError as error:
        raise ConfigError(
            f"port {port} of this machine cannot be used: {os.strerror(error.errno or 0)}",
            where="MASTER_PORT",
            remedy=_OTHER_PORT,
        ) from error
    return _c10d.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
    )


def _client(address: str, port: int, waiting: _Waiting, where: str) -> Any:
    """Return a store that is reached, or None if it went away meanwhile."""
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(_c10d.TCPStore(address, port, wait_for_workers=False, timeout=timedelta(seconds=30)))
        except _c10d.DistError as error:
            log.debug("%s: %s", where, error)

    # It waits without end for an answer of whatever else listens there.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        if not found and thread.is_alive():
            waiting.for_more("something listens there, which does not answer as a first rank does", where)
    return found[0] if found else None
