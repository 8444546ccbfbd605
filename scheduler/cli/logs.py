"""The options that say what a service logs, and how."""

from __future__ import annotations

import click

from scheduler.cli.options import Command, option


def log_options(command: Command) -> Command:
    """Add `--log-format` and `--log-level`; `workers.logs.configure` takes their values."""
    levels = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"])
    forms = click.Choice(["lines", "json"])
    for add in (
        option("--log-level", default="INFO", show_default=True, type=levels, help="What to log."),
        option("--log-format", default="lines", show_default=True, type=forms, help="Lines, or JSON documents."),
    ):
        command = add(command)
    return command
