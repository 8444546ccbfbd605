"""Summarise days: the measures of each session and of each day, with all fits of a call in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core import psychometrics
from core.records import Counts, DaySummary, Facts, Fit, LoadedDay, Measures, Session, SessionSummary, Trials
from core.schema import BLOCKS

#: Signed contrasts of at least this many percent, on either side, are easy. Spec of the IBL's training pipeline.
EASY_CONTRAST = 50.0


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Trials that are measured together: of one session, or of a day's sessions of one protocol."""

    protocol: str
    trials: Trials
    duration: float
    delay: float

    @cached_property
    def contrasts(self) -> NDArray[np.float64]:
        """Signed contrast of each trial."""
        return signed_contrasts(self.trials)

    @cached_property
    def performance_easy(self) -> float:
        """Proportion of rewarded trials among the easy ones."""
        return performance_easy(self.contrasts, self.trials.feedbackType)

    @cached_property
    def counts(self) -> Counts:
        """Counts over all trials."""
        return self._count(slice(None))

    @cached_property
    def left(self) -> Counts:
        """Counts over the blocks in which the stimulus was on the left with a probability of 0.8."""
        return self._count(self.trials.probabilityLeft == 0.8)

    @cached_property
    def right(self) -> Counts:
        """Counts over the blocks with a probability of 0.2."""
        return self._count(self.trials.probabilityLeft == 0.2)

    @cached_property
    def unbiased(self) -> Counts:
        """Counts over the blocks with a probability of 0.5."""
        return self._count(self.trials.probabilityLeft == 0.5)

    @cached_property
    def _shown(self) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """The distinct contrasts, and which of them each trial has: sorting is most of what counting costs."""
        shown, at = np.unique(self.contrasts, return_inverse=True)
        return shown, at

    def _count(self, which: NDArray[np.bool_] | slice) -> Counts:
        shown, at = self._shown
        return _counted(shown, at[which], self.trials.choice[which])


def summarise(days: Sequence[LoadedDay]) -> list[DaySummary]:
    """Summarise days; nothing flows from one day to another.

    Parameters
    ----------
    days : sequence of LoadedDay
        Days of one subject, in any order.

    Returns
    -------
    list of DaySummary
        One a day, in the same order.
    """
    groups = [_groups(day) for day in days]
    fits = _fit_blocks([group for of_day in groups for group in of_day])
    # The fits come back in the order in which the groups were given, so each measure takes the next.
    return [_summarise_day(day, of_day, fits) for day, of_day in zip(days, groups, strict=True)]


def signed_contrasts(trials: Trials) -> NDArray[np.float64]:
    """Return the signed contrast of each trial in percent, shape (n_trials,); negative is left, NaN counts as 0."""
    left, right = np.nan_to_num(trials.contrastLeft), np.nan_to_num(trials.contrastRight)
    return (right - left) * 100


def count(contrasts: NDArray[np.float64], choice: NDArray[np.float64]) -> Counts:
    """Count trials and rightward choices (`choice` of -1) at each signed contrast.

    Parameters
    ----------
    contrasts, choice : ndarray, shape (n_trials,)
        Signed contrasts in percent, and choices.
    """
    shown, at = np.unique(contrasts, return_inverse=True)
    return _counted(shown, at, choice)


def _counted(shown: NDArray[np.float64], at: NDArray[np.intp], choice: NDArray[np.float64]) -> Counts:
    """Count trials, given which of the contrasts `shown` each has; contrasts without trials are left out."""
    n = np.bincount(at, minlength=len(shown))
    k = np.bincount(at[choice == -1], minlength=len(shown))
    there = n > 0
    return Counts(contrasts=tuple(shown[there].tolist()), n=tuple(n[there].tolist()), k=tuple(k[there].tolist()))


def median(values: NDArray[np.float64]) -> float:
    """Return the median of `values` without NaN; NaN where nothing is left."""
    values = np.sort(values[~np.isnan(values)])
    if not values.size:
        return float("nan")
    middle = len(values) // 2
    return float(values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2)


def performance_easy(contrasts: NDArray[np.float64], feedback: NDArray[np.float64]) -> float:
    """Return the proportion of rewarded trials among the easy ones; NaN where there are none."""
    easy = np.abs(contrasts) >= EASY_CONTRAST
    total = np.count_nonzero(easy)
    return float(np.count_nonzero(feedback[easy] == 1) / total) if total else float("nan")


def put_together(trials: Sequence[Trials]) -> Trials:
    """Return the trials of several sessions as those of one."""
    if len(trials) == 1:
        return trials[0]
    return Trials(**{f.name: np.concatenate([getattr(part, f.name) for part in trials]) for f in fields(Trials)})


def _groups(day: LoadedDay) -> list[_Group]:
    """Return each session with trials, and last, where all have one protocol, the sessions put together."""
    groups = [_group(session) for session in day.sessions if session.trials is not None]
    if _is_combined(day):
        groups.append(_together(groups))
    return groups


def _together(groups: Sequence[_Group]) -> _Group:
    """Return groups of one protocol as one; one alone as it is."""
    if len(groups) == 1:
        return groups[0]
    return _Group(
        protocol=groups[0].protocol,
        trials=put_together([group.trials for group in groups]),
        duration=sum(group.duration for group in groups),
        delay=max(group.delay for group in groups),
    )


def _group(session: Session) -> _Group:
    assert session.trials is not None
    facts = session.facts or Facts(duration=0, delay=0, location="training_rig")
    return _Group(protocol=session.protocol, trials=session.trials, duration=facts.duration, delay=facts.delay)


def _is_combined(day: LoadedDay) -> bool:
    protocols = {session.protocol for session in day.sessions}
    return len(day.sessions) > 1 and len(protocols) == 1 and protocols != {"habituation"}


def _fit_blocks(groups: Sequence[_Group]) -> Iterator[tuple[Fit, Fit, Fit]]:
    """Yield the fits of the three blocks for each group, from one batch."""
    counts = [block for group in groups for block in _blocks(group)]
    fits = fit(counts)
    for at in range(0, len(fits), len(BLOCKS)):
        unbiased, right, left = fits[at : at + len(BLOCKS)]
        yield unbiased, right, left


def fit(counts: Sequence[Counts]) -> list[Fit]:
    """Fit each of `counts` in one batch; NaN parameters where there is no trial."""
    parameters = psychometrics.fit([(c.contrasts, c.n, c.k) for c in counts])
    return [(bias, threshold, low, high) for bias, threshold, low, high in parameters.tolist()]


def _blocks(group: _Group) -> list[Counts]:
    """Return the counts of the blocks 50, 20 and 80; training has one fit over all trials, in place of the first."""
    if group.protocol == "training":
        return [group.counts, Counts(), Counts()]
    return [group.unbiased, group.right, group.left]


def _measure(group: _Group, fits: tuple[Fit, Fit, Fit]) -> Measures:
    trials = group.trials
    return Measures(
        counts=group.counts,
        n_trials=float(len(trials)),
        performance_easy=group.performance_easy,
        reaction_time=median(trials.response_times - trials.stimOn_times),
        duration=group.duration,
        delay=group.delay,
        fits=fits,
    )


def _summarise_day(day: LoadedDay, groups: Sequence[_Group], fits: Iterator[tuple[Fit, Fit, Fit]]) -> DaySummary:
    measures = iter([_measure(group, next(fits)) for group in groups])
    sessions = tuple(
        SessionSummary(
            path=session.path,
            number=session.number,
            protocol=session.protocol,
            location=session.facts.location if session.facts else None,
            measures=next(measures) if session.trials is not None else None,
            eid=session.eid,
        )
        for session in day.sessions
    )
    summary = DaySummary(date=day.date, inputs=day.inputs, sessions=sessions, left_out=day.left_out)
    if not sessions:
        return summary
    protocol = sessions[-1].protocol
    of_protocol = [group for group in groups[: len(sessions)] if group.protocol == protocol]
    combined = next(measures, None)
    if not of_protocol:  # habituation
        return replace(summary, protocol=protocol)
    # Sessions of one protocol were put together already.
    of_day = groups[-1] if combined is not None else _together(of_protocol)
    return _with_window(summary, of_day, combined)


def _with_window(summary: DaySummary, group: _Group, combined: Measures | None) -> DaySummary:
    """Return `summary` with what a window needs: only the sessions of the day's protocol, put together."""
    trials = group.trials
    times = (trials.response_times - trials.stimOn_times)[group.contrasts == 0]
    return replace(
        summary,
        protocol=group.protocol,
        combined=combined,
        all_counts=group.counts,
        left_counts=group.left,
        right_counts=group.right,
        zero_contrast_times=tuple(times[~np.isnan(times)].tolist()),
        n_trials=len(trials),
        performance_easy=group.performance_easy,
        ephys=summary.sessions[-1].location == "ephys_rig",
        delay=group.delay,
    )
