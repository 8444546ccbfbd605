"""The fit: the global maximum, the same bits in any company, one answer where several are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import erf, erfinv, xlogy

from core import _fit
from core.errors import MalformedCounts
from core.psychometrics import PARAMETERS, SATURATED, THRESHOLD_BOUNDS, fit, log_likelihood

Problem = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]
CONTRASTS = np.array([-100, -50, -25, -12.5, -6.25, 0, 6.25, 12.5, 25, 50, 100.0])
REFERENCE = Path(__file__).parents[2].parent / "shared" / "data" / "fit_problems.parquet"


def curve(parameters: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    bias, threshold, low, high = parameters
    return low + (1 - low - high) * (erf((x - bias) / threshold) + 1) / 2


def made_problems(count: int, seed: int = 0) -> list[Problem]:
    """Sessions of mice of all kinds: many trials and few, steep and shallow, leaning and lapsing."""
    rng = np.random.default_rng(seed)
    problems: list[Problem] = []
    for _ in range(count):
        x = np.sort(rng.choice(CONTRASTS, rng.integers(1, 12), replace=False))
        truth = np.array([rng.normal(0, 15), rng.choice([0.5, 5, 20, 80]), *rng.uniform(0, 0.4, 2)])
        n = rng.integers(1, rng.choice([4, 15, 120]), len(x))
        problems.append((x, n, rng.binomial(n, curve(truth, x))))
    return problems


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return made_problems(1500)


@pytest.fixture(scope="module")
def fitted(problems: list[Problem]) -> NDArray[np.float64]:
    return fit(problems)


def test_the_parameters_are_found_that_made_the_counts() -> None:
    truth = np.array([4.0, 18.0, 0.05, 0.1])
    n = np.full(len(CONTRASTS), 10**7)
    k = np.round(n * curve(truth, CONTRASTS)).astype(int)
    (found,) = fit([(CONTRASTS, n, k)])
    np.testing.assert_allclose(found, truth, rtol=1e-5)
    assert PARAMETERS == ("bias", "threshold", "lapselow", "lapsehigh")


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_the_size_of_the_batch_changes_no_bit(size: int, problems: list[Problem], fitted: NDArray[np.float64]) -> None:
    few = 120 if size == 1 else len(problems)
    parts = [fit(problems[at : min(at + size, few)]) for at in range(0, few, size)]
    assert np.array_equal(np.vstack(parts), fitted[:few], equal_nan=True)


def test_a_neighbour_with_many_contrasts_changes_no_bit(problems: list[Problem], fitted: NDArray[np.float64]) -> None:
    x = np.linspace(-100, 100, 41)
    wide = (x, np.full(41, 8), np.arange(41) % 9)
    assert np.array_equal(fit([wide, *problems[:40], wide])[1:-1], fitted[:40])


def test_the_slices_that_the_work_is_cut_into_change_no_bit(
    problems: list[Problem], fitted: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fit, "SLICE", 37)
    monkeypatch.setattr(_fit, "GRID_SLICE", 1)
    monkeypatch.setattr(_fit, "PAIR_SLICE", 5)
    assert np.array_equal(fit(problems[:200]), fitted[:200])


@pytest.mark.parametrize("function", [np.exp, np.log, np.sqrt, erf, erfinv, xlogy])
def test_a_function_gives_a_number_the_same_bits_wherever_it_stands(function: Any) -> None:
    """What `core._fit` leans on. A vectorised loop could do its last numbers another way, or differ by place."""
    rng = np.random.default_rng(5)
    numbers = rng.uniform(0, 1, 3000) if function is not np.exp else -rng.uniform(0, 30, 3000)
    arguments = (numbers, numbers) if function is xlogy else (numbers,)
    alone = np.array([function(*(a[i : i + 1] for a in arguments))[0] for i in range(3000)])
    assert np.array_equal(function(*arguments), alone)
    for length in (*range(1, 36), 63, 64, 65, 1000):
        for start in range(9):
            part = slice(start, start + length)
            assert np.array_equal(function(*(a[part] for a in arguments)), alone[part])
    tables = [a.reshape(60, 50) for a in arguments]
    assert np.array_equal(function(*(a[:, 3:20] for a in tables)), alone.reshape(60, 50)[:, 3:20])
    assert np.array_equal(function(*(np.asfortranarray(a) for a in tables)), alone.reshape(60, 50))


def test_order_and_company_change_no_bit(problems: list[Problem], fitted: NDArray[np.float64]) -> None:
    order = np.random.default_rng(1).permutation(len(problems))
    shuffled = fit([problems[at] for at in order])
    assert np.array_equal(shuffled, fitted[order], equal_nan=True)


def test_the_order_of_contrasts_and_how_counts_are_split_change_no_bit(problems: list[Problem]) -> None:
    rng = np.random.default_rng(2)
    some = problems[:200]
    split = []
    for x, n, k in some:
        first = rng.integers(0, k + 1)
        rest = np.minimum(first + rng.integers(0, n - k + 1), n)
        order = rng.permutation(2 * len(x))
        parts = (np.r_[x, x], np.r_[rest, n - rest], np.r_[np.minimum(first, rest), k - np.minimum(first, rest)])
        split.append(tuple(part[order] for part in parts))
    assert np.array_equal(fit(split), fit(some), equal_nan=True)


def test_contrasts_that_differ_by_rounding_are_one() -> None:
    x, noisy = [-25.0, 0.0, 7.0, 25.0], 0.07 * 100
    assert noisy != 7
    (one,) = fit([(x, [30, 30, 30, 30], [3, 9, 21, 28])])
    (split,) = fit([([*x, noisy, -0.0], [30, 20, 18, 30, 12, 10], [3, 5, 13, 28, 8, 4])])
    assert np.array_equal(one, split)


def test_the_threshold_is_at_least_a_sixteenth_of_the_smallest_gap(
    problems: list[Problem], fitted: NDArray[np.float64]
) -> None:
    for (x, _, _), (_, threshold, _, _) in zip(problems, fitted, strict=True):
        assert threshold >= np.diff(x).min(initial=200) / 16 or len(x) == 1


def test_every_answer_lies_in_the_box(problems: list[Problem], fitted: NDArray[np.float64]) -> None:
    low = np.array([x.min() for x, _, _ in problems])
    high = np.array([x.max() for x, _, _ in problems])
    bias, threshold, *lapses = fitted.T
    assert ((low <= bias) & (bias <= high)).all()
    assert ((threshold > THRESHOLD_BOUNDS[0]) & (threshold <= THRESHOLD_BOUNDS[1])).all()
    assert all(((lapse >= 0) & (lapse <= 1)).all() for lapse in lapses)


def test_no_point_of_the_box_is_more_likely(problems: list[Problem], fitted: NDArray[np.float64]) -> None:
    rng = np.random.default_rng(3)
    for (x, n, k), found in list(zip(problems, fitted, strict=True))[:300]:
        best = log_likelihood(found, x, n, k)
        for _ in range(60):
            far = [rng.uniform(x.min(), x.max()), 10 ** rng.uniform(-1, 2), *rng.uniform(0, 1, 2)]
            near = found + rng.normal(0, [1, 1, 0.02, 0.02])
            near = np.clip(near, [x.min(), 1e-9, 0, 0], [x.max(), 100, 1, 1])
            assert log_likelihood(far, x, n, k) <= best + 1e-9
            assert log_likelihood(near, x, n, k) <= best + 1e-9


def test_another_method_from_many_starts_finds_no_more() -> None:
    rng = np.random.default_rng(4)

    def unlikelihood(parameters: NDArray[np.float64], *counts: Any) -> float:
        return -log_likelihood(parameters, *counts)

    for x, n, k in [problem for problem in made_problems(60, seed=4) if len(problem[0]) > 3][:30]:
        best = log_likelihood(fit([(x, n, k)])[0], x, n, k)
        bounds = [(x.min(), x.max()), (1e-3, 100), (0, 1), (0, 1)]
        for _ in range(15):
            start = [rng.uniform(x.min(), x.max()), 10 ** rng.uniform(-0.5, 2), *rng.uniform(0, 0.5, 2)]
            found = minimize(unlikelihood, start, args=(x, n, k), bounds=bounds, method="L-BFGS-B")
            assert -found.fun <= best + 1e-8


def test_a_grid_of_the_whole_box_finds_no_more(problems: list[Problem], fitted: NDArray[np.float64]) -> None:
    """For each bias and threshold lo and hi are found by expectation maximisation, which only ever climbs."""
    for (x, n, k), found in list(zip(problems, fitted, strict=True))[::50]:
        best = log_likelihood(found, x, n, k)
        bias = np.linspace(x.min(), x.max(), 41)[:, None, None]
        f = (erf((x - bias) / np.geomspace(0.3, 100, 25)[:, None]) + 1) / 2
        lo = np.full((*f.shape[:2], 1), 0.3)
        hi = 1 - lo
        for _ in range(60):
            p = lo + (hi - lo) * f
            low_right, high_right = k * (1 - f) * lo / p, k * f * hi / p
            low_left, high_left = (n - k) * (1 - f) * (1 - lo) / (1 - p), (n - k) * f * (1 - hi) / (1 - p)
            lo, hi = (
                np.clip(right.sum(-1, keepdims=True) / (right + left).sum(-1, keepdims=True), 1e-12, 1 - 1e-12)
                for right, left in ((low_right, low_left), (high_right, high_left))
            )
        p = lo + (hi - lo) * f
        assert (xlogy(k, p) + xlogy(n - k, 1 - p)).sum(-1).max() <= best + 1e-9


def test_mirrored_counts_are_as_likely(problems: list[Problem], fitted: NDArray[np.float64]) -> None:
    mirrored = fit([(-x, n, n - k) for x, n, k in problems])
    for (x, n, k), one, other in zip(problems, fitted, mirrored, strict=True):
        assert log_likelihood(other, -x, n, n - k) == pytest.approx(log_likelihood(one, x, n, k), abs=1e-8)


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference problems lie beside the project, not in it")
def test_no_reference_problem_is_lost_to_the_peer_or_to_a_heavy_search() -> None:
    import pandas as pd

    table = pd.read_parquet(REFERENCE)
    reference = list(zip(table.x, table.n, table.k, strict=True))
    found = np.array([log_likelihood(p, *q) for p, q in zip(fit(reference), reference, strict=True)])
    assert len(found) > 9000
    assert (found - table.peer_best20_loglik).min() > -1e-6
    assert (found - table.ref_loglik).min() > -1e-6


def test_one_answer_where_many_are_equal() -> None:
    one = fit([([25.0], [20], [5])])[0]
    assert one[0] == 25
    assert curve(one, np.array([25.0]))[0] == pytest.approx(0.25)
    flat = fit([([-100.0, 0.0, 40.0], [10, 20, 30], [5, 10, 15])])[0]
    np.testing.assert_array_equal(flat, [-20, 30, 0.5, 0.5])
    step = fit([([-50.0, -10.0, 10.0, 50.0], [40, 40, 40, 40], [4, 4, 36, 36])])[0]
    np.testing.assert_allclose(curve(step, np.array([-50.0, -10, 10, 50])), [0.1, 0.1, 0.9, 0.9], atol=1e-12)
    assert -10 < step[0] < 10
    all_right = fit([([-100.0, 100.0], [7, 8], [7, 8])])[0]
    np.testing.assert_allclose(curve(all_right, np.array([-100.0, 100.0])), [1, 1], atol=1e-12)


@pytest.mark.parametrize("rates", [(0.1, 0.3), (0.2, 0.9), (0.0, 0.6), (0.4, 1.0), (0.9, 0.1), (0.0, 1.0)])
def test_two_contrasts_are_met_with_the_bias_midway(rates: tuple[float, float]) -> None:
    x, n = np.array([-25.0, 50.0]), np.array([100, 1000])
    (found,) = fit([(x, n, np.round(n * np.array(rates)))])
    np.testing.assert_allclose(curve(found, x), rates, atol=1e-11)
    assert found[0] == 12.5
    assert 75 / 2 / SATURATED <= found[1] <= 30


@pytest.mark.parametrize(
    "rates", [(0.1, 0.4, 0.9), (0.9, 0.5, 0.2), (0.0, 0.01, 1.0), (0.2, 0.2, 0.7), (0.1, 0.8, 0.8)]
)
def test_three_monotone_proportions_are_met(rates: tuple[float, ...]) -> None:
    x, n = np.array([-25.0, 0.0, 100.0]), np.array([100, 200, 1000])
    (found,) = fit([(x, n, np.round(n * np.array(rates)))])
    np.testing.assert_allclose(curve(found, x), rates, atol=1e-11)


def test_the_lapse_rates_of_one_contrast_are_the_least_unlike_a_mouse() -> None:
    for k in range(11):
        rate = k / 10
        ((bias, threshold, low, high),) = fit([([12.5], [10], [k])])
        assert (bias, threshold) == (12.5, 30)
        assert low - high == pytest.approx(2 * rate - 1, abs=1e-12)
        lows = np.linspace(max(0, 2 * rate - 1), min(1, 2 * rate), 1001)
        others = (lows - 0.05) ** 2 + (lows - 2 * rate + 1 - 0.05) ** 2
        assert (low - 0.05) ** 2 + (high - 0.05) ** 2 <= others.min() + 1e-12


def unlike(bias: Any, threshold: Any, x: NDArray[np.float64]) -> Any:
    return ((bias - x.mean()) / 100) ** 2 + ((threshold - 30) / 100) ** 2


@pytest.mark.parametrize("at", range(8))
def test_of_equal_steps_the_one_most_like_a_mouse_is_told(at: int) -> None:
    x = np.array([-100, -25, -12.5, -6.25, 6.25, 12.5, 25, 50, 100.0])
    (bias, threshold, low, high), *_ = fit([(x, np.full(9, 20), np.where(np.arange(9) <= at, 1, 18))])
    assert (low, high) == (0.05, pytest.approx(0.1, abs=1e-15))
    assert erf((x[at] - bias) / threshold) == -1
    assert erf((x[at + 1] - bias) / threshold) == 1
    rng = np.random.default_rng(at)
    gap = x[at + 1] - x[at]
    others = rng.uniform(x[at], x[at + 1], 20_000), rng.uniform(6.25 / 16, gap / 2 / SATURATED, 20_000)
    equal = np.minimum(others[0] - x[at], x[at + 1] - others[0]) >= SATURATED * others[1]
    assert equal.sum() > 50
    assert unlike(bias, threshold, x) <= unlike(*others, x)[equal].min() + 1e-12


@pytest.mark.parametrize(("at", "right"), [(1, 5), (3, 2), (4, 10), (4, 17), (7, 12)])
def test_of_equal_curves_through_one_contrast_the_one_most_like_a_mouse_is_told(at: int, right: int) -> None:
    x = np.array([-100, -25, -12.5, -6.25, 6.25, 12.5, 25, 50, 100.0])
    k = np.where(np.arange(9) < at, 1, 18)
    k[at] = right
    (found,) = fit([(x, np.full(9, 20), k)])
    np.testing.assert_allclose(curve(found, x), k / 20, atol=1e-14)
    bias, threshold, _, _ = found
    z = (x[at] - bias) / threshold
    others = np.linspace(6.25 / 16, 60, 10_000)
    beside = (np.delete(x, at) - (x[at] - z * others)[:, None]) / others[:, None]
    equal = (np.abs(beside) >= SATURATED).all(axis=1)
    assert unlike(bias, threshold, x) <= unlike(x[at] - z * others, others, x)[equal].min() + 1e-12


def test_extreme_counts_and_spacings_are_fitted() -> None:
    problems = [
        ([-100.0, -50.0, 50.0, 100.0], [10**9] * 4, [1, 10**8, 10**9 - 1, 10**9]),
        ([-1e6, 0.0, 1.0, 1e6], [3, 4, 5, 6], [1, 1, 4, 6]),
        ([0.0, 5e-324, 1e-300, 1e-8, 2e-8, 1.0], [3] * 6, [0, 1, 2, 1, 2, 3]),
        (np.linspace(-100, 100, 101), np.ones(101), np.arange(101) % 2),
        ([-100.0, -50.0, 50.0, 100.0], [1, 1, 1, 1], [1, 0, 1, 0]),
    ]
    assert np.isfinite(fit(problems)).all()


def test_no_trial_gives_nan_and_no_problem_gives_nothing() -> None:
    assert np.isnan(fit([([], [], []), ([0.0, 6.25], [0, 0], [0, 0])])).all()
    assert fit([]).shape == (0, 4)
    mixed = fit([([], [], []), ([-100.0, 100.0], [5, 5], [1, 4]), ([], [], [])])
    assert np.isnan(mixed[[0, 2]]).all()
    assert np.isfinite(mixed[1]).all()


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (([0, 1], [3, 3], [1]), "differ in length"),
        (([0, 1], [3, 3], [4, 1]), "more rightward choices than trials"),
        (([0, 1], [-3, 3], [0, 1]), "negative"),
        (([0, 1], [3, 3.5], [0, 1]), "not a whole number"),
        (([0, 1], [3, np.nan], [0, 1]), "NaN"),
        (([0, np.inf], [3, 3], [0, 1]), "infinite"),
        (([[0, 1]], [[3, 3]], [[0, 1]]), "one dimension"),
        ((["a"], [3], [1]), "arrays of numbers"),
        (([0], [3], [None]), "NaN"),
        (([0], [3], [1j]), "arrays of numbers"),
        (([0], [np.inf], [1]), "more than"),
        (([1e7], [3], [1]), "beyond"),
        ((0, 3, 1), "one dimension"),
        (None, "arrays of numbers"),
        (([0, 1], [3, 3]), "arrays"),
    ],
)
def test_malformed_counts_are_refused_in_one_line_that_names_the_problem(problem: Problem, told: str) -> None:
    good = ([-100.0, 100.0], [5, 5], [1, 4])
    with pytest.raises(MalformedCounts, match=told) as refused:
        fit([good, problem])
    assert str(refused.value).startswith("problem 1: ")
    assert "\n" not in str(refused.value)


def test_the_likelihood_is_that_of_the_model_with_certainties_clamped() -> None:
    x, n, k = np.array([-10.0, 10.0]), np.array([4, 5]), np.array([1, 5])
    p = curve(np.array([1.0, 8.0, 0.1, 0.2]), x)
    expected = float(np.sum(k * np.log(p) + (n - k) * np.log(1 - p)))
    assert log_likelihood([1.0, 8.0, 0.1, 0.2], x, n, k) == pytest.approx(expected)
    eps = np.finfo(float).eps
    assert log_likelihood([0.0, 0.001, 0, 0], x, [1, 1], [1, 0]) == pytest.approx(2 * np.log(eps))
    # rounding may take a probability beyond 0 or 1
    assert np.isfinite(log_likelihood([0.0, 0.001, 1.0, 1.0], x, [1, 1], [1, 1]))
    assert log_likelihood([0.0, 0.0, 0, 0], [-1.0, 0.0, 1.0], [3, 4, 5], [0, 2, 5]) == pytest.approx(4 * np.log(0.5))
