"""The status of each day: windows, the ladder, the fold, and who is given up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from core import status as status_module
from core.records import NO_FIT, Counts, DayStatus, DaySummary, Fit, SessionSummary
from core.schema import LADDER
from core.status import (
    compute_statuses,
    failed_sessions,
    fold,
    make_window,
    next_status,
    pass_through_hierarchy,
)

ZERO = Counts(contrasts=(0.0,), n=(600,), k=(300,))


def rows_of(date: str, *protocols: str) -> tuple[SessionSummary, ...]:
    return tuple(
        SessionSummary(
            path=f"/t/{date}/{number:03d}", number=f"{number:03d}", protocol=protocol, location=None, measures=None
        )
        for number, protocol in enumerate(protocols, start=1)
    )


def a_day(date: int, protocol: str = "training", *, sessions: Sequence[str] = (), **more: Any) -> DaySummary:
    """A day of the protocol, with as many trials, and as good, as every criterion asks for.

    The pretended fit (see `fits`) takes the first contrast for the bias, so the 20 and 80 blocks are 10 apart.
    """
    text = f"2020-01-{date:02d}" if date < 32 else f"2020-02-{date - 31:02d}"
    given: dict[str, Any] = {
        "all_counts": ZERO,
        "right_counts": Counts(contrasts=(-5.0,), n=(9,), k=(5,)),
        "left_counts": Counts(contrasts=(5.0,), n=(9,), k=(5,)),
        "zero_contrast_times": (0.5,),
        "n_trials": 600,
        "performance_easy": 0.95,
    }
    if protocol == "habituation":
        given = {}
    rows = rows_of(text, *(sessions or [protocol]))
    return DaySummary(date=text, inputs={}, protocol=protocol, sessions=rows, **(given | more))


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace the fit by one that takes the first contrast for the bias; return the sizes of the batches asked for."""
    batches: list[int] = []

    def pretend(counts: Sequence[Counts]) -> list[Fit]:
        batches.append(len(counts))
        return [(c.contrasts[0], 10.0, 0.02, 0.03) if c.total else NO_FIT for c in counts]

    monkeypatch.setattr(status_module, "fit", pretend)
    return batches


def told(days: Sequence[DaySummary], **options: Any) -> list[str]:
    return [of_day.status for of_day in compute_statuses(days, **options)]


def alone(days: Sequence[DaySummary], **options: Any) -> list[str]:
    return [of_day.window_status for of_day in compute_statuses(days, **options)]


# --- the ladder and the fold ------------------------------------------------------------------------------


def test_the_ladder_is_that_of_the_spec() -> None:
    assert dict(LADDER) == {
        "untrainable": -4,
        "unbiasable": -3,
        "not_computed": -2,
        "habituation": -1,
        "in training": 0,
        "trained 1a": 1,
        "trained 1b": 2,
        "ready4ephysrig": 3,
        "ready4delay": 4,
        "ready4recording": 5,
    }


@pytest.mark.parametrize("higher", LADDER)
@pytest.mark.parametrize("lower", LADDER)
def test_the_higher_of_two_statuses_is_kept(lower: str, higher: str) -> None:
    if LADDER[lower] <= LADDER[higher]:
        assert pass_through_hierarchy(lower, higher) == pass_through_hierarchy(higher, lower) == higher


def test_a_status_that_is_not_on_the_ladder_is_refused() -> None:
    with pytest.raises(KeyError):
        pass_through_hierarchy("trained", "in training")


def test_the_fold_holds_the_best_and_passes_habituation_by() -> None:
    assert fold(["habituation", "in training", "trained 1b", "trained 1a", "habituation", "in training"]) == [
        "habituation",
        "in training",
        "trained 1b",
        "trained 1b",
        "habituation",
        "trained 1b",
    ]
    assert fold([]) == []


@pytest.mark.parametrize(
    ("status", "above"),
    [
        ("in training", "trained 1a"),
        ("trained 1a", "trained 1b"),
        ("trained 1b", "ready4ephysrig"),
        ("ready4ephysrig", "ready4delay"),
        ("ready4delay", "ready4recording"),
        ("ready4recording", None),
        ("habituation", None),
        ("untrainable", None),
        ("unbiasable", None),
    ],
)
def test_the_next_status(status: str, above: str | None) -> None:
    assert next_status(status) == above


# --- windows ----------------------------------------------------------------------------------------------


def dates(days: Sequence[DaySummary]) -> list[int]:
    return [int(day.date[-2:]) for day in days]


def test_a_window_is_the_day_and_the_two_days_with_sessions_before_it() -> None:
    days = [a_day(date) for date in (1, 2, 9, 20)]  # sessions, not calendar days, are counted
    assert [dates(make_window(days, at).days) for at in range(4)] == [[1], [1, 2], [1, 2, 9], [2, 9, 20]]


def test_a_habituation_day_takes_a_place_in_the_window_and_adds_nothing() -> None:
    days = [a_day(1), a_day(2, "habituation"), a_day(3), a_day(4)]
    assert [dates(make_window(days, at).days) for at in range(4)] == [[1], [], [1, 3], [3, 4]]


def test_the_peers_window_is_of_session_rows() -> None:
    two = ("training", "training")
    days = [a_day(1), a_day(2), a_day(3, sessions=two), a_day(4), a_day(5)]
    found = [dates(make_window(days, at, "sessions").days) for at in range(5)]
    assert found == [[1], [1, 2], [1, 2, 3], [3, 3, 4], [3, 4, 5]]  # two sessions push the second day out
    assert [dates(make_window(days, at, "days").days) for at in range(5)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [2, 3, 4],
        [3, 4, 5],
    ]


def test_the_counts_of_a_window_are_pooled_and_a_day_counts_once() -> None:
    days = [a_day(1, sessions=("training", "training")), a_day(2)]
    window = make_window(days, 1, "sessions")
    assert dates(window.days) == [1, 1, 2]
    assert window.counts("all") == Counts(contrasts=(0.0,), n=(1200,), k=(600,))
    assert window.counts("20") == Counts(contrasts=(-5.0,), n=(18,), k=(10,))  # probabilityLeft 0.2: the right's blocks
    assert window.counts("80") == Counts(contrasts=(5.0,), n=(18,), k=(10,))


# --- what a window gives ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("fits")
class TestWindowStatus:
    def test_training_windows(self) -> None:
        good = [a_day(1), a_day(2), a_day(3)]
        assert told(good) == ["trained 1b"] * 3
        few = [a_day(1, n_trials=400), a_day(2, n_trials=201)]
        assert told(few) == ["trained 1a", "trained 1a"]
        assert told([a_day(1, n_trials=200)]) == ["in training"]
        assert told([a_day(1, performance_easy=0.8)]) == ["in training"]
        assert told([a_day(1, all_counts=Counts(contrasts=(-17.0, 0.0), n=(1, 1), k=(0, 1)))]) == ["in training"]
        assert told([a_day(1, all_counts=Counts(contrasts=(-15.0, 0.0), n=(1, 1), k=(0, 1)))]) == ["trained 1a"]
        assert told([a_day(1, all_counts=Counts(contrasts=(1.0,), n=(1,), k=(0,)))]) == ["in training"]  # no zero
        assert told([a_day(1, zero_contrast_times=(3.0,))]) == ["trained 1a"]  # too slow for 1b
        assert told([a_day(1, zero_contrast_times=())]) == ["trained 1a"]  # the time cannot be told

    def test_one_bad_day_of_the_three_holds_it_back(self) -> None:
        days = [a_day(1, n_trials=100), a_day(2), a_day(3), a_day(4)]
        assert told(days) == ["in training", "in training", "in training", "trained 1b"]

    def test_a_day_without_trials_is_in_training(self) -> None:
        day = a_day(1, all_counts=Counts(), n_trials=0, performance_easy=float("nan"), zero_contrast_times=())
        assert told([day]) == ["in training"]

    def test_mixed_windows_are_trained_1b_whatever_their_trials(self) -> None:
        days = [a_day(1, n_trials=1), a_day(2, "biased", n_trials=1), a_day(3, n_trials=1)]
        assert alone(days) == ["in training", "trained 1b", "trained 1b"]
        assert told(days) == ["in training", "trained 1b", "trained 1b"]

    def test_without_training_and_without_a_criterion_that_passes(self) -> None:
        assert told([a_day(1, "biased", n_trials=400)]) == ["trained 1b"]

    def test_ready4ephysrig(self) -> None:
        assert told([a_day(1, "biased")]) == ["ready4ephysrig"]
        no_shift = Counts(contrasts=(-0.0,), n=(9,), k=(5,))
        assert told([a_day(1, "biased", left_counts=no_shift)]) == ["trained 1b"]  # a shift of 5 is not above 5
        assert told([a_day(1, "biased", left_counts=Counts())]) == ["trained 1b"]  # no 80 block
        assert told([a_day(1, "ephys")]) == ["ready4ephysrig"]
        assert told([a_day(1, "biased", all_counts=Counts())]) == ["ready4ephysrig"]  # zero contrast is not asked for

    def test_ready4delay_takes_one_ephys_day_and_no_fit(self) -> None:
        days = [
            a_day(1, "biased", n_trials=1),
            a_day(2, "biased", ephys=True, left_counts=Counts()),
            a_day(3, "biased"),
        ]
        assert told(days) == ["trained 1b", "ready4delay", "ready4delay"]
        assert alone([*days, a_day(4, "biased"), a_day(5, "biased")])[-1] == "ready4ephysrig"

    def test_ready4recording_takes_three_ephys_days_and_one_delay(self) -> None:
        def career(delays: Sequence[float]) -> list[DaySummary]:
            return [a_day(at, "ephys", ephys=True, delay=delay) for at, delay in enumerate(delays, start=1)]

        assert told(career([0, 0, 900])) == ["ready4delay", "ready4delay", "ready4recording"]
        assert told(career([900, 0, 0])) == ["ready4delay", "ready4delay", "ready4recording"]
        assert told(career([0, 0, 899])) == ["ready4delay"] * 3
        two_ephys = career([900, 900, 900])
        two_ephys[1] = a_day(2, "ephys", delay=900)
        assert told(two_ephys) == ["ready4delay"] * 3

    def test_habituation_inside_a_window(self) -> None:
        days = [a_day(1), a_day(2, "habituation"), a_day(3, n_trials=300)]
        assert told(days) == ["trained 1b", "habituation", "trained 1b"]
        assert alone(days) == ["trained 1b", "habituation", "trained 1a"]

    def test_a_habituation_day_keeps_training_and_biased_days_apart_or_not(self) -> None:
        apart = [a_day(1, n_trials=1), a_day(2, "habituation"), a_day(3, "habituation"), a_day(4, "biased")]
        assert alone(apart)[-1] == "ready4ephysrig"
        near = [a_day(1, n_trials=1), a_day(2, "habituation"), a_day(3, "biased")]
        assert alone(near)[-1] == "trained 1b"  # mixed with the first day

    def test_the_status_never_falls(self) -> None:
        days = [a_day(1), a_day(2, n_trials=10), a_day(3, n_trials=10)]
        assert alone(days) == ["trained 1b", "in training", "in training"]
        assert told(days) == ["trained 1b"] * 3

    def test_the_window_of_sessions_is_for_comparing_with_the_peer(self) -> None:
        days = [a_day(1, n_trials=100), a_day(2, sessions=("training", "training")), a_day(3)]
        assert told(days) == ["in training"] * 3
        assert told(days, window="sessions") == ["in training", "in training", "trained 1b"]

    def test_days_in_any_order_and_days_without_a_usable_session(self) -> None:
        days = [a_day(3), a_day(1, n_trials=100), a_day(2)]
        unusable = DaySummary(date="2020-01-04", inputs={"001": "f"})
        found = compute_statuses([*days, unusable])
        assert [(of_day.date, of_day.status) for of_day in found] == [
            ("2020-01-01", "in training"),
            ("2020-01-02", "in training"),
            ("2020-01-03", "in training"),
        ]
        assert compute_statuses([]) == compute_statuses([unusable]) == []


def test_verdicts_are_those_of_the_status_and_of_the_next(fits: list[int]) -> None:
    training, biased, recording = (
        compute_statuses([a_day(1, n_trials=300)])[0],
        compute_statuses([a_day(1, "biased")])[0],
        compute_statuses([a_day(at, "ephys", ephys=True, delay=900) for at in (1, 2, 3)])[-1],
    )
    assert list(dict.fromkeys(v.target for v in training.verdicts)) == ["trained 1a", "trained 1b"]
    assert list(dict.fromkeys(v.target for v in biased.verdicts)) == ["ready4ephysrig", "ready4delay"]
    assert list(dict.fromkeys(v.target for v in recording.verdicts)) == ["ready4recording"]
    failed = [v for v in training.verdicts if not v.passed]
    assert [(v.target, v.name, v.value, v.limit) for v in failed] == [("trained 1b", "n_trials", 300.0, 400)]


def test_a_habituation_day_is_not_judged(fits: list[int]) -> None:
    (only,) = compute_statuses([a_day(1, "habituation")])
    assert only == DayStatus(date="2020-01-01", status="habituation", window_status="habituation", verdicts=())


def test_a_status_that_is_held_is_judged_on_the_window_as_it_is_now(fits: list[int]) -> None:
    days = [a_day(1, "biased"), *(a_day(at, "biased", n_trials=10) for at in (2, 3, 4))]
    last = compute_statuses(days)[-1]
    assert (last.status, last.window_status) == ("ready4ephysrig", "trained 1b")
    assert [v.name for v in last.verdicts if v.target == "ready4ephysrig" and not v.passed] == ["n_trials"]


def test_all_windows_are_fitted_in_two_batches_and_none_twice(fits: list[int]) -> None:
    compute_statuses([a_day(at) for at in range(1, 11)])
    # First the one fit of each training window; then what the next status, ready4ephysrig, reads: two blocks each.
    assert fits == [10, 20]


@pytest.mark.parametrize("known", range(11))
def test_what_is_known_is_taken_and_the_rest_goes_on_from_there(fits: list[int], known: int) -> None:
    days = [
        a_day(1, "habituation"),
        *(a_day(at, n_trials=300) for at in (2, 3)),
        a_day(4, "habituation"),
        *(a_day(at, "biased") for at in (5, 6, 7)),
        *(a_day(at, "biased", n_trials=10) for at in (8, 9, 10)),
    ]
    whole = compute_statuses(days)
    assert len({of_day.status for of_day in whole}) > 3
    fits.clear()
    assert repr(compute_statuses(days, known=whole[:known])) == repr(whole)
    assert (sum(fits) == 0) == (known == 10)


def test_only_the_windows_of_days_that_are_not_known_are_fitted(fits: list[int]) -> None:
    days = [a_day(at) for at in range(1, 11)]
    known = compute_statuses(days[:9])
    fits.clear()
    compute_statuses(days, known=known)
    assert fits == [1, 2]  # as above, of one window
    fits.clear()
    compute_statuses([a_day(0), *days], known=compute_statuses(days)[:0])
    assert fits[-2:] == [11, 22]


def test_statuses_that_are_not_those_of_the_first_days_are_not_used(fits: list[int]) -> None:
    days = [a_day(at) for at in range(1, 7)]
    whole = compute_statuses(days)
    late = compute_statuses([a_day(0), *days])
    assert repr(compute_statuses([a_day(0), *days], known=whole)) == repr(late)
    assert repr(compute_statuses(days[1:], known=whole)) == repr(compute_statuses(days[1:]))
    assert repr(compute_statuses(days[:2], known=whole)) == repr(whole[:2])


# --- who is given up --------------------------------------------------------------------------------------


def career(
    statuses: Sequence[str], protocol: str = "training", per_day: int = 1
) -> tuple[list[DaySummary], list[DayStatus]]:
    """Days with the given statuses, a date each, and `per_day` sessions on each."""
    days = [
        DaySummary(
            date=f"{2020 + at // 300}-{at // 25 % 12 + 1:02d}-{at % 25 + 1:02d}",
            inputs={},
            protocol=protocol,
            sessions=rows_of(f"d{at:03d}", *[protocol] * per_day),
        )
        for at in range(len(statuses))
    ]
    of_days = [DayStatus(date=d.date, status=s, window_status=s) for d, s in zip(days, statuses, strict=True)]
    return days, of_days


def test_the_fortieth_session_in_training_makes_untrainable() -> None:
    assert failed_sessions(*career(["in training"] * 39)) == {}
    assert failed_sessions(*career(["in training"] * 40)) == {"/t/d039/001": "untrainable"}
    assert failed_sessions(*career(["in training"] * 60)) == {"/t/d039/001": "untrainable"}  # once


def test_only_sessions_in_training_are_counted_and_habituation_between_is_not() -> None:
    statuses = ["habituation"] * 5 + ["in training"] * 20 + ["habituation"] + ["in training"] * 20 + ["trained 1a"]
    assert failed_sessions(*career(statuses)) == {"/t/d045/001": "untrainable"}


def test_sessions_are_counted_and_not_days() -> None:
    assert failed_sessions(*career(["in training"] * 20, per_day=2)) == {"/t/d019/002": "untrainable"}
    assert failed_sessions(*career(["in training"] * 14, per_day=3)) == {"/t/d013/001": "untrainable"}


def test_the_fortieth_biased_session_makes_unbiasable() -> None:
    assert failed_sessions(*career(["trained 1b"] * 39, "biased")) == {}
    assert failed_sessions(*career(["trained 1b"] * 60, "biased")) == {"/t/d039/001": "unbiasable"}
    assert failed_sessions(*career(["trained 1b"] * 60, "ephys")) == {}  # of the biased protocol only


@pytest.mark.parametrize("reached", ["ready4ephysrig", "ready4delay", "ready4recording"])
def test_who_reached_ready4ephysrig_or_higher_is_not_unbiasable(reached: str) -> None:
    within = ["trained 1b"] * 39 + [reached] * 6
    assert failed_sessions(*career(within, "biased")) == {}
    too_late = ["trained 1b"] * 40 + [reached] * 5
    assert failed_sessions(*career(too_late, "biased")) == {"/t/d039/001": "unbiasable"}


@pytest.mark.usefixtures("fits")
def test_a_mouse_that_goes_straight_to_ready4delay_is_not_failed() -> None:
    # No shift between blocks, so never ready4ephysrig; on an ephys rig from the first day.
    days = [a_day(at, "biased", ephys=True, left_counts=Counts()) for at in range(1, 46)]
    statuses = compute_statuses(days)
    assert {of_day.status for of_day in statuses} == {"ready4delay"}
    assert failed_sessions(days, statuses) == {}


def test_a_session_of_chained_protocols_is_one_session_and_counts_as_biased() -> None:
    statuses = [DayStatus(date=f"d{at:03d}", status="trained 1b", window_status="trained 1b") for at in range(40)]
    days = [
        DaySummary(
            date=of_day.date,
            inputs={},
            protocol="biased",
            sessions=tuple(
                SessionSummary(path=f"/t/{of_day.date}/001", number="001", protocol=p, location=None, measures=None)
                for p in ("training", "biased")
            ),
        )
        for of_day in statuses
    ]
    assert failed_sessions(days[:39], statuses[:39]) == {}
    assert failed_sessions(days, statuses) == {"/t/d039/001": "unbiasable"}
