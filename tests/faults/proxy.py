"""An HTTP proxy before a real S3 server, which does the first requests that match something wrong.

The client's endpoint is the proxy. What it signs is the proxy's address as the Host header, which is passed on as it
came, so that the server finds the signature right.
"""

from __future__ import annotations

import enum
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_TIMEOUT = 60.0  # seconds, for a server on this machine
_SLOW = 3.0  # seconds


class Wrong(enum.Enum):
    """What is done to a request."""

    ERROR_500 = "500 InternalError"
    ERROR_503 = "503 SlowDown"
    REFUSED = "403 AccessDenied"
    NO_BUCKET = "404 NoSuchBucket"
    #: The connection breaks when a part of the request's body has been read; the server never sees it.
    DROPPED = "connection closed amid the request"
    #: The server has done what was asked, but its answer gets lost.
    ANSWER_LOST = "connection closed after the request"
    #: The answer breaks off in its middle.
    ANSWER_CUT = "connection closed amid the answer"
    #: The request is passed on only when `S3Proxy.let_go` is called.
    HELD = "held"
    #: The request is passed on after `_SLOW` seconds.
    SLOW = "slow"


@dataclass(kw_only=True)
class Fault:
    """The first `times` requests with this method and this in their path go wrong."""

    wrong: Wrong
    method: str = ""  # any where empty
    path: str = ""
    times: int = 1
    met: int = 0  # how many have gone wrong so far

    def matches(self, method: str, path: str) -> bool:
        """Whether a request is one of those."""
        return self.met < self.times and self.method in ("", method) and self.path in path


@dataclass(kw_only=True)
class S3Proxy:
    """What the proxy is told to do, and where it is."""

    server: str  # host:port of the real one
    endpoint: str = ""
    faults: list[Fault] = field(default_factory=list)
    held: int = 0  # requests that are held, or were
    requests: list[tuple[str, str]] = field(default_factory=list)  # all so far: method, path with its query
    _free: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, wrong: Wrong, *, method: str = "", path: str = "", times: int = 1) -> Fault:
        """Have requests go wrong from now on; return the fault, which counts them."""
        fault = Fault(wrong=wrong, method=method, path=path, times=times)
        with self._lock:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Have nothing go wrong any more."""
        with self._lock:
            self.faults.clear()
        self.let_go()

    def let_go(self) -> None:
        """Pass on the requests that are held."""
        self._free.set()

    def wrong_with(self, method: str, path: str) -> Wrong | None:
        """Note a request, and return what is to be done to it."""
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.matches(method, path):
                    fault.met += 1
                    return fault.wrong
        return None

    def hold(self) -> None:
        """Wait until requests are let go."""
        with self._lock:
            self.held += 1
        self._free.wait()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: S3Proxy

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client's process may be killed
            super().handle()

    def handle_any(self) -> None:
        wrong = self.proxy.wrong_with(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        if wrong is Wrong.DROPPED:
            self.rfile.read(length // 2)
            self._break_off()
            return
        body = self.rfile.read(length)
        if wrong is Wrong.HELD:
            self.proxy.hold()
        if wrong is Wrong.SLOW:
            time.sleep(_SLOW)
        if wrong in (Wrong.ERROR_500, Wrong.ERROR_503, Wrong.REFUSED, Wrong.NO_BUCKET):
            self._refuse(wrong)
            return
        status, headers, answer = self._pass_on(body)
        if wrong is Wrong.ANSWER_LOST:
            self._break_off()
            return
        self._answer(status, headers, answer, cut=wrong is Wrong.ANSWER_CUT)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.proxy.server, timeout=_TIMEOUT)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        told = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", told)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._break_off()

    def _refuse(self, wrong: Wrong) -> None:
        status, code = wrong.value.split()
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>a test</Message></Error>".encode()
        self._answer(int(status), [("Content-Type", "application/xml")], text, cut=False)

    def _break_off(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


@contextmanager
def s3_proxy(endpoint: str) -> Iterator[S3Proxy]:
    """Run a proxy before the server at `endpoint`."""
    proxy = S3Proxy(server=urlsplit(endpoint).netloc)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = _Server(("127.0.0.1", 0), handler)
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.heal()
        server.shutdown()
        thread.join()
        server.server_close()
