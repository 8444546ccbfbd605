"""Every way to kill something amid a run, as one enum that the tests run through."""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Callable

import psutil

_GONE_WITHIN = 60.0  # seconds


def _pool(worker: psutil.Process) -> list[psutil.Process]:
    return worker.children(recursive=True)


def _wait(*processes: psutil.Process) -> None:
    _, alive = psutil.wait_procs(processes, timeout=_GONE_WITHIN)
    # A child of this process stays as a zombie until its Popen asks; that is as dead as can be.
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _kill_pool_child(worker: psutil.Process, redis: psutil.Process) -> None:
    child = _pool(worker)[-1]
    child.kill()
    _wait(child)


def _kill_pool(worker: psutil.Process, redis: psutil.Process) -> None:
    children = _pool(worker)
    for child in children:
        child.kill()
    _wait(*children)


def _kill_worker(worker: psutil.Process, redis: psutil.Process) -> None:
    processes = [worker, *_pool(worker)]
    os.killpg(worker.pid, signal.SIGKILL)
    _wait(*processes)


def _kill_workers_parent(worker: psutil.Process, redis: psutil.Process) -> None:
    worker.kill()
    _wait(worker)


def _stop_worker_warm(worker: psutil.Process, redis: psutil.Process) -> None:
    worker.terminate()


def _stop_worker_cold(worker: psutil.Process, redis: psutil.Process) -> None:
    worker.send_signal(signal.SIGQUIT)


def _kill_redis(worker: psutil.Process, redis: psutil.Process) -> None:
    redis.kill()
    _wait(redis)


def _kill_redis_and_worker(worker: psutil.Process, redis: psutil.Process) -> None:
    _kill_redis(worker, redis)
    _kill_worker(worker, redis)


@enum.unique
class Kill(enum.Enum):
    """A way to kill; call it with the worker's and the Redis's process."""

    POOL_CHILD = enum.member(_kill_pool_child)
    #: All pool processes at once, as the kernel does when memory runs out.
    POOL = enum.member(_kill_pool)
    #: A whole worker with what it has reserved, as when a machine is lost.
    WORKER = enum.member(_kill_worker)
    #: The worker's parent alone: its pool processes are left behind, amid their tasks.
    WORKERS_PARENT = enum.member(_kill_workers_parent)
    #: SIGTERM: the tasks under way are finished first. As `docker stop` and an upgrade do.
    WORKER_WARM = enum.member(_stop_worker_warm)
    #: SIGQUIT: the tasks under way are dropped.
    WORKER_COLD = enum.member(_stop_worker_cold)
    REDIS = enum.member(_kill_redis)
    REDIS_AND_WORKER = enum.member(_kill_redis_and_worker)

    def __call__(self, worker: psutil.Process, redis: psutil.Process) -> None:
        """Kill; return when what was killed at once is dead."""
        method: Callable[[psutil.Process, psutil.Process], None] = self.value
        method(worker, redis)
