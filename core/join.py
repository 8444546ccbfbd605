"""Add new sessions to a day of which others are no longer on disk, from summaries alone.

The trials of a session that is gone cannot be read again, but sums can be added to: rows stand side by side, and what a
window needs of the day is what it would be with all of the day's sessions on disk. Only the `combined_` columns, which
take a median over trials, cannot be had: each session stands alone there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from core.criteria import pool
from core.records import NAN, DaySummary
from core.summarise import EASY_CONTRAST, is_ephys, largest_delay


def join_days(kept: Iterable[DaySummary], new: Iterable[DaySummary]) -> list[DaySummary]:
    """Return all days of a subject, each once.

    Parameters
    ----------
    kept, new : iterable of DaySummary
        Days from the store, and from disk; where both have a day, the sessions of the new one are added to it.

    Returns
    -------
    list of DaySummary
        By date.
    """
    days = {day.date: day for day in kept}
    for day in new:
        days[day.date] = add_sessions(days[day.date], day) if day.date in days else day
    return [days[date] for date in sorted(days)]


def add_sessions(kept: DaySummary, new: DaySummary) -> DaySummary:
    """Return one day with the sessions of both; none is in both.

    The window's sums are those of the protocol of the day's last session, of the days given that have it themselves.
    """
    told_again = {left.session for left in new.left_out} | {f"{new.date}/{number}" for number in new.inputs}
    day = replace(
        kept,
        inputs=dict(sorted({**kept.inputs, **new.inputs}.items())),
        left_out=(*(left for left in kept.left_out if left.session not in told_again), *new.left_out),
    )
    if not new.sessions:
        return day
    sessions = tuple(sorted((*kept.sessions, *new.sessions), key=lambda session: session.number))
    last = sessions[-1]
    parts = [part for part in (kept, new) if part.protocol == last.protocol]
    return replace(
        day,
        protocol=last.protocol,
        sessions=sessions,
        combined=None,
        all_counts=pool([part.all_counts for part in parts]),
        left_counts=pool([part.left_counts for part in parts]),
        right_counts=pool([part.right_counts for part in parts]),
        zero_contrast_times=tuple(time for part in parts for time in part.zero_contrast_times),
        n_trials=sum(part.n_trials for part in parts),
        performance_easy=_performance_easy(parts),
        ephys=last.protocol != "habituation" and is_ephys(last.location),
        delay=largest_delay([part.delay for part in parts]),
    )


def _performance_easy(parts: Sequence[DaySummary]) -> float:
    """Return the proportion correct over the easy trials of all parts; they are whole numbers, so it is exact."""
    easy = [_easy_trials(part) for part in parts]
    correct = sum(round(part.performance_easy * n) for part, n in zip(parts, easy, strict=True) if n)
    return correct / sum(easy) if any(easy) else NAN


def _easy_trials(day: DaySummary) -> int:
    counts = day.all_counts
    return sum(n for x, n in zip(counts.contrasts, counts.n, strict=True) if abs(x) >= EASY_CONTRAST)
