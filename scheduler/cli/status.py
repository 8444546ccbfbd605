"""`training-status status` and `explain`: what the tables in a store say."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
import orjson

from core.errors import ConfigurationError
from scheduler.cli.exits import Exit
from scheduler.cli.options import (
    filter_options,
    json_option,
    option,
    schedule_from,
    schedule_options,
    store_options,
    store_settings,
)

if TYPE_CHECKING:
    from core.freshness import Look
    from scheduler.freshness import LabState, Late


@click.command()
@store_options
@filter_options
@option(
    "--check", is_flag=True, help="Show the labs alone, and exit with 1 where one is late: for a monitoring system."
)
@schedule_options
@option(
    "--grace",
    type=click.FloatRange(min=0),
    help="Hours that a run may take before its labs are late; a quarter of the time between two runs where not given.",
)
@json_option
@click.pass_context
def status(
    ctx: click.Context,
    store: str,
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
    labs: tuple[str, ...],
    subjects: tuple[str, ...],
    check: bool,
    refresh_at: str,
    recompute_at: str,
    timezone: str,
    grace: float | None,
    as_json: bool,
) -> int:
    """Print the latest status of each mouse, and when each lab was last refreshed.

    A lab is late where a run that the schedule has (the options of `training-status beat`) was due, and none that
    does the same has ended since. Without --check nothing is called late unless the schedule is given.

    \b
    training-status status --store tables --lab cortexlab
    training-status status --store tables --check --refresh-at "0 2 * * *" --timezone Europe/London
    """
    schedule = schedule_from(refresh_at, recompute_at, timezone)
    if check and not schedule.jobs:
        raise ConfigurationError("--check needs a schedule: --refresh-at and --recompute-at are both 'never'")

    from core.freshness import LABS_KEY, read_labs
    from core.tables import COHORT_KEY, read_table
    from scheduler.cli.show import table
    from scheduler.freshness import judge
    from scheduler.schedule import Schedule
    from workers.context import open_as

    source = open_as(store, store_settings(s3_endpoint, s3_profile, s3_region))
    source.check()
    stored, noted = source.get(COHORT_KEY), source.get(LABS_KEY)
    if stored is None and not check:
        raise ConfigurationError(f"no cohort table in {store}: run `training-status recompute` first")
    cohort = read_table(stored.data, COHORT_KEY).to_pylist() if stored else []
    if not check and not _given(ctx, "refresh_at", "recompute_at"):
        schedule = Schedule(jobs=(), zone=schedule.zone)
    states = [
        state
        for state in judge(
            schedule,
            read_labs(noted.data if noted else None),
            {row["lab"] for row in cohort},
            datetime.now(UTC),
            None if grace is None else timedelta(hours=grace),
        )
        if not labs or state.lab in labs
    ]
    rows = [
        row
        for row in cohort
        if row["latest"] and (not labs or row["lab"] in labs) and (not subjects or row["subject"] in subjects)
    ]
    if as_json:
        refreshed = {state.lab: state.refresh and state.refresh.ended for state in states}
        told = (
            [_told(state) for state in states] if check else [{**r, "last_refresh": refreshed[r["lab"]]} for r in rows]
        )
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        if not check:
            columns = ("lab", "subject", "status", "date", "sessions", "days")
            headings = ("lab", "subject", "status", "since", "sessions to it", "days to it")
            table(headings, [[row[name] for name in columns] for row in rows])
        table(
            ("lab", "last refresh", "last recompute", "subjects", "failed"),
            [_row(state) for state in states],
        )
        for state in states:
            for late in state.late:
                click.echo(f"late: {state.lab}: {_why(late)}")
    if not check:
        return Exit.DONE
    if not states:
        raise ConfigurationError(f"nothing to check in {store}: no lab was refreshed yet")
    return Exit.LATE if any(state.late for state in states) else Exit.DONE


def _given(ctx: click.Context, *names: str) -> bool:
    """Return whether an option was set, and is not as it comes."""
    return any(ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT for name in names)


def _row(state: LabState) -> tuple[Any, ...]:
    look = state.refresh
    counts = (look.subjects, look.failed) if look else ("", "")
    return state.lab, _time(look), _time(state.recompute), *counts


def _time(look: Look | None) -> str:
    return f"{datetime.fromisoformat(look.ended):%Y-%m-%d %H:%M} UTC" if look else "never"


def _why(late: Late) -> str:
    since = (
        "no run that does it has ended yet"
        if late.due is None
        else f"no run has ended since {late.due:%Y-%m-%d %H:%M} UTC"
    )
    return f"{late.job}: {since}"


def _told(state: LabState) -> dict[str, Any]:
    return {
        "lab": state.lab,
        "last_refresh": state.refresh,
        "last_recompute": state.recompute,
        "scheduled": state.scheduled,
        "late": [
            {
                "kind": late.job.kind,
                "crontab": late.job.crontab,
                "due": late.due and late.due.isoformat(),
                "told": _why(late),
            }
            for late in state.late
        ],
    }


@click.command()
@click.argument("subject")
@option("--date", help="The day to explain; the last one where not given.")
@option("--lab", help="The subject's lab, where several labs have one of this name.")
@store_options
@json_option
def explain(
    subject: str,
    date: str | None,
    lab: str | None,
    store: str,
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
    as_json: bool,
) -> None:
    """Say why SUBJECT has its status, and what is missing for the next: each criterion, its value and its limit.

    \b
    training-status explain SWC_054 --store tables --date 2020-08-26
    """
    from core.explain import explain_day, find_criteria
    from core.names import check_date, check_lab, check_subject
    from scheduler.cli.show import table
    from workers.context import open_as

    source = open_as(store, store_settings(s3_endpoint, s3_profile, s3_region))
    source.check()
    found_lab, rows = find_criteria(source, check_subject(subject), check_lab(lab) if lab else None)
    told = explain_day(found_lab, subject, rows, check_date(date) if date else None)
    if as_json:
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        return
    click.echo(f"{told.lab}/{told.subject} on {told.date}: {told.status}")
    if told.status != told.window_status:
        click.echo(f"(held from earlier days: this day's window alone gives {told.window_status})")
    if told.verdicts:
        table(
            ("for", "criterion", "value", "limit", "passed", "meaning"),
            [
                (
                    v.target,
                    v.name,
                    _number(v.value),
                    f"{v.comparison} {v.limit:g}",
                    "yes" if v.passed else "no",
                    v.meaning,
                )
                for v in told.verdicts
            ],
        )
    click.echo(told.missing)


def _number(value: Any) -> str:
    return "not measured" if value is None or math.isnan(value) else f"{value:.4g}"
