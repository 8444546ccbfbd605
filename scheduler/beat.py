"""Celery's beat with our schedule: it sends a tick when a run is due, and sees that ticks and runs are not lost.

A tick is what a run is to do, and the time at which it is due. Its message goes to a worker, which starts the run
unless the ledger knows that tick (`Ledger.open_due`): so any number of beats may send it, and any number of times.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

from celery import Celery
from celery.beat import PersistentScheduler, Service
from celery.schedules import BaseSchedule, schedstate
from filelock import FileLock, Timeout

from core.errors import ConfigurationError
from scheduler.schedule import Job, Schedule, due_times, last_due
from workers import messages
from workers.ledger import Ledger
from workers.reconcile import reconcile
from workers.records import RunSpec

log = logging.getLogger(__name__)

#: Seconds for which beat sleeps at most, so that it is not late where the machine's clock is set.
_LONGEST_SLEEP = 60


class Times(BaseSchedule):
    """A crontab in a time zone, as Celery asks for it.

    Parameters
    ----------
    crontab : str
        Five fields.
    zone : str
        Name of the time zone.
    """

    def __init__(self, crontab: str, zone: str) -> None:
        super().__init__()
        self.crontab = crontab
        self.zone = zone

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether a due time has come since `last_run_at`, however many, and the seconds to the next."""
        now = self.now()
        due = next(due_times(self.crontab, ZoneInfo(self.zone), last_run_at))
        following = next(due_times(self.crontab, ZoneInfo(self.zone), now))
        return schedstate(due <= now, (following - now).total_seconds())

    def last(self, at: datetime) -> datetime | None:
        """Return the last due time that is not after `at`, in UTC."""
        return last_due(self.crontab, ZoneInfo(self.zone), at)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Times) and (self.crontab, self.zone) == (other.crontab, other.zone)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.crontab, self.zone)

    def __repr__(self) -> str:
        return f"<{self.crontab} {self.zone}>"


class Scheduler(PersistentScheduler):
    """Celery's scheduler, whose entries are ticks; in between it looks for what was lost.

    Celery keeps in a file when each entry was last sent. After a time in which beat did not run, an entry is due
    once, for the latest of the times that it missed.

    Parameters
    ----------
    ledger : Ledger
        Where runs and ticks are.
    patience : float
        Seconds between two looks, and without news after which something is lost.
    pid_file : Path
        Touched at each turn, every minute at least, for whoever watches that beat is alive.
    **settings
        Celery's.
    """

    #: Messages go out through the application's own connections, which are made anew where Redis was away; one that
    #: Celery waits for here would hold up everything else.
    producer = None  # type: ignore[assignment]

    def __init__(self, *args: Any, ledger: Ledger, patience: float, pid_file: Path, **settings: Any) -> None:
        self.ledger = ledger
        self.patience = patience
        self.pid_file = pid_file
        self._looked = -float("inf")
        super().__init__(*args, **settings)

    def install_default_entries(self, data: Any) -> None:
        """Add nothing: Celery would have results cleaned up each night, and there are none."""

    def tick(self, *options: Any) -> float:
        """Do what is due, one entry a call; look for what was lost first, where it is time."""
        with suppress(OSError):  # a disk that is full
            self.pid_file.touch()
        if time.monotonic() - self._looked >= self.patience:
            self.look()
            self._looked = time.monotonic()
        return min(float(super().tick(*options)), self.patience)

    def look(self) -> None:
        """Send again what runs owe, and ticks of which the ledger knows nothing."""
        try:
            if sent := reconcile(self.ledger, self.patience):
                log.warning("sent again what %d subjects were waiting for", sent)
            for entry in cast(Any, self.schedule).values():
                if not entry.total_run_count or entry.is_due().is_due:  # never sent, or about to be
                    continue
                due = entry.schedule.last(entry.last_run_at)
                if due is None or self.ledger.knows(RunSpec.parse(entry.args[0]), due):
                    continue
                if (entry.schedule.now() - entry.last_run_at).total_seconds() >= self.patience:
                    log.warning("%s, due %s: not begun, sent again", entry.name, due.isoformat())
                    messages.send_start(RunSpec.parse(entry.args[0]), due)
        except Exception as error:
            # Redis or the disk is away, most likely; whatever it is, beat goes on and looks again.
            log.warning("cannot look for what is owed: %s: %s", type(error).__name__, error)

    def sync(self) -> None:
        """Save when each entry was last sent; a disk that is full does not end beat, for the ledger knows the ticks."""
        try:
            super().sync()
        except Exception as error:
            log.error("cannot save what was sent: %s: %s", type(error).__name__, error)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> None:
        """Send the tick of an entry, for the latest of its due times; where that fails, `look` sends it again."""
        try:
            due = entry.schedule.last(entry.schedule.now())
            if due is not None:
                messages.send_start(RunSpec.parse(entry.args[0]), due)
        finally:
            cast(Any, self)._do_sync()  # noted on the disk at once, and not after some minutes


def entry(job: Job, zone: ZoneInfo, spec: RunSpec) -> dict[str, Any]:
    """Return Celery's entry of a job, by its name.

    Parameters
    ----------
    job : Job
        When it is due. Its name has the crontab in it: one that is changed has missed nothing.
    zone : ZoneInfo
        The time zone of its crontab.
    spec : RunSpec
        What its runs are to do; its id and its start are left open.
    """
    times = Times(job.crontab, zone.key)
    return {f"{job} {zone.key}": {"task": "training_status.start_run", "schedule": times, "args": (asdict(spec),)}}


def entries(schedule: Schedule, *, source: str, store: str, extract: bool = False) -> dict[str, Any]:
    """Return Celery's entries for the jobs of a schedule, on a source and a store; whether their runs extract."""
    found: dict[str, Any] = {}
    for job in schedule.jobs:
        spec = RunSpec(run_id="", kind=job.kind, source=source, store=store, labs=job.labs, extract=extract)
        found |= entry(job, schedule.zone, spec)
    return found


def run(app: Celery, schedule: dict[str, Any], state: Path, ledger: Ledger, patience: float) -> None:
    """Run beat until told to stop (SIGTERM or SIGINT).

    Parameters
    ----------
    app : celery.Celery
        Pointed at a broker.
    schedule : dict
        Celery's entries, as :func:`entries` makes them.
    state : Path
        Folder of beat's own, made where there is none.
    ledger : Ledger
        In the broker's Redis.
    patience : float
        Seconds between two looks for what was lost, and without news after which it is.

    Raises
    ------
    ConfigurationError
        Where another beat has the folder, or it cannot be written.
    """
    with held(state) as pid_file:
        app.conf.beat_schedule = schedule
        service = Service(
            app,
            max_interval=_LONGEST_SLEEP,
            schedule_filename=str(state / "schedule"),
            scheduler_cls=cast(Any, partial(Scheduler, ledger=ledger, patience=patience, pid_file=pid_file)),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        service.start()  # until a signal raises SystemExit in it: it saves its state, and returns


@contextmanager
def held(state: Path) -> Iterator[Path]:
    """Keep the state folder for this process, and yield its pid file; however the process ends, the folder is free.

    Raises
    ------
    ConfigurationError
        Where another beat has it, or it cannot be written.
    """
    pid_file = state / "beat.pid"
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = FileLock(state / "beat.lock", timeout=0)
        lock.acquire()
        pid_file.write_text(f"{os.getpid()}\n")
    except Timeout:
        raise ConfigurationError(f"another beat has the folder {str(state)!r}: each needs one of its own") from None
    except OSError as error:
        raise ConfigurationError(f"the folder {str(state)!r} cannot be written: {error.strerror}") from None
    try:
        yield pid_file
    finally:
        pid_file.unlink(missing_ok=True)
        lock.release()


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(0)
