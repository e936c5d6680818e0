"""A real MLflow server, and something in front of it that is down, slow, or loses answers when it is told to."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_START_SECONDS = 180.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Yield the address of a server that keeps everything in a folder."""
    stores = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    with running(["server", "--workers=1", *stores], folder) as address:
        yield address


@contextmanager
def running(arguments: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield the address of an MLflow that was started in a folder with some arguments and a free port."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", *arguments, f"--port={port}"]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        wait_until_healthy(address, process, folder / "log.txt")
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers; fail with its log if it ends, or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


class Proxy:
    """Stands before a server, at an address that stays the same while it goes down and comes up again.

    Attributes:
        delay: Seconds that each request waits.
        loses_answers: Whether requests are carried out, but not answered.
        requests: Number of requests so far.
    """

    def __init__(self, server: str) -> None:
        self.delay = 0.0
        self.loses_answers = False
        self.requests = 0
        self.port = free_port()
        self._server = server
        self._up: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Come up, unless it is."""
        if self._up is None:
            self._up = _Server(("127.0.0.1", self.port), _handler(self, self._server))
            threading.Thread(target=self._up.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Go down, unless it is: connections are refused."""
        if self._up is not None:
            self._up.shutdown()
            self._up.server_close()
            self._up = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a request that waits doesn't keep it up
    allow_reuse_address = True


def _handler(proxy: Proxy, server: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Passes requests on; each has a connection of its own."""

        def _pass_on(self) -> None:
            proxy.requests += 1
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(proxy.delay)
            target = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
            target.request(self.command, self.path, body, dict(self.headers.items()))
            answer = target.getresponse()
            content = answer.read()
            target.close()
            if proxy.loses_answers:
                return
            with suppress(ConnectionError):  # who asked has lost patience
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
