"""The options that several commands share. Every option has one environment variable, TRAINING_STATUS_<OPTION>."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from core.config import StoreSettings

Command = TypeVar("Command", bound=Callable[..., Any])
PREFIX = "TRAINING_STATUS_"


def option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """Return a click option that can be set by TRAINING_STATUS_<its long name> too, and says so in the help."""
    name = names[0].removeprefix("--").partition("/")[0]
    settings.setdefault("show_envvar", True)
    return click.option(*names, envvar=PREFIX + name.replace("-", "_").upper(), **settings)


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
