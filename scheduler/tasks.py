"""The planning tasks: each takes the next few subjects of a run, hands on the rest, then looks at its own.

So planning is spread over the workers, is lazy (urgent work downstream goes before it), and survives whoever dies.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from core.errors import PermanentError
from core.records import LeftOut, days_to_json, statuses_to_json
from core.synchronise import look
from core.tables import cohort_rows, subject_keys
from scheduler.plan import CHUNK_SUBJECTS, cut, first_subjects, subjects_after
from workers import messages, retry
from workers.app import app
from workers.context import context
from workers.records import Outcome, RunSpec, Subject, Work
from workers.tasks import (
    ABSENT_PRUNED,
    NOTHING_LEFT,
    PERMANENT_OS_ERRORS,
    TRANSIENT,
    Failed,
    close_with_error,
    end_subject,
    standing,
    subject_task,
    try_again,
)

log = logging.getLogger(__name__)


@app.task(bind=True, name="training_status.start_run")
def start_run(task: Any, asked: dict[str, Any], due: str) -> str:
    """Start the run that the schedule has at `due`, unless that was done or the same is still running.

    The run's id is made of the tick alone, so that whoever gets this message once more means the same run.
    """
    try:
        spec, at = RunSpec.parse(asked), datetime.fromisoformat(due)
        if spec.kind not in ("recompute", "refresh") or at.tzinfo is None:
            raise ValueError("neither a recompute nor a refresh, or a time without its zone")
        at = at.astimezone(UTC)
        spec = replace(
            spec,
            run_id=f"{at:%Y%m%dT%H%M%S}-{spec.same[:8]}",
            started=max(at, datetime.now(UTC)).isoformat(timespec="seconds"),
        )
        what = f"{spec.kind} of {', '.join(spec.labs) or 'all labs'}, due {at:%Y-%m-%dT%H:%M:%SZ}"
    except (TypeError, ValueError, AttributeError) as error:
        log.error("%s: a message that is not ours is dropped: %s", task.name, error)
        return "dropped: a message that is not ours"
    try:
        state, run_id = context().ledger.open_due(spec, at)
        if state == "started":
            messages.send_plan(spec)
    except TRANSIENT as error:
        # Where its tries are used up, beat finds that the ledger does not know this tick, or the run owes its plan.
        try_again(task, what, error)
        return f"not started: {error}"
    if state == "running":
        log.warning("%s: not started: run %s of the same has not ended", what, run_id)
        return f"not started: run {run_id} of the same has not ended"
    if state == "done":
        log.info("%s: begun already", what)
        return "begun already"
    log.info("%s: run %s", what, run_id)
    return f"run {run_id}"


@app.task(bind=True, name="training_status.recompute", throws=(Failed,))
def recompute(task: Any, run_id: str, cursor: str, again: str | None = None, attempt: int = 0) -> str:
    """Plan the next subjects of a recompute, or look at one of them again."""
    return _plan(task, run_id, cursor, again, attempt)


@app.task(bind=True, name="training_status.refresh", throws=(Failed,))
def refresh(task: Any, run_id: str, cursor: str, again: str | None = None, attempt: int = 0) -> str:
    """Plan the next subjects of a refresh, or look at one of them again."""
    return _plan(task, run_id, cursor, again, attempt)


def _plan(task: Any, run_id: str, cursor: str, again: str | None, attempt: int) -> str:
    ledger = context().ledger
    try:
        if ledger.is_ended(run_id):
            return NOTHING_LEFT
        ledger.planning(run_id, task.request.id)
        spec = ledger.spec(run_id)
        subjects = [Subject.parse(again)] if again else register_next(spec, cursor)
    except (PermanentError, *PERMANENT_OS_ERRORS) as error:
        raise close_with_error(run_id, str(error)) from None
    except TRANSIENT as error:
        try_again(task, run_id, error)
        raise close_with_error(run_id, f"{error} (after {retry.MAX_RETRIES + 1} tries)") from None
    failed: list[str] = []
    for subject in subjects:
        if ledger.stage(run_id, subject) == "waiting":
            try:
                begin_subject(task, run_id, str(subject), attempt)
            except Failed as error:  # the others go on
                failed.append(f"{subject}: {error}")
    if failed:
        raise Failed("; ".join(failed))
    return f"{len(subjects)} subjects looked at; {standing(run_id)}"


def register_next(spec: RunSpec, cursor: str) -> list[Subject]:
    """Register the next subjects as owed, send the message that plans those behind them, and return them."""
    ledger = context().ledger
    source = context().source(spec.source, spec.fingerprint)
    found = subjects_after(source, spec, cursor)
    subjects: list[Subject] = []
    odd: list[LeftOut] = []
    for item in found:
        if isinstance(item, LeftOut):
            odd.append(item)
        else:
            subjects.append(item)
        if len(subjects) == CHUNK_SUBJECTS:
            break
    ledger.leave_out(spec.run_id, odd)
    ledger.register(spec.run_id, subjects)
    if len(subjects) < CHUNK_SUBJECTS:
        if ledger.set_planned(spec.run_id):
            messages.send_finish(spec)
    elif ledger.advance(spec.run_id, cursor, str(subjects[-1])):
        messages.send_plan(spec, str(subjects[-1]))
        if not cursor:
            # After the message, so that other workers go on with the plan meanwhile.
            first = first_subjects(source, spec)
            ledger.register(spec.run_id, first)
            subjects = [*first, *(subject for subject in subjects if subject not in first)]
    return subjects


@subject_task
def begin_subject(task: Any, spec: RunSpec, subject: Subject, attempt: int) -> str:
    """Look at a subject: end it where nothing has changed, else send its days to be summarised."""
    ledger, store = context().ledger, context().store(spec.store)
    keys = subject_keys(subject.lab, subject.subject)
    seen = look(
        context().source(spec.source, spec.fingerprint).subject(subject.lab, subject.subject),
        store,
        keys,
        everything=spec.kind == "recompute",
        again=attempt > 0,
        prune=spec.prune,
        extract=spec.extract,
    )
    if seen.unchanged:
        # A subject without a session on disk stays in the cohort table, or out of it, as it is.
        table = None if seen.empty else seen.table
        rows = cohort_rows(subject.lab, subject.subject, table, keys.training) if table else ()
        return end_subject(spec.run_id, subject, Outcome(state="unchanged", left_out=seen.left_out, cohort=tuple(rows)))
    if not seen.dates and not seen.kept:
        # Nothing that was good is overwritten by nothing: the subject's own tables stay.
        pruned = spec.prune and seen.empty and seen.table is not None
        reason = ABSENT_PRUNED if pruned else "no session folder found"
        left_out = seen.left_out or (LeftOut(session=str(subject), reason=reason),)
        return end_subject(spec.run_id, subject, Outcome(state="done", left_out=left_out, pruned=pruned))
    work = Work(pieces=cut(seen.dates), base=seen.base, left_out=seen.left_out, attempt=attempt, held=seen.held)
    ledger.begin(spec.run_id, subject, work, days_to_json(seen.kept), statuses_to_json(seen.settled))
    for piece, dates in enumerate(work.pieces):
        messages.send_summarise(spec, subject, attempt, piece, dates)
    if not work.pieces:
        messages.send_statuses(spec, subject)
    return "begun"
