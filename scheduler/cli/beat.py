"""`training-status beat` and `schedule`: runs that start by themselves, and when they will."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from core.errors import ConfigurationError
from scheduler.cli.logs import log_options
from scheduler.cli.options import (
    NamedSource,
    blames,
    extract_option,
    json_option,
    option,
    required,
    schedule_from,
    schedule_options,
    source_options,
    store_options,
    store_settings,
)

if TYPE_CHECKING:
    from scheduler.schedule import Schedule
    from workers.logs import Format

#: Times that are shown of each job.
_SHOWN = 3


@click.command()
@option("--broker", required=True, help="URL of the Redis that running workers listen to.")
@source_options
@store_options
@extract_option("not; the runs wait for a worker --extraction where none is there")
@schedule_options
@option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of this beat's own: when it last sent what, and its pid. By default "
    "training-status below $XDG_STATE_HOME or ~/.local/state.",
)
@option(
    "--patience",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds without news after which what a run owes is sent again.",
)
@log_options
def beat(
    broker: str,
    source: NamedSource | None,
    store: str,
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
    extract: bool | None,
    refresh_at: str,
    recompute_at: str,
    timezone: str,
    state: Path | None,
    patience: float,
    log_format: Format,
    log_level: str,
) -> None:
    """Start runs when they are due, on the workers of a broker, until told to stop.

    Several beats may run, each with a --state of its own: what is due is started once. While a run has not ended,
    the same is not started again.

    \b
    training-status beat --broker redis://localhost:6379/0 --root /data --store tables --timezone Europe/London
    training-status beat --broker redis://localhost:6379/0 --root /data --store tables \\
        --refresh-at "0 2 * * *; cortexlab=0 12 * * mon-fri" --recompute-at "0 4 * * sun"
    """
    schedule = schedule_from(refresh_at, recompute_at, timezone)
    if not schedule.jobs:
        raise ConfigurationError("nothing is scheduled: --refresh-at and --recompute-at are both 'never'")

    from scheduler import beat as beating
    from workers import logs
    from workers.app import configure
    from workers.broker import check, connect
    from workers.context import open_as
    from workers.ledger import Ledger

    source = required(source)
    check_labs(schedule, source)
    with blames("--store"):
        open_as(store, store_settings(s3_endpoint, s3_profile, s3_region)).check()
    with blames("--broker"):
        client = connect(broker)
        check(client, broker)
    logs.configure("beat", log_format, log_level)
    app = configure(broker)
    app.conf.update(timezone=timezone)
    with blames("--state"):
        beating.run(
            app,
            beating.entries(schedule, source=source.uri, store=store, extract=bool(extract)),
            (state or _default_state()).absolute(),
            Ledger(client),
            patience,
        )


@click.command()
@schedule_options
@source_options
@json_option
def schedule(refresh_at: str, recompute_at: str, timezone: str, source: NamedSource | None, as_json: bool) -> None:
    """Show what is scheduled, and the next times of each job, in the schedule's time zone.

    \b
    training-status schedule --refresh-at "0 2 * * *" --recompute-at "0 4 * * sun" --timezone Europe/London
    """
    from scheduler.cli.show import table

    made = schedule_from(refresh_at, recompute_at, timezone)
    if source:
        check_labs(made, source)
    now = datetime.now(UTC)
    jobs = [(job, made.next_times(job, now, _SHOWN)) for job in made.jobs]
    if as_json:
        told = [
            {"kind": job.kind, "lab": job.lab, "crontab": job.crontab, "next": [time.isoformat() for time in times]}
            for job, times in jobs
        ]
        document = {"timezone": timezone, "now": now.astimezone(made.zone).isoformat(timespec="seconds"), "jobs": told}
        click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
        return
    table(
        ("run", "labs", "crontab", f"next times ({timezone})"),
        [
            (job.kind, job.lab or "all", job.crontab, ", ".join(f"{time:%a %Y-%m-%d %H:%M}" for time in times))
            for job, times in jobs
        ],
    )


def check_labs(schedule: Schedule, source: NamedSource) -> None:
    """Look for the labs of a schedule in the source, so that one that is misspelt is told now and not at night."""
    from core.sources import open_source

    with blames(source.option):
        opened = open_source(source.uri, source.settings)
        opened.check()
    for kind in ("refresh", "recompute"):
        with blames(f"--{kind}-at"):
            for job in schedule.jobs:
                if job.kind == kind:
                    opened.labs(job.labs)


def _default_state() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "training-status"
