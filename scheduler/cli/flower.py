"""`training-status flower`: the runs' tasks and workers in a browser, and the metrics for Prometheus."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click

from core.errors import ConfigurationError
from scheduler.cli.logs import log_options
from scheduler.cli.options import PREFIX, option

if TYPE_CHECKING:
    from workers.logs import Format


@click.command()
@option("--broker", required=True, help="URL of the Redis that carries the messages.")
@option(
    "--flower-address", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: on all interfaces."
)
@option("--flower-port", default=5555, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@option("--flower-user", default="admin", show_default=True, help="Who may look.")
@option("--flower-password", help="The password; better by its variable, which no process list shows.")
@option("--flower-no-password", is_flag=True, help="Let everybody look who reaches the address.")
@option(
    "--flower-state",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="training-status/flower in the user's state folder",
    help="File that keeps what was seen, over restarts.",
)
@log_options
def flower(
    broker: str,
    flower_address: str,
    flower_port: int,
    flower_user: str,
    flower_password: str | None,
    flower_no_password: bool,
    flower_state: Path | None,
    log_format: Format,
    log_level: str,
) -> None:
    """Show workers, tasks and runs in a browser, read-only, and metrics at /metrics, until told to stop.

    \b
    TRAINING_STATUS_FLOWER_PASSWORD=... training-status flower --broker redis://localhost:6379/0
    """
    check_login(flower_user, flower_password, flower_no_password)
    state = _checked_state(flower_state or _state_folder() / "training-status" / "flower")

    from scheduler.dashboard import FlowerSettings, serve
    from workers import broker as redis_broker
    from workers import logs
    from workers.app import configure

    client = redis_broker.connect(broker)
    redis_broker.check(client, broker)
    client.close()
    logs.configure("flower", log_format, log_level)
    logging.getLogger("tornado.access").setLevel(logging.ERROR)  # each page asks again every second
    wanted = FlowerSettings(
        address=flower_address,
        port=flower_port,
        user=flower_user,
        password=None if flower_no_password else flower_password,
        state=state,
    )
    serve(configure(broker), broker, wanted)


def check_login(user: str, password: str | None, no_password: bool) -> None:
    """Refuse what nobody could log in with, and an open door that nobody asked for."""
    if no_password and password:
        raise ConfigurationError("--flower-password and --flower-no-password contradict each other: leave one out")
    if no_password:
        return
    if not password:
        raise ConfigurationError(
            f"Flower has no password: set {PREFIX}FLOWER_PASSWORD (or --flower-password), "
            "or say --flower-no-password to let everybody look"
        )
    if not user or ":" in user or not (user.isascii() and user.isprintable()):
        raise ConfigurationError("--flower-user must be printable ASCII without a colon, as HTTP logins are")
    if not (password.isascii() and password.isprintable()):
        raise ConfigurationError("--flower-password must be printable ASCII: browsers encode other letters differently")


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def _checked_state(state: Path) -> Path:
    """Return the state file's path, in a folder that exists; refuse one that somebody else could have written.

    Flower keeps Python objects in it (a pickle), so whoever writes it could have anything run.
    """
    os.umask(0o077)
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(state.parent, os.W_OK | os.X_OK):
            raise PermissionError(None, "its folder cannot be written to")
        for file in (state, *(state.with_name(state.name + suffix) for suffix in (".db", ".dat", ".dir", ".bak"))):
            if not file.exists():
                continue
            found = file.stat()
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(None, "another user could have written it")
    except OSError as error:
        raise ConfigurationError(f"--flower-state {state}: {error.strerror or error}") from None
    return state
