"""Day summaries, against values worked out by hand from the spec's definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from core import psychometrics
from core.records import NO_FIT, Counts, Facts, LeftOut, LoadedDay, Session, Trials
from core.summarise import count, fit, median, performance_easy, put_together, signed_contrasts, summarise
from tests.trees import Arrays, join, trials

NAN = math.nan


def as_trials(arrays: Arrays) -> Trials:
    return Trials(**{name: np.asarray(values, float) for name, values in arrays.items()})


def loaded(
    arrays: Arrays | None,
    *,
    number: str = "001",
    protocol: str = "training",
    duration: float = 10.0,
    delay: float = 0.0,
    location: str = "training_rig",
) -> Session:
    return Session(
        path=f"/t/2020-01-02/{number}",
        number=number,
        protocol=protocol,
        trials=None if arrays is None else as_trials(arrays),
        facts=None if arrays is None else Facts(duration=duration, delay=delay, location=location),
    )


def day(*sessions: Session, date: str = "2020-01-02", **more: Any) -> LoadedDay:
    return LoadedDay(date=date, inputs={s.number: "f" for s in sessions}, sessions=sessions, **more)


def one(*sessions: Session) -> Any:
    (summary,) = summarise([day(*sessions)])
    return summary


# --- the measures -----------------------------------------------------------------------------------------


def test_signed_contrasts_are_right_minus_left_in_percent() -> None:
    given = trials([(0.0, 4, 0)]) | {
        "contrastLeft": np.array([1.0, np.nan, 0.0625, np.nan]),
        "contrastRight": np.array([np.nan, 0.125, np.nan, 0.0]),
    }
    np.testing.assert_array_equal(signed_contrasts(as_trials(given)), [-100.0, 12.5, -6.25, 0.0])


def test_a_rightward_choice_is_minus_one() -> None:
    contrasts = np.array([25.0, -25.0, 25.0, 25.0, -25.0, 25.0])
    choice = np.array([-1.0, 1.0, 1.0, 0.0, -1.0, -1.0])  # no response is not rightward, and is a trial
    assert count(contrasts, choice) == Counts(contrasts=(-25.0, 25.0), n=(2, 4), k=(1, 2))
    assert count(np.array([]), np.array([])) == Counts()


def test_the_median_ignores_nan() -> None:
    assert median(np.array([3.0, NAN, 1.0, 2.5, NAN, 7.0])) == 2.75
    assert median(np.array([4.0])) == 4.0
    assert math.isnan(median(np.array([NAN, NAN])))
    assert math.isnan(median(np.array([])))


def test_easy_trials_are_those_of_fifty_percent_and_more_on_either_side() -> None:
    contrasts = np.array([-100.0, 50.0, -50.0, 100.0, 49.9, 0.0])
    feedback = np.array([1.0, 1.0, -1.0, 1.0, -1.0, -1.0])
    assert performance_easy(contrasts, feedback) == 0.75
    assert math.isnan(performance_easy(contrasts[4:], feedback[4:]))


def test_trials_put_together_keep_their_order() -> None:
    first, second = as_trials(trials([(-100.0, 2, 0)])), as_trials(trials([(100.0, 1, 1)]))
    assert put_together([first]) is first
    np.testing.assert_array_equal(put_together([first, second]).choice, [1, 1, -1])


def test_the_fit_of_nothing_is_nan() -> None:
    (nothing,) = fit([Counts()])
    assert len(nothing) == 4
    assert all(map(math.isnan, nothing))
    assert fit([]) == []


# --- a session --------------------------------------------------------------------------------------------


def test_the_measures_of_a_session() -> None:
    given = trials([(-100.0, 4, 1), (-6.25, 2, 1), (0.0, 3, 2), (50.0, 2, 2)])
    given["response_times"] = given["stimOn_times"] + np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11.0])
    given["stimOn_times"] = given["stimOn_times"].copy()
    given["stimOn_times"][[0, 8]] = np.nan
    summary = one(loaded(given, duration=42.0, delay=17.0))
    (session,) = summary.sessions
    measures = session.measures
    assert measures.counts == Counts(contrasts=(-100.0, -6.25, 0.0, 50.0), n=(4, 2, 3, 2), k=(1, 1, 2, 2))
    assert measures.n_trials == 11.0
    assert measures.performance_easy == 5 / 6  # 3 of 4 on the left, 2 of 2 on the right
    assert measures.reaction_time == 6.0  # of 2, 3, 4, 5, 6, 7, 8, 10, 11
    assert (measures.duration, measures.delay) == (42.0, 17.0)
    assert (session.path, session.number, session.location) == ("/t/2020-01-02/001", "001", "training_rig")
    assert summary.combined is None  # it stands alone
    assert summary.zero_contrast_times == (7.0, 8.0)  # the third has no stimulus time
    assert (summary.n_trials, summary.performance_easy, summary.protocol) == (11, 5 / 6, "training")
    assert (summary.ephys, summary.delay) == (False, 17.0)


def blocks() -> Arrays:
    """Trials of the three blocks, of 3, 2 and 4 trials, and one with a probability that belongs to none."""
    return join(
        trials([(-100.0, 3, 1)], block=0.5),
        trials([(25.0, 2, 1)], block=0.2),
        trials([(0.0, 4, 1)], block=0.8),
        trials([(6.25, 1, 0)], block=0.35),
    )


def test_the_fits_of_a_biased_session_are_those_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # A fit that tells what it was given: the first contrast, trials, rightward choices.
    monkeypatch.setattr(psychometrics, "fit", tell_problem)
    (session,) = one(loaded(blocks(), protocol="biased")).sessions
    assert session.measures.fits == ((-100.0, 3.0, 1.0, 1.0), (25.0, 2.0, 1.0, 1.0), (0.0, 4.0, 1.0, 1.0))


def test_the_fit_of_a_training_session_is_one_over_all_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psychometrics, "fit", tell_problem)
    (session,) = one(loaded(blocks(), protocol="training")).sessions
    first, *others = session.measures.fits
    assert first == (-100.0, 10.0, 3.0, 4.0)  # four contrasts, ten trials
    assert all(math.isnan(value) for of_block in others for value in of_block)


def tell_problem(problems: Any) -> np.ndarray[Any, Any]:
    told = [(x[0], sum(n), sum(k), len(x)) if len(x) else NO_FIT for x, n, k in problems]
    return np.array(told, float).reshape(len(told), 4)


def test_all_fits_of_a_call_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def fit_some(problems: Any) -> np.ndarray[Any, Any]:
        sizes.append(len(problems))
        return tell_problem(problems)

    monkeypatch.setattr(psychometrics, "fit", fit_some)
    two = [loaded(blocks(), number="001", protocol="biased"), loaded(blocks(), number="002", protocol="biased")]
    first, second = summarise([day(*two), day(loaded(trials([(100.0, 7, 7)])), date="2020-01-03")])
    assert sizes == [3 * (2 + 1) + 3]
    assert first.combined is not None
    assert first.combined.fits[0] == (-100.0, 6.0, 2.0, 1.0)
    of_second = second.sessions[0].measures
    assert of_second is not None
    assert of_second.fits[0] == (100.0, 7.0, 7.0, 1.0)


def test_habituation_has_no_measures() -> None:
    summary = one(loaded(None, protocol="habituation"))
    assert summary.protocol == "habituation"
    assert summary.sessions[0].measures is None
    assert summary.sessions[0].location is None
    assert (summary.combined, summary.n_trials, summary.all_counts) == (None, 0, Counts())


# --- a day ------------------------------------------------------------------------------------------------


def test_sessions_of_one_protocol_are_put_together() -> None:
    first = trials([(-100.0, 2, 0), (0.0, 2, 1)], reaction=1.0)
    second = trials([(-100.0, 2, 2), (50.0, 3, 3)], reaction=2.0)
    summary = one(
        loaded(first, number="001", duration=20.0, delay=100.0),
        loaded(second, number="002", duration=31.0, delay=950.0, location="ephys_rig"),
    )
    combined = summary.combined
    assert combined.counts == Counts(contrasts=(-100.0, 0.0, 50.0), n=(4, 2, 3), k=(2, 1, 3))
    assert combined.n_trials == 9.0
    assert combined.performance_easy == 5 / 7
    assert combined.reaction_time == 2.0  # of four of 1 s and five of 2 s
    assert combined.duration == 51.0  # added
    assert combined.delay == 950.0  # the largest
    assert [session.measures.n_trials for session in summary.sessions] == [4.0, 5.0]
    assert summary.all_counts == combined.counts
    assert (summary.n_trials, summary.performance_easy, summary.delay) == (9, 5 / 7, 950.0)
    assert summary.zero_contrast_times == (1.0, 1.0)
    assert summary.ephys


def test_the_training_day_with_two_sessions_is_fitted_over_all_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psychometrics, "fit", tell_problem)
    summary = one(loaded(blocks(), number="001"), loaded(blocks(), number="002"))
    assert summary.combined.fits[0] == (-100.0, 20.0, 6.0, 4.0)


def test_sessions_of_different_protocols_stand_alone_and_the_last_is_the_days() -> None:
    summary = one(
        loaded(trials([(-100.0, 5, 0)]), number="001", protocol="training", delay=5000.0, location="ephys_rig"),
        loaded(trials([(100.0, 3, 3)], block=0.2), number="002", protocol="biased", delay=10.0),
    )
    assert summary.combined is None
    assert summary.protocol == "biased"
    assert summary.all_counts == Counts(contrasts=(100.0,), n=(3,), k=(3,))
    assert (summary.n_trials, summary.delay, summary.ephys) == (3, 10.0, False)
    assert [session.protocol for session in summary.sessions] == ["training", "biased"]


def test_a_day_puts_together_only_the_sessions_of_its_protocol() -> None:
    summary = one(
        loaded(trials([(100.0, 1, 1)]), number="001", protocol="biased"),
        loaded(trials([(100.0, 2, 2)]), number="002", protocol="training"),
        loaded(trials([(100.0, 4, 4)]), number="003", protocol="biased"),
    )
    assert summary.combined is None
    assert summary.n_trials == 5


def test_a_day_that_ends_with_habituation_is_a_habituation_day() -> None:
    summary = one(loaded(trials([(100.0, 1, 1)]), number="001"), loaded(None, number="002", protocol="habituation"))
    assert summary.protocol == "habituation"
    assert summary.all_counts == Counts()
    assert summary.sessions[0].measures is not None


def test_training_after_habituation_on_one_day_counts() -> None:
    summary = one(loaded(None, number="001", protocol="habituation"), loaded(trials([(100.0, 1, 1)]), number="002"))
    assert (summary.protocol, summary.n_trials, summary.combined) == ("training", 1, None)


def test_two_habituation_sessions_have_nothing_to_put_together() -> None:
    summary = one(
        loaded(None, number="001", protocol="habituation"), loaded(None, number="002", protocol="habituation")
    )
    assert (summary.protocol, summary.combined, len(summary.sessions)) == ("habituation", None, 2)


def test_what_a_window_needs_of_the_blocks() -> None:
    given = blocks()
    given["response_times"][7] = np.nan  # in the 80 block, at zero contrast
    summary = one(loaded(given, protocol="biased"))
    assert summary.left_counts == Counts(contrasts=(0.0,), n=(4,), k=(1,))  # probabilityLeft 0.8
    assert summary.right_counts == Counts(contrasts=(25.0,), n=(2,), k=(1,))  # 0.2
    assert summary.all_counts.total == 10
    assert summary.zero_contrast_times == (1.0, 1.0, 1.0)


def test_a_day_of_which_everything_was_left_out_has_no_protocol() -> None:
    left = LeftOut(session="2020-01-02/001", reason="broken")
    (summary,) = summarise([LoadedDay(date="2020-01-02", inputs={"001": "f"}, sessions=(), left_out=(left,))])
    assert (summary.protocol, summary.sessions, summary.left_out) == (None, (), (left,))
    assert summary.inputs == {"001": "f"}


def test_nothing_flows_from_one_day_to_another() -> None:
    first = day(loaded(blocks(), protocol="biased"), date="2020-01-02")
    second = day(loaded(trials([(-100.0, 9, 1), (100.0, 9, 8)])), date="2020-01-03")
    both = summarise([second, first])
    assert [summary.date for summary in both] == ["2020-01-03", "2020-01-02"]
    assert repr(both) == repr([*summarise([second]), *summarise([first])])
