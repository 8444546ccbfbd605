"""Records: frozen, told by date and number, and the same after a way through JSON."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import orjson
import pytest

from core import records
from core.records import (
    NAN,
    NO_FIT,
    Counts,
    DaySummary,
    LeftOut,
    Measures,
    SessionFiles,
    SessionSummary,
    days_from_json,
    days_to_json,
)

COUNTS = Counts(contrasts=(-6.25, 0.0, 6.25), n=(4, 5, 6), k=(1, 2, 6))
MEASURES = Measures(
    counts=COUNTS,
    n_trials=15.0,
    performance_easy=NAN,
    reaction_time=0.1 + 0.2,  # not 0.3: the last bit has to come back
    duration=12.0,
    delay=900.0,
    fits=((1.5, 1 / 3, 0.0, 1e-300), NO_FIT, (-0.0, 100.0, 0.1, 0.2)),
)
DAY = DaySummary(
    date="2020-01-02",
    inputs={"001": "aa", "003": "bb"},
    protocol="biased",
    sessions=(
        SessionSummary(path="/t/2020-01-02/001", number="001", protocol="habituation", location=None, measures=None),
        SessionSummary(
            path="/t/2020-01-02/003", number="003", protocol="biased", location="ephys_rig", measures=MEASURES
        ),
    ),
    combined=MEASURES,
    all_counts=COUNTS,
    left_counts=COUNTS,
    zero_contrast_times=(1.1, 2.2),
    n_trials=15,
    performance_easy=0.9,
    ephys=True,
    delay=900.0,
    left_out=(LeftOut(session="2020-01-02/002", reason='quoted " and Größe'),),
)
EMPTY = DaySummary(date="2020-01-03", inputs={})


def test_days_come_back_from_json_to_the_last_bit() -> None:
    data = days_to_json([DAY, EMPTY])
    back = days_from_json(data)
    assert repr(back) == repr([DAY, EMPTY])  # repr, because NaN is not equal to itself
    assert days_to_json(back) == data
    assert days_from_json(data.decode()) != []


def test_nan_is_null_in_json() -> None:
    (raw,) = orjson.loads(days_to_json([DAY]))
    assert raw["combined"]["performance_easy"] is None
    assert raw["combined"]["fits"][1] == [None] * 4
    (back,) = days_from_json(days_to_json([DAY]))
    assert back.combined is not None
    assert math.isnan(back.combined.performance_easy)


def test_no_days_are_an_empty_list() -> None:
    assert days_to_json([]) == b"[]"
    assert days_from_json(b"[]") == []


def test_a_day_with_a_field_that_is_not_known_is_refused() -> None:
    (raw,) = orjson.loads(days_to_json([EMPTY]))
    with pytest.raises(TypeError, match="colour"):
        days_from_json(orjson.dumps([{**raw, "colour": "black"}]))


def test_counts() -> None:
    assert COUNTS.total == 15
    assert COUNTS.proportions() == [0.25, 0.4, 1.0]
    assert (Counts().total, Counts().proportions()) == (0, [])


def test_a_sessions_date_number_and_name_are_those_of_its_folder() -> None:
    files = SessionFiles(
        path=Path("lab/Subjects/S/2020-01-02/003"),
        description=None,
        settings={},
        task_data={},
        trials={},
        fingerprint="",
    )
    assert (files.date, files.number, files.name) == ("2020-01-02", "003", "2020-01-02/003")


def test_every_record_is_frozen_and_takes_keywords_only() -> None:
    classes: list[Any] = [value for value in vars(records).values() if dataclasses.is_dataclass(value)]
    assert {"DaySummary", "Trials", "Verdict"} <= {kind.__name__ for kind in classes}
    for kind in classes:
        assert kind.__dataclass_params__.frozen, kind
        assert all(field.kw_only for field in dataclasses.fields(kind)), kind
