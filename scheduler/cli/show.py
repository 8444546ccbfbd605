"""What commands show: progress bars where there is a terminal, plain lines where there is none; tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:  # the ledger brings numpy with it, which `--help` should not wait for
    from workers.ledger import Progress as RunProgress

#: Seconds between two plain lines about a run.
_LINE_EVERY = 10.0


@contextmanager
def run_progress() -> Iterator[Callable[[RunProgress], None]]:
    """Show a run's progress on standard error: a bar per lab, or a line now and then."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("subjects, {task.fields[sessions]} sessions"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def show(run: RunProgress) -> None:
            for lab, counts in run.labs.items():
                if lab not in bars:
                    bars[lab] = progress.add_task(lab, total=None, sessions=0)
                progress.update(
                    bars[lab],
                    total=counts.get("subjects", 0),
                    completed=counts.get("ended", 0),
                    sessions=counts.get("sessions", 0),
                )

        yield show


def _lines() -> Callable[[RunProgress], None]:
    said: list[float] = []

    def say(run: RunProgress) -> None:
        now = time.monotonic()
        if run.state == "ended" or not said or now - said[-1] >= _LINE_EVERY:
            said.append(now)
            click.echo(
                f"{run.state}: {run.ended} of {run.subjects} subjects, {run.sessions} sessions, {run.failed} failed",
                err=True,
            )

    return say


@contextmanager
def counter(what: str) -> Iterator[Callable[[int], None]]:
    """Show a number that grows on standard error; nothing where there is no terminal."""
    if not sys.stderr.isatty():
        yield lambda number: None
        return
    columns = (TextColumn("{task.completed:.0f} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda number: progress.update(task, completed=number)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on standard output; whole, however narrow the terminal says it is."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        shown.add_column(heading, no_wrap=True)
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=240)
    console.print(shown)
