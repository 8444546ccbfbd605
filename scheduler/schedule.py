"""The schedule: which runs are due when. Pure: texts and times in, times out; nothing here looks at a clock.

A schedule is crontab texts read in one time zone. `cronsim` finds the times, by the rules of Debian's cron where
clocks change: a job at an hour that is named runs once on each of its days, neither skipped nor doubled; one whose
hour is ``*`` runs by elapsed time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from core.errors import ConfigurationError
from core.names import check_lab

Kind = Literal["refresh", "recompute"]

#: In place of a crontab: there is no such job.
NEVER = "never"
_FIELDS = "five fields are wanted, minute hour day-of-month month day-of-week, as in '0 2 * * mon-fri'"
#: How far back a due time is looked for: the first that holds one is enough.
_WINDOWS = (timedelta(hours=2), timedelta(days=3), timedelta(days=70), timedelta(days=800), timedelta(days=11_000))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A kind of run that is due at the times of a crontab."""

    kind: Kind
    crontab: str  # five fields, with one space between them
    lab: str | None = None  # all labs of the tree where None

    @property
    def labs(self) -> tuple[str, ...]:
        """The labs of its runs, as a run's specification has them: none means all."""
        return () if self.lab is None else (self.lab,)

    def __str__(self) -> str:
        return f"{self.kind} of {self.lab or 'all labs'} at '{self.crontab}'"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Jobs, and the time zone that their crontabs are read in."""

    jobs: tuple[Job, ...]
    zone: ZoneInfo

    def covering(self, lab: str) -> tuple[Job, ...]:
        """Return the jobs whose runs look at `lab`."""
        return tuple(job for job in self.jobs if job.lab in (None, lab))

    def next_times(self, job: Job, now: datetime, count: int) -> list[datetime]:
        """Return the next due times of a job, in the schedule's time zone."""
        return [due.astimezone(self.zone) for due in islice(due_times(job.crontab, self.zone, now), count)]


def parse_jobs(kind: Kind, text: str) -> tuple[Job, ...]:
    """Return the jobs of one kind that a setting asks for.

    Parameters
    ----------
    kind : {'refresh', 'recompute'}
    text : str
        Entries separated by ``;``: a crontab, for all labs, or ``LAB=crontab``, for that lab alone. ``never``
        alone: no jobs.

    Raises
    ------
    ConfigurationError
        Where an entry is no crontab, or two are for the same labs.
    """
    if text.strip().lower() == NEVER:
        return ()
    jobs: list[Job] = []
    for entry in text.split(";"):
        name, equals, crontab = entry.rpartition("=")
        job = Job(kind=kind, crontab=check_crontab(crontab), lab=check_lab(name.strip()) if equals else None)
        if any(job.lab == other.lab for other in jobs):
            raise ConfigurationError(f"two entries for {f'lab {job.lab!r}' if job.lab else 'all labs'}: one is wanted")
        jobs.append(job)
    return tuple(jobs)


def check_crontab(text: str) -> str:
    """Return a crontab's text with single spaces, if it is one and its time ever comes.

    Raises
    ------
    ConfigurationError
        Where it is not.
    """
    crontab = " ".join(text.split())
    shown = repr(crontab[:80])
    if not crontab:
        raise ConfigurationError(f"an entry is empty: {_FIELDS}, or {NEVER!r} alone for no such job")
    if len(crontab.split()) != 5:  # cronsim would take a sixth, for seconds
        raise ConfigurationError(f"{shown} is no crontab: {_FIELDS}")
    try:
        comes = next(due_times(crontab, ZoneInfo("UTC"), datetime(2024, 1, 1, tzinfo=UTC)), None)
    except (CronSimError, ValueError) as error:
        raise ConfigurationError(f"{shown} is no crontab: {str(error).lower()[:80]}; {_FIELDS}") from None
    if comes is None:
        raise ConfigurationError(f"{shown} is a time that never comes")
    return crontab


def parse_zone(name: str) -> ZoneInfo:
    """Return the time zone of that name.

    Raises
    ------
    ConfigurationError
        Where there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(f"{name[:80]!r} is no time zone: a name as Europe/London or UTC is wanted") from None


def due_times(crontab: str, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """Yield the times of a crontab that come after a time, in UTC, each later than the one before; endless.

    Parameters
    ----------
    crontab : str
    zone : ZoneInfo
        The time zone that it is read in.
    after : datetime
        With a time zone, whichever.
    """
    last = after.astimezone(UTC)
    for local in CronSim(_with_fixed_minutes(crontab), after.astimezone(zone)):
        due = local.astimezone(UTC)
        # Earlier or the same, where clocks change: the first of two 01:30 where it is past, two times in a gap.
        if due > last:
            yield due
            last = due


def last_due(crontab: str, zone: ZoneInfo, at: datetime) -> datetime | None:
    """Return the last time of a crontab that is not after `at`, in UTC; None where there is none in thirty years."""
    # Forward from earlier: cronsim goes backward too, but not to the same times where clocks are set back.
    for window in _WINDOWS:
        found = next(due_times(crontab, zone, at - window), None)
        if found is not None and found <= at:
            break
    else:
        return None
    # Halve what is left: one by one, the minutes of two months would take seconds.
    until = at  # behind it nothing is due before `at` has passed
    while until - found > timedelta(minutes=1):
        middle = found + (until - found) / 2
        due = next(due_times(crontab, zone, middle), None)
        if due is not None and due <= at:
            found = due
        else:
            until = middle
    for due in due_times(crontab, zone, found):
        if due > at:
            break
        found = due
    return found


def _with_fixed_minutes(crontab: str) -> str:
    """Return the crontab with its minutes by number where its hours are, or cron would take ``*/20 1`` as elapsed."""
    minute, hour, *days = crontab.split()
    if minute.startswith("*") and not hour.startswith("*"):
        numbers = CronSim(f"{minute} * * * *", datetime(2024, 1, 1)).minutes
        minute = ",".join(map(str, sorted(numbers)))
    return " ".join((minute, hour, *days))
