"""`training-status runs` and `retry`: what a run has done, is doing, and could not do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click
import orjson

from core.errors import ConfigurationError
from scheduler.cli.exits import Exit
from scheduler.cli.options import json_option, option

_BROKER = option("--broker", required=True, help="URL of the Redis that carries the runs.")


@click.command()
@click.argument("run_id", required=False)
@_BROKER
@option("--watch", is_flag=True, help="Show the progress of RUN_ID until it ends.")
@json_option
def runs(run_id: str | None, broker: str, watch: bool, as_json: bool) -> int:
    """List the runs of the last week, or show one.

    \b
    training-status runs --broker redis://localhost:6379/0
    training-status runs 20261122T080000-abc123 --watch --broker redis://localhost:6379/0
    """
    from scheduler.cli.run import follow, interruptible
    from workers.app import configure

    ledger = _ledger(broker)
    configure(broker)
    if run_id is None:
        if watch:
            raise ConfigurationError("--watch takes the id of a run: `training-status runs` lists them")
        _list(ledger, as_json)
        return Exit.DONE
    spec = _known(ledger, run_id)
    if watch:
        with interruptible(spec, embedded=False):
            return follow(ledger, spec, as_json=as_json)
    _show(ledger, spec, as_json)
    return Exit.DONE


@click.command()
@click.argument("run_id")
@_BROKER
@option("--no-wait", is_flag=True, help="Return at once.")
@json_option
def retry(run_id: str, broker: str, no_wait: bool, as_json: bool) -> int:
    """Try once more, in a run of its own, the subjects that failed in RUN_ID.

    Where the run as a whole could not go on, all of it is tried again: its other subjects are not in the cohort table.

    \b
    training-status retry 20261122T080000-abc123 --broker redis://localhost:6379/0
    """
    from scheduler import runs as running
    from scheduler.cli.run import follow, interruptible, told_started
    from workers.app import configure

    ledger = _ledger(broker)
    spec = _known(ledger, run_id)
    record = ledger.record(run_id)
    if record is None:
        raise ConfigurationError(f"run {run_id} has not ended: `training-status runs {run_id} --watch` waits for it")
    failed = tuple(f"{subject['lab']}/{subject['subject']}" for subject in record["failed"])
    if not failed and not record["error"]:
        raise ConfigurationError(f"nothing failed in run {run_id}")
    configure(broker)
    again = running.once_more(spec, only=spec.only if record["error"] else failed)
    with interruptible(again, embedded=False):
        running.start(ledger, again)
        if no_wait:
            told_started(again, as_json)
            return Exit.DONE
        return follow(ledger, again, as_json=as_json)


def _ledger(broker: str) -> Any:
    from workers.broker import check, connect
    from workers.ledger import Ledger

    client = connect(broker)
    check(client, broker)
    return Ledger(client)


def _known(ledger: Any, run_id: str) -> Any:
    from core.errors import PermanentError

    try:
        return ledger.spec(run_id)
    except PermanentError:
        raise ConfigurationError(f"no run {run_id!r} of the last week: `training-status runs` lists them") from None


def _list(ledger: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from scheduler.cli.show import table

    found = [(ledger.spec(run_id), ledger.progress(run_id)) for run_id in ledger.run_ids()]
    if as_json:
        listed = [{**asdict(spec), **asdict(progress)} for spec, progress in found]
        click.echo(orjson.dumps(listed, option=orjson.OPT_INDENT_2).decode())
        return
    table(
        ("run", "kind", "started", "state", "subjects", "ended", "failed", "sessions"),
        [(s.run_id, s.kind, s.started, p.state, p.subjects, p.ended, p.failed, p.sessions) for s, p in found],
    )


def _show(ledger: Any, spec: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from scheduler.cli.show import table

    progress, stages, outcomes = ledger.progress(spec.run_id), ledger.stages(spec.run_id), ledger.outcomes(spec.run_id)
    subjects = [
        {"lab": s.lab, "subject": s.subject, "state": stage, "sessions": None, "reason": None, "left_out": []}
        for s, stage in stages.items()
    ] + [
        {
            "lab": s.lab,
            "subject": s.subject,
            "state": outcome.state,
            "sessions": outcome.sessions,
            "reason": outcome.reason,
            "left_out": [asdict(left) for left in outcome.left_out],
        }
        for s, outcome in outcomes.items()
    ]
    subjects.sort(key=lambda subject: (subject["lab"], subject["subject"]))
    skipped = ledger.skipped(spec.run_id)
    if as_json:
        told = {**asdict(spec), **asdict(progress), "skipped": skipped, "by_subject": subjects}
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        return
    click.echo(f"{spec.kind} {spec.run_id}, started {spec.started}: {progress.state}")
    for due in skipped:
        click.echo(f"due at {due} and not started: this run, of the same, had not ended")
    states = Counter((subject["lab"], subject["state"]) for subject in subjects)
    table(("lab", "state", "subjects"), [(lab, state, count) for (lab, state), count in sorted(states.items())])
    for subject in subjects:
        if subject["reason"]:
            click.echo(f"failed: {subject['lab']}/{subject['subject']}: {subject['reason']}")
        for left in subject["left_out"]:
            click.echo(f"left out: {subject['lab']}/{subject['subject']} {left['session']}: {left['reason']}")
