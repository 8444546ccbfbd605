"""What flows from stage to stage: frozen records, and their form as JSON.

    SessionFiles -> Session (trials and facts) -> DaySummary -> DayStatus -> tables

A `DaySummary` is all that the later stages need of a day: it goes from worker to worker in place of trials, and it is
kept in the store, so that a refresh reads new sessions only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

NAN = float("nan")
NO_FIT = (NAN, NAN, NAN, NAN)

Fit = tuple[float, float, float, float]

#: What a file is known by: its name, size and modification time; or its name and its content.
Fingerprint = Literal["stat", "content"]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A session, or a task of one, that was not used."""

    session: str  # date/number, or what stands in its place
    reason: str  # one line: what is wrong, and where


@dataclass(frozen=True, kw_only=True)
class SessionFiles:
    """The files of one session that can bear on its result, as they lie on disk."""

    path: Path  # the session's folder
    description: Path | None  # the experiment description of iblrig 8
    settings: dict[str, Path]  # raw collection -> its task settings
    task_data: dict[str, Path]  # raw collection -> its raw trials
    trials: dict[str, dict[str, Path]]  # trials collection -> attribute (or "table") -> file
    fingerprint: str  # of the names of all of these, and their sizes and modification times, or their content
    eid: str | None = None  # the session's identifier in ONE, where it is known

    @property
    def date(self) -> str:
        """The session's date, ``yyyy-mm-dd``."""
        return self.path.parent.name

    @property
    def number(self) -> str:
        """The session's number of three digits."""
        return self.path.name

    @property
    def name(self) -> str:
        """How people are told of the session: date/number."""
        return f"{self.date}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The seven attributes used, each of shape (n_trials,), float64."""

    choice: NDArray[np.float64]  # 1 left, -1 right, 0 no response
    contrastLeft: NDArray[np.float64]  # 0..1, NaN where the stimulus was on the right
    contrastRight: NDArray[np.float64]
    feedbackType: NDArray[np.float64]  # 1 correct, -1 not
    probabilityLeft: NDArray[np.float64]
    response_times: NDArray[np.float64]  # s
    stimOn_times: NDArray[np.float64]  # s, may be NaN

    def __len__(self) -> int:
        return len(self.choice)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the raw files say of a session beside its trials."""

    duration: float  # minutes, whole; summed over the collections
    delay: float  # seconds from the session's start to the first trial; summed
    location: str  # "ephys_rig" or "training_rig"


@dataclass(frozen=True, kw_only=True)
class Session:
    """One protocol of one session, loaded. A session of chained protocols gives several."""

    path: str  # the session's folder, as it stands in the table
    number: str
    protocol: str
    trials: Trials | None  # None for habituation, which is not looked into
    facts: Facts | None
    eid: str | None = None  # the session's identifier in ONE, where it is known


@dataclass(frozen=True, kw_only=True)
class LoadedDay:
    """A day's sessions, loaded."""

    date: str
    inputs: dict[str, str]  # session number -> fingerprint of its files
    sessions: tuple[Session, ...]  # by number, then by task
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Trials and rightward choices at each signed contrast: what a fit, or a sum of windows, needs."""

    contrasts: tuple[float, ...] = ()  # signed, percent, ascending
    n: tuple[int, ...] = ()  # trials
    k: tuple[int, ...] = ()  # rightward choices

    @property
    def total(self) -> int:
        """Trials at all contrasts together."""
        return sum(self.n)

    def proportions(self) -> list[float]:
        """Return the proportion of rightward choices at each contrast."""
        return [k / n for n, k in zip(self.n, self.k, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Behaviour over a set of trials: of one session, or of a day's sessions put together."""

    counts: Counts  # over all trials
    n_trials: float
    performance_easy: float
    reaction_time: float  # s, median over all trials
    duration: float  # minutes
    delay: float  # s
    fits: tuple[Fit, Fit, Fit]  # of the blocks 50, 20 and 80


@dataclass(frozen=True, kw_only=True)
class SessionSummary:
    """The row set of one protocol of one session."""

    path: str
    number: str
    protocol: str
    location: str | None  # None for habituation
    measures: Measures | None  # None for habituation
    eid: str | None = None  # the session's identifier in ONE, where it is known


@dataclass(frozen=True, kw_only=True)
class DaySummary:
    """One day of a mouse: its rows in the table, and what the windows that contain it need."""

    date: str
    inputs: dict[str, str]  # session number -> fingerprint of its files
    protocol: str | None = None  # of the day's last session; None where every session was left out
    sessions: tuple[SessionSummary, ...] = ()  # by number
    combined: Measures | None = None  # sessions of one protocol put together; None where each stands alone
    all_counts: Counts = field(default_factory=Counts)  # over the day's protocol: all trials,
    left_counts: Counts = field(default_factory=Counts)  # the blocks with probabilityLeft 0.8
    right_counts: Counts = field(default_factory=Counts)  # and 0.2
    zero_contrast_times: tuple[float, ...] = ()  # s, response - stimulus, NaN left out
    n_trials: int = 0
    performance_easy: float = NAN
    ephys: bool = False  # on an ephys rig
    delay: float = 0.0  # s, the largest
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One criterion, judged on one day."""

    target: str  # the status that the criterion belongs to
    name: str
    value: float  # NaN where it could not be measured; then it is not passed
    comparison: str  # "<", ">", ">=" or "<="
    limit: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class DayStatus:
    """Where a mouse stands on a day, and why."""

    date: str
    status: str  # after the hierarchy: never lower than the day before
    window_status: str  # what the day's window alone gives
    verdicts: tuple[Verdict, ...] = ()  # of the criteria of this status and of the next


def days_to_json(days: Iterable[DaySummary]) -> bytes:
    """Return summaries as one JSON array; the same summaries give the same bytes, NaN is null."""
    return orjson.dumps(list(days))


def days_from_json(text: str | bytes) -> list[DaySummary]:
    """Return the summaries that :func:`days_to_json` wrote, equal to the last bit."""
    return [_day(raw) for raw in orjson.loads(text)]


def statuses_to_json(statuses: Iterable[DayStatus]) -> bytes:
    """Return statuses as one JSON array; the same statuses give the same bytes, NaN is null."""
    return orjson.dumps(list(statuses))


def statuses_from_json(text: str | bytes) -> list[DayStatus]:
    """Return the statuses that :func:`statuses_to_json` wrote, equal to the last bit."""
    return [
        DayStatus(**{**raw, "verdicts": tuple(_verdict(verdict) for verdict in raw["verdicts"])})
        for raw in orjson.loads(text)
    ]


def _verdict(raw: dict[str, Any]) -> Verdict:
    return Verdict(**{**raw, "value": _float(raw["value"])})


def _float(value: float | None) -> float:
    return NAN if value is None else float(value)


def _counts(raw: dict[str, Any]) -> Counts:
    return Counts(contrasts=tuple(raw["contrasts"]), n=tuple(raw["n"]), k=tuple(raw["k"]))


def _fit(raw: Sequence[float | None]) -> Fit:
    bias, threshold, low, high = map(_float, raw)
    return bias, threshold, low, high


def _measures(raw: dict[str, Any] | None) -> Measures | None:
    if raw is None:
        return None
    unbiased, right, left = map(_fit, raw["fits"])
    return Measures(
        counts=_counts(raw["counts"]),
        n_trials=_float(raw["n_trials"]),
        performance_easy=_float(raw["performance_easy"]),
        reaction_time=_float(raw["reaction_time"]),
        duration=_float(raw["duration"]),
        delay=_float(raw["delay"]),
        fits=(unbiased, right, left),
    )


def _day(raw: dict[str, Any]) -> DaySummary:
    sessions = tuple(
        SessionSummary(**{**session, "measures": _measures(session["measures"])}) for session in raw["sessions"]
    )
    return DaySummary(
        **{
            **raw,
            "sessions": sessions,
            "combined": _measures(raw["combined"]),
            "all_counts": _counts(raw["all_counts"]),
            "left_counts": _counts(raw["left_counts"]),
            "right_counts": _counts(raw["right_counts"]),
            "zero_contrast_times": tuple(raw["zero_contrast_times"]),
            "performance_easy": _float(raw["performance_easy"]),
            "left_out": tuple(LeftOut(**item) for item in raw["left_out"]),
        }
    )
