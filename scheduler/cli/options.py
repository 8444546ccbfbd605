"""The options that several commands share. Every option has one environment variable, TRAINING_STATUS_<OPTION>."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from core.config import StoreSettings
from core.errors import BrokerUnavailable, ConfigurationError, StoreUnavailable

if TYPE_CHECKING:
    from scheduler.schedule import Schedule

Command = TypeVar("Command", bound=Callable[..., Any])
PREFIX = "TRAINING_STATUS_"


def option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """Return a click option that can be set by TRAINING_STATUS_<its long name> too, and says so in the help."""
    settings.setdefault("show_envvar", True)
    return click.option(*names, envvar=variable(names[0].partition("/")[0]), **settings)


def variable(name: str) -> str:
    """Return the environment variable of the option with that long name."""
    return PREFIX + name.removeprefix("--").replace("-", "_").upper()


@contextmanager
def blames(name: str) -> Iterator[None]:
    """Name the option, and its environment variable, in what is wrong with its value."""
    try:
        yield
    except (ConfigurationError, BrokerUnavailable, StoreUnavailable) as error:
        raise type(error)(f"{name} ({variable(name)}): {error}") from None


def store_options(command: Command) -> Command:
    """Add the options that name a store, and how it is reached."""
    for add in (
        option("--s3-region", help="Region of the S3 server."),
        option("--s3-profile", help="Profile of the AWS configuration that has the credentials."),
        option("--s3-endpoint", help="URL of an S3-compatible server; AWS where not given."),
        option("--store", required=True, help="Where the tables lie: s3://bucket/prefix or a folder."),
    ):
        command = add(command)
    return command


def filter_options(command: Command) -> Command:
    """Add the options that choose labs and subjects."""
    for add in (
        option("--subject", "subjects", multiple=True, help="Only this subject; can be given several times."),
        option("--lab", "labs", multiple=True, help="Only this lab; can be given several times."),
    ):
        command = add(command)
    return command


def schedule_options(command: Command) -> Command:
    """Add the options that make the schedule."""
    entries = "entries separated by ';', each a crontab (all labs) or LAB=crontab (that lab alone); or never"
    for add in (
        option("--timezone", default="UTC", show_default=True, help="Time zone that the crontabs are read in."),
        option("--recompute-at", default="never", show_default=True, help=f"When to recompute: {entries}."),
        option("--refresh-at", default="0 2 * * *", show_default=True, help=f"When to refresh: {entries}."),
    ):
        command = add(command)
    return command


def schedule_from(refresh_at: str, recompute_at: str, timezone: str) -> Schedule:
    """Return the schedule that the options' values make; ConfigurationError names the one that is wrong."""
    from scheduler.schedule import Schedule, parse_jobs, parse_zone

    with blames("--timezone"):
        zone = parse_zone(timezone)
    with blames("--refresh-at"):
        refresh = parse_jobs("refresh", refresh_at)
    with blames("--recompute-at"):
        recompute = parse_jobs("recompute", recompute_at)
    return Schedule(jobs=(*refresh, *recompute), zone=zone)


def json_option(command: Command) -> Command:
    """Add the option that asks for one JSON document on standard output."""
    return option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(command)


def store_settings(s3_endpoint: str | None, s3_profile: str | None, s3_region: str | None) -> StoreSettings:
    """Return the store's settings from the options' values."""
    return StoreSettings(s3_endpoint=s3_endpoint, s3_profile=s3_profile, s3_region=s3_region)


def as_environment(settings: StoreSettings) -> dict[str, str]:
    """Return the environment variables that give another process these store settings."""
    named = {
        "S3_ENDPOINT": settings.s3_endpoint,
        "S3_PROFILE": settings.s3_profile,
        "S3_REGION": settings.s3_region,
    }
    return {PREFIX + name: value for name, value in named.items() if value is not None}


def default_workers() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
