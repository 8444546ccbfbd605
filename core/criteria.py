"""The criteria of each status, as one table of data, and the measures of a window that they are held against.

Thresholds: the IBL's training criteria (International Brain Laboratory et al. 2021, "Standardized and reproducible
measurement of decision-making in mice", eLife 10:e63711, appendix 2), as `docs/criteria.md` lists them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from core.records import Counts, DaySummary, Fit, Verdict
from core.summarise import median

#: Seconds between the start of a session and its first trial that make a day a delay day: 15 minutes.
DELAY_SECONDS: Final = 900.0

#: Measures of a window: on how many days the rig, or the delay, is not known.
_EPHYS_UNKNOWN: Final = "ephys_unknown"
_DELAY_UNKNOWN: Final = "delay_unknown"
#: Criteria that such days bear on: one more day can only make each of them pass.
_UNKNOWN: Final = MappingProxyType(
    {
        "ephys_days": _EPHYS_UNKNOWN,
        "n_trials_ephys": _EPHYS_UNKNOWN,
        "performance_easy_ephys": _EPHYS_UNKNOWN,
        "delay_days": _DELAY_UNKNOWN,
    }
)
#: Measures of a window that no criterion names.
UNKNOWN_DAYS: Final = frozenset(_UNKNOWN.values())

COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = MappingProxyType(
    {"<": operator.lt, ">": operator.gt, ">=": operator.ge, "<=": operator.le}
)


@dataclass(frozen=True)
class Criterion:
    """A measure of the window, and the limit that it must keep."""

    name: str  # of the measure: a key of what `measure_window` returns
    comparison: str  # a key of COMPARISONS
    limit: float
    meaning: str  # for people


_BIASED_ONLY = Criterion("training_days", "<=", 0, "days of the training protocol in the window")
_LAPSES = tuple(
    Criterion(f"lapse{side}_{block}", "<", 0.1, f"lapse rate at {side} contrasts in {block} blocks")
    for block in ("20", "80")
    for side in ("low", "high")
)
_EPHYSRIG = (
    _BIASED_ONLY,
    *_LAPSES,
    Criterion("bias_shift", ">", 5, "bias in 80 blocks minus bias in 20 blocks, percent contrast"),
    Criterion("n_trials", ">", 400, "trials on every day"),
    Criterion("performance_easy", ">", 0.9, "proportion correct at easy contrasts on every day"),
    Criterion("reaction_time", "<", 2, "median reaction time at zero contrast, s"),
)
_ZERO_CONTRAST = Criterion("zero_contrast", ">=", 1, "zero contrast shown (1) or not (0)")

#: Status -> its criteria. The only place where a threshold stands.
CRITERIA: Final[Mapping[str, tuple[Criterion, ...]]] = MappingProxyType(
    {
        "trained 1a": (
            _ZERO_CONTRAST,
            Criterion("bias", "<", 16, "size of the bias, percent contrast"),
            Criterion("threshold", "<", 19, "threshold, percent contrast"),
            Criterion("lapselow", "<", 0.2, "lapse rate at low contrasts"),
            Criterion("lapsehigh", "<", 0.2, "lapse rate at high contrasts"),
            Criterion("n_trials", ">", 200, "trials on every day"),
            Criterion("performance_easy", ">", 0.8, "proportion correct at easy contrasts on every day"),
        ),
        "trained 1b": (
            _ZERO_CONTRAST,
            Criterion("bias", "<", 10, "size of the bias, percent contrast"),
            Criterion("threshold", "<", 20, "threshold, percent contrast"),
            Criterion("lapselow", "<", 0.1, "lapse rate at low contrasts"),
            Criterion("lapsehigh", "<", 0.1, "lapse rate at high contrasts"),
            Criterion("n_trials", ">", 400, "trials on every day"),
            Criterion("performance_easy", ">", 0.9, "proportion correct at easy contrasts on every day"),
            Criterion("reaction_time", "<", 2, "median reaction time at zero contrast, s"),
        ),
        "ready4ephysrig": _EPHYSRIG,
        "ready4delay": (
            _BIASED_ONLY,
            Criterion("ephys_days", ">=", 1, "days on an ephys rig in the window"),
            Criterion("n_trials_ephys", ">", 400, "trials on the best of the days on an ephys rig"),
            Criterion("performance_easy_ephys", ">", 0.9, "proportion correct at easy contrasts, same days, the best"),
        ),
        "ready4recording": (
            *_EPHYSRIG,
            Criterion("ephys_days", ">=", 3, "days on an ephys rig in the window"),
            Criterion("delay_days", ">=", 1, "days with a delay of at least 900 s in the window"),
        ),
    }
)

#: The fits over the window that a status's criteria read: "all" trials, or the blocks "20" and "80".
FITS_READ: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "trained 1a": ("all",),
        "trained 1b": ("all",),
        "ready4ephysrig": ("20", "80"),
        "ready4delay": (),
        "ready4recording": ("20", "80"),
    }
)


def pool(counts: Sequence[Counts]) -> Counts:
    """Return the sum of `counts`, contrast by contrast."""
    total: dict[float, tuple[int, int]] = {}
    for part in counts:
        for x, n, k in zip(part.contrasts, part.n, part.k, strict=True):
            n_before, k_before = total.get(x, (0, 0))
            total[x] = n_before + n, k_before + k
    contrasts = sorted(total)
    return Counts(
        contrasts=tuple(contrasts),
        n=tuple(total[x][0] for x in contrasts),
        k=tuple(total[x][1] for x in contrasts),
    )


def measure_window(days: Sequence[DaySummary], fits: Mapping[str, Fit]) -> dict[str, float]:
    """Return every measure that a criterion can name, and of how many days what it needs is not known.

    Parameters
    ----------
    days : sequence of DaySummary
        The window's days without habituation, at least one; a day may stand twice (the peer's window), and then
        counts twice as an ephys or delay day.
    fits : mapping of str to Fit
        Fits over the window's trials put together, by "all", "20", "80"; one that is missing reads as NaN.

    Returns
    -------
    dict of str to float
        NaN where a measure cannot be taken.
    """
    distinct = list({day.date: day for day in days}.values())
    ephys = [day for day in distinct if day.ephys]
    none = (math.nan,) * 4
    (bias, threshold, low, high) = fits.get("all", none)
    (bias_20, _, low_20, high_20) = fits.get("20", none)
    (bias_80, _, low_80, high_80) = fits.get("80", none)
    times = np.array([time for day in distinct for time in day.zero_contrast_times], dtype=float)
    return {
        "zero_contrast": float(any(0.0 in day.all_counts.contrasts for day in distinct)),
        "bias": abs(bias),
        "threshold": threshold,
        "lapselow": low,
        "lapsehigh": high,
        "lapselow_20": low_20,
        "lapsehigh_20": high_20,
        "lapselow_80": low_80,
        "lapsehigh_80": high_80,
        "bias_shift": bias_80 - bias_20,
        "n_trials": float(min(day.n_trials for day in distinct)),
        # A day without easy trials fails "on every day": the NaN must win here, and must not among the best.
        "performance_easy": float(np.min([day.performance_easy for day in distinct])),
        "n_trials_ephys": float(max((day.n_trials for day in ephys), default=math.nan)),
        "performance_easy_ephys": _largest([day.performance_easy for day in ephys]),
        "reaction_time": median(times),
        "training_days": float(sum(day.protocol == "training" for day in days)),
        "ephys_days": float(sum(bool(day.ephys) for day in days)),
        "delay_days": float(sum(day.delay >= DELAY_SECONDS for day in days)),
        _EPHYS_UNKNOWN: float(sum(day.ephys is None for day in days)),
        _DELAY_UNKNOWN: float(sum(math.isnan(day.delay) for day in days)),
    }


def judge(target: str, measures: Mapping[str, float]) -> tuple[Verdict, ...]:
    """Hold `measures` against the criteria of the status `target`; a comparison with NaN fails."""
    return tuple(
        Verdict(
            target=target,
            name=criterion.name,
            value=(value := _value(criterion, measures)),
            comparison=criterion.comparison,
            limit=criterion.limit,
            passed=COMPARISONS[criterion.comparison](value, criterion.limit),
        )
        for criterion in CRITERIA[target]
    )


def _value(criterion: Criterion, measures: Mapping[str, float]) -> float:
    """Return the value of a criterion; NaN where the known days do not meet it, and others might."""
    value = measures[criterion.name]
    met = COMPARISONS[criterion.comparison](value, criterion.limit)
    return value if met or not measures.get(_UNKNOWN.get(criterion.name, ""), 0.0) else math.nan


def passes(target: str, measures: Mapping[str, float]) -> bool:
    """Return whether `measures` meet every criterion of the status `target`."""
    return all(verdict.passed for verdict in judge(target, measures))


def _largest(values: Sequence[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)
