"""A Flower on a free port, and what its pages answer."""

from __future__ import annotations

import http.client
import json
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import COMMAND, process, wait_for
from tests.servers import free_ports

USER, LOGIN = "admin", "test-flower-login"
_RIGHT = f"{USER}:{LOGIN}"


@contextmanager
def flower(broker: str, folder: Path, **settings: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run Flower on a free port, its state and its log in `folder`; yield the port and the process."""
    (port,) = free_ports(1)
    env = {
        "TRAINING_STATUS_BROKER": broker,
        "TRAINING_STATUS_FLOWER_PORT": str(port),
        "TRAINING_STATUS_FLOWER_PASSWORD": LOGIN,
        "TRAINING_STATUS_FLOWER_STATE": str(folder / "state" / "flower"),
        **settings,
    }
    with process([*COMMAND, "flower"], folder / "flower.log", env) as running:
        wait_for(lambda: _is_up(port), "Flower to answer")
        yield port, running


def answer(
    port: int, path: str, login: str | bytes | None = _RIGHT, *, method: str = "GET", body: str | None = None
) -> tuple[int, str]:
    """Return the status and the body of a page."""
    raw = login.encode() if isinstance(login, str) else login
    headers = {} if raw is None else {"Authorization": f"Basic {b64encode(raw).decode()}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        got = connection.getresponse()
        return got.status, got.read().decode()
    finally:
        connection.close()


def get(port: int, path: str) -> str:
    """Return a page, with the password given."""
    status, body = answer(port, path)
    assert status == 200, (path, status, body)
    return body


def tasks(port: int) -> list[dict[str, Any]]:
    """Return the tasks that Flower has seen."""
    return list(json.loads(get(port, "/api/tasks")).values())


def _is_up(port: int) -> bool:
    try:
        return answer(port, "/healthcheck", None)[0] == 200
    except OSError:
        return False
