"""Which labs are late: held against the schedule, as a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from core.freshness import Lab, Look
from scheduler.schedule import Job, Schedule, last_due

#: Of the time between two due times, what a run may take before its lab is late.
GRACE = 0.25


@dataclass(frozen=True, kw_only=True)
class Late:
    """A job that should have looked at a lab, and has not."""

    job: Job
    due: datetime | None  # since when nothing has; None where nothing ever has


@dataclass(frozen=True, kw_only=True)
class LabState:
    """Where a lab stands."""

    lab: str
    refresh: Look | None  # the latest look of any kind
    recompute: Look | None  # the latest recompute
    scheduled: bool
    late: tuple[Late, ...] = ()


def judge(
    schedule: Schedule,
    looks: Mapping[str, Lab],
    labs: Iterable[str],
    now: datetime,
    grace: timedelta | None = None,
) -> list[LabState]:
    """Return where each lab stands, by name: those of the store, and those that the schedule names.

    A lab is late where a job was due, time enough has passed for its run, and no run that does the same has ended
    since; or where a job covers it and no run ever did. A run that began before and ended after counts: while it had
    not ended, the one that was due was not started.

    Parameters
    ----------
    schedule : Schedule
        Without jobs, no lab is late.
    looks : mapping of str to Lab
        What the store says, as `core.freshness.read_labs` gives it.
    labs : iterable of str
        Labs that have mice in the store.
    now : datetime
        With a time zone.
    grace : timedelta, optional
        What a run may take; a quarter of the time between the last two due times where not given.
    """
    named = {job.lab for job in schedule.jobs if job.lab}
    states = []
    for name in sorted({*labs, *looks, *named}):
        lab, jobs = looks.get(name, Lab()), schedule.covering(name)
        late = tuple(found for job in jobs if (found := _late(job, schedule, lab, now, grace)))
        states.append(
            LabState(lab=name, refresh=lab.last("refresh"), recompute=lab.recompute, scheduled=bool(jobs), late=late)
        )
    return states


def _late(job: Job, schedule: Schedule, lab: Lab, now: datetime, grace: timedelta | None) -> Late | None:
    look = lab.last(job.kind)
    if look is None:
        return Late(job=job, due=None)
    if grace is None:
        latest = last_due(job.crontab, schedule.zone, now) or now
        before = last_due(job.crontab, schedule.zone, latest - timedelta(seconds=1)) or latest
        grace = GRACE * (latest - before)
    due = last_due(job.crontab, schedule.zone, now - grace)
    if due is None or datetime.fromisoformat(look.ended) >= due:
        return None
    return Late(job=job, due=due)
