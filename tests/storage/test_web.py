"""Places on a web server: what fails on the way, and what the server refuses, is no absence."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mrm_stream.errors import StorageError
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.packing.journal import check_vacant
from mrm_stream.sources.registry import list_records
from mrm_stream.storage import retries
from mrm_stream.storage.files import read_whole
from mrm_stream.storage.paths import parse_path
from mrm_stream.storage.retries import retrying


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.005)


class _Says(BaseHTTPRequestHandler):
    """Answers every request with the status that its path begins with."""

    def do_GET(self) -> None:
        self.send_error(int(self.path.split("/")[1]))

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Says) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


REFUSED = r"remote storage failed 8 times: the connection was refused.*\n  Check the URL's host and port"


def test_a_refused_connection_is_no_absence() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and does not listen
        nowhere = parse_path(f"http://127.0.0.1:{probe.getsockname()[1]}/set")
        with pytest.raises(StorageError, match=REFUSED):
            read_manifest(nowhere)
        with pytest.raises(StorageError, match=REFUSED):
            list_records("mimic", nowhere)
        with pytest.raises(StorageError, match=REFUSED):
            check_vacant(nowhere)


def test_what_a_web_server_says_is_told_as_what_it_is(web: str) -> None:
    assert not parse_path(f"{web}/404/a").is_file()
    with pytest.raises(FileNotFoundError):
        read_whole(parse_path(f"{web}/404/a"), 10)
    with pytest.raises(PermissionError):
        read_whole(parse_path(f"{web}/403/a"), 10)
    with pytest.raises(StorageError, match="permission denied"):
        parse_path(f"{web}/401/a").exists()
    with pytest.raises(StorageError, match="failed 8 times: ClientResponseError: 503"):
        parse_path(f"{web}/503/a").is_dir()


def test_a_host_that_is_not_found_is_told() -> None:
    def unknown(*_: object, **__: object) -> Any:
        raise ConnectionError("cannot connect") from socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(StorageError, match="the host is not found: ConnectionError") as caught:
        retrying(unknown, parse_path("memory://a"))
    assert "Check the URL's host" in str(caught.value.remedy)
