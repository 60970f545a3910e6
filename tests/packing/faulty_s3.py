"""An S3 of this machine (moto's), and in front of it a proxy that fails as networks and storage do."""

from __future__ import annotations

import http.client
import logging
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from mrm_stream.storage import paths, retries

ALL = ("internal", "slow-down", "reset", "lost", "cut", "stall")
"""500; 503; reset before the request is carried out; carried out, then reset; half a body; no answer for too long."""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
_CODES = {
    "internal": (500, "InternalError"),
    "slow-down": (503, "SlowDown"),
    "deny": (403, "AccessDenied"),
}
_HOP = {"connection", "transfer-encoding", "expect", "keep-alive"}


@dataclass
class Faults:
    """What goes wrong, drawn anew for each request."""

    rate: float
    """Share of the requests that fail."""
    kinds: tuple[str, ...] = ALL
    seed: int = 0
    only: Callable[[str, str], bool] = lambda method, path: True
    """(method, path with query) -> whether the request may fail."""
    seen: Counter[str] = field(default_factory=Counter)
    """Faults by kind, and `requests`."""

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._lock = threading.Lock()

    def next(self, method: str, path: str) -> str | None:
        """Return the kind of fault for this request, or None."""
        with self._lock:
            self.seen["requests"] += 1
            if not self.only(method, path) or self._draw.random() >= self.rate:
                return None
            kind = self._draw.choice(self.kinds)
            self.seen[kind] += 1
            return kind


class FaultyS3:
    """Both servers; requests fail inside `failing` alone."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._moto.start()
        host, port = self._moto.get_host_and_port()
        self.faults: Faults | None = None
        self.stall_s = 0.5
        self.bytes_sent = 0
        """Of bodies, to clients."""
        self._proxy = _Proxy(("127.0.0.1", 0), _handler(self, str(host), int(port)))
        threading.Thread(target=self._proxy.serve_forever, args=(0.05,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        # Past the proxy: the tests' own look at what lies there.
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            aws_access_key_id="tests",
            aws_secret_access_key="tests",
            region_name="us-east-1",
        )

    def stop(self) -> None:
        """Close both servers."""
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()

    @contextmanager
    def failing(self, faults: Faults) -> Iterator[Faults]:
        """Let requests fail so while the block lasts."""
        self.faults = faults
        try:
            yield faults
        finally:
            self.faults = None

    def put_tree(self, folder: Path, bucket: str, prefix: str) -> str:
        """Copy a folder into a bucket, which is made, and return its URL."""
        self.make_bucket(bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = f"{prefix}/{path.relative_to(folder).as_posix()}"
                self.client.put_object(Bucket=bucket, Key=name, Body=path.read_bytes())
        return f"s3://{bucket}/{prefix}"

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket."""
        self.client.create_bucket(Bucket=bucket)

    def contents(self, bucket: str, prefix: str) -> dict[str, bytes]:
        """Return every object below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        names = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {
            name.removeprefix(f"{prefix}/"): self.client.get_object(Bucket=bucket, Key=name)["Body"].read()
            for name in names
        }


@contextmanager
def running() -> Iterator[FaultyS3]:
    """Run the servers while the block lasts; this process, and those that it starts, find them and no others."""
    server = FaultyS3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server.endpoint}).items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # of servers that are gone
        try:
            yield server
        finally:
            S3FileSystem.clear_instance_cache()
            server.stop()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without the good-bye that would precede a reset


def _handler(server: FaultyS3, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a body would wait 40 ms for the headers to be acknowledged

        def handle_any(self) -> None:
            body = self._body()
            fault = server.faults.next(self.command, self.path) if server.faults else None
            if fault in _CODES:
                self._refuse(*_CODES[fault])
                return
            if fault == "reset":
                self._reset()
                return
            # A connection for each request: none is left half read by a fault.
            upstream = http.client.HTTPConnection(host, port, timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                upstream.request(self.command, self.path, body=body, headers=headers)
                answer = upstream.getresponse()
                content = answer.read()
            finally:
                upstream.close()
            if fault == "stall":
                time.sleep(server.stall_s)
            if fault in ("lost", "stall"):
                self._reset()
                return
            self._answer(answer, content, cut=fault == "cut")

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                pieces = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                del self.headers["Transfer-Encoding"]
                return b"".join(pieces)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, answer: http.client.HTTPResponse, content: bytes, *, cut: bool) -> None:
            length = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP | {"content-length", "server", "date"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            sent = content[: len(content) // 2] if cut else content
            server.bytes_sent += len(sent)  # before a client has them, who may look at once
            self.wfile.write(sent)
            if cut:
                self.wfile.flush()
                self._reset()

        def _refuse(self, status: int, code: str) -> None:
            content = (
                b""
                if self.command == "HEAD"
                else f"<Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
            )
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _reset(self) -> None:
            # No time to linger: closed, the connection is reset rather than ended.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                self.close_connection = True  # the client gave up first

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a client wait milliseconds where it would wait seconds; a stall of the server is longer than it waits."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(paths, "_READ_S", 0.3)
