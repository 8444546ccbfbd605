"""Sessions and mice at the edges: the whole way from files to table, against tables written out by hand.

A trial begins every ten seconds and is answered one second later, so n trials end at 10 n + 2.5 s. Fitted parameters
are not unique on so few contrasts; what is, and is held here, is the curve: where proportions rise with contrast it
goes through them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from scipy.special import erf

from core.pipeline import recompute_subject
from core.records import NAN
from core.sources import TreeSource
from core.storage import Store, open_store
from tests.trees import KEYS, LAB, SUBJECT, clumsy, cut, join, rows, session, statuses, training, trials

FITTED = [f"{name}_{block}" for block in (50, 20, 80) for name in ("bias", "thres", "lapselow", "lapsehigh")]
TOLD = [
    "date",
    "session_path",
    "task_protocol",
    "training_status",
    "location",
    "n_trials",
    "performance_easy",
    "reaction_time",
    "sess_duration",
    "n_delay",
    "contrasts",
    "performance",
]
COMBINED = TOLD[5:]


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid4().hex}")


def found(root: Path, store: Store) -> pd.DataFrame:
    """The training table of a recompute, with paths as date/number."""
    recompute_subject(TreeSource(root), LAB, SUBJECT, store)
    frame = pd.DataFrame(training(store))
    return frame.assign(session_path=["/".join(path.split("/")[-2:]) for path in frame["session_path"]])


def check(frame: pd.DataFrame, *expected: tuple[Any, ...], combined: list[tuple[Any, ...]] | None = None) -> None:
    """Hold a table against rows of the columns `TOLD`; its combined columns against those, or against `combined`."""
    wanted = pd.DataFrame(list(expected), columns=TOLD)
    pd.testing.assert_frame_equal(frame[TOLD], wanted, check_exact=True)
    of_days = wanted[COMBINED] if combined is None else pd.DataFrame(combined, columns=COMBINED)
    named = of_days.rename(columns=lambda name: f"combined_{name}")
    pd.testing.assert_frame_equal(frame[list(named.columns)], named, check_exact=True)


def check_curve(frame: pd.DataFrame, block: int = 50) -> None:
    """The fitted curve of a block goes through the proportions of each row, and the combined one is the same."""
    bias, threshold, low, high = (frame[f"{name}_{block}"] for name in ("bias", "thres", "lapselow", "lapsehigh"))
    assert bias.between(frame["contrasts"].min(), frame["contrasts"].max()).all()
    assert threshold.between(0, 100).all()
    assert low.between(0, 1).all()
    assert high.between(0, 1).all()
    right = low + (1 - low - high) * (erf((frame["contrasts"] - bias) / threshold) + 1) / 2
    np.testing.assert_allclose(right, frame["performance"], atol=2e-4)
    for name in FITTED:
        pd.testing.assert_series_equal(frame[f"combined_{name}"], frame[name], check_names=False)


def no_fit(frame: pd.DataFrame, *blocks: int) -> None:
    names = [name for name in FITTED if int(name[-2:]) in blocks]
    assert len(names) == 4 * len(blocks)
    assert frame[[*names, *(f"combined_{name}" for name in names)]].isna().all(axis=None)


RIG = "training_rig"
NOTHING = (None, NAN, NAN, NAN, NAN, NAN, NAN, NAN)


def test_a_subject_in_habituation_only(tmp_path: Path, store: Store) -> None:
    for date, number in (("2020-01-01", 1), ("2020-01-02", 1), ("2020-01-02", 2)):
        session(tmp_path, date, number, protocol="habituation")
    frame = found(tmp_path, store)
    check(
        frame,
        ("2020-01-01", "2020-01-01/001", "habituation", "habituation", *NOTHING),
        ("2020-01-02", "2020-01-02/001", "habituation", "habituation", *NOTHING),
        ("2020-01-02", "2020-01-02/002", "habituation", "habituation", *NOTHING),
    )
    no_fit(frame, 50, 20, 80)
    aggregate = store.get(KEYS.aggregate)
    criteria = store.get(KEYS.criteria)
    assert aggregate is not None
    assert criteria is not None
    assert [(row["date"], row["training_status"]) for row in rows(aggregate.data)] == [("2020-01-01", "habituation")]
    assert rows(criteria.data) == []


def test_a_subject_with_one_session(tmp_path: Path, store: Store) -> None:
    session(tmp_path, "2020-01-02", delay=30)
    # Six of ten easy trials correct, 122.5 s.
    same = ("2020-01-02", "2020-01-02/001", "training", "in training", RIG, 12.0, 0.6, 1.0, 2.0, 30.0)
    frame = found(tmp_path, store)
    check(frame, (*same, -100.0, 0.4), (*same, 0.0, 0.5), (*same, 100.0, 0.6))
    check_curve(frame)
    no_fit(frame, 20, 80)


def test_sessions_of_no_one_and_two_trials(tmp_path: Path, store: Store) -> None:
    cut(session(tmp_path, "2020-01-01"), 0)
    session(tmp_path, "2020-01-02", trials=trials([(0.0, 1, 1)]))  # zero contrast on the right: correct, and not easy
    session(tmp_path, "2020-01-03", trials=trials([(-100.0, 1, 1), (50.0, 1, 1)]))
    frame = found(tmp_path, store)
    check(
        frame,
        ("2020-01-01", "2020-01-01/001", "training", "in training", RIG, 0.0, NAN, NAN, 0.0, 0.0, NAN, NAN),
        ("2020-01-02", "2020-01-02/001", "training", "in training", RIG, 1.0, NAN, 1.0, 0.0, 0.0, 0.0, 1.0),
        ("2020-01-03", "2020-01-03/001", "training", "in training", RIG, 2.0, 0.5, 1.0, 0.0, 0.0, -100.0, 1.0),
        ("2020-01-03", "2020-01-03/001", "training", "in training", RIG, 2.0, 0.5, 1.0, 0.0, 0.0, 50.0, 1.0),
    )
    no_fit(frame.iloc[:1], 50, 20, 80)
    for date in ("2020-01-02", "2020-01-03"):
        check_curve(frame[frame["date"] == date])


def test_two_sessions_on_a_day_of_which_one_has_no_trials(tmp_path: Path, store: Store) -> None:
    cut(session(tmp_path, "2020-01-02", 1), 0)
    session(tmp_path, "2020-01-02", 2, trials=trials([(50.0, 3, 3)]))  # 32.5 s: one minute
    check(
        found(tmp_path, store),
        ("2020-01-02", "2020-01-02/001", "training", "in training", RIG, 0.0, NAN, NAN, 0.0, 0.0, NAN, NAN),
        ("2020-01-02", "2020-01-02/002", "training", "in training", RIG, 3.0, 1.0, 1.0, 1.0, 0.0, 50.0, 1.0),
        combined=[(3.0, 1.0, 1.0, 1.0, 0.0, 50.0, 1.0)] * 2,
    )


def test_one_contrast_only(tmp_path: Path, store: Store) -> None:
    session(tmp_path, "2020-01-02", trials=trials([(25.0, 4, 3)]))  # not an easy one; 42.5 s
    frame = found(tmp_path, store)
    check(frame, ("2020-01-02", "2020-01-02/001", "training", "in training", RIG, 4.0, NAN, 1.0, 1.0, 0.0, 25.0, 0.75))
    assert frame["bias_50"].tolist() == [25.0]  # the box of the bias is this one point
    check_curve(frame)


def test_no_response_on_any_trial(tmp_path: Path, store: Store) -> None:
    given = clumsy()
    given["choice"][:] = 0
    given["feedbackType"][:] = -1
    given["response_times"] = given["stimOn_times"] + 8.0  # the last one ends at 129.5 s
    session(tmp_path, "2020-01-02", trials=given)
    same = ("2020-01-02", "2020-01-02/001", "training", "in training", RIG, 12.0, 0.0, 8.0, 2.0, 0.0)
    frame = found(tmp_path, store)
    check(frame, (*same, -100.0, 0.0), (*same, 0.0, 0.0), (*same, 100.0, 0.0))
    check_curve(frame)


def test_no_stimulus_time_on_any_trial(tmp_path: Path, store: Store) -> None:
    given = trials([(-100.0, 300, 0), (0.0, 150, 75), (100.0, 300, 300)])
    given["stimOn_times"][:] = np.nan
    for date in ("2020-01-02", "2020-01-03"):
        session(tmp_path, date, trials=given)
    # 7502.5 s. Everything for 1b is there but the reaction time, which cannot be told.
    one, two = (
        (date, f"{date}/001", "training", "trained 1a", RIG, 750.0, 1.0, NAN, 125.0, 0.0)
        for date in ("2020-01-02", "2020-01-03")
    )
    curve = ((-100.0, 0.0), (0.0, 0.5), (100.0, 1.0))
    frame = found(tmp_path, store)
    check(frame, *((*one, *point) for point in curve), *((*two, *point) for point in curve))
    check_curve(frame)


def debiasing() -> dict[str, Any]:
    """The trials of `CLUMSY`, with the probabilities that debiasing draws: any between 0 and 1."""
    return clumsy() | {"probabilityLeft": np.linspace(0.03, 0.97, 12)}


def test_debiasing_in_training_takes_all_trials(tmp_path: Path, store: Store) -> None:
    session(tmp_path, "2020-01-02", trials=debiasing())
    same = ("2020-01-02", "2020-01-02/001", "training", "in training", RIG, 12.0, 0.6, 1.0, 2.0, 0.0)
    frame = found(tmp_path, store)
    check(frame, (*same, -100.0, 0.4), (*same, 0.0, 0.5), (*same, 100.0, 0.6))
    check_curve(frame)
    no_fit(frame, 20, 80)


def test_probabilities_that_belong_to_no_block_are_in_no_fit_of_a_biased_session(tmp_path: Path, store: Store) -> None:
    session(tmp_path, "2020-01-02", protocol="biased", trials=debiasing())
    session(tmp_path, "2020-01-03", protocol="biased", trials=join(debiasing(), trials([(50.0, 1, 1)], block=0.2)))
    same = ("2020-01-02", "2020-01-02/001", "biased", "trained 1b", RIG, 12.0, 0.6, 1.0, 2.0, 0.0)
    other = ("2020-01-03", "2020-01-03/001", "biased", "trained 1b", RIG, 13.0, 7 / 11, 1.0, 2.0, 0.0)  # 132.5 s
    points = ((-100.0, 0.4), (0.0, 0.5), (100.0, 0.6))
    frame = found(tmp_path, store)
    check(
        frame,
        *((*same, *point) for point in points),
        *((*other, *point) for point in (*points[:2], (50.0, 1.0), points[2])),
    )
    no_fit(frame[frame["date"] == "2020-01-02"], 50, 20, 80)
    no_fit(frame[frame["date"] == "2020-01-03"], 50, 80)
    assert set(frame["bias_20"].dropna()) == {50.0}


def dates(count: int) -> list[str]:
    return [f"2020-{1 + at // 28:02d}-{1 + at % 28:02d}" for at in range(count)]


def test_sixty_sessions_in_training(tmp_path: Path, store: Store) -> None:
    for date in dates(60):
        session(tmp_path, date, trials=trials([(100.0, 2, 1)]))  # 22.5 s: no minute
    statuses = ["in training"] * 39 + ["untrainable"] + ["in training"] * 20
    frame = found(tmp_path, store)
    check(
        frame,
        *(
            (date, f"{date}/001", "training", status, RIG, 2.0, 0.5, 1.0, 0.0, 0.0, 100.0, 0.5)
            for date, status in zip(dates(60), statuses, strict=True)
        ),
    )
    aggregate = store.get(KEYS.aggregate)
    assert aggregate is not None
    assert [(row["date"], row["training_status"]) for row in rows(aggregate.data)] == [
        ("2020-01-01", "in training"),
        ("2020-02-12", "untrainable"),  # the 40th day from the first of January on, of months of 28 days
    ]


def test_who_is_given_up_at_the_fortieth_session_can_still_be_trained(tmp_path: Path, store: Store) -> None:
    session(tmp_path, "2019-12-31", protocol="habituation")
    for date in dates(40):
        session(tmp_path, date, trials=trials([(100.0, 2, 1)]))
    for date in ("2020-03-01", "2020-03-02", "2020-03-03"):
        session(tmp_path, date, trials=trials([(-100.0, 90, 0), (0.0, 40, 20), (100.0, 90, 90)]))
    frame = found(tmp_path, store).drop_duplicates("session_path")
    # The first two of the good days still have a bad one in their windows.
    assert frame["training_status"].tolist() == [
        "habituation",
        *["in training"] * 39,
        "untrainable",
        *["in training"] * 2,
        "trained 1a",
    ]


def test_forty_five_biased_sessions_never_ready(tmp_path: Path, store: Store) -> None:
    for date in dates(45):
        session(tmp_path, date, protocol="biased", trials=trials([(100.0, 2, 1)]))
    statuses = ["trained 1b"] * 39 + ["unbiasable"] + ["trained 1b"] * 5
    frame = found(tmp_path, store)
    check(
        frame,
        *(
            (date, f"{date}/001", "biased", status, RIG, 2.0, 0.5, 1.0, 0.0, 0.0, 100.0, 0.5)
            for date, status in zip(dates(45), statuses, strict=True)
        ),
    )
    no_fit(frame, 20, 80)


def test_forty_five_biased_sessions_straight_to_ready4delay(tmp_path: Path, store: Store) -> None:
    # On an ephys rig with enough trials from the 30th session on, and no sign of following the blocks.
    many = trials([(-100.0, 210, 5), (100.0, 210, 205)])
    for at, date in enumerate(dates(45)):
        late = at >= 29
        few = trials([(100.0, 2, 1)])
        session(tmp_path, date, protocol="biased", trials=many if late else few, ephys=late)
    recompute_subject(TreeSource(tmp_path), LAB, SUBJECT, store)
    assert list(statuses(store).values()) == ["trained 1b"] * 29 + ["ready4delay"] * 16


def test_a_mouse_goes_all_the_way(tmp_path: Path, store: Store) -> None:
    """Each status of the ladder in turn, from files alone."""
    # 360 trials with lapses of 0.02, and 0.97 correct at 25 % contrast: a threshold of some 16 %.
    curve = ((-100.0, 90, 2), (-25.0, 60, 2), (0.0, 60, 30), (25.0, 60, 58), (100.0, 90, 88))
    skilled, long = trials(curve), trials([(x, 2 * n, 2 * k) for x, n, k in curve])
    blocks = join(  # 720 trials; the side that is likelier is chosen in eight of ten trials at zero contrast
        skilled,
        trials([(-100.0, 60, 2), (-25.0, 30, 8), (0.0, 30, 24), (25.0, 30, 28), (100.0, 30, 29)], block=0.2),
        trials([(-100.0, 30, 1), (-25.0, 30, 2), (0.0, 30, 6), (25.0, 30, 22), (100.0, 60, 58)], block=0.8),
    )
    stages: list[tuple[str, dict[str, Any]]] = [
        ("habituation", {"protocol": "habituation"}),
        ("in training", {"trials": clumsy()}),
        ("in training", {"trials": skilled}),
        ("in training", {"trials": skilled}),
        ("trained 1a", {"trials": skilled}),  # the first window without the clumsy day
        ("trained 1a", {"trials": long}),
        ("trained 1a", {"trials": long}),
        ("trained 1b", {"trials": long}),  # more than 400 trials on each of three days
        ("trained 1b", {"protocol": "biased", "trials": blocks}),
        ("trained 1b", {"protocol": "biased", "trials": blocks}),
        ("ready4ephysrig", {"protocol": "biased", "trials": blocks}),  # the first window without training
        ("ready4delay", {"protocol": "biased", "trials": blocks, "ephys": True}),
        ("ready4delay", {"protocol": "ephys", "trials": blocks, "ephys": True}),
        ("ready4recording", {"protocol": "ephys", "trials": blocks, "ephys": True, "delay": 900}),
        ("ready4recording", {"protocol": "training", "trials": clumsy()}),  # held
        ("habituation", {"protocol": "habituation"}),
    ]
    for date, (_, given) in zip(dates(len(stages)), stages, strict=True):
        session(tmp_path, date, **given)
    recompute_subject(TreeSource(tmp_path), LAB, SUBJECT, store)
    assert list(statuses(store).values()) == [status for status, _ in stages]
    last = training(store)[-1]
    assert math.isnan(last["n_trials"])
