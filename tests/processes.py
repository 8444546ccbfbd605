"""Real processes for tests: a Redis on a free port, workers, and the command itself; each ended with its block."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from core.errors import BrokerUnavailable
from scheduler.embedded import find_server
from workers.broker import check, connect

PASSWORD = "test-password"
_READY_WITHIN = 60.0  # seconds, on a machine that is busy with other tests
COMMAND = (sys.executable, "-m", "scheduler.cli.main")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = _READY_WITHIN, every: float = 0.05) -> None:
    """Wait until `condition` holds; fail, saying what was waited for, where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for {what}")
        time.sleep(every)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of this process without settings of ours, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRAINING_STATUS_")}
    return {**kept, **(extra or {})}


def training_status(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@contextmanager
def interruptible(arguments: list[str], stdout: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run the command so that it hears Ctrl-C, which a shell keeps from what it runs in the background."""
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def process(arguments: list[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a group of its own; end it, and wait for it, when the block ends."""
    with log.open("ab") as output:
        running = subprocess.Popen(
            arguments,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
        running.wait()


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run a Redis with a password on a free loopback port, and yield its broker URL."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [find_server(), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD]
    command += ["--dir", str(folder), "--appendonly", "yes", "--save", ""]
    url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    with process(command, folder / "redis.log"):
        wait_for(lambda: answers(url), "Redis to answer")
        yield url


def answers(url: str) -> bool:
    """Whether a Redis answers at `url`."""
    client = connect(url)
    try:
        check(client, url)
    except BrokerUnavailable:
        return False
    finally:
        client.close()
    return True


@contextmanager
def worker(
    broker: str, log: Path, *, concurrency: int = 2, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker with a pool of processes."""
    settings = {"TRAINING_STATUS_BROKER": broker, **(env or {})}
    with process([*COMMAND, "worker", "--concurrency", str(concurrency)], log, settings) as running:
        yield running
