"""TLS before a Redis: the server in the wheel has none, so a process of the test's own takes it off.

It stands for a Redis that was built with TLS: what a client sees of one is the handshake and the certificate.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme


class TlsFront:
    """Where the front listens, and the certificate of the authority that vouches for it."""

    def __init__(self, folder: Path, port: int) -> None:
        authority = trustme.CA()
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        self.other_ca = folder / "other-ca.pem"
        trustme.CA().cert_pem.write_to_path(str(self.other_ca))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(self._context)
        self._behind = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.handshakes = 0

    def url(self, password: str, ca: Path | None = None) -> str:
        """Return the broker's URL, which trusts `ca`; by default the right one."""
        return f"rediss://:{password}@127.0.0.1:{self.port}/0?ssl_cert_reqs=required&ssl_ca_certs={ca or self.ca}"

    def serve(self) -> None:
        """Take connections until the listening socket is closed."""
        while True:
            try:
                outside, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=[outside], daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _connect(self, outside: socket.socket) -> None:
        with outside:
            try:
                plain = self._context.wrap_socket(outside, server_side=True)
            except (OSError, ssl.SSLError):  # a client that does not trust us, or speaks no TLS
                return
            self.handshakes += 1
            with plain, socket.create_connection(("127.0.0.1", self._behind)) as inside:
                back = threading.Thread(target=_pump, args=[inside, plain], daemon=True)
                back.start()
                _pump(plain, inside)
                back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def tls_front(folder: Path, port: int) -> Iterator[TlsFront]:
    """Put TLS before the Redis at `port`, for as long as the block."""
    front = TlsFront(folder, port)
    thread = threading.Thread(target=front.serve, daemon=True)
    thread.start()
    try:
        yield front
    finally:
        front.close()
        thread.join()
