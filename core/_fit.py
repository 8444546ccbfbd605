"""The search for the most likely psychometric curve, over many problems at once.

Starts from a grid, damped Newton climbs in rounds, and between the rounds a screening of the climbs, until
none can gain: `search` is the way through. What the parameters mean, and the curves that are known in closed
form, are in `core.psychometrics`.

A *lane* is one climb on one problem. Every array is laid out (..., contrast, lane) or (..., lane), and a
lane's numbers must come out the same, to the bit, whatever shares the arrays with it. Hence three rules:

- Arithmetic is elementwise. Sums over contrasts are made by `total`, one contrast after the other: NumPy's
  own sum, and BLAS, take another order for another width.
- A problem with fewer contrasts than its neighbours is padded with contrasts without trials, whose terms
  are exact zeros; what is decided about a lane is decided from the lanes of its own problem.
- Arrays stay C-contiguous. With AVX-512, `np.exp` and `np.log` give another last bit when they run backwards
  through memory (a stride below zero), and the same bits at every length, offset and positive stride.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, xlogy

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]

LO, HI, BIAS, THRESHOLD = range(4)  # P = lo + (hi - lo) F, that is lo = l and hi = 1 - h
THRESHOLD_BOUNDS = (0.0, 100.0)
LAPSE_BOUNDS = (0.0, 1.0)
EPS = float(np.finfo(np.float64).eps)  # probabilities stay this far from 0 and 1

# The grid of starts. A coarser one loses maxima on real sessions.
THRESHOLDS = 10
OFFSETS = np.array([-0.8, 0.0, 0.8])  # of the bias from each contrast, in thresholds
REWEIGHTINGS = 2
# A climb goes in rounds. Newton's method needs some ten steps to a maximum that is a point.
STEPS = 8
ROUNDS = 40
ENOUGH = 1e-10  # a climb that gains less over half a round is at its end
REACH = 6.0  # a climb is hopeless where this many times that gain would leave it behind
BEHIND, BEHIND_OF_BEST = 5.0, 0.25  # starts further behind are not climbed from
NEAR = 0.01  # two climbs this close, in thresholds and lapse rates, end at one place
DAMPING, EASE, STIFFEN = 0.1, 0.2, 8.0
# Lanes, points of the grid, and problems worked on at a time: what fits a core's cache.
SLICE = 1_024
GRID_SLICE = 8_192
PAIR_SLICE = 32


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Problems side by side, contrasts ascending; padded below with the last contrast and no trials."""

    x: Array  # (contrast, problem) signed contrast, percent
    n: Array  # (contrast, problem) trials
    k: Array  # (contrast, problem) rightward choices
    size: Index  # (problem,) distinct contrasts
    gap: Array  # (problem,) smallest distance between two contrasts; 0 where there is one
    mean: Array  # (problem,) mean of the distinct contrasts

    def take(self, which: Index | Mask | slice) -> Counts:
        """Return the problems `which` (indices may repeat), without padding that none of them needs."""
        deep = int(self.size[which].max(initial=0))
        x, n, k = (np.ascontiguousarray(a[:deep, which]) for a in (self.x, self.n, self.k))
        return Counts(x=x, n=n, k=k, size=self.size[which], gap=self.gap[which], mean=self.mean[which])

    @property
    def smallest_threshold(self) -> Array:
        """Threshold at which the curve is a step at every contrast, to the last bit: a gap / 16."""
        return np.minimum(self.gap / 16, THRESHOLD_BOUNDS[1])

    @property
    def box(self) -> tuple[Array, Array]:
        """Lower and upper bounds of the parameters, each (4, problem)."""
        one = np.ones(len(self.gap))
        low = np.array([LAPSE_BOUNDS[0] * one, LAPSE_BOUNDS[0] * one, self.x[0], self.smallest_threshold])
        high = np.array([LAPSE_BOUNDS[1] * one, LAPSE_BOUNDS[1] * one, self.x[-1], THRESHOLD_BOUNDS[1] * one])
        return low, high


def clip(a: Array, low: Array | float, high: Array | float) -> Array:
    """Do what `np.clip` does, at a third of its cost on small arrays."""
    result: Array = np.minimum(np.maximum(a, low), high)
    return result


def total(terms: Array) -> Array:
    """Sum over the first axis in its order, so that the width of the others never shows in the last bit."""
    result: Array = terms[0].copy()
    for term in terms[1:]:
        result += term
    return result


def search(counts: Counts, to_beat: Array) -> tuple[Array, Array]:
    """Find the highest maximum of each problem's likelihood.

    Parameters
    ----------
    counts : Counts
        Problems of four contrasts or more.
    to_beat : ndarray (problem,)
        A log likelihood that is reached anyhow: climbs that cannot pass it are given up.

    Returns
    -------
    theta : ndarray (4, problem)
        lo, hi, bias, threshold.
    score : ndarray (problem,)
        Log likelihood there; may stay below `to_beat`.
    """
    theta, score = _starts(counts)
    gain = np.full(score.shape, np.inf)
    damping = np.full(score.shape, DAMPING)
    alive = _promising(counts, score) & ~_duplicates(theta, score)
    for _ in range(ROUNDS):
        problem, start = np.nonzero(alive.T)
        for i in range(0, len(problem), SLICE):
            p, s = problem[i : i + SLICE], start[i : i + SLICE]
            theta[:, s, p], score[s, p], gain[s, p], damping[s, p] = _climb(
                counts.take(p), theta[:, s, p], damping[s, p]
            )
        alive &= (gain > ENOUGH) & (score + REACH * gain > np.maximum(score.max(axis=0), to_beat))
        contested = np.flatnonzero(alive.any(axis=0))
        if not len(contested):
            break
        alive[:, contested] &= ~_duplicates(theta[:, :, contested], score[:, contested])
    best = score.argmax(axis=0)
    problems = np.arange(len(best))
    return theta[:, best, problems], score[best, problems]


# Starts


def _starts(counts: Counts) -> tuple[Array, Array]:
    """Return the starts, (4, start, problem), and their log likelihoods, (start, problem).

    A ridge of the likelihood runs along the threshold, and may hold several maxima of nearly one height;
    others hide where the curve rises at a contrast of its own. So the starts are the grid's best point for
    every threshold, and the best around every contrast: its few peaks lead to fewer of the maxima.
    """
    points = (len(OFFSETS) + 1) * len(counts.x) * THRESHOLDS
    width = max(1, GRID_SLICE // points)
    parts = [_grid_starts(counts.take(slice(i, i + width))) for i in range(0, len(counts.gap), width)]
    most = max(part.shape[1] for part in parts)
    # repeated starts never leave: `_duplicates`
    even = [np.pad(part, ((0, 0), (0, most - part.shape[1]), (0, 0)), mode="edge") for part in parts]
    starts = np.concatenate(even, axis=2)
    low, high = counts.box
    return clip(starts[:4], low[:, None], high[:, None]), starts[4]


def _grid_starts(counts: Counts) -> Array:
    """Lay the grid and return its chosen points: lo, hi, bias, threshold, score; (5, start, problem)."""
    x, n, k = counts.x, counts.n, counts.k
    m, problems = x.shape
    threshold = _threshold_ladder(counts)
    beside = clip(x[:, None, None] + OFFSETS[:, None, None] * threshold, x[0], x[-1])
    between = np.repeat((x[:-1, None] + x[1:, None]) / 2, THRESHOLDS, axis=1)
    bias = np.concatenate([beside.reshape(-1, *threshold.shape), between])  # (bias, threshold, problem)
    # erf is most of the cost, and neighbours mostly share their contrasts
    fresh = np.ones(problems, dtype=bool)
    fresh[1:] = (x[:, 1:] != x[:, :-1]).any(axis=0)
    z = (x[:, None, None, fresh] - bias[..., fresh]) / threshold[:, fresh]
    f = np.take((erf(z) + 1) / 2, np.cumsum(fresh) - 1, axis=3)  # (contrast, bias, threshold, problem)
    lo, hi = _best_asymptotes(f, n, k)
    score = np.zeros(lo.shape)
    for j in range(m):
        p = clip(lo + (hi - lo) * f[j], EPS, 1 - EPS)
        score += k[j] * np.log(p) + (n[j] - k[j]) * np.log(1 - p)
    score -= 1e-6 * ((bias - counts.mean) / 100) ** 2  # of biases that make no difference, the middle one

    around = len(OFFSETS) * THRESHOLDS
    best_by_threshold = score.argmax(axis=0) * THRESHOLDS + np.arange(THRESHOLDS)[:, None]
    best_by_contrast = score[: beside.shape[0] * beside.shape[1]].reshape(m, around, problems).argmax(axis=1)
    best_by_contrast += around * np.arange(m)[:, None]
    chosen = np.concatenate([best_by_threshold, best_by_contrast])
    columns = (lo, hi, bias, np.broadcast_to(threshold, score.shape), score)
    return np.array([np.take_along_axis(a.reshape(-1, problems), chosen, axis=0) for a in columns])


def _threshold_ladder(counts: Counts) -> Array:
    """Thresholds in a geometric series, from a quarter of the smallest gap to the span: (rung, problem)."""
    span = counts.x[-1] - counts.x[0]
    smallest = np.maximum(counts.gap / 4, span / 1e4)
    bottom = np.log(np.maximum(smallest, counts.smallest_threshold))
    top = np.log(np.minimum(span, THRESHOLD_BOUNDS[1]))
    rung = np.arange(THRESHOLDS)[:, None] / (THRESHOLDS - 1)
    ladder: Array = np.exp(bottom + (top - bottom) * rung)
    return ladder


def _best_asymptotes(f: Array, n: Array, k: Array) -> tuple[Array, Array]:
    """Solve for lo and hi in [0, 1] with the curve's shape f given, by reweighted least squares."""
    rate = k / np.maximum(n, 1)
    smooth = (k + 0.5) / (n + 1)
    lo = hi = np.zeros(f.shape[1:])
    for step in range(REWEIGHTINGS):
        w, wf, wff, wy, wfy = np.zeros((5, *f.shape[1:]))
        for j in range(len(f)):
            p = smooth[j] if step == 0 else clip(lo + (hi - lo) * f[j], 0.001, 0.999)
            weight = n[j] / (p * (1 - p))
            weight_f = weight * f[j]
            w += weight
            wf += weight_f
            wff += weight_f * f[j]
            wy += weight * rate[j]
            wfy += weight_f * rate[j]
        # normal equations [[a, b], [b, c]] [lo, hi] = [u, v]
        tiny = 1e-300
        a, b, c = np.maximum(w - 2 * wf + wff, tiny), wf - wff, np.maximum(wff, tiny)
        u, v = wy - wfy, wfy
        det = np.maximum(a * c - b * b, 1e-12 * (a * c) + tiny)
        lo0 = clip((c * u - b * v) / det, 0, 1)
        hi0 = clip((a * v - b * u) / det, 0, 1)
        # where one of them met its bound, the other is not yet the best
        hi1 = clip((v - b * lo0) / c, 0, 1)
        lo1 = clip((u - b * hi0) / a, 0, 1)
        loss1 = lo0 * (a * lo0 + 2 * (b * hi1 - u)) + hi1 * (c * hi1 - 2 * v)
        loss2 = lo1 * (a * lo1 + 2 * (b * hi0 - u)) + hi0 * (c * hi0 - 2 * v)
        lo, hi = np.where(loss1 <= loss2, lo0, lo1), np.where(loss1 <= loss2, hi1, hi0)
    return lo, hi


# Climbs


def _climb(counts: Counts, theta: Array, damping: Array) -> tuple[Array, Array, Array, Array]:
    """Take a round of damped Newton steps inside the box (Levenberg's and Marquardt's way).

    Returns theta, score, what the round's second half gained, and the damping to go on with.
    """
    low, high = counts.box
    score, slope, curvature, scale = _derivatives(counts, theta)
    for step in range(STEPS):
        if step == STEPS // 2:
            before = score.copy()
        held = ((theta <= low) & (slope <= 0)) | ((theta >= high) & (slope >= 0))
        trial = clip(theta + _newton_step(slope, curvature, scale, damping, held), low, high)
        there = _derivatives(counts, trial)
        up = there[0] > score
        for mine, new in zip((theta, score, slope, curvature, scale), (trial, *there), strict=True):
            np.copyto(mine, new, where=up)
        damping = clip(np.where(up, damping * EASE, np.maximum(damping, 1e-6) * STIFFEN), 1e-12, 1e12)
    return theta, score, score - before, damping


def _derivatives(counts: Counts, theta: Array) -> tuple[Array, Array, Array, Array]:
    """Log likelihood (lane,), its gradient (4, lane), minus its Hessian (4, 4, lane), and a scale (4, lane).

    With z = (x - bias) / threshold, F = (erf(z) + 1) / 2 and E = exp(-z^2) / (sqrt(pi) threshold), dF/dbias
    is -E and dF/dthreshold is -zE; g and w are the first, and minus the second, derivative of the log
    likelihood by P. The scale is the diagonal of the curvature with g left out: never negative.
    """
    lo, hi, bias, threshold = theta
    z = (counts.x - bias) / threshold
    leftward = counts.n - counts.k
    f = (erf(z) + 1) / 2
    e = np.exp(-(z * z)) / (threshold * np.sqrt(np.pi))
    p = clip(lo + (hi - lo) * f, EPS, 1 - EPS)
    q = 1 - p
    by_p, by_q = counts.k / p, leftward / q
    terms = np.empty((len(z), 17, len(lo)))
    t = terms.transpose(1, 0, 2)
    np.add(counts.k * np.log(p), leftward * np.log(q), out=t[0])
    g = np.subtract(by_p, by_q, out=t[1])
    np.multiply(g, f, out=t[2])
    ge = np.multiply(g, e, out=t[3])
    gze = np.multiply(ge, z, out=t[4])
    gzze = np.multiply(gze, z, out=t[5])
    np.multiply(gzze, z, out=t[6])
    w = np.add(by_p / p, by_q / q, out=t[7])
    wf = np.multiply(w, f, out=t[8])
    np.multiply(wf, f, out=t[9])
    we = np.multiply(w, e, out=t[10])
    wfe = np.multiply(wf, e, out=t[11])
    np.multiply(we, z, out=t[12])
    np.multiply(wfe, z, out=t[13])
    wee = np.multiply(we, e, out=t[14])
    wzee = np.multiply(wee, z, out=t[15])
    np.multiply(wzee, z, out=t[16])
    score, g, gf, ge, gze, gzze, gzzze, w, wf, wff, we, wfe, wze, wfze, wee, wzee, wzzee = total(terms)

    d = hi - lo
    dd, dt = d * d, 2 * d / threshold
    slope = np.array([g - gf, gf, -d * ge, -d * gze])
    scale = np.array([w - 2 * wf + wff, wff, dd * wee, dd * wzzee])
    c = np.empty((4, 4, len(lo)))
    c[LO, LO] = scale[LO]
    c[HI, HI] = scale[HI]
    c[BIAS, BIAS] = scale[BIAS] + dt * gze
    c[THRESHOLD, THRESHOLD] = scale[THRESHOLD] + dt * (gzzze - gze)
    c[LO, HI] = c[HI, LO] = wf - wff
    c[LO, BIAS] = c[BIAS, LO] = d * (wfe - we) - ge
    c[HI, BIAS] = c[BIAS, HI] = ge - d * wfe
    c[LO, THRESHOLD] = c[THRESHOLD, LO] = d * (wfze - wze) - gze
    c[HI, THRESHOLD] = c[THRESHOLD, HI] = gze - d * wfze
    c[BIAS, THRESHOLD] = c[THRESHOLD, BIAS] = dd * wzee + dt * (gzze - ge / 2)
    return score, slope, c, scale


def _newton_step(slope: Array, curvature: Array, scale: Array, damping: Array, held: Mask) -> Array:
    """Solve (curvature + damping * scale) step = slope, parameters held at a bound left out: (4, lane).

    Elimination without exchange of rows; a pivot below zero is turned round, so that every step goes up.
    lo and hi come first, for in them the likelihood is concave.
    """
    free = ~held
    system = np.empty((4, 5, len(damping)))
    diagonal = np.einsum("iij->ij", system[:, :4])  # a view
    system[:, :4] = curvature
    system[:, 4] = slope
    diagonal += damping * scale
    system[:, :4] *= free
    system *= free[:, None]
    diagonal += held
    smallest = 1e-10 * scale + 1e-14
    for i, row in enumerate(system):
        row[i + 1 :] /= np.maximum(np.abs(row[i]), smallest[i])
        below = system[i + 1 :]
        below[:, i + 1 :] -= below[:, i, None] * row[i + 1 :]
    step = system[:, 4]
    for i in (3, 2, 1):
        step[:i] -= system[:i, i] * step[i]
    return step


# Screening


def _promising(counts: Counts, score: Array) -> Mask:
    """Tell which starts are not far behind the best, measured by what that has over a flat line."""
    n, k = counts.n.sum(axis=0), counts.k.sum(axis=0)
    flat = xlogy(k, k / n) + xlogy(n - k, 1 - k / n)
    best = score.max(axis=0)
    result: Mask = best - score < BEHIND + BEHIND_OF_BEST * (best - flat)
    return result


def _duplicates(theta: Array, score: Array) -> Mask:
    """Tell which climbs of a problem stand beside a better one: (start, problem)."""
    reach = np.full_like(theta, NEAR)
    reach[[BIAS, THRESHOLD]] *= theta[THRESHOLD]
    first = np.tri(len(score), k=-1, dtype=bool).T[:, :, None]  # of equal climbs the first is the better
    found = np.empty(score.shape, dtype=bool)
    for i in range(0, score.shape[1], PAIR_SLICE):
        part = slice(i, i + PAIR_SLICE)
        mine = score[:, part]
        # axes: the other climb, this climb, problem
        beside = (mine[:, None] > mine) | ((mine[:, None] == mine) & first)
        for parameter, near in zip(theta[..., part], reach[..., part], strict=True):
            beside &= np.abs(parameter[:, None] - parameter) < near
        found[:, part] = beside.any(axis=0)
    return found
