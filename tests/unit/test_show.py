"""What is told of a run's progress, where there is no terminal and where there is one."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from scheduler.cli import show
from scheduler.cli.show import Rate, run_progress, time_left
from workers.records import Progress


def progress(state: str = "working", subjects: int = 10, ended: int = 4, sessions: int = 400) -> Progress:
    labs = {"cortexlab": {"subjects": subjects, "ended": ended, "sessions": sessions}}
    return Progress(state=state, subjects=subjects, ended=ended, failed=1, sessions=sessions, labs=labs)


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    rate = Rate()
    assert rate.told(0, 100.0) == ""
    assert rate.told(50, 110.0) == "5 sessions/s"
    assert rate.told(150, 120.0) == "8 sessions/s"
    # What came before is forgotten: 100 sessions in the 30 s since second 120.
    assert rate.told(250, 150.0) == "3 sessions/s"


def test_the_time_left_goes_by_the_subjects_that_ended_while_one_watched() -> None:
    assert time_left(progress(ended=4), 0, 20.0) == ", 30 s left"
    assert time_left(progress(ended=4), 2, 20.0) == ", 1 min 0 s left"
    assert time_left(progress(ended=4), 4, 20.0) == ""
    assert time_left(progress(state="planning"), 0, 20.0) == ""


def test_plain_lines_tell_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    clock = iter([0.0, 5.0, 10.0, 11.0])
    monkeypatch.setattr(show.time, "monotonic", lambda: next(clock))
    with run_progress() as say:
        say(progress(state="planning", subjects=0, ended=0, sessions=0))
        say(progress(ended=2, sessions=200))  # too soon for another line
        say(progress(ended=4, sessions=400))
        say(progress(state="ended", ended=10, sessions=1000))
    assert capsys.readouterr().err.splitlines() == [
        "planning: 0 of 0 subjects, 0 sessions, 1 failed",
        "working: 4 of 10 subjects, 400 sessions, 1 failed, 40 sessions/s, 15 s left",
        "ended: 10 of 10 subjects, 1000 sessions, 1 failed",
    ]


def test_where_nothing_happens_no_time_left_is_made_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clock = iter([0.0, 10.0, 39.0, 50.0, 60.0])
    monkeypatch.setattr(show.time, "monotonic", lambda: next(clock))
    with run_progress() as say:
        say(progress(ended=0, sessions=0))
        for _ in range(3):
            say(progress(ended=4, sessions=400))
        say(progress(ended=5, sessions=400))
    assert [line.split(" failed")[1] for line in capsys.readouterr().err.splitlines()] == [
        "",
        ", 40 sessions/s, 15 s left",
        ", 0 sessions/s, 58 s left",
        ", nothing new for 40 s",
        ", 0 sessions/s, 1 min 0 s left",
    ]


def test_a_terminal_shows_a_bar_for_each_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(show, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=160))
    clock = iter(float(second) for second in range(10_000))
    monkeypatch.setattr(show.time, "monotonic", lambda: next(clock))
    with run_progress() as say:
        say(progress(ended=0, sessions=0))
        say(progress(ended=4, sessions=400))
    told = screen.getvalue()
    assert "cortexlab" in told
    assert "4/10" in told
    assert "400 sessions" in told
    assert "sessions/s" in told
    assert "left:" in told
