"""Due times, whatever the crontab, the time zone and the moment: in order, the same from everywhere, one a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigurationError
from scheduler.schedule import due_times, last_due, parse_jobs

#: Clocks that change by an hour in either half of the year, by half an hour, before midnight, and never.
ZONES = ("Europe/London", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kolkata", "UTC")
zones = st.sampled_from(ZONES).map(ZoneInfo)
moments = st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))
minutes = st.sampled_from(["*", "*/20", "0", "30", "5,35", "10-14/2"]) | st.integers(0, 59).map(str)
hours = st.sampled_from(["*", "*/2", "1-3", "0,12", "22/1"]) | st.integers(0, 23).map(str)
days = st.sampled_from(["* * *", "* * sun", "1 * *", "* 3,10 *", "L * *", "15 * mon"])
crontabs = st.builds("{} {} {}".format, minutes, hours, days)


@given(crontabs, zones, moments)
def test_they_come_in_order_and_the_last_is_the_one_before_the_next(crontab: str, zone: ZoneInfo, at: datetime) -> None:
    following = list(islice(due_times(crontab, zone, at), 5))
    assert following == sorted({*following})
    assert following[0] > at
    before = last_due(crontab, zone, at)
    assert before is not None
    assert before <= at
    assert next(due_times(crontab, zone, before)) == following[0]
    for earlier, later in pairwise(following):
        assert last_due(crontab, zone, later - timedelta(seconds=1)) == earlier


@given(st.integers(0, 59), st.integers(0, 23), zones, moments)
def test_a_daily_job_is_due_once_on_each_day(minute: int, hour: int, zone: ZoneInfo, at: datetime) -> None:
    due = islice(due_times(f"{minute} {hour} * * *", zone, at), 400)
    dates = [one.astimezone(zone).date() for one in due]
    assert dates == [dates[0] + timedelta(days=day) for day in range(400)]


@given(st.text(alphabet="0123456789*/,-#; =LWaMON\t", max_size=30) | st.text(max_size=20))
def test_any_text_is_a_schedule_or_refused(text: str) -> None:
    try:
        jobs = parse_jobs("refresh", text)
    except ConfigurationError as error:
        assert str(error).isprintable()  # noqa: PT017  what is raised, where it is
        return
    for job in jobs:
        assert next(due_times(job.crontab, ZoneInfo("UTC"), datetime(2026, 1, 1, tzinfo=UTC)))
