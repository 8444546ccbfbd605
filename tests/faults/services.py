"""What fault tests run on: a Redis and workers that can be killed and started again, the command, a herd of mice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import redis

from core.pipeline import recompute_subject
from core.sources import TreeSource
from core.storage import Store, open_store
from core.tables import COHORT_KEY, merge_cohort, run_key, subject_keys
from scheduler.embedded import find_server
from tests.processes import COMMAND, PASSWORD, answers, environment, process, wait_for
from tests.servers import free_ports
from workers.broker import connect
from workers.ledger import Ledger

Subjects = Sequence[tuple[str, str]]

#: Seconds without news after which workers send again what is owed: short, or recovery takes a minute.
PATIENCE = {"TRAINING_STATUS_PATIENCE": "2"}
_ENDS_WITHIN = 150.0  # seconds, for a run on a machine that is busy with other tests


@dataclass(frozen=True, kw_only=True)
class Herd:
    """A session tree, and what an undisturbed recompute of it leaves in a store."""

    root: Path
    subjects: Subjects
    sessions: int
    objects: Mapping[str, bytes] = field(repr=False)  # key -> bytes, the cohort table with them


class Service:
    """A process that can die and be started again, as a supervisor would; it ends with the block.

    Parameters
    ----------
    arguments : list of str
        Of the process.
    log : Path
        Where its output is added.
    env : mapping of str to str
        Added to the environment.
    """

    def __init__(self, arguments: list[str], log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        self._arguments = arguments
        self._env = env
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start the process, once more where it has died."""
        self._running = self._stack.enter_context(process(self._arguments, self.log, self._env))
        self._stack.callback(_kill_group, self._running.pid)

    def keep_alive(self) -> None:
        """Start the process again where it has died."""
        if self._running.poll() is not None:
            self.start()

    @property
    def process(self) -> psutil.Process:
        """The process, as it runs now."""
        return psutil.Process(self._running.pid)

    @property
    def has_died(self) -> bool:
        """Whether it has ended."""
        return self._running.poll() is not None


def _kill_group(group: int) -> None:
    """Kill what a process that was killed alone left of its group."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


class RedisService(Service):
    """A Redis with a password on a port of its own, with an append-only file that a restart takes up."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (port,) = free_ports(1)
        command = [find_server(), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD]
        command += ["--dir", str(folder), "--appendonly", "yes", "--save", ""]
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        super().__init__(command, folder / "redis.log", {})

    def start(self) -> None:
        """Start the Redis and wait until it answers."""
        super().start()
        wait_for(lambda: answers(self.url), "Redis to answer")


class Command:
    """The command ``training-status``, running; its output goes to files, which never fill up as pipes do."""

    def __init__(self, running: subprocess.Popen[bytes], folder: Path) -> None:
        self._running = running
        self._folder = folder

    @property
    def process(self) -> psutil.Process:
        """The process."""
        return psutil.Process(self._running.pid)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._running.poll() is not None

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._running.poll()

    @property
    def told(self) -> str:
        """What it said on standard error."""
        return (self._folder / "stderr").read_text()

    @property
    def record(self) -> dict[str, Any]:
        """The run's record that it printed."""
        found: dict[str, Any] = json.loads((self._folder / "stdout").read_text())
        return found


@contextmanager
def command(folder: Path, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Iterator[Command]:
    """Run the command in the background; kill it where it has not ended with the block."""
    folder.mkdir(parents=True)
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        running = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    try:
        yield Command(running, folder)
    finally:
        running.kill()
        running.wait()


class Arena:
    """A Redis, workers and runs of one test, all ended with the block.

    Parameters
    ----------
    folder : Path
        For their files.
    env : mapping of str to str
        Settings of all workers and commands.
    """

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._env = {**PATIENCE, **(env or {})}
        self._stack = ExitStack()
        self._kept: list[Service] = []
        self._commands = 0

    def __enter__(self) -> Self:
        self.redis = self._stack.enter_context(RedisService(self.folder / "redis"))
        self.client = connect(self.redis.url)
        self._stack.callback(self.client.close)
        self.ledger = Ledger(self.client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def worker(
        self, name: str = "worker", *, env: Mapping[str, str] | None = None, keep: bool = True, log: Path | None = None
    ) -> Service:
        """Start a worker with two pool processes.

        Parameters
        ----------
        name : str
            Of its log.
        env : mapping of str to str
            Settings of its own.
        keep : bool
            Start it again where it dies, as a supervisor would (`docker-compose.yml`: restart).
        log : Path, optional
            Where its output goes instead.
        """
        settings = {**self._env, "TRAINING_STATUS_BROKER": self.redis.url, **(env or {})}
        arguments = [*COMMAND, "worker", "--concurrency", "2"]
        started = Service(arguments, log or self.folder / f"{name}.log", settings)
        if keep:
            self._kept.append(started)
        return self._stack.enter_context(started)

    def command(self, *arguments: str | Path) -> Command:
        """Run a command on this Redis, in the background."""
        self._commands += 1
        env = {**self._env, "TRAINING_STATUS_BROKER": self.redis.url}
        return self._stack.enter_context(command(self.folder / f"command{self._commands}", *arguments, env=env))

    def run(self, root: Path, store: str | Path, kind: str = "recompute") -> Command:
        """Start a run in the background, with its record printed at the end."""
        return self.command(kind, "--root", root, "--store", store, "--json")

    def embedded(self, root: Path, store: Path) -> Command:
        """Run a recompute in the background that starts its own Redis and worker."""
        options = ("--root", root, "--store", store, "--embedded", "--workers", "2", "--json")
        return self._stack.enter_context(command(self.folder / "embedded", "recompute", *options, env=self._env))

    def run_id(self) -> str:
        """Return the id of the latest run, once there is one."""
        wait_for(lambda: bool(self.ledger.run_ids()), "a run to begin")
        return self.ledger.run_ids()[0]

    def keep_alive(self) -> None:
        """Start again the workers that have died and should not have."""
        for service in self._kept:
            service.keep_alive()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition on the ledger; meanwhile start again what has died and should not have."""

        def holds() -> bool:
            self.keep_alive()
            try:
                return condition()
            except redis.RedisError:  # it is away; whoever took it away brings it back
                return False

        wait_for(holds, what, _ENDS_WITHIN)

    def finish(self, running: Command) -> dict[str, Any]:
        """Wait for a command that ends a run, and return the record that it prints."""
        self.wait(lambda: running.has_ended, "the command to end")
        assert running.code in (0, 1), running.told
        return running.record

    def end(self, run_id: str) -> dict[str, Any]:
        """Wait for a run's end, and return its record."""
        self.wait(lambda: self.ledger.is_ended(run_id), f"the run to end: {self.ledger.stages(run_id)}")
        record = self.ledger.record(run_id)
        assert record is not None
        return record

    def log(self, name: str = "worker") -> str:
        """Return what a worker has logged."""
        return (self.folder / f"{name}.log").read_text()


def undisturbed(root: Path, subjects: Subjects, memory: str) -> dict[str, bytes]:
    """Return all objects that a recompute leaves in a store, from the plain pipeline."""
    store = open_store(f"memory://{memory}")
    rows = [row for lab, subject in subjects for row in recompute_subject(TreeSource(root), lab, subject, store).cohort]
    return {**objects(store, subjects), COHORT_KEY: merge_cohort(None, rows)}


def objects(store: Store, subjects: Subjects) -> dict[str, bytes]:
    """Return the objects of some subjects, and the cohort table."""
    keys = [key for lab, subject in subjects for key in vars(subject_keys(lab, subject)).values()]
    found = {key: store.get(key) for key in (*keys, COHORT_KEY)}
    return {key: stored.data for key, stored in found.items() if stored}


def differences(found: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> list[str]:
    """Return the keys of objects that differ or are missing; of bytes, pytest would print megabytes."""
    return sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))


def assert_as_undisturbed(herd: Herd, store: Store, record: Mapping[str, Any], arena: Arena | None) -> None:
    """Hold a recompute's tables and record against those of a run that nothing has disturbed.

    The ledger is looked at too, where the run was in an arena's: an embedded one is gone with its command.
    """
    assert differences(objects(store, herd.subjects), herd.objects) == []
    assert record["error"] is None
    assert record["failed"] == []
    subjects = len(herd.subjects)
    assert record["counts"] == {
        "subjects": subjects,
        "done": subjects,
        "unchanged": 0,
        "failed": 0,
        "sessions": herd.sessions,
        "left_out": 0,
    }
    stored = store.get(run_key(record["run_id"]))
    assert stored is not None
    assert json.loads(stored.data) == record
    if arena is not None:
        assert_ledger_agrees(record, arena)


def assert_ledger_agrees(record: Mapping[str, Any], arena: Arena) -> None:
    """Hold a run's record against the ledger's, and see that nothing is under way."""
    run_id = record["run_id"]
    assert arena.ledger.record(run_id) == record
    progress = arena.ledger.progress(run_id)
    assert (progress.state, progress.subjects, progress.ended) == ("ended", *[record["counts"]["subjects"]] * 2)
    assert arena.ledger.open_runs() == []
    assert arena.ledger.stages(run_id) == {}
    assert list(arena.client.scan_iter(f"training-status:run:{run_id}:work:*")) == []
