"""The options that several commands share. Every option has one environment variable, TRAINING_STATUS_<OPTION>."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from core.config import SourceSettings, StoreSettings
from core.errors import BrokerUnavailable, ConfigurationError, StoreUnavailable

if TYPE_CHECKING:
    from scheduler.schedule import Schedule

Command = TypeVar("Command", bound=Callable[..., Any])
PREFIX = "TRAINING_STATUS_"
#: The options that name a source.
_SOURCES = ("root", "one", "aggregates")
_GIGABYTES = click.FloatRange(min=0, min_open=True)
_SIZE = "Gigabytes that downloads may take; what was not used for longest goes first."


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
        option(
            "--store",
            required=True,
            callback=lambda _context, _option, store: absolute_store(store),
            help="Where the tables lie: s3://bucket/prefix or a folder.",
        ),
    ):
        command = add(command)
    return command


def absolute_store(store: str) -> str:
    """Return the name of a store that means the same in a process with another working folder."""
    return store if "://" in store else str(Path(store).absolute())


@dataclass(frozen=True, kw_only=True)
class NamedSource:
    """The source that a command was given."""

    uri: str  # as `core.sources.open_source` takes it
    addresses: Mapping[str, str]  # by the options that name it, without dashes
    settings: SourceSettings

    @property
    def option(self) -> str:
        """The option that names it; of two, the one whose sessions count."""
        return "--aggregates" if "aggregates" in self.addresses else f"--{next(iter(self.addresses))}"

    @property
    def server(self) -> str | None:
        """The URL of its Alyx server; None where it has none."""
        one = self.addresses.get("one", "")
        return one if "://" in one else None

    def environment(self) -> dict[str, str]:
        """Return the environment variables that name the source, and how it is reached, to another process."""
        named = {variable(f"--{name}"): address for name, address in self.addresses.items()}
        return {**named, **source_environment(self.settings)}


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a source; the command gets them as `source`, None where none is named."""

    @source_settings_options
    @wraps(command)
    def named(*args: Any, source_settings: SourceSettings, **options: Any) -> Any:
        source = _named({name: options.pop(name) for name in _SOURCES}, source_settings)
        return command(*args, source=source, **options)

    for add in (
        option("--aggregates", help="The public aggregates: s3://bucket/prefix or a folder, with aggregates/Subjects."),
        option(
            "--one",
            help="ONE: local:FOLDER for a cache of ONE, or the URL of an Alyx server; beside --aggregates it tells "
            "what is not in them.",
        ),
        option("--root", help="A session tree: <lab>/Subjects/<subject>/<date>/<number>."),
    ):
        named = add(named)
    return named


def source_settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how sources are reached; the command gets them as `source_settings`."""

    @wraps(command)
    def with_settings(*args: Any, **options: Any) -> Any:
        given = {each.name: options.pop(each.name) for each in fields(SourceSettings)}
        return command(*args, source_settings=SourceSettings(**given), **options)

    for add in (
        option(
            "--cache-size", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True, help=_SIZE
        ),
        option("--cache", help="Folder of what is downloaded; by default below $XDG_CACHE_HOME or ~/.cache."),
        option("--aggregates-endpoint", help="URL of the S3-compatible server of --aggregates; AWS where not given."),
        option("--one-token", help="Token for Alyx, instead of a password; give it by its environment variable."),
        option("--one-password", help="Password for Alyx; give it by its environment variable."),
        option("--one-user", help="User at Alyx."),
    ):
        with_settings = add(with_settings)
    return with_settings


def source_environment(settings: SourceSettings) -> dict[str, str]:
    """Return the environment variables that give another process these settings."""
    named = {field.name: getattr(settings, field.name) for field in fields(SourceSettings)}
    return {PREFIX + name.upper(): str(value) for name, value in named.items() if value is not None}


def required(source: NamedSource | None) -> NamedSource:
    """Return the source; ConfigurationError where none is named."""
    if source is None:
        raise ConfigurationError(
            f"no source: name a session tree with --root ({variable('--root')}), or --one, --aggregates"
        )
    return source


def _named(given: Mapping[str, str | None], settings: SourceSettings) -> NamedSource | None:
    addresses = {name: _absolute(name, value) for name, value in given.items() if value}
    if not addresses:
        return None
    from core.sources import source_uri

    return NamedSource(uri=source_uri(addresses), addresses=addresses, settings=settings)


def _absolute(name: str, address: str) -> str:
    """Return the address of a source that means the same in a process with another working folder."""
    if name != "root" and "://" in address:
        return address
    kind, separator, folder = address.partition(":")
    if name == "one" and kind == "local" and separator:
        return f"local:{Path(folder).expanduser().absolute()}"  # no shell does it behind a colon
    return str(Path(address).absolute())


def filter_options(command: Command) -> Command:
    """Add the options that choose labs and subjects."""
    for add in (
        option("--subject", "subjects", multiple=True, help="Only this subject; can be given several times."),
        option("--lab", "labs", multiple=True, help="Only this lab; can be given several times."),
    ):
        command = add(command)
    return command


def extract_option(default: str) -> Callable[[Command], Command]:
    """Return the option that asks for extraction, None where it is not given; `default` tells people what that means.

    Parameters
    ----------
    default : str
        Such as ``where that is installed``.
    """
    told = f"Extract trials from raw files where a session has none, with ibllib; by default {default}."
    return option("--extract/--no-extract", default=None, help=told)


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
