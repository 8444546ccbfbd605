"""The schedule: what a setting asks for, and the times at which it is due, where clocks change too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest

from core.errors import ConfigurationError
from scheduler.schedule import Job, check_crontab, due_times, last_due, parse_jobs, parse_zone

LONDON = ZoneInfo("Europe/London")
NEW_YORK = ZoneInfo("America/New_York")
#: What London's clocks are from UTC at half past one, when it comes first.
DAYS = (("24", "+0100"), ("25", "+0100"), ("26", "+0000"))


def times(crontab: str, zone: ZoneInfo, after: str, before: str) -> list[str]:
    """The due times of some days, in local time with its distance from UTC."""
    found = []
    for due in due_times(crontab, zone, datetime.fromisoformat(after).replace(tzinfo=zone)):
        if due >= datetime.fromisoformat(before).replace(tzinfo=zone).astimezone(UTC):
            return found
        found.append(f"{due.astimezone(zone):%d %H:%M%z}")
    raise AssertionError("the times of a crontab have no end")


def test_a_crontab_is_for_all_labs_and_one_with_a_name_for_that_lab() -> None:
    assert parse_jobs("refresh", "0 2 * * *; cortexlab=30  6 * * mon-fri ;other.lab-2=0 1 * * *") == (
        Job(kind="refresh", crontab="0 2 * * *"),
        Job(kind="refresh", crontab="30 6 * * mon-fri", lab="cortexlab"),
        Job(kind="refresh", crontab="0 1 * * *", lab="other.lab-2"),
    )
    assert [job.labs for job in parse_jobs("recompute", "0 4 * * sun;a=0 5 * * 7")] == [(), ("a",)]
    assert parse_jobs("recompute", " Never ") == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("0 2 * * *;", "empty"),
        ("a=", "empty"),
        ("0 2 * *", "five fields"),
        ("0 0 2 * * *", "five fields"),  # with seconds
        ("@daily", "five fields"),
        ("60 2 * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 2 0 * *", "bad day-of-month"),
        ("0 2 * 13 *", "bad month"),
        ("0 2 * * 8", "bad day-of-week"),
        ("0 2 * * someday", "bad day-of-week"),
        ("0 5-3 * * *", "bad hour"),
        ("*/0 2 * * *", "bad minute"),
        ("0 2 30 2 *", "bad day-of-month"),
        ("0 " + "9" * 5000 + " * * *", "no crontab"),
        ("0 2 * * *; 0 3 * * *", "two entries for all labs"),
        ("a=0 2 * * *;b=0 2 * * *;a=0 3 * * *", "two entries for lab 'a'"),
        ("../up=0 2 * * *", "cannot be the name of a lab"),
        ("=0 2 * * *", "cannot be the name of a lab"),
        ("never; 0 2 * * *", "five fields"),
    ],
)
def test_what_is_no_schedule_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        parse_jobs("refresh", text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ["Europe/Nowhere", "", "Europe", "../UTC", "/etc/localtime", "a\0b", "London" * 50])
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no time zone"):
        parse_zone(name)
    assert parse_zone("Europe/London") == LONDON


def test_due_times_are_read_in_the_time_zone_and_go_on_for_ever() -> None:
    after = datetime(2026, 1, 1, tzinfo=UTC)
    assert list(islice(due_times("0 2 * * mon", NEW_YORK, after), 2)) == [
        datetime(2026, 1, 5, 7, tzinfo=UTC),
        datetime(2026, 1, 12, 7, tzinfo=UTC),
    ]
    (leap_day,) = islice(due_times("0 0 29 2 *", LONDON, after), 1)
    assert leap_day == datetime(2028, 2, 29, tzinfo=UTC)


def test_a_due_time_is_the_last_one_from_its_very_second_on() -> None:
    due = datetime(2026, 11, 25, 2, tzinfo=UTC)
    second = timedelta(seconds=1)
    (following,) = islice(due_times("0 2 * * *", LONDON, due - second), 1)
    assert following == due
    (following,) = islice(due_times("0 2 * * *", LONDON, due), 1)
    assert following == due + timedelta(days=1)
    assert last_due("0 2 * * *", LONDON, due) == due
    assert last_due("0 2 * * *", LONDON, due - second) == due - timedelta(days=1)
    assert last_due("0 2 * * *", LONDON, due + timedelta(milliseconds=1)) == due
    assert last_due("0 0 29 2 *", LONDON, due) == datetime(2024, 2, 29, tzinfo=UTC)


# On 29 March 2026 London's clocks go from 01:00 to 02:00, on 25 October from 02:00 back to 01:00.


@pytest.mark.parametrize(
    ("crontab", "spring"),
    [
        ("30 0 * * *", ["28 00:30+0000", "29 00:30+0000", "30 00:30+0100"]),
        ("30 1 * * *", ["28 01:30+0000", "29 02:00+0100", "30 01:30+0100"]),  # there is no 01:30: right after the gap
        ("0 2 * * *", ["28 02:00+0000", "29 02:00+0100", "30 02:00+0100"]),
        ("15,45 1 * * *", ["28 01:15+0000", "28 01:45+0000", "29 02:00+0100", "30 01:15+0100", "30 01:45+0100"]),
        ("*/30 1 * * *", ["28 01:00+0000", "28 01:30+0000", "29 02:00+0100", "30 01:00+0100", "30 01:30+0100"]),
    ],
)
def test_a_job_at_an_hour_that_is_skipped_runs_once_after_it(crontab: str, spring: list[str]) -> None:
    assert times(crontab, LONDON, "2026-03-28T00:00", "2026-03-31T00:00") == spring


@pytest.mark.parametrize(
    ("crontab", "autumn"),
    [
        ("30 0 * * *", ["24 00:30+0100", "25 00:30+0100", "26 00:30+0000"]),
        ("30 1 * * *", ["24 01:30+0100", "25 01:30+0100", "26 01:30+0000"]),  # 01:30 comes twice: the first
        ("0 2 * * *", ["24 02:00+0100", "25 02:00+0000", "26 02:00+0000"]),
        ("*/30 1 * * *", [f"{day} 01:{minute}{zone}" for day, zone in DAYS for minute in ("00", "30")]),
    ],
)
def test_a_job_at_an_hour_that_comes_twice_runs_once(crontab: str, autumn: list[str]) -> None:
    assert times(crontab, LONDON, "2026-10-24T00:00", "2026-10-27T00:00") == autumn


def test_an_hourly_job_runs_by_elapsed_time_where_clocks_change() -> None:
    for day, hours in (("2026-03-29", 23), ("2026-10-25", 25)):
        after = datetime.fromisoformat(day).replace(tzinfo=LONDON) - timedelta(seconds=1)
        found = list(islice(due_times("0 * * * *", LONDON, after), hours + 1))
        assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(hours=1)}
        assert found[-1].astimezone(LONDON).hour == 0


def test_between_the_two_hours_the_first_one_is_past() -> None:
    # 01:10 for the second time: the job of 01:30 has run, forty minutes ago.
    at = datetime(2026, 10, 25, 1, 10, fold=1, tzinfo=LONDON)
    assert last_due("30 1 * * *", LONDON, at) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    (following,) = islice(due_times("30 1 * * *", LONDON, at), 1)
    assert following == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_a_crontab_is_kept_with_single_spaces() -> None:
    assert check_crontab("  0\t2 *  * MON ") == "0 2 * * MON"
