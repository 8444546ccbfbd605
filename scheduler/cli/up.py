"""`training-status up`: broker, workers, beat and Flower on this machine, until told to stop."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from core.errors import ConfigurationError
from scheduler.cli.beat import check_labs
from scheduler.cli.exits import Exit
from scheduler.cli.flower import check_login
from scheduler.cli.logs import log_options
from scheduler.cli.options import (
    NamedSource,
    as_environment,
    blames,
    default_workers,
    extract_option,
    option,
    required,
    schedule_from,
    schedule_options,
    source_options,
    store_options,
    store_settings,
)

if TYPE_CHECKING:
    from scheduler.embedded import Embedded
    from scheduler.schedule import Schedule
    from workers.logs import Format

_HOST = "127.0.0.1"
_LOOK_EVERY = 0.5
_FLOWER_SECONDS = 60.0
_PASSWORD_FILE = "flower-password"


@click.command()
@source_options
@store_options
@option("--workers", type=click.IntRange(min=1), help="Worker processes; one a processor where not given.")
@extract_option("where that is installed")
@schedule_options
@option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps what runs owe; by default training-status/up below $XDG_STATE_HOME or ~/.local/state.",
)
@option(
    "--flower-port",
    default=5555,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Loopback port of Flower; 0 takes any that is free.",
)
@option("--flower-user", default="admin", show_default=True, help="Name to log in to Flower with.")
@option("--flower-password", help="Password of Flower; made, said once and kept in the --state folder if not given.")
@log_options
def up(
    source: NamedSource | None,
    store: str,
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
    workers: int | None,
    extract: bool | None,
    refresh_at: str,
    recompute_at: str,
    timezone: str,
    state: Path | None,
    flower_port: int,
    flower_user: str,
    flower_password: str | None,
    log_format: Format,
    log_level: str,
) -> int:
    """Run broker, workers, beat and Flower on this machine, until Ctrl-C or SIGTERM.

    What runs owe is kept in the --state folder: the next start goes on with it.

    \b
    training-status up --root /data --store tables --refresh-at "0 2 * * *" --timezone Europe/London
    training-status refresh --root /data --store tables --broker "$(cat ~/.local/state/training-status/up/broker)"
    """
    from scheduler.embedded import BROKER_FILE, EXTRACTOR, Embedded, Part
    from scheduler.extraction import extracts_here
    from workers import logs
    from workers.context import open_as

    # All that can be wrong with the options is found before anything is started.
    check_login(flower_user, flower_password or "made below", False)
    schedule = schedule_from(refresh_at, recompute_at, timezone)
    source = required(source)
    check_labs(schedule, source)
    settings = store_settings(s3_endpoint, s3_profile, s3_region)
    with blames("--store"):
        open_as(store, settings).check()
    with blames("--extract"):
        extract = extracts_here(extract)
    folder = (state or _default_state()).absolute()
    count = workers or default_workers()

    logs.configure("up", log_format, log_level)
    with _stopped_by_signals(), _held(folder):
        port = _free_port(flower_port)
        password, made = (flower_password, False) if flower_password else _kept_password(folder)
        environment = {
            **as_environment(settings),
            **source.environment(),
            "TRAINING_STATUS_STORE": store,
            "TRAINING_STATUS_LOG_FORMAT": log_format,
            "TRAINING_STATUS_LOG_LEVEL": log_level,
        }
        beat = {
            "TRAINING_STATUS_REFRESH_AT": refresh_at,
            "TRAINING_STATUS_RECOMPUTE_AT": recompute_at,
            "TRAINING_STATUS_TIMEZONE": timezone,
            "TRAINING_STATUS_STATE": str(folder / "beat"),
            "TRAINING_STATUS_EXTRACT": str(int(extract)),
        }
        flower = {
            "TRAINING_STATUS_FLOWER_ADDRESS": _HOST,
            "TRAINING_STATUS_FLOWER_PORT": str(port),
            "TRAINING_STATUS_FLOWER_USER": flower_user,
            "TRAINING_STATUS_FLOWER_PASSWORD": password,
            "TRAINING_STATUS_FLOWER_STATE": str(folder / "flower"),
        }
        parts = [Part(name="flower", arguments=("flower",), environment=flower)]
        if schedule.jobs:  # beat refuses to run for nothing
            parts.append(Part(name="beat", arguments=("beat",), environment=beat))
        if extract:  # from the start: a run that is asked for by another command looks for it
            parts.append(Part(name=EXTRACTOR, arguments=("worker", "--extraction", "--concurrency", str(count))))
        with Embedded(count, environment, parts=parts, state=folder) as private:
            _wait_for_flower(private, port)
            if flower_password:
                password_told = "the password that was set"
            else:
                password_told = f"password {password}" if made else f"the password in {folder / _PASSWORD_FILE}"
            click.echo(f"up: {count} worker processes on {source.uri}, tables in {store}")
            click.echo(f"Flower: http://{_HOST}:{port} user {flower_user}, {password_told}")
            _tell_schedule(schedule)
            click.echo(f"broker: {private.broker}")
            click.echo(f'other commands reach it by --broker "$(cat {shlex.quote(str(folder / BROKER_FILE))})"')
            while True:
                private.keep_alive()
                time.sleep(_LOOK_EVERY)
    return Exit.DONE


def _tell_schedule(schedule: Schedule) -> None:
    now = datetime.now(UTC)
    for job in schedule.jobs:
        for due in schedule.next_times(job, now, 1):
            click.echo(f"next {job.kind} of {job.lab or 'all labs'}: {due:%a %Y-%m-%d %H:%M} {schedule.zone.key}")


def _default_state() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "training-status" / "up"


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """End the block at Ctrl-C, SIGTERM or a terminal that is closed: that is how it is meant to end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopped; the next start on the same --state goes on with what is owed")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep a state folder for this process: two Redis must not write one append-only file."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / "up.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"--state (TRAINING_STATUS_STATE): another `up` runs on {str(folder)!r}; each needs a folder of its own"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"--state (TRAINING_STATUS_STATE): {str(folder)!r} cannot be written: {error.strerror}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _free_port(wanted: int) -> int:
    """Return the wanted port, or any where 0 is; refuse one that is taken before anything is started."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or one that was just used would be taken
        try:
            probe.bind((_HOST, wanted))
        except OSError as error:
            raise ConfigurationError(
                f"--flower-port (TRAINING_STATUS_FLOWER_PORT): {wanted} on {_HOST}: {error.strerror}"
            ) from None
        port: int = probe.getsockname()[1]
    return port


def _kept_password(folder: Path) -> tuple[str, bool]:
    """Return the password of earlier starts, or a new one and that it is new."""
    path = folder / _PASSWORD_FILE
    if path.exists() and (kept := path.read_text().strip()):
        return kept, False
    password = secrets.token_urlsafe(18)
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(f"{password}\n")
    return password, True


def _wait_for_flower(private: Embedded, port: int) -> None:
    deadline = time.monotonic() + _FLOWER_SECONDS
    while time.monotonic() < deadline:
        private.keep_alive()
        with socket.socket() as probe:
            if probe.connect_ex((_HOST, port)) == 0:
                return
        time.sleep(0.1)
    raise ConfigurationError(f"Flower did not start on port {port} within {_FLOWER_SECONDS:.0f} s")
