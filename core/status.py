"""The status of each day: windows of three days, the ladder, and the fold over days in date order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Final, Literal

from core.criteria import CRITERIA, FITS_READ, judge, measure_window, passes, pool
from core.records import Counts, DayStatus, DaySummary, Fit, Verdict
from core.schema import LADDER
from core.summarise import fit

WindowKind = Literal["days", "sessions"]

#: Days in a window: the day, and those with sessions before it.
WINDOW_DAYS: Final = 3
#: The session of this count, in training or of the biased protocol, that is one too many.
PATIENCE: Final = 40

#: What can be reached from windows of one kind, from the highest down, and what is left where nothing passes.
_TRAINING_LADDER: Final = (("trained 1b", "trained 1a"), "in training")
_BIASED_LADDER: Final = (("ready4recording", "ready4delay", "ready4ephysrig"), "trained 1b")
_ASCENDING: Final = ("in training", *CRITERIA)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The days that decide the status of one of them, the last."""

    date: str
    days: tuple[DaySummary, ...]  # without habituation; a day twice in the peer's window; empty on a habituation day

    @property
    def ladder(self) -> tuple[tuple[str, ...], str]:
        """The statuses to try, from the highest down, and the one that is left where none passes."""
        training = sum(day.protocol == "training" for day in self.days)
        if training == len(self.days):
            return _TRAINING_LADDER
        return ((), "trained 1b") if training else _BIASED_LADDER

    def counts(self, which: str) -> Counts:
        """Return the counts over the window's trials put together: "all", or the blocks "20" or "80"."""
        distinct = {day.date: day for day in self.days}.values()
        of_day = {"all": "all_counts", "20": "right_counts", "80": "left_counts"}[which]
        return pool([getattr(day, of_day) for day in distinct])


def compute_statuses(
    days: Sequence[DaySummary], window: WindowKind = "days", known: Sequence[DayStatus] = ()
) -> list[DayStatus]:
    """Compute the status of every day of one subject.

    A day's status follows from the days up to it. So those of the first days, where they are known, are taken as they
    are: no window of theirs is fitted again.

    Parameters
    ----------
    days : sequence of DaySummary
        All days of the subject, in any order; those without a usable session are passed over.
    window : {"days", "sessions"}
        Whether a window is three days, or, as with the peer, three session rows.
    known : sequence of DayStatus
        What this function gave for days before which, and on which, nothing has changed since; in date order.

    Returns
    -------
    list of DayStatus
        One a day with sessions, in date order.
    """
    ordered = sorted((day for day in days if day.protocol is not None), key=lambda day: day.date)
    both = takewhile(lambda pair: pair[0].date == pair[1].date, zip(known, ordered, strict=False))
    settled = [of_day for of_day, _ in both]
    windows = [make_window(ordered, position, window) for position in range(len(settled), len(ordered))]
    fits = _fit_windows((w, target) for w in windows for target in w.ladder[0])
    alone = [_window_status(w, fits) for w in windows]
    statuses = fold([*(of_day.window_status for of_day in settled), *alone])[len(settled) :]
    targets = [_current_and_next(status) for status in statuses]
    wanted = ((w, target) for w, of_day in zip(windows, targets, strict=True) for target in of_day)
    fits |= _fit_windows(wanted, known=fits)
    computed = [
        DayStatus(
            date=w.date,
            status=status,
            window_status=window_status,
            verdicts=_verdicts(w, of_day, fits),
        )
        for w, status, window_status, of_day in zip(windows, statuses, alone, targets, strict=True)
    ]
    return [*settled, *computed]


def make_window(days: Sequence[DaySummary], position: int, kind: WindowKind = "days") -> Window:
    """Return the window of the day at `position` among a subject's days in date order.

    In the peer's window (`kind` of "sessions") the days before are those of the last rows, a row a session and
    protocol, so that a day with two sessions stands twice and pushes another out.
    """
    day = days[position]
    if day.protocol == "habituation":
        return Window(date=day.date, days=())
    before: list[DaySummary] = list(days[max(0, position - WINDOW_DAYS + 1) : position])
    if kind == "sessions":
        before = [earlier for earlier in before for _ in earlier.sessions][-(WINDOW_DAYS - 1) :]
    return Window(date=day.date, days=tuple(d for d in (*before, day) if d.protocol != "habituation"))


def pass_through_hierarchy(status_new: str, status_old: str) -> str:
    """Return the higher of two statuses, the new one where they are equal: a mouse does not go back.

    Raises
    ------
    KeyError
        Where one is not on the ladder.
    """
    return status_old if LADDER[status_old] > LADDER[status_new] else status_new


def fold(window_statuses: Sequence[str]) -> list[str]:
    """Return each day's status from what its window alone gives, in date order.

    A habituation day keeps `habituation`, and the status goes on behind it as if it had not been.
    """
    ladder = [status for status in window_statuses if status != "habituation"]
    held = iter(accumulate(ladder, lambda old, new: pass_through_hierarchy(new, old)))
    return [status if status == "habituation" else next(held) for status in window_statuses]


def failed_sessions(days: Sequence[DaySummary], statuses: Sequence[DayStatus]) -> dict[str, str]:
    """Return the session that makes the mouse untrainable, and the one that makes it unbiasable, if any.

    Parameters
    ----------
    days, statuses : sequence of DaySummary, of DayStatus
        All days with sessions, in date order, and their statuses.

    Returns
    -------
    dict of str to str
        Session path to ``untrainable`` (the 40th session in training) or ``unbiasable`` (the 40th biased session,
        unless one of the first 40 reached ready4ephysrig or higher).
    """
    # A session of chained protocols has a row set each, and is one session.
    status_of: dict[str, str] = {}
    protocols_of: dict[str, set[str]] = {}
    for day, status in zip(days, statuses, strict=True):
        for session in day.sessions:
            status_of[session.path] = status.status
            protocols_of.setdefault(session.path, set()).add(session.protocol)
    failed = {}
    in_training = [path for path, status in status_of.items() if status == "in training"]
    if len(in_training) >= PATIENCE:
        failed[in_training[PATIENCE - 1]] = "untrainable"
    biased = [(path, status) for path, status in status_of.items() if "biased" in protocols_of[path]][:PATIENCE]
    if len(biased) == PATIENCE and all(LADDER[status] < LADDER["ready4ephysrig"] for _, status in biased):
        failed[biased[-1][0]] = "unbiasable"
    return failed


def next_status(status: str) -> str | None:
    """Return the status above `status`; None above the highest, and for those that are not climbed."""
    if status not in _ASCENDING or status == _ASCENDING[-1]:
        return None
    return _ASCENDING[_ASCENDING.index(status) + 1]


def _current_and_next(status: str) -> list[str]:
    return [target for target in (status, next_status(status)) if target is not None and target in CRITERIA]


def _window_status(window: Window, fits: Mapping[tuple[str, str], Fit]) -> str:
    if not window.days:
        return "habituation"
    targets, otherwise = window.ladder
    if not targets:
        return otherwise
    measures = _measures(window, fits)
    return next((target for target in targets if passes(target, measures)), otherwise)


def _verdicts(window: Window, targets: Sequence[str], fits: Mapping[tuple[str, str], Fit]) -> tuple[Verdict, ...]:
    """Return the verdicts on the criteria of `targets`; none on a habituation day."""
    if not window.days:
        return ()
    measures = _measures(window, fits)
    return tuple(verdict for target in targets for verdict in judge(target, measures))


def _measures(window: Window, fits: Mapping[tuple[str, str], Fit]) -> dict[str, float]:
    known = {which: fits[window.date, which] for which in ("all", "20", "80") if (window.date, which) in fits}
    return measure_window(window.days, known)


def _fit_windows(
    wanted: Iterable[tuple[Window, str]], known: Collection[tuple[str, str]] = ()
) -> dict[tuple[str, str], Fit]:
    """Return the fits that the criteria of the wanted statuses read, by date and which, from one batch."""
    problems = {
        (w.date, which): w.counts(which)
        for w, target in wanted
        for which in FITS_READ[target]
        if w.days and (w.date, which) not in known
    }
    return dict(zip(problems, fit(list(problems.values())), strict=True))
