"""The criteria, held against the table of the spec, limit by limit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from core.criteria import CRITERIA, DELAY_SECONDS, FITS_READ, UNKNOWN_DAYS, judge, measure_window, passes, pool
from core.records import NAN, Counts, DaySummary
from core.schema import LADDER

#: The table of the spec, and that a window with training in it cannot be judged by what comes after training.
SPEC = {
    "trained 1a": {
        ("zero_contrast", ">=", 1),
        ("bias", "<", 16),
        ("threshold", "<", 19),
        ("lapselow", "<", 0.2),
        ("lapsehigh", "<", 0.2),
        ("n_trials", ">", 200),
        ("performance_easy", ">", 0.8),
    },
    "trained 1b": {
        ("zero_contrast", ">=", 1),
        ("bias", "<", 10),
        ("threshold", "<", 20),
        ("lapselow", "<", 0.1),
        ("lapsehigh", "<", 0.1),
        ("n_trials", ">", 400),
        ("performance_easy", ">", 0.9),
        ("reaction_time", "<", 2),
    },
    "ready4ephysrig": {
        ("training_days", "<=", 0),
        ("lapselow_20", "<", 0.1),
        ("lapsehigh_20", "<", 0.1),
        ("lapselow_80", "<", 0.1),
        ("lapsehigh_80", "<", 0.1),
        ("bias_shift", ">", 5),
        ("n_trials", ">", 400),
        ("performance_easy", ">", 0.9),
        ("reaction_time", "<", 2),
    },
    "ready4delay": {
        ("training_days", "<=", 0),
        ("ephys_days", ">=", 1),
        ("n_trials_ephys", ">", 400),
        ("performance_easy_ephys", ">", 0.9),
    },
}
SPEC["ready4recording"] = {*SPEC["ready4ephysrig"], ("ephys_days", ">=", 3), ("delay_days", ">=", 1)}

#: Measures that meet every criterion there is.
PERFECT = {
    "zero_contrast": 1.0,
    "bias": 0.0,
    "threshold": 5.0,
    **{f"lapse{side}": 0.0 for side in ("low", "high", "low_20", "high_20", "low_80", "high_80")},
    "bias_shift": 20.0,
    "n_trials": 900.0,
    "n_trials_ephys": 900.0,
    "performance_easy": 1.0,
    "performance_easy_ephys": 1.0,
    "reaction_time": 0.3,
    "training_days": 0.0,
    "ephys_days": 3.0,
    "delay_days": 3.0,
}
LIMITS = [(target, *limit) for target, limits in SPEC.items() for limit in sorted(limits)]


def a_day(date: str = "2020-01-02", **more: Any) -> DaySummary:
    given: dict[str, Any] = {"protocol": "biased", "n_trials": 500, "performance_easy": 0.95, **more}
    return DaySummary(date=date, inputs={}, **given)


def test_the_criteria_are_those_of_the_spec() -> None:
    found = {target: {(c.name, c.comparison, c.limit) for c in criteria} for target, criteria in CRITERIA.items()}
    assert found == SPEC


def test_every_criterion_is_once_in_its_status_and_has_words_for_people() -> None:
    for criteria in CRITERIA.values():
        assert len({c.name for c in criteria}) == len(criteria)
        assert all(c.meaning for c in criteria)


def test_the_statuses_that_have_criteria_climb_the_ladder() -> None:
    ranks = [LADDER[target] for target in CRITERIA]
    assert ranks == sorted(ranks) == [1, 2, 3, 4, 5]
    assert set(FITS_READ) == set(CRITERIA)


@pytest.mark.parametrize("target", CRITERIA)
def test_perfect_measures_pass(target: str) -> None:
    assert passes(target, PERFECT)
    assert all(verdict.passed for verdict in judge(target, PERFECT))


@pytest.mark.parametrize(("target", "name", "comparison", "limit"), LIMITS)
def test_each_limit_by_itself(target: str, name: str, comparison: str, limit: float) -> None:
    inside, at, beyond = {
        "<": (math.nextafter(limit, -math.inf), False, limit + 1),
        ">": (math.nextafter(limit, math.inf), False, limit - 1),
        ">=": (limit + 1, True, limit - 1),
        "<=": (limit - 1, True, limit + 1),
    }[comparison]
    assert passes(target, PERFECT | {name: inside})
    assert passes(target, PERFECT | {name: float(limit)}) is at
    assert not passes(target, PERFECT | {name: beyond})
    assert not passes(target, PERFECT | {name: NAN}), "a comparison with NaN fails"


def test_a_verdict_says_what_was_held_against_what() -> None:
    by_name = {verdict.name: verdict for verdict in judge("trained 1a", PERFECT | {"bias": 17.5})}
    verdict = by_name["bias"]
    assert (verdict.target, verdict.value, verdict.comparison, verdict.limit, verdict.passed) == (
        "trained 1a",
        17.5,
        "<",
        16,
        False,
    )
    assert [name for name, other in by_name.items() if not other.passed] == ["bias"]


# --- what is measured of a window -------------------------------------------------------------------------


def test_every_criterion_is_measured_and_every_measure_is_a_criterion() -> None:
    measured = set(measure_window([a_day()], {}))
    assert measured - UNKNOWN_DAYS == {c.name for criteria in CRITERIA.values() for c in criteria} == set(PERFECT)


@pytest.mark.parametrize(
    ("days", "expected"),
    [  # whether each of three days is an ephys day, and its delay -> ephys_days and delay_days of ready4recording
        ([(True, 900.0), (True, 0.0), (True, 0.0)], (3, 1)),
        ([(True, 900.0), (True, NAN), (None, NAN)], (NAN, 1)),
        ([(None, NAN), (True, 0.0), (True, 0.0)], (NAN, NAN)),
        ([(False, 0.0), (True, 0.0), (True, 0.0)], (2, 0)),
    ],
)
def test_what_days_of_unknown_rig_or_delay_could_change_is_not_known(
    days: list[tuple[bool | None, float]], expected: tuple[float, float]
) -> None:
    window = [a_day(f"2020-01-0{at}", ephys=ephys, delay=delay) for at, (ephys, delay) in enumerate(days, start=1)]
    found = {verdict.name: verdict for verdict in judge("ready4recording", measure_window(window, {}))}
    values = (found["ephys_days"].value, found["delay_days"].value)
    assert values == pytest.approx(expected, nan_ok=True)
    assert [found[name].passed for name in ("ephys_days", "delay_days")] == [expected[0] == 3, expected[1] == 1]


def test_a_known_ephys_day_passes_beside_days_of_unknown_rig() -> None:
    window = [a_day("2020-01-01", ephys=None), a_day("2020-01-02", ephys=True)]
    assert passes("ready4delay", measure_window(window, {}))
    poor = [a_day("2020-01-01", ephys=None), a_day("2020-01-02", ephys=True, n_trials=300)]
    found = {verdict.name: verdict for verdict in judge("ready4delay", measure_window(poor, {}))}
    assert found["ephys_days"].passed
    assert math.isnan(found["n_trials_ephys"].value)
    assert not found["n_trials_ephys"].passed


def test_a_window_takes_the_worst_day_where_every_day_has_to_pass() -> None:
    days = [
        a_day("2020-01-01", n_trials=401, performance_easy=0.99),
        a_day("2020-01-02", n_trials=800, performance_easy=0.91),
        a_day("2020-01-03", n_trials=600, performance_easy=0.95),
    ]
    measures = measure_window(days, {})
    assert (measures["n_trials"], measures["performance_easy"]) == (401.0, 0.91)


def test_a_day_without_easy_trials_fails_on_every_day_and_not_on_any() -> None:
    days = [
        a_day("2020-01-01", performance_easy=NAN, ephys=True),
        a_day("2020-01-02", performance_easy=0.95, ephys=True),
    ]
    for ordered in (days, days[::-1]):
        measures = measure_window(ordered, {})
        assert math.isnan(measures["performance_easy"])
        assert measures["performance_easy_ephys"] == 0.95


def test_any_ephys_day_will_do_for_each_of_trials_and_performance() -> None:
    days = [
        a_day("2020-01-01", n_trials=900, performance_easy=1.0),  # not on an ephys rig
        a_day("2020-01-02", n_trials=450, performance_easy=0.5, ephys=True),
        a_day("2020-01-03", n_trials=100, performance_easy=0.92, ephys=True),
    ]
    measures = measure_window(days, {})
    assert (measures["n_trials_ephys"], measures["performance_easy_ephys"]) == (450.0, 0.92)
    assert passes("ready4delay", measures)


def test_without_an_ephys_day_there_is_nothing_to_measure() -> None:
    measures = measure_window([a_day()], {})
    assert (measures["ephys_days"], measures["delay_days"]) == (0.0, 0.0)
    assert math.isnan(measures["n_trials_ephys"])
    assert math.isnan(measures["performance_easy_ephys"])
    assert not passes("ready4delay", measures)


def test_a_delay_day_has_a_delay_of_fifteen_minutes_at_least() -> None:
    days = [a_day(f"2020-01-0{at}", delay=delay) for at, delay in enumerate((899.9, 900.0, 1200.0), start=1)]
    assert DELAY_SECONDS == 900
    assert measure_window(days, {})["delay_days"] == 2.0


def test_training_days_are_counted() -> None:
    days = [a_day("2020-01-01", protocol="training"), a_day("2020-01-02"), a_day("2020-01-03", protocol="ephys")]
    assert measure_window(days, {})["training_days"] == 1.0


def test_zero_contrast_is_shown_where_it_is_on_any_day() -> None:
    without = a_day("2020-01-01", all_counts=Counts(contrasts=(-100.0, 100.0), n=(1, 1), k=(0, 1)))
    with_zero = a_day("2020-01-02", all_counts=Counts(contrasts=(0.0,), n=(1,), k=(0,)))
    assert measure_window([without], {})["zero_contrast"] == 0.0
    assert measure_window([without, with_zero], {})["zero_contrast"] == 1.0


def test_the_reaction_time_is_the_median_over_the_windows_trials_together() -> None:
    days = [
        a_day("2020-01-01", zero_contrast_times=(1.0, 9.0)),
        a_day("2020-01-02", zero_contrast_times=()),
        a_day("2020-01-03", zero_contrast_times=(2.0, 3.0, 4.0)),
    ]
    assert measure_window(days, {})["reaction_time"] == 3.0  # of 1, 2, 3, 4, 9: not the median of medians
    assert math.isnan(measure_window(days[1:2], {})["reaction_time"])


def test_the_size_of_the_bias_and_the_shift_between_blocks() -> None:
    fits = {"all": (-12.0, 15.0, 0.1, 0.2), "20": (-3.0, 9.0, 0.01, 0.02), "80": (4.5, 9.0, 0.03, 0.04)}
    measures = measure_window([a_day()], fits)
    assert (measures["bias"], measures["threshold"]) == (12.0, 15.0)
    assert (measures["lapselow"], measures["lapsehigh"]) == (0.1, 0.2)
    assert measures["bias_shift"] == 7.5
    assert [measures[f"lapse{side}_{block}"] for block in ("20", "80") for side in ("low", "high")] == [
        0.01,
        0.02,
        0.03,
        0.04,
    ]


def test_a_fit_that_is_missing_is_nan() -> None:
    measures = measure_window([a_day()], {"20": (0.0, 1.0, 0.0, 0.0)})
    assert math.isnan(measures["bias"])
    assert math.isnan(measures["bias_shift"])
    assert not passes("ready4ephysrig", PERFECT | measures)


def test_a_day_that_stands_twice_counts_twice_as_a_day_and_once_with_its_trials() -> None:
    day = a_day(ephys=True, delay=1000.0, zero_contrast_times=(1.0, 2.0))
    other = a_day("2020-01-03", zero_contrast_times=(5.0,))
    measures = measure_window([day, day, other], {})
    assert (measures["ephys_days"], measures["delay_days"]) == (2.0, 2.0)
    assert measures["reaction_time"] == 2.0  # of 1, 2, 5


# --- pooled counts ----------------------------------------------------------------------------------------


def test_counts_are_summed_contrast_by_contrast() -> None:
    first = Counts(contrasts=(-25.0, 0.0), n=(3, 2), k=(1, 0))
    second = Counts(contrasts=(0.0, 100.0), n=(5, 4), k=(2, 4))
    assert pool([first, second]) == Counts(contrasts=(-25.0, 0.0, 100.0), n=(3, 7, 4), k=(1, 2, 4))
    assert pool([first]) == first
    assert pool([]) == pool([Counts()]) == Counts()
