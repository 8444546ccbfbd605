"""The messages that lead from one task to the next; their arguments show as a person reads them in Flower."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from workers.app import EXTRACTION_QUEUE, app, lists_of, priority
from workers.ledger import Ledger
from workers.records import RunSpec, Subject


def send_plan(spec: RunSpec, cursor: str = "") -> None:
    """Send the task that plans the next subjects of a run, those after `cursor` (lab/subject)."""
    _send(spec, spec.kind, [spec.run_id, cursor], f"{spec.run_id} after {cursor or 'the start'}")


def send_start(spec: RunSpec, due: datetime) -> None:
    """Send the task that starts a run which the schedule has at `due`; what it is to do is in `spec`, no run id."""
    what = f"{spec.kind} of {', '.join(spec.labs) or 'all labs'}, due {due.astimezone(UTC):%Y-%m-%dT%H:%MZ}"
    _send(spec, "start_run", [asdict(spec), due.astimezone(UTC).isoformat()], what)


def send_look(spec: RunSpec, subject: Subject, attempt: int) -> None:
    """Send the task that looks at one subject again, after `attempt` looks."""
    _send(spec, spec.kind, [spec.run_id, "", str(subject), attempt], f"{subject} again, look {attempt + 1}")


def send_summarise(spec: RunSpec, subject: Subject, attempt: int, piece: int, dates: Sequence[str]) -> None:
    """Send the task that summarises some days of a subject."""
    shown = f"{subject} {dates[0]}..{dates[-1]}"
    _send(spec, "summarise_days", [spec.run_id, str(subject), attempt, piece, list(dates)], shown)


def send_extract(spec: RunSpec, subject: Subject, attempt: int, piece: int, dates: Sequence[str]) -> None:
    """Send the task that summarises some days of a subject, extracting trials where there are none."""
    shown = f"{subject} {dates[0]}..{dates[-1]}, extracting"
    args = [spec.run_id, str(subject), attempt, piece, list(dates), True]
    _signature(spec, "summarise_days", args, shown).apply_async(queue=EXTRACTION_QUEUE)


def send_statuses(spec: RunSpec, subject: Subject) -> None:
    """Send the chain that computes a subject's statuses and writes its tables."""
    statuses = _signature(spec, "compute_statuses", [spec.run_id, str(subject)], str(subject))
    write = _signature(spec, "write_tables", [spec.run_id, str(subject)], str(subject))
    (statuses | write).apply_async(priority=statuses.options["priority"])


def send_finish(spec: RunSpec) -> None:
    """Send the task that ends a run."""
    _send(spec, "finish_run", [spec.run_id], spec.run_id)


def send_owed(ledger: Ledger, spec: RunSpec, patience: float) -> int:
    """Send once more what a run owes and has not heard of for `patience` seconds; return for how many subjects.

    Harmless where the message was not lost but is slow: every task can run twice.
    """
    before = time.time() - patience
    waits_for = ledger.stalled(spec.run_id, before)
    if waits_for:
        ledger.touch(spec.run_id)
    if waits_for == "planning":
        send_plan(spec, ledger.cursor(spec.run_id))
    elif waits_for == "finishing":
        send_finish(spec)
    count = 0
    for subject, stage in list(ledger.owed(spec.run_id, before)):
        ledger.sent_again(spec.run_id, subject, patience)  # before the sending, which is news and sets the wait anew
        work = ledger.work(spec.run_id, subject)
        if stage == "waiting" or work is None:
            send_look(spec, subject, work.attempt if work else 0)
        elif missing := ledger.pieces_missing(spec.run_id, subject):
            handed_on = [piece for piece in missing if ledger.is_handed_on(spec.run_id, subject, piece)]
            if handed_on and ledger.any_waiting(lists_of(EXTRACTION_QUEUE)):
                # It is in line there. If it is not, it is missed once that queue is empty; copies would only pile up.
                missing = [piece for piece in missing if piece not in handed_on]
            for piece in missing:
                send = send_extract if piece in handed_on else send_summarise
                send(spec, subject, work.attempt, piece, work.pieces[piece])
            if not missing:
                continue
        else:
            send_statuses(spec, subject)
        count += 1
    return count


def _signature(spec: RunSpec, task: str, args: list[Any], shown: str) -> Any:
    name = f"training_status.{task}"
    options = {"priority": priority(name, spec.kind), "argsrepr": shown, "kwargsrepr": ""}
    return app.signature(name, args=args, immutable=True, options=options)


def _send(spec: RunSpec, task: str, args: list[Any], shown: str) -> None:
    _signature(spec, task, args, shown).apply_async()
