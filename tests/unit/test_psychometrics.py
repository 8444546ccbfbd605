"""The fit: the global maximum, the same bits in any company, one answer where several are equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import erf

from core.errors import MalformedCounts
from core.psychometrics import PARAMETERS, THRESHOLD_BOUNDS, fit, log_likelihood

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
