r"""The tasks of a subject: thin, a call of `core` each, between reading the ledger and writing it.

    summarise_days (one or more, in parallel) -> compute_statuses -> write_tables -> finish_run (after the last)
       \-> summarise_days in the extraction queue, for days with a session that has raw files and no trials

Every task can be delivered twice, or after its run has ended: it finds in the ledger that nothing is left to do.

A task returns one line for people who watch in Flower. One that ends its subject, or its run, as failed raises `Failed`
once the ledger has it: its message is acknowledged as any other's, and Flower shows it in red, with the reason.
"""

from __future__ import annotations

import inspect
import logging
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from typing import Any

import orjson
import redis
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from core.errors import (
    CorruptTable,
    ExtractionNeeded,
    PermanentError,
    StoreConflict,
    TrainingStatusError,
    TransientError,
)
from core.freshness import LABS_KEY, Look, note_looks
from core.join import join_days
from core.records import DaySummary, LeftOut, days_from_json, days_to_json, statuses_from_json, statuses_to_json
from core.schema import SCHEMA_VERSION, SOFTWARE_VERSION
from core.sources import Days, SubjectSource
from core.status import compute_statuses as statuses_of
from core.storage.base import Store, update
from core.summarise import summarise
from core.synchronise import find_work, put_tables
from core.tables import COHORT_KEY, build_tables, cohort_rows, cohort_subjects, merge_cohort, run_key, subject_keys
from workers import logs, messages, retry
from workers.app import app
from workers.context import context
from workers.records import Outcome, Produced, RunSpec, Subject

log = logging.getLogger(__name__)

#: Looks at a subject in one run: each is one writer that was faster.
MAX_LOOKS = 10
#: Times that a step of a subject may end with its process: that often, it is not the machine but the subject.
MAX_DEATHS = 5
#: What a task returns that came twice, or late.
NOTHING_LEFT = "nothing left to do"

#: Seconds after which a piece that is extracted lets others go before it: many sessions take longer than any task may.
EXTRACTION_SPELL = 120.0
#: What the disk says that another try will hear again.
PERMANENT_OS_ERRORS = (PermissionError, FileNotFoundError, NotADirectoryError)
#: What may pass: our own errors of that type, Redis out of reach, a message that could not be sent, a disk's hiccup.
TRANSIENT = (TransientError, redis.RedisError, OperationalError, OSError)
#: What is told of a subject that the cohort table has and the tree has not; without, and with --prune.
ABSENT = "no longer on disk: its tables are kept (refresh --prune takes it out of the cohort table)"
ABSENT_PRUNED = "no longer on disk: taken out of the cohort table; its own tables stay in the store"


class Failed(PermanentError):
    """A subject or a run has ended as failed, which is in the ledger; raised for people who watch."""


def try_again(task: Any, what: str, error: Exception) -> None:
    """Send the task once more after a while, by raising Celery's `Retry`; return where its tries are used up."""
    if task.request.retries >= retry.MAX_RETRIES:
        return
    log.warning("%s %s: %s: another try follows", task.name, what, error)
    countdown = retry.delay(task.request.retries + 1, random.random())
    shown = {"argsrepr": task.request.argsrepr, "kwargsrepr": task.request.kwargsrepr}  # Celery would not keep them
    raise task.retry(exc=error, countdown=countdown, max_retries=retry.MAX_RETRIES, **shown) from error


def subject_task(function: Callable[..., str]) -> Callable[..., str]:
    """Make the task of a subject: faults that may pass are tried again, all others end the subject as failed.

    Parameters
    ----------
    function : callable
        Takes the bound task, the run's specification, the subject, and what else its message holds; returns a line
        for people.
    """

    signature = inspect.signature(function)

    @wraps(function)
    def run(task: Any, run_id: str, name: str, *args: Any) -> str:
        try:
            signature.bind(task, None, name, *args)
        except TypeError as error:
            log.error("%s: a message that is not ours is dropped: %s", task.name, error)
            return "dropped: not a message of ours"
        subject = Subject.parse(name)
        ledger = context().ledger
        step = f"{task.name} {args[1] if len(args) > 1 else ''}"
        try:
            if ledger.stage(run_id, subject) is None:
                log.info("%s %s: nothing left to do in run %s", task.name, subject, run_id)
                return NOTHING_LEFT
            if ledger.entered(run_id, subject, step, task.request.id) > MAX_DEATHS:
                reason = f"{task.name}: its process died or was killed {MAX_DEATHS} times on it"
            else:
                try:
                    return function(task, ledger.spec(run_id), subject, *args)
                finally:
                    ledger.left(run_id, subject, step, task.request.id)
        except (PermanentError, *PERMANENT_OS_ERRORS) as error:
            reason = str(error)
        except TRANSIENT as error:
            try_again(task, str(subject), error)
            reason = f"{error} (after {retry.MAX_RETRIES + 1} tries)"
        except SoftTimeLimitExceeded:
            reason = f"{task.name} took longer than its time limit"
        except Exception as error:
            # A fault of ours: the subject is failed with its reason, the other subjects go on.
            log.exception("%s %s", task.name, subject)
            reason = f"{task.name}: {type(error).__name__}: {error}"
        raise fail(run_id, subject, reason)

    return logs.of_subject(run)


def fail(run_id: str, subject: Subject, reason: str) -> Failed:
    """End a subject as failed; return what its task raises to say so."""
    log.error("%s failed: %s", subject, reason)
    outcome = Outcome(state="failed", reason=reason.splitlines()[0] if reason else "unknown")
    end_subject(run_id, subject, outcome)
    return Failed(outcome.reason)


def end_subject(run_id: str, subject: Subject, outcome: Outcome) -> str:
    """Enter a subject's outcome; the last one's end is followed by the run's. Return a line for people."""
    if context().ledger.end(run_id, subject, outcome):
        messages.send_finish(context().ledger.spec(run_id))
    told = outcome.state if outcome.state == "unchanged" else _sessions(outcome.sessions, len(outcome.left_out))
    return f"{told}; {standing(run_id)}"


def standing(run_id: str) -> str:
    """Return in a few words where a run stands: subjects ended, of those found."""
    progress = context().ledger.progress(run_id)
    more = "+" if progress.state == "planning" else ""
    failed = f", {progress.failed} failed" if progress.failed else ""
    return f"run {progress.ended} of {progress.subjects}{more}{failed}"


def _sessions(done: int, left_out: int) -> str:
    return f"{done} sessions" + (f", {left_out} left out" if left_out else "")


@app.task(bind=True, name="training_status.summarise_days", throws=(Failed,))
@subject_task
def summarise_days(
    task: Any, spec: RunSpec, subject: Subject, attempt: int, piece: int, dates: list[str], extract: bool = False
) -> str:
    """Load and summarise some days of a subject; the last piece to come in sends the subject on.

    Where a session has raw files and no trials, and the run extracts, the piece is handed on to the extraction queue,
    whose workers get `extract`.
    """
    ledger = context().ledger
    work = ledger.work(spec.run_id, subject)
    if work is None or work.attempt != attempt or dict(enumerate(work.pieces)).get(piece) != tuple(dates):
        log.info("%s: piece %s is not of the latest look", subject, piece)
        return NOTHING_LEFT
    if ledger.has_piece(spec.run_id, subject, piece):
        # Whoever delivered it may have died before it sent what follows.
        under_way = ledger.stage(spec.run_id, subject) in ("summarising", "computing")
        if under_way and not ledger.pieces_missing(spec.run_id, subject):
            go_on(spec, subject)
        return NOTHING_LEFT
    if extract:
        ledger.keep([task.request.id])  # news: it may have waited for long, and takes a while now
    elif ledger.is_handed_on(spec.run_id, subject, piece):
        return "in line to be extracted"
    source = context().source(spec.source, spec.fingerprint).subject(subject.lab, subject.subject)
    sessions = find_work(source, dates, work.held)
    if extract:
        done = days_from_json(ledger.extracted(spec.run_id, subject, piece))
        days = extract_for_a_spell(source, sessions, done)
        if len(days) < len(sessions):
            known = days_to_json(days)
            if ledger.hand_on(spec.run_id, subject, attempt=attempt, piece=piece, dates=dates, days=known):
                messages.send_extract(spec, subject, attempt, piece, dates)
            return f"{len(days)} of {len(sessions)} days, the rest when it is in turn again"
    else:
        try:
            days = summarise(source.load(sessions, "elsewhere" if spec.extract else "off"))
        except ExtractionNeeded as error:
            if ledger.hand_on(spec.run_id, subject, attempt=attempt, piece=piece, dates=dates):
                messages.send_extract(spec, subject, attempt, piece, dates)
            return f"handed on to be extracted: {error}"
    count = sum(len(paths) for paths in sessions.values())
    complete = ledger.deliver(
        spec.run_id,
        subject,
        attempt=attempt,
        piece=piece,
        dates=dates,
        days=days_to_json(days),
        sessions=count,
    )
    if complete:
        go_on(spec, subject)
    return _sessions(count, sum(len(day.left_out) for day in days))


def extract_for_a_spell(source: SubjectSource, sessions: Days, done: Sequence[DaySummary]) -> list[DaySummary]:
    """Return the days of a piece that are done, and those that a spell has time for, one at least."""
    days = [day for day in done if day.date in sessions]
    known = {day.date for day in days}
    end = time.monotonic() + EXTRACTION_SPELL
    for date in sorted(sessions.keys() - known):
        days += summarise(source.load({date: sessions[date]}, "here"))
        if time.monotonic() >= end:
            break
    return days


def go_on(spec: RunSpec, subject: Subject) -> None:
    """Send a subject on that has all of its pieces."""
    context().ledger.set_stage(spec.run_id, subject, "computing")
    messages.send_statuses(spec, subject)


@app.task(bind=True, name="training_status.compute_statuses", throws=(Failed,))
@subject_task
def compute_statuses(task: Any, spec: RunSpec, subject: Subject) -> str:
    """Compute a subject's statuses in date order, from the first day on that is new, changed or gone."""
    ledger = context().ledger
    produced = ledger.produced(spec.run_id, subject)
    if produced is None:
        return NOTHING_LEFT
    statuses = statuses_of(_days(produced), known=statuses_from_json(produced.settled))
    ledger.set_statuses(spec.run_id, subject, produced.look, statuses_to_json(statuses))
    return f"{len(statuses)} days, {statuses[-1].status}" if statuses else "no day has a status"


@app.task(bind=True, name="training_status.write_tables", throws=(Failed,))
@subject_task
def write_tables(task: Any, spec: RunSpec, subject: Subject) -> str:
    """Build a subject's tables, put them into the store, and end the subject."""
    ledger = context().ledger
    produced = ledger.produced(spec.run_id, subject)
    if produced is None or produced.statuses is None:
        return NOTHING_LEFT
    days, work = _days(produced), produced.work
    dates = {date for piece in work.pieces for date in piece}
    left_out = (*work.left_out, *(left for day in days if day.date in dates for left in day.left_out))
    done = sum(len(day.inputs.keys() - work.held.get(day.date, ())) for day in days if day.date in dates)
    statuses = statuses_from_json(produced.statuses)
    if not statuses:
        # Nothing that was good is overwritten by nothing.
        return end_subject(spec.run_id, subject, Outcome(state="done", sessions=done, left_out=left_out))
    tables = build_tables(subject.lab, subject.subject, days, statuses)
    keys = subject_keys(subject.lab, subject.subject)
    try:
        put_tables(context().store(spec.store), keys, tables, work.base)
    except StoreConflict:
        if work.attempt + 1 >= MAX_LOOKS:
            raise
        log.warning("%s: somebody else wrote first, looking again", subject)
        ledger.set_stage(spec.run_id, subject, "waiting")
        messages.send_look(spec, subject, work.attempt + 1)
        return "somebody else wrote first: looked at again"
    outcome = Outcome(state="done", sessions=done, left_out=left_out, cohort=tables.cohort)
    return end_subject(spec.run_id, subject, outcome)


@app.task(bind=True, name="training_status.finish_run", throws=(Failed,))
def finish_run(task: Any, run_id: str) -> str:
    """Write the cohort table, the run's record and the time for each of its labs; the run has ended with it."""
    ledger = context().ledger
    if ledger.is_ended(run_id):
        return NOTHING_LEFT
    try:
        if not ledger.is_complete(run_id):
            log.warning("run %s: not all of its subjects have ended", run_id)
            return f"not yet; {standing(run_id)}"
        spec = ledger.spec(run_id)
        outcomes = ledger.outcomes(run_id)
        store = context().store(spec.store)
        rows = [row for outcome in outcomes.values() for row in outcome.cohort]
        pruned = {(subject.lab, subject.subject) for subject, outcome in outcomes.items() if outcome.pruned}
        absent: list[Subject] = []

        def merged(stored: bytes | None) -> bytes | None:
            try:
                absent[:] = _absent(spec, stored)
                without = pruned | {(subject.lab, subject.subject) for subject in absent if spec.prune}
                return merge_cohort(stored, rows, without) if rows or without or stored is None else None
            except CorruptTable as error:
                log.warning("%s: built anew from the stored tables", error)
                return merge_cohort(merge_cohort(None, _stored_cohort(spec)), rows, pruned)

        update(store, COHORT_KEY, merged)
        told = ABSENT_PRUNED if spec.prune else ABSENT
        ledger.leave_out(run_id, [LeftOut(session=str(subject), reason=told) for subject in absent])
        record = _record(spec, outcomes)
        data = orjson.dumps(record, option=orjson.OPT_INDENT_2)
        update(store, run_key(run_id), lambda stored: data if stored is None else None)
        # Where the answer to an earlier try got lost, its record is the one that is kept.
        kept = store.get(run_key(run_id))
        data = kept.data if kept else data
        if not spec.subjects and not spec.only:
            note_labs(store, orjson.loads(data), outcomes)
        ledger.close_run(run_id, data)
        return _told(record["counts"])
    except (PermanentError, *PERMANENT_OS_ERRORS) as error:
        reason = str(error)
    except TRANSIENT as error:
        try_again(task, run_id, error)
        reason = f"{error} (after {retry.MAX_RETRIES + 1} tries)"
    raise close_with_error(run_id, reason)


def note_labs(store: Store, record: dict[str, Any], outcomes: dict[Subject, Outcome]) -> None:
    """Note in the store which labs a run over whole labs has looked at; a run that changed no table too."""
    failed: dict[str, list[bool]] = {}
    for subject, outcome in outcomes.items():
        failed.setdefault(subject.lab, []).append(outcome.state == "failed")
    looks = {
        lab: Look(
            run_id=record["run_id"],
            started=record["started"],
            ended=record["ended"],
            subjects=len(each),
            failed=sum(each),
        )
        for lab, each in failed.items()
        if not all(each)  # it could not be looked at
    }
    update(store, LABS_KEY, lambda stored: note_looks(stored, record["kind"], looks))


def close_with_error(run_id: str, reason: str) -> Failed:
    """End a run that cannot go on as a whole; its record, with the reason, is in the ledger alone.

    Return what its task raises to say so.
    """
    log.error("run %s: %s", run_id, reason)
    ledger = context().ledger
    ledger.close_run(run_id, orjson.dumps(_record(ledger.spec(run_id), ledger.outcomes(run_id), error=reason)))
    return Failed(f"run {run_id}: {reason}")


def _told(counts: dict[str, int]) -> str:
    """Return a run's counts as a line for people: what is zero is not told."""
    ended = ", ".join(f"{counts[state]} {state}" for state in ("done", "unchanged", "failed") if counts[state])
    subjects = f"{counts['subjects']} subjects" + (f": {ended}" if ended else "")
    return f"{subjects}; {_sessions(counts['sessions'], counts['left_out'])}"


def _days(produced: Produced) -> list[DaySummary]:
    new = (day for part in produced.days for day in days_from_json(part))
    return join_days(days_from_json(produced.kept), new)


def _absent(spec: RunSpec, stored: bytes | None) -> list[Subject]:
    """Return the subjects of the cohort table that the source no longer has, of the labs that the run is over."""
    if stored is None or spec.only:
        return []
    wanted = [(lab, name) for lab, name in cohort_subjects(stored) if not spec.subjects or name in spec.subjects]
    source = context().source(spec.source, spec.fingerprint)
    return [Subject(lab=lab, subject=name) for lab, name in source.absent(spec.labs, wanted)]


def _stored_cohort(spec: RunSpec) -> list[dict[str, Any]]:
    """Return the cohort rows of every training table in the store."""
    store = context().store(spec.store)
    rows: list[dict[str, Any]] = []
    for key in store.keys("resources/training/"):
        if key.endswith("/training.pqt") and (stored := store.get(key)):
            lab, subject = key.split("/")[2:4]
            try:
                rows += cohort_rows(lab, subject, stored.data, key)
            except CorruptTable as error:
                log.warning("%s: left out of the cohort table", error)
    return rows


def _missing(spec: RunSpec) -> list[dict[str, str]]:
    """Return what the run's source does not tell of any session."""
    try:
        return [asdict(each) for each in context().source(spec.source, spec.fingerprint).missing]
    except TrainingStatusError:  # it cannot be opened, which is the run's error
        return []


def _record(spec: RunSpec, outcomes: dict[Subject, Outcome], error: str | None = None) -> dict[str, Any]:
    """Return what a run did, for people and for monitoring."""
    states = [outcome.state for outcome in outcomes.values()]
    left_out = [
        {"lab": subject.lab, "subject": subject.subject, "session": left.session, "reason": left.reason}
        for subject, outcome in outcomes.items()
        for left in outcome.left_out
    ]
    folders = context().ledger.left_out(spec.run_id)
    return {
        "run_id": spec.run_id,
        "kind": spec.kind,
        "source": spec.source,
        "store": spec.store,
        "labs": spec.labs,
        "subjects": spec.subjects,
        "only": spec.only,
        "prune": spec.prune,
        "fingerprint": spec.fingerprint,
        "extract": spec.extract,
        "error": error,
        "missing": _missing(spec),
        "started": spec.started,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": {
            "subjects": len(states),
            "done": states.count("done"),
            "unchanged": states.count("unchanged"),
            "failed": states.count("failed"),
            "sessions": sum(outcome.sessions for outcome in outcomes.values()),
            "left_out": len(left_out) + len(folders),
        },
        "failed": [
            {"lab": subject.lab, "subject": subject.subject, "reason": outcome.reason}
            for subject, outcome in outcomes.items()
            if outcome.state == "failed"
        ],
        "left_out": left_out,
        "folders_left_out": [{"folder": left.session, "reason": left.reason} for left in folders],
        "versions": {
            "training-status": SOFTWARE_VERSION,
            "schema": SCHEMA_VERSION,
            "python": platform.python_version(),
            **{name: version(name) for name in ("celery", "numpy", "pandas", "pyarrow", "scipy")},
        },
    }
