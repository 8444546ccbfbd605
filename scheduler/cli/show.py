"""What commands show: progress bars where there is a terminal, plain lines where there is none; tables."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:  # the ledger brings numpy with it, which `--help` should not wait for
    from workers.records import Progress as RunProgress

#: Seconds between two plain lines about a run.
_LINE_EVERY = 10.0
#: Seconds over which a rate is measured.
_RATE_OVER = 30.0


@contextmanager
def run_progress() -> Iterator[Callable[[RunProgress], None]]:
    """Show a run's progress on standard error: a bar per lab, or a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("subjects, {task.fields[sessions]} sessions, {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}
        rates: dict[str, Rate] = {}

        def show(run: RunProgress) -> None:
            for lab, counts in run.labs.items():
                if lab not in bars:
                    bars[lab] = progress.add_task(lab, total=None, sessions=0, rate="")
                    rates[lab] = Rate()
                progress.update(
                    bars[lab],
                    total=counts.get("subjects", 0),
                    completed=counts.get("ended", 0),
                    sessions=counts.get("sessions", 0),
                    rate=rates[lab].told(counts.get("sessions", 0), time.monotonic()),
                )

        yield show


class Rate:
    """Sessions a second, over the last half minute: what a run does now, and not what it did when it began."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def told(self, sessions: int, now: float) -> str:
        """Note how many sessions there are at `now` (seconds), and return the rate as text."""
        self._seen.append((now, sessions))
        while now - self._seen[0][0] > _RATE_OVER:
            self._seen.popleft()
        began, before = self._seen[0]
        return f"{(sessions - before) / (now - began):.0f} sessions/s" if now > began else ""


def time_left(run: RunProgress, ended_before: int, seconds: float) -> str:
    """Return how long a run will go on, as text; empty where nobody can tell.

    It goes by subjects. While a run is planned, there are more of them than are known, so nothing is told.

    Parameters
    ----------
    run : Progress
        Where the run stands.
    ended_before, seconds : int, float
        Subjects that had ended `seconds` ago, when the watching began.
    """
    ended = run.ended - ended_before
    if run.state != "working" or ended < 1:
        return ""
    left = round(seconds * (run.subjects - run.ended) / ended)
    return f", {left // 60} min {left % 60} s left" if left >= 60 else f", {left} s left"


class _Lines:
    """Says where a run stands, a plain line now and then."""

    def __init__(self) -> None:
        self._rate = Rate()
        self._said = -math.inf
        self._began: tuple[float, int] | None = None  # when the watching began, and subjects that had ended
        self._moved: tuple[float, tuple[int, ...]] = (0.0, ())  # when something was new last, and what there was then

    def __call__(self, run: RunProgress) -> None:
        now = time.monotonic()
        self._began = self._began or (now, run.ended)
        rate = self._rate.told(run.sessions, now)
        counts = (run.subjects, run.ended, run.sessions)
        if counts != self._moved[1]:
            self._moved = (now, counts)
        if run.state != "ended" and now - self._said < _LINE_EVERY:
            return
        self._said = now
        line = f"{run.state}: {run.ended} of {run.subjects} subjects, {run.sessions} sessions, {run.failed} failed"
        still = now - self._moved[0]
        if run.state != "ended" and still >= _RATE_OVER:  # a server may be down: nobody knows how long it will take
            line += f", nothing new for {still:.0f} s"
        elif rate and run.state != "ended":
            began, ended_before = self._began
            line += f", {rate}{time_left(run, ended_before, now - began)}"
        click.echo(line, err=True)


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
