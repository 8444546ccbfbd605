"""`training-status alyx-update`, and what `--alyx-update` adds to a run: the result back to Alyx."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
import orjson

from core.config import SourceSettings, StoreSettings
from core.errors import AccessRefused, ConfigurationError, TransientError
from scheduler.cli.exits import Exit
from scheduler.cli.options import (
    NamedSource,
    blames,
    filter_options,
    json_option,
    option,
    source_settings_options,
    store_options,
    store_settings,
)

if TYPE_CHECKING:
    from core.alyx_update import Update
    from core.storage import Store

_ALYX_HELP = "URL of the Alyx server that the result is written to; that of --one where not given."


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a run that write its result to Alyx."""
    for add in (
        option("--alyx", help=_ALYX_HELP),
        option("--alyx-dry-run", is_flag=True, help="Print what --alyx-update would send, and send nothing."),
        option("--alyx-update", is_flag=True, help="Afterwards, write each subject's statuses to its record on Alyx."),
    ):
        command = add(command)
    return command


@dataclass(frozen=True, kw_only=True)
class Target:
    """The Alyx server that results are written to."""

    url: str
    settings: SourceSettings
    dry_run: bool

    def check(self) -> None:
        """Refuse an address that is none, and missing credentials; whether the server takes them is told later."""
        from core.sources.one import connect

        with suppress(AccessRefused, TransientError):  # told of each subject, once the tables are there
            connect(self.url, self.settings)

    def update(self, store: Store, subjects: Collection[tuple[str, str]], *, quiet: bool) -> list[Update]:
        """Write the statuses of subjects, telling of each unless `quiet`, and return what became of each."""
        from core.alyx_update import update_subjects
        from core.sources.one import connect

        updates = []
        for update in update_subjects(store, lambda: connect(self.url, self.settings), subjects, dry_run=self.dry_run):
            updates.append(update)
            if not quiet:
                _tell(update)
        if not quiet:
            states = [update.state for update in updates]
            told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys((*states, "failed")))
            click.echo(f"alyx {self.url}: {len(updates)} subjects: {told}")
        return updates


def target_from(alyx: str | None, source: NamedSource, *, update: bool, dry_run: bool) -> Target | None:
    """Return where a run's result is written to; None where that was not asked for.

    Raises
    ------
    ConfigurationError
        Where there is no address.
    """
    if not (update or dry_run):
        return None
    url = alyx or source.server
    if url is None:
        raise ConfigurationError("--alyx-update needs --alyx (TRAINING_STATUS_ALYX), the URL of the Alyx server")
    return Target(url=url, settings=source.settings, dry_run=dry_run)


def exit_code(updates: Collection[Update]) -> Exit:
    """Return 1 where a subject failed."""
    return Exit.WRONG if any(update.state == "failed" for update in updates) else Exit.DONE


@click.command("alyx-update")
@option("--alyx", required=True, help="URL of the Alyx server that the result is written to.")
@store_options
@filter_options
@source_settings_options
@option("--dry-run", is_flag=True, help="Print what would be sent, and send nothing.")
@json_option
def alyx_update(
    alyx: str,
    store: str,
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
    labs: tuple[str, ...],
    subjects: tuple[str, ...],
    source_settings: SourceSettings,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Write what the tables say to Alyx: `trained_criteria` in the JSON field of each subject's record.

    Its other keys stay, and what is there already is not sent again.

    \b
    training-status alyx-update --store tables --alyx https://alyx.example.org --dry-run
    """
    from core.alyx_update import known_subjects
    from workers.context import open_as

    settings: StoreSettings = store_settings(s3_endpoint, s3_profile, s3_region)
    opened = open_as(store, settings)
    with blames("--store"):
        opened.check()
    chosen = known_subjects(opened, labs, subjects)
    target = Target(url=alyx, settings=source_settings, dry_run=dry_run)
    with blames("--alyx"):
        target.check()
    updates = target.update(opened, chosen, quiet=as_json)
    if as_json:
        click.echo(orjson.dumps([asdict(update) for update in updates], option=orjson.OPT_INDENT_2).decode())
    return exit_code(updates)


def _tell(update: Update) -> None:
    if update.state == "failed":
        click.echo(f"alyx failed: {update.lab}/{update.subject}: {update.reason}", err=True)
    elif update.state != "unchanged":
        told = orjson.dumps({"trained_criteria": update.criteria}).decode()
        click.echo(f"alyx {update.state}: {update.lab}/{update.subject}: {told}")
