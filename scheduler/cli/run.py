"""`training-status recompute` and `refresh`: a run over labs, through Celery."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click
import orjson

from core.errors import ConfigurationError
from scheduler.cli.alyx import Target, exit_code, run_options, target_from
from scheduler.cli.exits import Exit, Interrupted
from scheduler.cli.options import (
    NamedSource,
    as_environment,
    blames,
    default_workers,
    extract_option,
    filter_options,
    json_option,
    option,
    required,
    source_options,
    store_options,
    store_settings,
)

if TYPE_CHECKING:  # the ledger brings numpy with it, which `--help` should not wait for
    from core.alyx_update import Update
    from core.records import Fingerprint
    from core.storage import Store
    from workers.ledger import Ledger
    from workers.records import RunSpec, Subject


def _run_options(command: Any) -> Any:
    for add in (
        json_option,
        run_options,
        option("--no-wait", is_flag=True, help="Return at once; with --broker only."),
        option("--workers", type=click.IntRange(min=1), help="Processes of --embedded; one a processor by default."),
        option("--broker", help="URL of the Redis that running workers listen to."),
        option("--embedded", is_flag=True, help="Start a private Redis and workers: the default without --broker."),
        option(
            "--fingerprint",
            type=click.Choice(["stat", "content"]),
            default="stat",
            help="Know files by size and time or, where those lie, by content: each file is then read at each look.",
        ),
        extract_option("where that is installed and, with --broker, a worker --extraction runs"),
        filter_options,
        store_options,
        source_options,
    ):
        command = add(command)
    return command


@click.command()
@_run_options
def recompute(**options: Any) -> int:
    """Compute everything anew.

    \b
    training-status recompute --root mice --store tables
    training-status recompute --root mice --store s3://bucket/prefix --lab cortexlab --broker redis://host:6379/0
    """
    return _run("recompute", **options)


@click.command()
@option("--prune", is_flag=True, help="Keep nothing of sessions and subjects that are no longer on disk.")
@_run_options
def refresh(**options: Any) -> int:
    """Compute only what is new or changed since the tables were made.

    \b
    training-status refresh --root mice --store tables
    training-status refresh --root mice --store tables --prune
    """
    return _run("refresh", **options)


def _run(
    kind: Literal["recompute", "refresh"],
    *,
    source: NamedSource | None,
    store: str,
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
    labs: tuple[str, ...],
    subjects: tuple[str, ...],
    fingerprint: Fingerprint,
    extract: bool | None,
    embedded: bool,
    broker: str | None,
    workers: int | None,
    no_wait: bool,
    alyx: str | None,
    alyx_update: bool,
    alyx_dry_run: bool,
    as_json: bool,
    prune: bool = False,
) -> int:
    if embedded and broker:
        raise ConfigurationError("--embedded and --broker exclude each other: name one of them")
    if no_wait and not broker:
        raise ConfigurationError("--no-wait goes with --broker: embedded workers end with the command")
    if no_wait and (alyx_update or alyx_dry_run):
        raise ConfigurationError(
            "--no-wait and --alyx-update exclude each other: Alyx is written to after the run's end"
        )

    from core.names import check_subject
    from core.sources import open_source
    from scheduler import runs
    from scheduler.embedded import Embedded
    from scheduler.extraction import extracts_here, extracts_there
    from workers.app import configure
    from workers.broker import check, connect
    from workers.context import open_as
    from workers.ledger import Ledger

    source = required(source)
    # All that can be wrong with the options is found before anything is started or written.
    opened = open_source(source.uri, source.settings, fingerprint)
    opened.check()
    found, _ = opened.labs(labs)
    known = {subject for lab in found for subject in opened.subjects(lab, subjects)[0]} if subjects else set()
    if missing := [subject for subject in subjects if check_subject(subject) not in known]:
        raise ConfigurationError(f"no subject {missing[0]!r} in {source.uri} in {', '.join(found)}")
    settings = store_settings(s3_endpoint, s3_profile, s3_region)
    tables = open_as(store, settings)
    tables.check()
    target = target_from(alyx, source, update=alyx_update, dry_run=alyx_dry_run)
    if target:
        with blames("--alyx"):
            target.check()
    with ExitStack() as stack:
        keep_alive = None
        if broker is None:
            with blames("--extract"):
                extract = extracts_here(extract)
            environment = {**as_environment(settings), **source.environment()}
            private = stack.enter_context(Embedded(workers or default_workers(), environment, extraction=extract))
            broker, keep_alive = private.broker, private.keep_alive
        client = connect(broker)
        check(client, broker)
        ledger = Ledger(client)
        app = configure(broker)
        if keep_alive is None:
            with blames("--extract"):
                extract = extracts_there(extract, app)
        spec = runs.new_run(
            kind,
            source=source.uri,
            store=store,
            labs=labs,
            subjects=subjects,
            prune=prune,
            fingerprint=fingerprint,
            extract=extract,
        )
        with interruptible(spec, embedded=keep_alive is not None):
            runs.start(ledger, spec)
            if no_wait:
                told_started(spec, as_json)
                return Exit.DONE
            return follow(
                ledger,
                spec,
                as_json=as_json,
                keep_alive=keep_alive,
                then=partial(_write_back, target, tables) if target else None,
            )


def told_started(spec: RunSpec, as_json: bool) -> None:
    """Print the id of a run that goes on without this command."""
    click.echo(orjson.dumps({"run_id": spec.run_id}).decode() if as_json else f"run {spec.run_id} started")


def follow(
    ledger: Ledger,
    spec: RunSpec,
    *,
    as_json: bool,
    keep_alive: Callable[[], None] | None = None,
    then: Callable[[Collection[Subject], bool], list[Update]] | None = None,
) -> int:
    """Show a run's progress until it ends, print its record, and return the exit code.

    Parameters
    ----------
    ledger : Ledger
        Where the run is.
    spec : RunSpec
        The run.
    as_json : bool
        Print the record as JSON.
    keep_alive : callable, optional
        Restarts the embedded services where they have died; None where the run does not depend on this command.
    then : callable, optional
        Writes the run's subjects to Alyx after its end; told them, and whether to print nothing.
    """
    from scheduler import runs
    from scheduler.cli.show import run_progress

    with run_progress() as show:
        record = runs.watch(ledger, spec, on_progress=show, keep_alive=keep_alive or (lambda: None))
    updates: list[Update] = []
    if not as_json:
        _report(record)
    if then and not record["error"]:
        updates = then(ledger.outcomes(spec.run_id), as_json)
    if as_json:
        told = {**record, "alyx": [asdict(update) for update in updates]} if then else record
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    if record["error"]:
        raise ConfigurationError(f"the run could not go on: {record['error']}")
    return Exit.SUBJECTS_FAILED if record["counts"]["failed"] else exit_code(updates)


def _write_back(target: Target, tables: Store, subjects: Collection[Subject], quiet: bool) -> list[Update]:
    from core.tables import COHORT_KEY, cohort_subjects

    stored = tables.get(COHORT_KEY)
    known = cohort_subjects(stored.data) if stored else set()
    of_run = {(subject.lab, subject.subject) for subject in subjects}
    return target.update(tables, known & of_run, quiet=quiet)


@contextmanager
def interruptible(spec: RunSpec, *, embedded: bool) -> Iterator[None]:
    """Say at Ctrl-C what becomes of the run: it ends with its embedded workers, or goes on without this command."""
    try:
        yield
    except KeyboardInterrupt:
        goes_on = f"the run goes on without this command; `training-status runs {spec.run_id} --watch` comes back to it"
        stays = "the tables written so far stay, `training-status refresh` with the same options goes on"
        raise Interrupted(f"interrupted: {stays if embedded else goes_on}") from None


def _report(record: dict[str, Any]) -> None:
    for left in record["folders_left_out"]:
        click.echo(f"left out: {left['folder']}: {left['reason']}", err=True)
    for left in record["left_out"]:
        click.echo(f"left out: {left['lab']}/{left['subject']} {left['session']}: {left['reason']}", err=True)
    for failed in record["failed"]:
        click.echo(f"failed: {failed['lab']}/{failed['subject']}: {failed['reason']}", err=True)
    for missing in record.get("missing", ()):
        click.echo(f"missing: {missing['what']}: {missing['reason']}", err=True)
    counts = record["counts"]
    click.echo(
        f"{record['kind']} {record['run_id']}: {counts['subjects']} subjects, {counts['done']} computed, "
        f"{counts['unchanged']} unchanged, {counts['failed']} failed; {counts['sessions']} sessions, "
        f"{counts['left_out']} left out"
    )
