"""`training-status doctor`: whether everything that a run needs is well."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import click
import orjson

from core.config import SourceSettings
from scheduler.cli.exits import Exit
from scheduler.cli.options import (
    NamedSource,
    absolute_store,
    json_option,
    option,
    schedule_from,
    schedule_options,
    source_options,
    store_settings,
)


class _Whole(click.types.StringParamType):
    """Text that an environment variable holds once, whatever spaces are in it."""

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


@click.command()
@option("--broker", help="URL of the Redis that running workers listen to.")
@source_options
@option(
    "--store",
    "stores",
    type=_Whole(),
    multiple=True,
    help="Where the tables lie: s3://bucket/prefix or a folder; can be given several times.",
)
@option("--s3-endpoint", help="URL of an S3-compatible server; AWS where not given.")
@option("--s3-profile", help="Profile of the AWS configuration that has the credentials.")
@option("--s3-region", help="Region of the S3 server.")
@schedule_options
@option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that each check may take.",
)
@json_option
def doctor(
    broker: str | None,
    source: NamedSource | None,
    stores: tuple[str, ...],
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
    refresh_at: str,
    recompute_at: str,
    timezone: str,
    timeout: float,
    as_json: bool,
) -> int:
    """Look at what a run needs: versions, broker, workers, store, source and schedule; one line each.

    What is not named is skipped. A store gets a probe object, which is removed again. Exit code 1: something is
    WRONG, and its line says what to do.

    \b
    training-status doctor --broker redis://localhost:6379/0 --root /data --store s3://bucket/prefix
    """
    from core.sources import open_source
    from scheduler import doctor as look
    from scheduler.cli.beat import check_labs
    from workers.context import open_as

    checks = [look.versions_check(needs_server=broker is None)]
    if broker:
        checks += look.broker_checks(broker)
    else:
        checks.append(look.skipped("broker", "none is named", "name it with --broker (TRAINING_STATUS_BROKER)"))
    settings = store_settings(s3_endpoint, s3_profile, s3_region)
    for store in stores:
        checks.append(look.store_check(store, partial(open_as, absolute_store(store), settings)))
    if not stores:
        checks.append(look.skipped("store", "none is named", "name it with --store (TRAINING_STATUS_STORE)"))
    if source and source.server:
        checks.append(look.login_check("--one", source.server, partial(_log_in, source.server, source.settings)))
    if source:
        checks.append(look.source_check(source.option, source.uri, partial(open_source, source.uri, source.settings)))
    else:
        checks.append(look.skipped("source", "none is named", "name it with --root, --one or --aggregates"))
    checks += look.schedule_checks(
        partial(schedule_from, refresh_at, recompute_at, timezone),
        (lambda schedule: check_labs(schedule, source)) if source else None,
    )

    found: list[Any] = []
    for finding in look.examine(checks, timeout):
        found.append(finding)
        if not as_json:
            todo = f" -> {finding.todo}" if finding.todo else ""
            click.echo(f"{finding.state:<8} {finding.check}: {finding.found}{todo}")
    wrong = sum(finding.state == "WRONG" for finding in found)
    if as_json:
        document = {"wrong": wrong, "findings": [asdict(finding) for finding in found]}
        click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(f"{wrong} of {len(found)} wrong" if wrong else "all is well")
    return Exit.WRONG if wrong else Exit.DONE


def _log_in(url: str, settings: SourceSettings) -> None:
    from core.sources.one import connect  # with one-api, which takes seconds

    connect(url, settings)
