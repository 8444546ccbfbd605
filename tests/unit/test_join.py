"""Days put together from summaries: what a window needs of them is what all their sessions give together."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from core.criteria import measure_window
from core.join import add_sessions, join_days
from core.records import DaySummary, LeftOut
from core.sources.tree import load_days
from core.summarise import summarise
from tests.trees import join, session, trials

DATE = "2020-01-03"
BIASED = join(
    trials([(-100.0, 7, 1), (0.0, 3, 2)], block=0.2, reaction=0.3),
    trials([(12.5, 9, 8), (50.0, 3, 2)], block=0.8, reaction=0.7),
    trials([(-100.0, 4, 0)], block=0.5),
)
SESSIONS: tuple[dict[str, Any], ...] = (
    {"protocol": "biased", "trials": BIASED, "delay": 900},
    {"protocol": "biased", "trials": trials([(0.0, 5, 2), (-6.25, 4, 1)], block=0.8)},
    {"protocol": "biased", "trials": trials([(-100.0, 11, 3), (100.0, 6, 5)], block=0.2), "ephys": True},
)


def summary(folders: list[Path]) -> DaySummary:
    (day,) = summarise(load_days({DATE: folders}))
    return day


def measures(day: DaySummary) -> dict[str, float]:
    return {name: value for name, value in measure_window([day], {}).items() if not math.isnan(value)}


@pytest.mark.parametrize("kept", [part for n in (1, 2) for part in combinations(range(3), n)])
def test_a_window_has_of_a_joined_day_what_it_has_of_the_whole(tmp_path: Path, kept: tuple[int, ...]) -> None:
    folders = [session(tmp_path, DATE, number, **more) for number, more in enumerate(SESSIONS, start=1)]
    whole = summary(folders)
    new = [folder for at, folder in enumerate(folders) if at not in kept]
    joined = add_sessions(summary([folders[at] for at in kept]), summary(new))
    assert measures(joined) == measures(whole)
    for name in ("date", "inputs", "protocol", "sessions", "all_counts", "left_counts", "right_counts", "left_out"):
        assert repr(getattr(joined, name)) == repr(getattr(whole, name)), name
    assert sorted(joined.zero_contrast_times) == sorted(whole.zero_contrast_times)
    assert joined.combined is None, "a median over all trials cannot be had"


def test_the_protocol_of_the_last_session_is_the_day_s_and_only_its_trials_count(tmp_path: Path) -> None:
    first = session(tmp_path, DATE, 1, protocol="training")
    second = session(tmp_path, DATE, 2, **SESSIONS[0])
    for kept, new in ((first, second), (second, first)):
        joined = add_sessions(summary([kept]), summary([new]))
        assert repr(joined) == repr(summary([first, second]))


def test_a_day_without_trials_gives_none(tmp_path: Path) -> None:
    first = session(tmp_path, DATE, 1, protocol="habituation")
    second = session(tmp_path, DATE, 2, protocol="habituation")
    assert repr(add_sessions(summary([second]), summary([first]))) == repr(summary([first, second]))


def test_what_could_not_be_used_is_told_once(tmp_path: Path) -> None:
    told = LeftOut(session=f"{DATE}/002", reason="002/alf cannot be read: Permission denied")
    other = LeftOut(session=f"{DATE}/003", reason="empty")
    kept = DaySummary(date=DATE, inputs={"001": "a", "003": "c"}, left_out=(told, other))
    again = add_sessions(kept, DaySummary(date=DATE, inputs={}, left_out=(told,)))
    assert (again.left_out, again.inputs) == ((other, told), kept.inputs)
    read = add_sessions(again, summary([session(tmp_path, DATE, 2)]))
    assert read.left_out == (other,)
    assert set(read.inputs) == {"001", "002", "003"}


def test_days_that_are_in_one_place_only_stay_as_they_are() -> None:
    days = [DaySummary(date=f"2020-01-0{day}", inputs={"001": "x"}) for day in (1, 2, 3)]
    assert join_days([days[2], days[0]], [days[1]]) == days
    assert join_days([], []) == []
