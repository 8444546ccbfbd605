"""`training-status status` and `explain`: what the tables in a store say."""

from __future__ import annotations

import math
from typing import Any

import click
import orjson

from core.errors import ConfigurationError
from scheduler.cli.options import filter_options, json_option, option, store_options, store_settings


@click.command()
@store_options
@filter_options
@json_option
def status(
    store: str,
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
    labs: tuple[str, ...],
    subjects: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print the latest status of each mouse.

    \b
    training-status status --store tables --lab cortexlab
    """
    from core.tables import COHORT_KEY, read_table
    from scheduler.cli.show import table
    from workers.context import open_as

    source = open_as(store, store_settings(s3_endpoint, s3_profile, s3_region))
    source.check()
    stored = source.get(COHORT_KEY)
    if stored is None:
        raise ConfigurationError(f"no cohort table in {store}: run `training-status recompute` first")
    rows = [
        row
        for row in read_table(stored.data, COHORT_KEY).to_pylist()
        if row["latest"] and (not labs or row["lab"] in labs) and (not subjects or row["subject"] in subjects)
    ]
    if as_json:
        click.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    columns = ("lab", "subject", "status", "date", "sessions", "days")
    headings = ("lab", "subject", "status", "since", "sessions to it", "days to it")
    table(headings, [[row[name] for name in columns] for row in rows])


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
