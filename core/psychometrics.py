"""The psychometric curve of a set of trials: its maximum likelihood parameters, for many sets at once.

The model is the IBL's, as in its criteria document and in psychofit's ``erf_psycho_2gammas``:

    P(right | x) = l + (1 - l - h) (erf((x - bias) / threshold) + 1) / 2

with the signed contrast x in percent, lapse rates l (low) and h (high), and binomial counts at each contrast.
The box is the one the training status has always been computed with: the bias between the smallest and the
largest contrast, the threshold within `THRESHOLD_BOUNDS`, each lapse rate within `LAPSE_BOUNDS`.

`fit` finds the global maximum (`core._fit`), draws nothing at random, and gives a problem the same bits
alone, in any batch and in any order.

Which of several equal maxima
-----------------------------
Often the likelihood has not one highest point but a plateau: whenever the best curve takes at most one
value between its two asymptotes at the contrasts that were shown. A step between two contrasts is the same
curve for every bias in the gap, if only the threshold is small. A status must not hang on chance, so one
of them is chosen by rules. They follow one idea, the equal curve that looks most like a mouse's: the least

    R = ((bias - mean x) / 100)^2 + ((threshold - 30) / 100)^2 + (l - 0.05)^2 + (h - 0.05)^2.

Of the rules that were tried, this contradicted least the verdicts on which repeated random fits agree. As it
costs nothing where it matters, it also settles equal curves of different shape, as the greatest L - 1e-8 R.

- One contrast: bias there, threshold 30, and of the lapse rates that give its proportion those of least R.
- The same proportion at every contrast: a flat line; bias at mean x, threshold 30.
- Two contrasts: bias midway; the threshold is as near to 30 from below as the box lets the lapse rates follow.
- A step, or one contrast on the way between two asymptotes: these curves are written down in closed form,
  with the lapse rates of the pooled trials. All other contrasts lie at least `SATURATED` thresholds from the
  bias, so that they are on an asymptote to the last bit; among these curves bias and threshold have the
  least R. A climb creeps towards such a curve for ever and stops anywhere; hence a curve that is found by
  climbing is preferred only where it is more likely by more than `TIE`.

The threshold is never 0: it is at least 1/16 of the smallest gap between contrasts, where the curve is a step
to the last bit, and a smaller one would be the same curve.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf, erfinv, xlogy

from core._fit import (
    BIAS,
    EPS,
    HI,
    LAPSE_BOUNDS,
    LO,
    THRESHOLD,
    THRESHOLD_BOUNDS,
    Array,
    Counts,
    clip,
    search,
    total,
)
from core.errors import MalformedCounts

__all__ = [
    "LAPSE_BOUNDS",
    "LARGEST_CONTRAST",
    "MOST_TRIALS",
    "PARAMETERS",
    "SAME_CONTRAST",
    "SATURATED",
    "THRESHOLD_BOUNDS",
    "TIE",
    "fit",
    "log_likelihood",
]

PARAMETERS = ("bias", "threshold", "lapselow", "lapsehigh")  # the columns of a result

LARGEST_CONTRAST = 1e6  # percent, either side; beyond it a column was mistaken
SAME_CONTRAST = 1e-9  # percent: contrasts that differ by rounding are one
MOST_TRIALS = 1e9  # at one contrast; beyond it a column was mistaken

SATURATED = 6.0  # erf(z) is 1 to the last bit from 5.93 on
TIE = 1e-9  # log likelihoods that differ by less are equal
TYPICAL_THRESHOLD, TYPICAL_LAPSE = 30.0, 0.05
TYPICAL_WEIGHT = 1e-8  # of R, in units of log likelihood

BATCH = 1_000  # problems searched together: enough for speed, few enough for memory
MONOTONE_SLICE = 1 << 17  # pairs of contrasts that are pooled together

Problem = tuple[ArrayLike, ArrayLike, ArrayLike]


def fit(problems: Sequence[Problem]) -> Array:
    """Fit psychometric curves by maximum likelihood.

    Give all fits of a task in one call: a batch costs a fraction of its fits one by one.

    Parameters
    ----------
    problems : sequence of (x, n, k), each array_like (m,)
        Per problem the signed contrasts in percent (negative is left), the number of trials at each, and
        the number of rightward choices among them. In any order; a contrast that is given twice is merged,
        even with a rounding error between; one without trials is passed over.

    Returns
    -------
    ndarray (len(problems), 4) of float64
        Columns `PARAMETERS`: bias and threshold in percent contrast, lapse rates in 0..1. NaN where a
        problem has no trials.

    Raises
    ------
    MalformedCounts
        A problem is not three arrays of numbers of one length, a contrast is not finite, or counts are
        negative, not whole, or have more rightward choices than trials. The message names the first such
        problem's place in the sequence.
    """
    result = np.full((len(problems), 4), np.nan)
    counts, place = _side_by_side(*_checked(problems), len(problems))
    if len(place):
        lo, hi, bias, threshold = _solve(counts)
        result[place] = np.column_stack([bias, threshold, lo, clip(1 - hi, *LAPSE_BOUNDS)])
    return result


def log_likelihood(parameters: ArrayLike, x: ArrayLike, n: ArrayLike, k: ArrayLike) -> float:
    """Score a psychometric curve.

    Parameters
    ----------
    parameters : array_like (4,)
        `PARAMETERS`, in the order and units of `fit`. Threshold 0 is the step at the bias.
    x, n, k : array_like (m,)
        Signed contrasts in percent, trials, rightward choices.

    Returns
    -------
    float
        Natural logarithm, without the binomial coefficients, which no parameter changes. A probability that
        is 0 or 1, or has left that range by rounding, counts as one rounding error away from it.
    """
    bias, threshold, lapse_low, lapse_high = np.asarray(parameters, dtype=np.float64)
    contrast, trials, right = (np.asarray(a, dtype=np.float64) for a in (x, n, k))
    z = (contrast - bias) / max(threshold, 1e-200)
    p = lapse_low + (1 - lapse_low - lapse_high) * (erf(z) + 1) / 2
    p = np.where(p <= 0, EPS, np.where(p >= 1, 1 - EPS, p))
    return float(np.sum(right * np.log(p) + (trials - right) * np.log1p(-p)))


# Reading the problems


def _checked(problems: Sequence[Problem]) -> tuple[Array, Array, Array, NDArray[np.intp]]:
    """Return x, n, k of all problems end to end, and whose each number is."""
    columns: tuple[list[Array], list[Array], list[Array]] = ([], [], [])
    for place, problem in enumerate(problems):
        for column, array in zip(columns, _three_arrays(place, problem), strict=True):
            column.append(array)
    x, n, k = (np.concatenate([*column, np.empty(0)]) for column in columns)
    owner = np.repeat(np.arange(len(problems)), [len(array) for array in columns[0]])
    faults = (
        (~np.isfinite(x), "a contrast is NaN or infinite"),
        (np.abs(x) > LARGEST_CONTRAST, f"a contrast is beyond {LARGEST_CONTRAST:.0e} percent"),
        (np.isnan(n) | np.isnan(k), "a count is NaN"),
        ((n < 0) | (k < 0), "a count is negative"),
        ((n != np.floor(n)) | (k != np.floor(k)), "a count is not a whole number"),
        (n > MOST_TRIALS, f"more than {MOST_TRIALS:.0e} trials at a contrast"),
        (k > n, "more rightward choices than trials at a contrast"),
    )
    found = [(owner[fault.argmax()], what) for fault, what in faults if fault.any()]
    if found:
        place, what = min(found, key=lambda each: each[0])
        raise MalformedCounts(f"problem {place}: {what}")
    return x, n, k, owner


def _three_arrays(place: int, problem: Problem) -> list[Array]:
    try:
        raw = [np.asarray(array) for array in problem]
        if any(array.dtype.kind not in "biufO" for array in raw):
            raise TypeError
        arrays = [array.astype(np.float64, copy=False) for array in raw]
    except (TypeError, ValueError):
        raise MalformedCounts(f"problem {place}: not three arrays of numbers (x, n, k)") from None
    if len(arrays) != 3:
        raise MalformedCounts(f"problem {place}: {len(arrays)} arrays where x, n and k are meant")
    if any(array.ndim != 1 for array in arrays):
        raise MalformedCounts(f"problem {place}: x, n and k must have one dimension")
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise MalformedCounts(f"problem {place}: x, n and k differ in length ({', '.join(map(str, lengths))})")
    return arrays


def _side_by_side(
    x: Array, n: Array, k: Array, owner: NDArray[np.intp], problems: int
) -> tuple[Counts, NDArray[np.intp]]:
    """Sort, merge and pad; return the problems that have trials, and their places."""
    shown = n > 0
    x, n, k, owner = x[shown] + 0.0, n[shown], k[shown], owner[shown]  # + 0.0: no negative zero
    order = np.lexsort((x, owner))
    x, n, k, owner = x[order], n[order], k[order], owner[order]
    fresh = np.ones(len(x), dtype=bool)
    fresh[1:] = (np.diff(x) > SAME_CONTRAST) | (owner[1:] != owner[:-1])
    entry = np.cumsum(fresh) - 1
    # counts are whole, so their sums are exact in any order
    n, k = (np.bincount(entry, count).astype(np.float64) for count in (n, k))
    x, owner = x[fresh], owner[fresh]

    size = np.bincount(owner, minlength=problems)
    place = np.flatnonzero(size)
    size = size[place]
    last = np.cumsum(size) - 1
    column = np.repeat(np.arange(len(place)), size)
    row = np.arange(len(x)) - np.repeat(last + 1 - size, size)
    shape = (int(size.max(initial=1)), len(place))
    padded_x = np.tile(x[last], (shape[0], 1))
    padded_n, padded_k = np.zeros(shape), np.zeros(shape)
    padded_x[row, column], padded_n[row, column], padded_k[row, column] = x, n, k

    gaps = np.diff(padded_x, axis=0)
    smallest = np.where(gaps > 0, gaps, np.inf).min(axis=0, initial=np.inf)
    counts = Counts(
        x=padded_x,
        n=padded_n,
        k=padded_k,
        size=size,
        gap=np.where(size > 1, smallest, 0.0),
        mean=total(np.where(padded_n > 0, padded_x, 0.0)) / size,
    )
    # like beside like: little padding, and one table of erf for all who share their contrasts
    alike = np.lexsort([*padded_x[::-1], size])
    return counts.take(alike), place[alike]


# Choosing the curve


def _solve(counts: Counts) -> Array:
    """Return lo, hi, bias and threshold of the curve that stands for each problem's maximum: (4, problem)."""
    trials, right = counts.n.sum(axis=0), counts.k.sum(axis=0)
    flat = (counts.k * trials == counts.n * right).all(axis=0)
    rules = (
        (counts.size == 1, _one_contrast),
        (flat & (counts.size > 1), _flat_line),
        (~flat & (counts.size == 2), _two_contrasts),
        (~flat & (counts.size > 2), _best_curve),
    )
    theta = np.empty((4, len(trials)))
    for which, rule in rules:
        if which.any():
            theta[:, which] = rule(counts.take(which))
    return clip(theta, *counts.box)


def _one_contrast(counts: Counts) -> Array:
    """P = (lo + hi) / 2 is all that counts; the least R is where both lapse rates leave 0.05 by as much."""
    rate = counts.k[0] / counts.n[0]
    lo = clip(rate - 0.5 + TYPICAL_LAPSE, np.maximum(2 * rate - 1, 0), np.minimum(2 * rate, 1))
    return np.array([lo, clip(2 * rate - lo, 0, 1), counts.x[0], np.full_like(lo, TYPICAL_THRESHOLD)])


def _flat_line(counts: Counts) -> Array:
    rate = counts.k[0] / counts.n[0]
    return np.array([rate, rate, counts.mean, np.full_like(rate, TYPICAL_THRESHOLD)])


def _two_contrasts(counts: Counts) -> Array:
    """With the bias midway, erf is +- s at the two contrasts: lo and hi are middle -+ half / s."""
    first, second = counts.k / counts.n
    middle, half = (first + second) / 2, (second - first) / 2
    least = np.minimum(np.abs(half) / np.minimum(middle, 1 - middle), 1)  # the s below which the box is left
    z = np.minimum(erfinv(least), SATURATED)
    threshold = np.minimum(counts.gap / 2 / z, TYPICAL_THRESHOLD)
    s = erf(counts.gap / 2 / threshold)
    bias = (counts.x[0] + counts.x[1]) / 2
    return np.array([clip(middle - half / s, 0, 1), clip(middle + half / s, 0, 1), bias, threshold])


def _best_curve(counts: Counts) -> Array:
    """The best curve that is known in closed form, or a better one by climbing where there is one."""
    theta, score = _closed_forms(counts)
    # no curve can pass the best monotone proportions: with three contrasts, and often with four, a closed form has them
    many = np.flatnonzero((counts.size > 3) & (score + TIE < _best_monotone(counts)))
    for i in range(0, len(many), BATCH):
        part = many[i : i + BATCH]
        to_beat = score[part] + TIE
        found, found_score = search(counts.take(part), to_beat)
        better = found_score > to_beat
        theta[:, part[better]] = found[:, better]
    return theta


def _best_monotone(counts: Counts) -> Array:
    """Log likelihood of the best proportions that rise, or fall, from contrast to contrast: (problem,)."""
    m, problems = counts.x.shape
    score = np.empty(problems)
    width = max(1, MONOTONE_SLICE // m**2)
    for i in range(0, problems, width):
        part = slice(i, i + width)
        n, k = counts.n[:, part], counts.k[:, part]
        score[part] = np.maximum(_rising(n, k), _rising(n, n - k))
    return score


def _rising(n: Array, k: Array) -> Array:
    """Log likelihood of the best proportions k / n that never fall: isotonic regression by its max-min formula."""
    before = np.zeros((1, n.shape[1]))
    all_n, all_k = (np.concatenate([before, np.cumsum(counts, axis=0)]) for counts in (n, k))
    # axes: first contrast, last contrast, problem; what lies below the diagonal is never looked at
    pooled = (all_k[1:] - all_k[:-1, None]) / np.maximum(all_n[1:] - all_n[:-1, None], 1)
    least = np.minimum.accumulate(pooled[:, ::-1], axis=1)[:, ::-1]
    rate = np.einsum("iip->ip", np.maximum.accumulate(least, axis=0))
    return total(xlogy(k, rate) + xlogy(n - k, 1 - rate))


def _closed_forms(counts: Counts) -> tuple[Array, Array]:
    """Return the likeliest of all steps, and of all curves with one contrast between two asymptotes."""
    curves = [np.concatenate(each, axis=-2) for each in zip(_steps(counts), _ramps(counts), strict=True)]
    theta, score = curves
    r = (
        ((theta[BIAS] - counts.mean) / 100) ** 2
        + ((theta[THRESHOLD] - TYPICAL_THRESHOLD) / 100) ** 2
        + (theta[LO] - TYPICAL_LAPSE) ** 2
        + (1 - theta[HI] - TYPICAL_LAPSE) ** 2
    )
    best = (score - TYPICAL_WEIGHT * r).argmax(axis=0)
    problem = np.arange(len(best))
    return theta[:, best, problem], score[best, problem]


def _steps(counts: Counts) -> tuple[Array, Array]:
    """Step between each contrast and the next: parameters (4, m - 1, problem), score (m - 1, problem)."""
    x, mean, smallest = counts.x, counts.mean, counts.smallest_threshold
    left_n, left_k = np.cumsum(counts.n, axis=0)[:-1], np.cumsum(counts.k, axis=0)[:-1]
    right_n, right_k = counts.n.sum(axis=0) - left_n, counts.k.sum(axis=0) - left_k
    gap = x[1:] - x[:-1]
    # The bias is SATURATED thresholds inside the edge that is nearer to the mean: least R along that line.
    at_left = mean <= (x[1:] + x[:-1]) / 2
    beyond = np.where(at_left, x[:-1] - mean, mean - x[1:])
    threshold = (TYPICAL_THRESHOLD - SATURATED * beyond) / (1 + SATURATED**2)
    threshold = np.maximum(np.minimum(threshold, gap / (2 * SATURATED)), smallest)
    bias = np.where(at_left, x[:-1] + SATURATED * threshold, x[1:] - SATURATED * threshold)
    lo, left = _pooled(left_n, left_k)
    hi, right = _pooled(right_n, right_k)
    score = np.where(right_n > 0, left + right, -np.inf)  # no padding
    return np.array([lo, hi, bias, threshold]), score


def _ramps(counts: Counts) -> tuple[Array, Array]:
    """One contrast between two asymptotes: parameters (4, m - 2, problem), score (m - 2, problem)."""
    x, n, k = counts.x, counts.n, counts.k
    up_to_n, up_to_k = np.cumsum(n, axis=0), np.cumsum(k, axis=0)
    lo, left = _pooled(up_to_n[:-2], up_to_k[:-2])
    rate, here = _pooled(n[1:-1], k[1:-1])
    right_n = up_to_n[-1] - up_to_n[1:-1]
    hi, right = _pooled(right_n, up_to_k[-1] - up_to_k[1:-1])
    height = (rate - lo) / np.where(hi == lo, np.inf, hi - lo)
    possible = (height > 0) & (height < 1) & (right_n > 0)
    z = erfinv(2 * np.where(possible, height, 0.5) - 1)
    # bias = x - z threshold keeps the contrast where it is: least R along that line, the neighbours saturated
    threshold = (TYPICAL_THRESHOLD + z * (x[1:-1] - counts.mean)) / (1 + z * z)
    largest = np.minimum((x[1:-1] - x[:-2]) / (SATURATED + z), (x[2:] - x[1:-1]) / (SATURATED - z))
    threshold = np.maximum(np.minimum(threshold, largest), counts.smallest_threshold)
    score = np.where(possible, left + here + right, -np.inf)
    return np.array([lo, hi, x[1:-1] - z * threshold, threshold]), score


def _pooled(n: Array, k: Array) -> tuple[Array, Array]:
    """Proportion, and log likelihood of the counts at it."""
    rate = k / np.maximum(n, 1)
    score: Array = xlogy(k, rate) + xlogy(n - k, 1 - rate)
    return rate, score
