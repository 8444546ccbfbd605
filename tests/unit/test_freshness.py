"""What the store notes of each lab, and which labs are late."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4
from zoneinfo import ZoneInfo

import orjson
import pytest

from core.freshness import LABS_KEY, Lab, Look, note_looks, read_labs
from core.storage import open_store
from scheduler.freshness import LabState, judge
from scheduler.schedule import Schedule, parse_jobs
from workers.records import Outcome, Subject
from workers.tasks import note_labs

NIGHTLY = "0 2 * * *"
LOOK = Look(run_id="r1", started="2026-11-25T02:00:00+00:00", ended="2026-11-25T02:10:00+00:00", subjects=3, failed=0)


def look(ended: str) -> Look:
    return replace(LOOK, ended=f"{ended}+00:00")


def schedule(refresh: str = NIGHTLY, recompute: str = "never", zone: str = "UTC") -> Schedule:
    return Schedule(jobs=(*parse_jobs("refresh", refresh), *parse_jobs("recompute", recompute)), zone=ZoneInfo(zone))


def late(made: Schedule, lab: Lab, now: str, grace: timedelta | None = None) -> list[tuple[str, str | None]]:
    """The jobs that lab 'a' is late for, and since when."""
    (state,) = judge(made, {"a": lab}, ["a"], datetime.fromisoformat(now).replace(tzinfo=UTC), grace)
    return [(one.job.kind, one.due and f"{one.due:%d %H:%M}") for one in state.late]


# ---- what is noted


def test_looks_are_kept_by_lab_and_kind_and_the_later_one_stays() -> None:
    data = note_looks(None, "refresh", {"a": LOOK, "b": LOOK})
    later, earlier = look("2026-11-26T02:10:00"), look("2026-11-24T02:10:00")
    data = note_looks(data, "refresh", {"a": later, "b": earlier})
    data = note_looks(data, "recompute", {"b": earlier})
    assert read_labs(data) == {"a": Lab(refresh=later), "b": Lab(refresh=LOOK, recompute=earlier)}
    assert note_looks(data, "recompute", {"b": earlier}) == data
    assert note_looks(data, "refresh", {}) is None


def test_a_recompute_refreshes_and_a_refresh_does_not_recompute() -> None:
    early, later = look("2026-11-24T02:10:00"), look("2026-11-26T02:10:00")
    assert Lab(refresh=early, recompute=later).last("refresh") == later
    assert Lab(refresh=later, recompute=early).last("refresh") == later
    assert Lab(refresh=later).last("recompute") is None
    assert Lab().last("refresh") is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"refresh": {"odd": 1}}}', b"\xff"])
def test_an_object_that_cannot_be_read_is_made_anew_and_said(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        noted = note_looks(data, "refresh", {"a": LOOK})
    assert read_labs(noted) == {"a": Lab(refresh=LOOK)}
    assert LABS_KEY in caplog.text


def test_a_lab_counts_as_refreshed_unless_all_of_its_subjects_failed() -> None:
    store = open_store(f"memory://{uuid4().hex}")
    record = {"run_id": "r1", "kind": "refresh", "started": LOOK.started, "ended": LOOK.ended}
    done, unchanged, failed = (Outcome(state=state) for state in ("done", "unchanged", "failed"))
    outcomes = {
        Subject(lab="good", subject="m1"): done,
        Subject(lab="good", subject="m2"): unchanged,
        Subject(lab="half", subject="m1"): unchanged,
        Subject(lab="half", subject="m2"): failed,
        Subject(lab="down", subject="m1"): failed,
    }
    note_labs(store, record, outcomes)
    stored = store.get(LABS_KEY)
    assert stored is not None
    assert read_labs(stored.data) == {
        "good": Lab(refresh=replace(LOOK, subjects=2)),
        "half": Lab(refresh=replace(LOOK, subjects=2, failed=1)),
    }
    assert list(orjson.loads(stored.data)) == ["good", "half"]
    note_labs(store, record, outcomes)  # the task came twice
    again = store.get(LABS_KEY)
    assert again is not None
    assert again.etag == stored.etag


def test_a_run_in_which_nothing_could_be_looked_at_writes_no_object() -> None:
    store = open_store(f"memory://{uuid4().hex}")
    record = {"run_id": "r1", "kind": "refresh", "started": LOOK.started, "ended": LOOK.ended}
    note_labs(store, record, {Subject(lab="down", subject="m1"): Outcome(state="failed")})
    assert store.get(LABS_KEY) is None


# ---- which labs are late


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-11-25T03:00", []),
        ("2026-11-26T01:59", []),
        ("2026-11-26T02:00", []),  # its run has begun
        ("2026-11-26T07:59", []),
        ("2026-11-26T08:00", [("refresh", "26 02:00")]),  # a quarter of a day is over
        ("2026-11-30T08:00", [("refresh", "30 02:00")]),
    ],
)
def test_a_lab_is_late_where_a_run_was_due_and_a_quarter_of_the_interval_has_passed(
    now: str, expected: list[tuple[str, str]]
) -> None:
    assert late(schedule(), Lab(refresh=LOOK), now) == expected


def test_the_night_before_is_missed_while_the_latest_may_still_run() -> None:
    assert late(schedule(), Lab(refresh=LOOK), "2026-11-27T03:00") == [("refresh", "26 02:00")]


def test_a_weekend_that_the_schedule_leaves_out_is_not_late() -> None:
    friday = Lab(refresh=look("2026-11-27T02:10:00"))
    weekdays = schedule("0 2 * * mon-fri")
    assert late(weekdays, friday, "2026-11-30T01:00") == []
    assert late(weekdays, friday, "2026-12-01T01:00") == [("refresh", "30 02:00")]


def test_a_run_that_ended_after_the_next_was_due_stands_for_it() -> None:
    assert late(schedule(), Lab(refresh=look("2026-11-26T02:00:00")), "2026-11-26T23:00") == []
    assert late(schedule(), Lab(refresh=look("2026-11-26T01:59:59")), "2026-11-26T23:00") == [("refresh", "26 02:00")]


def test_the_grace_can_be_given() -> None:
    ended = Lab(refresh=LOOK)
    assert late(schedule(), ended, "2026-11-26T02:30", timedelta()) == [("refresh", "26 02:00")]
    assert late(schedule(), ended, "2026-11-26T12:00", timedelta(hours=12)) == []
    assert late(schedule(), ended, "2026-11-27T14:00", timedelta(hours=36)) == [("refresh", "26 02:00")]


def test_due_times_are_those_of_the_time_zone() -> None:
    ended = Lab(refresh=LOOK)
    assert late(schedule(zone="America/New_York"), ended, "2026-11-25T12:00") == []  # due at 07:00, six hours to run
    assert late(schedule(zone="America/New_York"), ended, "2026-11-25T13:00") == [("refresh", "25 07:00")]


def test_each_job_is_held_to_its_own_kind() -> None:
    both = schedule(recompute="0 4 * * sun")
    assert late(both, Lab(refresh=LOOK), "2026-11-25T03:00") == [("recompute", None)]
    assert late(both, Lab(recompute=LOOK), "2026-11-25T03:00") == []
    assert late(both, Lab(recompute=LOOK), "2026-11-27T12:00") == [("refresh", "27 02:00")]
    week_later = Lab(refresh=look("2026-11-30T02:01:00"), recompute=LOOK)
    assert late(both, week_later, "2026-11-30T21:59") == []  # a quarter of a week is 42 hours
    assert late(both, week_later, "2026-11-30T22:00") == [("recompute", "29 04:00")]


def test_labs_of_the_store_and_of_the_schedule_are_shown_and_only_covered_ones_are_late() -> None:
    now = datetime(2026, 11, 25, 3, tzinfo=UTC)
    states = judge(schedule(f"a={NIGHTLY}; new={NIGHTLY}"), {"a": Lab(refresh=LOOK)}, ["a", "other"], now)
    assert [(state.lab, state.scheduled, [one.due for one in state.late]) for state in states] == [
        ("a", True, []),
        ("new", True, [None]),
        ("other", False, []),
    ]
    (alone,) = judge(Schedule(jobs=(), zone=ZoneInfo("UTC")), {}, ["a"], now)
    assert alone == LabState(lab="a", refresh=None, recompute=None, scheduled=False)


def test_a_lab_that_all_labs_cover_and_nobody_looked_at_is_late() -> None:
    assert late(schedule(), Lab(), "2026-11-25T03:00") == [("refresh", None)]
