"""The search for the most likely psychometric curve, over many problems at once.

starts -> climb -> screening, until no climb can gain: see `search`. What the parameters mean, and the
curves that are known in closed form, are in `core.psychometrics`.

A *lane* is one climb on one problem. Every array is laid out (..., contrast, lane) or (..., lane), and a
lane's numbers must come out the same, to the bit, whatever shares the arrays with it. Hence three rules:

- Arithmetic is elementwise. Sums over contrasts are made by `total`, one contrast after the other: NumPy's
  own sum, and BLAS, take another order for another width.
- A problem with fewer contrasts than its neighbours is padded with contrasts without trials, whose terms
  are exact zeros; what is decided about a lane is decided from the lanes of its own problem.
- Arrays stay C-contiguous. With AVX-512, `np.exp` and `np.log` give another last bit when they run backwards
  through memory (stride below zero), and the same bits at every length, offset and positive stride.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

EPS = float(np.finfo(np.float64).eps)
LO, HI, BIAS, THRESHOLD = range(4)  # order within: P = lo + (hi - lo) F, that is lo = l, hi = 1 - h
THRESHOLD_BOUNDS = (0.0, 100.0)
LAPSE_BOUNDS = (0.0, 1.0)

# The grid of starts. Fewer thresholds or offsets lose maxima on real sessions.
THRESHOLDS = 10
OFFSETS = (-0.8, 0.0, 0.8)  # of the bias from each contrast, in thresholds
REWEIGHTINGS = 3
MIDDLES = False
# A climb goes in rounds. Newton's method needs some ten steps to a maximum that is a point.
STEPS = 8
ROUNDS = 40
ENOUGH = 1e-10  # a climb that gains less over half a round is at its end
REACH = 20.0  # a climb is hopeless where this many times that gain would leave it behind
NEAR = 0.01  # two climbs this close, in thresholds and lapse rates, end at one place
DAMPING, EASE, STIFFEN = 0.1, 0.2, 8.0
# Lanes and grid points worked on at a time: what fits a core's cache.
SLICE = 512
GRID_SLICE = 8_192


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Problems side by side, contrasts ascending; padded below with the last contrast and no trials."""

    x: Array  # (contrast, problem) signed contrast, percent
    n: Array  # (contrast, problem) trials
    k: Array  # (contrast, problem) rightward choices
    size: NDArray[np.intp]  # (problem,) distinct contrasts
    gap: Array  # (problem,) smallest distance between two contrasts; 0 where there is one
    mean: Array  # (problem,) mean of the distinct contrasts

    def take(self, which: Any) -> Counts:
        """Return the problems `which` (indices, may repeat), without padding that none of them needs."""
        deep = int(self.size[which].max(initial=0))
        x, n, k = (np.ascontiguousarray(a[:deep, which]) for a in (self.x, self.n, self.k))
        return Counts(x=x, n=n, k=k, size=self.size[which], gap=self.gap[which], mean=self.mean[which])

    @property
    def smallest_threshold(self) -> Array:
        """Threshold below which the curve at every contrast is a step's, to the last bit: a gap / 16."""
        return clip(self.gap / 16, 1e-30, THRESHOLD_BOUNDS[1])

    @property
    def box(self) -> tuple[Array, Array]:
        """Lower and upper bounds, each (4, problem)."""
        zero, one = np.zeros(len(self.gap)), np.ones(len(self.gap))
        low = np.array([zero, zero, self.x[0], self.smallest_threshold])
        return low, np.array([one, one, self.x[-1], THRESHOLD_BOUNDS[1] * one])


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
    theta = np.concatenate([_starts(counts.take(part)) for part in _grid_slices(counts)], axis=2)
    low, high = counts.box
    theta = clip(theta, low[:, None], high[:, None])  # (4, start, problem)
    score = np.full(theta.shape[1:], -np.inf)
    gain = np.full(score.shape, np.inf)
    damping = np.full(score.shape, DAMPING)
    alive = np.ones(score.shape, dtype=bool)
    for _ in range(ROUNDS):
        problem, start = np.nonzero(alive.T)
        for i in range(0, len(problem), SLICE):
            p, s = problem[i : i + SLICE], start[i : i + SLICE]
            theta[:, s, p], score[s, p], gain[s, p], damping[s, p] = _climb(
                counts.take(p), theta[:, s, p], damping[s, p]
            )
        alive &= (gain > ENOUGH) & (score + REACH * gain > np.maximum(score.max(axis=0), to_beat))
        alive &= ~_duplicates(theta, score)
        if not alive.any():
            break
    best = score.argmax(axis=0)
    problems = np.arange(len(best))
    return theta[:, best, problems], score[best, problems]


def _grid_slices(counts: Counts) -> list[slice]:
    """Cut the problems into runs whose grids of starts fit the cache."""
    points = ((len(OFFSETS) + 1) * len(counts.x)) * THRESHOLDS
    width = max(1, GRID_SLICE // points)
    return [slice(i, i + width) for i in range(0, len(counts.gap), width)]


def _starts(counts: Counts) -> Array:
    """For each of several thresholds the best bias, with the best lo and hi there: (4, start, problem).

    A ridge of the likelihood runs along the threshold, and may hold several maxima of nearly one height:
    a start on the ridge at every threshold finds them where the peaks of a grid do not.
    """
    x, n, k = counts.x, counts.n, counts.k
    threshold = _threshold_ladder(counts)
    middles = np.repeat((x[:-1, None] + x[1:, None]) / 2, THRESHOLDS, axis=1)
    beside = [clip(x[:, None] + offset * threshold, x[0], x[-1]) for offset in OFFSETS]
    bias = np.concatenate([middles, *beside] if MIDDLES else beside)  # (bias, threshold, problem)
    # erf is most of the cost, and neighbours mostly share their contrasts
    fresh = np.ones(x.shape[1], dtype=bool)
    fresh[1:] = (x[:, 1:] != x[:, :-1]).any(axis=0)
    z = (x[:, None, None, fresh] - bias[..., fresh]) / threshold[:, fresh]
    f = np.take((erf(z) + 1) / 2, np.cumsum(fresh) - 1, axis=3)  # (contrast, bias, threshold, problem)
    lo, hi = _best_asymptotes(f, n, k)
    score = np.zeros(lo.shape)
    for j in range(len(x)):
        p = clip(lo + (hi - lo) * f[j], EPS, 1 - EPS)
        score += k[j] * np.log(p) + (n[j] - k[j]) * np.log(1 - p)
    # of biases that make no difference, the middle one
    score -= 1e-6 * ((bias - counts.mean) / 100) ** 2
    best = score.argmax(axis=0)[None]
    lo, hi, bias = (np.take_along_axis(a, best, axis=0)[0] for a in (lo, hi, bias))
    return np.array([lo, hi, bias, threshold])


def _threshold_ladder(counts: Counts) -> Array:
    """Thresholds in a geometric series, from a quarter of the smallest gap to the whole span: (start, problem)."""
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
        a, b, c, u, v = w - 2 * wf + wff, wf - wff, wff, wy - wfy, wfy
        tiny = 1e-300
        a, c = np.maximum(a, tiny), np.maximum(c, tiny)
        det = np.maximum(a * c - b * b, 1e-12 * (a * c) + tiny)
        lo0 = clip((c * u - b * v) / det, 0, 1)
        hi0 = clip((a * v - b * u) / det, 0, 1)
        # if one of them met its bound, the other is not yet the best there
        hi1 = clip((v - b * lo0) / c, 0, 1)
        lo1 = clip((u - b * hi0) / a, 0, 1)
        first = _loss(a, b, c, u, v, lo0, hi1) <= _loss(a, b, c, u, v, lo1, hi0)
        lo, hi = np.where(first, lo0, lo1), np.where(first, hi1, hi0)
    return lo, hi


def _loss(a: Array, b: Array, c: Array, u: Array, v: Array, lo: Array, hi: Array) -> Array:
    return lo * (a * lo + 2 * (b * hi - u)) + hi * (c * hi - 2 * v)


def _climb(counts: Counts, theta: Array, damping: Array) -> tuple[Array, Array, Array, Array]:
    """Take a round of damped Newton steps inside the box.

    Returns theta, score, what its second half gained, and the damping to go on with.
    """
    low, high = counts.box
    score, slope, curvature, scale = _derivatives(counts, theta)
    before = score.copy()
    for taken in range(STEPS):
        if taken == STEPS // 2:
            before = score.copy()
        held = ((theta <= low) & (slope <= 0)) | ((theta >= high) & (slope >= 0))
        trial = clip(theta + _newton_step(slope, curvature, scale, damping, held), low, high)
        there = _derivatives(counts, trial)
        up = there[0] > score
        for mine, new in zip((theta, score, slope, curvature, scale), (trial, *there), strict=True):
            np.copyto(mine, new, where=up)
        damping = clip(np.where(up, damping * EASE, np.maximum(damping, 1e-6) * STIFFEN), 1e-12, 1e12)
    return theta, score, score - before, damping


def clip(a: Array, low: Array | float, high: Array | float) -> Array:
    """Do what `np.clip` does, at a third of its cost on small arrays."""
    return np.minimum(np.maximum(a, low), high)


def _derivatives(counts: Counts, theta: Array) -> tuple[Array, Array, Array, Array]:
    """Log likelihood (lane,), its gradient (4, lane), minus its Hessian (4, 4, lane), and a scale (4, lane).

    With z = (x - bias) / threshold, F = (erf(z) + 1) / 2, E = exp(-z^2) / (sqrt(pi) threshold):
    dF/dbias = -E, dF/dthreshold = -zE; g and w are the first and minus the second derivative of the
    log likelihood by P. The scale is the diagonal of the curvature with g left out, thus never negative.
    """
    lo, hi, bias, threshold = theta
    z = (counts.x - bias) / threshold
    wrong = counts.n - counts.k
    f = (erf(z) + 1) / 2
    e = np.exp(-(z * z)) / (threshold * np.sqrt(np.pi))
    p = clip(lo + (hi - lo) * f, EPS, 1 - EPS)
    q = 1 - p
    right, left = counts.k / p, wrong / q
    terms = np.empty((z.shape[0], 17, z.shape[1]))
    t = terms.transpose(1, 0, 2)
    np.add(counts.k * np.log(p), wrong * np.log(q), out=t[0])
    g = np.subtract(right, left, out=t[1])
    np.multiply(g, f, out=t[2])
    ge = np.multiply(g, e, out=t[3])
    gze = np.multiply(ge, z, out=t[4])
    gzze = np.multiply(gze, z, out=t[5])
    np.multiply(gzze, z, out=t[6])
    w = np.add(right / p, left / q, out=t[7])
    wf = np.multiply(w, f, out=t[8])
    np.multiply(wf, f, out=t[9])
    we = np.multiply(w, e, out=t[10])
    wfe = np.multiply(we, f, out=t[11])
    np.multiply(we, z, out=t[12])
    np.multiply(wfe, z, out=t[13])
    wee = np.multiply(we, e, out=t[14])
    wzee = np.multiply(wee, z, out=t[15])
    np.multiply(wzee, z, out=t[16])
    score, g, gf, ge, gze, gzze, gzzze, w, wf, wff, we, wfe, wze, wfze, wee, wzee, wzzee = total(terms)

    d = hi - lo
    dt = 2 * d / threshold
    slope = np.array([g - gf, gf, -d * ge, -d * gze])
    scale = np.array([w - 2 * wf + wff, wff, d * d * wee, d * d * wzzee])
    curvature = np.empty((4, 4, len(d)))
    curvature[LO, LO] = scale[LO]
    curvature[HI, HI] = scale[HI]
    curvature[BIAS, BIAS] = scale[BIAS] + dt * gze
    curvature[THRESHOLD, THRESHOLD] = scale[THRESHOLD] + dt * (gzzze - gze)
    curvature[LO, HI] = curvature[HI, LO] = wf - wff
    curvature[LO, BIAS] = curvature[BIAS, LO] = -d * (we - wfe) - ge
    curvature[HI, BIAS] = curvature[BIAS, HI] = ge - d * wfe
    curvature[LO, THRESHOLD] = curvature[THRESHOLD, LO] = -d * (wze - wfze) - gze
    curvature[HI, THRESHOLD] = curvature[THRESHOLD, HI] = gze - d * wfze
    curvature[BIAS, THRESHOLD] = curvature[THRESHOLD, BIAS] = d * d * wzee + dt * (gzze - ge / 2)
    return score, slope, curvature, scale


def _newton_step(slope: Array, curvature: Array, scale: Array, damping: Array, held: Mask) -> Array:
    """Solve (curvature + damping * scale) step = slope, parameters that are held at a bound left out.

    Elimination without exchange; a pivot below zero is turned round, which makes every step an ascent. lo
    and hi come first, for in them the likelihood is concave.
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


def _duplicates(theta: Array, score: Array) -> Mask:
    """Tell which climbs of a problem stand beside a better one: (start, problem)."""
    order = np.argsort(-score, axis=0, kind="stable")
    sorted_theta = np.take_along_axis(theta, order[None], axis=1)
    size = np.ones_like(sorted_theta)
    size[BIAS] = size[THRESHOLD] = sorted_theta[THRESHOLD]
    found = np.zeros(score.shape, dtype=bool)
    for i in range(1, len(score)):
        off = np.abs(sorted_theta[:, :i] - sorted_theta[:, i, None]) < NEAR * size[:, i, None]
        found[i] = off.all(axis=0).any(axis=0)
    result = np.empty_like(found)
    np.put_along_axis(result, order, found, axis=0)
    return result
