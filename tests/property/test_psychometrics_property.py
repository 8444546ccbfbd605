"""What holds for the fit of any counts whatever."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.psychometrics import THRESHOLD_BOUNDS, fit, log_likelihood

Problem = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]

shown = st.sampled_from([-100, -50, -25, -12.5, -6.25, 0, 6.25, 12.5, 25, 50, 100.0])
contrasts = st.lists(shown | st.floats(-100, 100), min_size=1, max_size=12, unique=True)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    x = draw(contrasts)
    n = draw(st.lists(st.integers(1, 9) | st.integers(1, 400), min_size=len(x), max_size=len(x)))
    k = [draw(st.integers(0, trials)) for trials in n]
    return np.array(x, dtype=float), np.array(n), np.array(k)


seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=60, deadline=None)


@quick
@given(problems())
def test_the_answer_lies_in_the_box(problem: Problem) -> None:
    x = problem[0]
    ((bias, threshold, low, high),) = fit([problem])
    assert x.min() <= bias <= x.max()
    assert THRESHOLD_BOUNDS[0] < threshold <= THRESHOLD_BOUNDS[1]
    assert 0 <= low <= 1
    assert 0 <= high <= 1


@quick
@given(problems(), seeds)
def test_no_point_of_the_box_is_more_likely(problem: Problem, seed: int) -> None:
    x = problem[0]
    (found,) = fit([problem])
    best = log_likelihood(found, *problem)
    rng = np.random.default_rng(seed)
    for _ in range(100):
        far = np.array([rng.uniform(x.min(), x.max()), 10 ** rng.uniform(-2, 2), *rng.uniform(0, 1, 2)])
        near = found + rng.normal(0, 10.0 ** rng.integers(-4, 1), 4) * [1, 1, 0.02, 0.02]
        near = np.clip(near, [x.min(), 1e-9, 0, 0], [x.max(), 100, 1, 1])
        assert max(log_likelihood(far, *problem), log_likelihood(near, *problem)) <= best + 1e-8


@quick
@given(problems(), seeds)
def test_a_mirrored_curve_is_as_likely_for_mirrored_counts(problem: Problem, seed: int) -> None:
    x, n, k = problem
    rng = np.random.default_rng(seed)
    bias, threshold, low, high = rng.uniform(-50, 50), rng.uniform(1, 100), *rng.uniform(0, 0.5, 2)
    one = log_likelihood([bias, threshold, low, high], x, n, k)
    np.testing.assert_allclose(log_likelihood([-bias, threshold, high, low], -x, n, n - k), one, rtol=1e-9)


@quick
@given(problems())
def test_the_best_of_mirrored_counts_is_as_likely(problem: Problem) -> None:
    x, n, k = problem
    mirrored = (-x, n, n - k)
    one, other = fit([problem, mirrored])
    np.testing.assert_allclose(log_likelihood(other, *mirrored), log_likelihood(one, *problem), rtol=1e-10, atol=1e-7)


@quick
@given(problems(), seeds)
def test_order_and_splitting_of_counts_change_no_bit(problem: Problem, seed: int) -> None:
    x, n, k = problem
    rng = np.random.default_rng(seed)
    k1 = rng.integers(0, k + 1)
    n1 = k1 + rng.integers(0, n - k + 1)
    order = rng.permutation(2 * len(x))
    split = (np.r_[x, x][order], np.r_[n1, n - n1][order], np.r_[k1, k - k1][order])
    assert fit([split]).tobytes() == fit([problem]).tobytes()


@quick
@given(st.lists(problems(), min_size=2, max_size=6), seeds)
def test_company_changes_no_bit(batch: list[Problem], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(batch))
    together = fit([batch[i] for i in order])
    for row, i in zip(together, order, strict=True):
        assert fit([batch[i]]).tobytes() == row.tobytes()
