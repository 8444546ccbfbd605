"""End a worker that hangs in its own end, so that whoever supervises it starts another.

A worker that stops waits for what its pool still has to say. Where a pool process has died amid a word, it waits for
ever (Celery 5.7 says so itself, in `celery/concurrency/asynpool.py`): a worker that is alive, does nothing, and is
never started again. So from the moment it stops, a thread watches, and ends the process once the pool is dead and
its parent is still there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from celery import Celery, bootsteps

log = logging.getLogger(__name__)

#: Seconds that a worker may outlive its pool: what it does then takes well under one.
OUTLIVES = 15.0
_LOOK_EVERY = 0.5
_EXIT_CODE = 70  # "internal software error", sysexits.h


class EndHungWorker(bootsteps.StartStopStep):
    """A step of the worker's end, before that of its pool."""

    requires = ("celery.worker.components:Pool",)

    def stop(self, worker: Any) -> None:
        """Watch the end of `worker` from now on."""
        pool = getattr(worker.pool, "_pool", None)
        processes = list(getattr(pool, "_pool", None) or ())
        threading.Thread(target=end_if_hung, args=[processes, OUTLIVES], daemon=True).start()

    def terminate(self, worker: Any) -> None:
        """Likewise."""
        self.stop(worker)


def end_if_hung(processes: list[Any], outlives: float) -> None:
    """End this process `outlives` seconds after the last of its pool's processes, where it has not ended by itself.

    Parameters
    ----------
    processes : list of billiard.Process
        The pool.
    outlives : float
        Seconds.
    """
    dead_since = None
    while dead_since is None or time.monotonic() - dead_since < outlives:
        time.sleep(_LOOK_EVERY)
        if any(_is_alive(process) for process in processes):
            dead_since = None
        elif dead_since is None:
            dead_since = time.monotonic()
    log.critical("this worker hangs in its end, its pool is dead: it is ended; what it had is sent again")
    os._exit(_EXIT_CODE)


def watch_end(app: Celery) -> None:
    """Have workers of `app` not outlive their pools."""
    app.steps["worker"].add(EndHungWorker)


def _is_alive(process: Any) -> bool:
    try:
        return bool(process.is_alive())
    except (AssertionError, OSError):  # it is not a child of this process any more
        return False
