"""How the command ends: exit codes that have names."""

from __future__ import annotations

from enum import IntEnum

import click


class Exit(IntEnum):
    """Exit codes."""

    DONE = 0
    SUBJECTS_FAILED = 1  # the run has ended; they are listed
    LATE = 1  # `status --check`: labs that were not refreshed when they should have been; they are listed
    WRONG = 1  # `doctor`: what is named with what to do; `alyx-update`: subjects that could not be sent
    WRONG_USE = 2  # of the command line, or a configuration that cannot work: nothing was written
    INTERRUPTED = 130  # Ctrl-C


class Interrupted(click.ClickException):
    """Ctrl-C, with what it leaves behind."""
