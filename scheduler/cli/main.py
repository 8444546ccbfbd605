"""The command `training-status`: says what went wrong in one line, and ends with an exit code that has a name.

Nothing heavy is imported here: a command imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from core.errors import BrokerUnavailable, ConfigurationError, TrainingStatusError
from scheduler.cli.exits import Exit, Interrupted

_COMMANDS = {
    "alyx-update": "scheduler.cli.alyx:alyx_update",
    "beat": "scheduler.cli.beat:beat",
    "doctor": "scheduler.cli.doctor:doctor",
    "explain": "scheduler.cli.status:explain",
    "flower": "scheduler.cli.flower:flower",
    "recompute": "scheduler.cli.run:recompute",
    "refresh": "scheduler.cli.run:refresh",
    "retry": "scheduler.cli.runs:retry",
    "runs": "scheduler.cli.runs:runs",
    "schedule": "scheduler.cli.beat:schedule",
    "simulate": "scheduler.cli.simulate:simulate",
    "status": "scheduler.cli.status:status",
    "up": "scheduler.cli.up:up",
    "worker": "scheduler.cli.worker:worker",
}


class _Commands(click.Group):
    """Commands that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 all done; 1 the run ended with failed subjects, a lab is late (status --check), "
    "or something is wrong (doctor); "
    "2 wrong use or configuration.",
)
@click.version_option(package_name="training-status")
def cli() -> None:
    """Recompute the training status of every mouse, across all labs.

    \b
    training-status simulate mice --labs 2
    training-status recompute --root mice --store tables
    training-status status --store tables
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line, and return its exit code."""
    try:
        result: Any = cli.main(args=arguments, prog_name="training-status", standalone_mode=False)
        return int(result or Exit.DONE)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.WRONG_USE
    except Interrupted as error:
        return _say(error.format_message(), Exit.INTERRUPTED)
    except click.ClickException as error:
        return _say(error.format_message(), Exit.WRONG_USE)
    except click.Abort:
        return _say("interrupted", Exit.INTERRUPTED)
    except (ConfigurationError, BrokerUnavailable) as error:
        return _say(str(error), Exit.WRONG_USE)
    except TrainingStatusError as error:
        return _say(str(error), Exit.WRONG_USE)
    except BrokenPipeError:
        # Who read our output has gone; nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except Exception as error:
        if not _is_of_broker(error):
            raise
        what = "the broker does not answer any more; the run goes on when it is back, `training-status runs` shows it"
        return _say(f"{what} ({type(error).__name__})", Exit.WRONG_USE)


def _is_of_broker(error: Exception) -> bool:
    """Whether Redis, or the way to it, failed; neither library is imported where the command did not need it."""
    known = (("redis", "RedisError"), ("kombu.exceptions", "OperationalError"))
    return any(name in sys.modules and isinstance(error, getattr(sys.modules[name], kind)) for name, kind in known)


def _say(message: str, code: Exit) -> Exit:
    click.echo(f"training-status: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
