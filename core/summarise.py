"""Summarise days: the measures of each session and of each day, with all fits of a call in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from core import psychometrics
from core.records import Counts, DaySummary, Facts, Fit, LeftOut, Measures, Session, SessionSummary, Trials
from core.schema import BLOCKS

#: Signed contrasts of at least this many percent, on either side, are easy. Spec of the IBL's training pipeline.
EASY_CONTRAST = 50.0


@dataclass(frozen=True, kw_only=True)
class LoadedDay:
    """A day's sessions, loaded."""

    date: str
    inputs: dict[str, str]  # session number -> fingerprint of its files
    sessions: tuple[Session, ...]  # by number, then by task
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Trials that are measured together: of one session, or of a day's sessions of one protocol."""

    protocol: str
    trials: Trials
    duration: float
    delay: float


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
    n = np.bincount(at, minlength=len(shown))
    k = np.bincount(at[choice == -1], minlength=len(shown))
    return Counts(contrasts=tuple(shown.tolist()), n=tuple(n.tolist()), k=tuple(k.tolist()))


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
        groups.append(
            _Group(
                protocol=groups[0].protocol,
                trials=put_together([group.trials for group in groups]),
                duration=sum(group.duration for group in groups),
                delay=max(group.delay for group in groups),
            )
        )
    return groups


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
    contrasts, choice = signed_contrasts(group.trials), group.trials.choice
    if group.protocol == "training":
        return [count(contrasts, choice), Counts(), Counts()]
    left = group.trials.probabilityLeft
    return [count(contrasts[left == probability], choice[left == probability]) for _, probability in BLOCKS]


def _measure(group: _Group, fits: tuple[Fit, Fit, Fit]) -> Measures:
    trials = group.trials
    contrasts = signed_contrasts(trials)
    return Measures(
        counts=count(contrasts, trials.choice),
        n_trials=float(len(trials)),
        performance_easy=performance_easy(contrasts, trials.feedbackType),
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
        )
        for session in day.sessions
    )
    summary = DaySummary(date=day.date, inputs=day.inputs, sessions=sessions, left_out=day.left_out)
    if not sessions:
        return summary
    protocol = sessions[-1].protocol
    of_day = [group for group in groups[: len(sessions)] if group.protocol == protocol]
    combined = next(measures, None)
    return _with_window(summary, protocol, of_day, combined)


def _with_window(summary: DaySummary, protocol: str, groups: Sequence[_Group], combined: Measures | None) -> DaySummary:
    """Return `summary` with what a window needs: only the sessions of the day's protocol, put together."""
    if not groups:  # habituation
        return replace(summary, protocol=protocol)
    trials = put_together([group.trials for group in groups])
    contrasts = signed_contrasts(trials)
    in_left, in_right = trials.probabilityLeft == 0.8, trials.probabilityLeft == 0.2
    times = (trials.response_times - trials.stimOn_times)[contrasts == 0]
    return replace(
        summary,
        protocol=protocol,
        combined=combined,
        all_counts=count(contrasts, trials.choice),
        left_counts=count(contrasts[in_left], trials.choice[in_left]),
        right_counts=count(contrasts[in_right], trials.choice[in_right]),
        zero_contrast_times=tuple(times[~np.isnan(times)].tolist()),
        n_trials=len(trials),
        performance_easy=performance_easy(contrasts, trials.feedbackType),
        ephys=summary.sessions[-1].location == "ephys_rig",
        delay=max(group.delay for group in groups),
    )
