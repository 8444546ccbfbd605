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
    blames,
    json_option,
    option,
    schedule_from,
    schedule_options,
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
@option("--root", required=True, help="The session tree, under the path that workers see it.")
@store_options
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
    root: str,
    store: str,
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
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

    from core.discover import check_root
    from scheduler import beat as beating
    from workers import logs
    from workers.app import configure
    from workers.broker import check, connect
    from workers.context import open_as
    from workers.ledger import Ledger

    with blames("--root"):
        tree = check_root(Path(root).absolute())
    check_labs(schedule, tree)
    with blames("--store"):
        if "://" not in store:
            store = str(Path(store).absolute())
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
            beating.entries(schedule, root=str(tree), store=store),
            (state or _default_state()).absolute(),
            Ledger(client),
            patience,
        )


@click.command()
@schedule_options
@option("--root", help="The session tree: labs that the schedule names are looked for in it.")
@json_option
def schedule(refresh_at: str, recompute_at: str, timezone: str, root: str | None, as_json: bool) -> None:
    """Show what is scheduled, and the next times of each job, in the schedule's time zone.

    \b
    training-status schedule --refresh-at "0 2 * * *" --recompute-at "0 4 * * sun" --timezone Europe/London
    """
    from scheduler.cli.show import table

    made = schedule_from(refresh_at, recompute_at, timezone)
    if root is not None:
        from core.discover import check_root

        with blames("--root"):
            tree = check_root(Path(root).absolute())
        check_labs(made, tree)
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


def check_labs(schedule: Schedule, tree: Path) -> None:
    """Look for the labs of a schedule in the tree, so that one that is misspelt is told now and not at night."""
    from core.discover import find_labs

    for kind in ("refresh", "recompute"):
        with blames(f"--{kind}-at"):
            for job in schedule.jobs:
                if job.kind == kind:
                    find_labs(tree, job.labs)


def _default_state() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "training-status"
