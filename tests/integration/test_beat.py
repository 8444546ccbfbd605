"""beat: its scheduler driven by a clock on a real Redis, the command as a process, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from scheduler.beat import Scheduler, Times, entries, held
from scheduler.cli.main import run
from scheduler.schedule import Schedule, parse_jobs
from tests.processes import COMMAND, PASSWORD, process, training_status, wait_for
from workers.app import app
from workers.ledger import Ledger
from workers.records import RunSpec

QUEUE = "training-status"  # its most urgent messages
START = datetime(2026, 11, 25, 1, 59, 30, tzinfo=UTC)
NIGHTLY = "0 2 * * *"


class Clock:
    """The time, as a test sets it."""

    now = START


class Told(Times):
    """Times that are told what time it is; Celery keeps them on the disk, so they cannot have a clock of their own."""

    def now(self) -> datetime:
        return Clock.now


class Beat:
    """A beat without its process: Celery's scheduler with our entries, told the time by a test.

    Parameters
    ----------
    state : Path
        Its folder.
    ledger : Ledger
    jobs : str
        As for ``--refresh-at``.
    """

    def __init__(self, state: Path, ledger: Ledger, jobs: str = NIGHTLY) -> None:
        state.mkdir(exist_ok=True)
        made = Schedule(jobs=parse_jobs("refresh", jobs), zone=ZoneInfo("UTC"))
        self.entries = entries(made, source="mice", store="tables")
        for one in self.entries.values():
            one["schedule"] = Told(one["schedule"].crontab, "UTC")
        app.conf.beat_schedule = self.entries
        self.scheduler = Scheduler(
            app=app,
            schedule_filename=str(state / "schedule"),
            ledger=ledger,
            patience=60.0,
            pid_file=state / "beat.pid",
        )

    def work(self) -> float:
        """Do all that is due; return the seconds until it wants to be called again."""
        while (pause := self.scheduler.tick()) == 0:
            pass
        return pause

    def specs(self) -> list[RunSpec]:
        """What its entries ask for."""
        return [RunSpec.parse(one["args"][0]) for one in self.entries.values()]


Beats = Callable[..., Beat]


@pytest.fixture
def beat_in(tmp_path: Path, ledger: Ledger) -> Iterator[Beats]:
    """Start a beat with the state folder of that name, and a schedule; the time is just before two."""
    Clock.now = START
    made: list[Beat] = []

    def start(state: str = "state", jobs: str = NIGHTLY) -> Beat:
        made.append(Beat(tmp_path / state, ledger, jobs))
        return made[-1]

    yield start
    for beat in made:
        beat.scheduler.close()
    app.conf.beat_schedule = {}


def sent(client: redis.Redis) -> list[str]:
    """Take the ticks that wait for a worker, as they show in Flower, in the order in which they were sent."""
    messages: Any = client.lrange(QUEUE, 0, -1)
    client.delete(QUEUE)
    return [json.loads(message)["headers"]["argsrepr"] for message in reversed(messages)]


# ---- the scheduler and the clock


def test_a_tick_is_sent_when_it_is_due_and_not_at_the_first_start(beat_in: Beats, redis_client: redis.Redis) -> None:
    beat = beat_in()
    assert 0 < beat.work() <= 30
    assert sent(redis_client) == []
    Clock.now += timedelta(seconds=30)
    beat.work()
    assert sent(redis_client) == ["refresh of all labs, due 2026-11-25T02:00Z"]
    Clock.now += timedelta(hours=23, minutes=59)
    beat.work()
    assert sent(redis_client) == []
    Clock.now += timedelta(minutes=1)
    beat.work()
    assert sent(redis_client) == ["refresh of all labs, due 2026-11-26T02:00Z"]


def test_after_days_in_which_it_did_not_run_one_tick_is_sent(beat_in: Beats, redis_client: redis.Redis) -> None:
    beat = beat_in()
    Clock.now += timedelta(seconds=31)
    beat.work()
    beat.scheduler.close()
    assert len(sent(redis_client)) == 1
    Clock.now = datetime(2026, 11, 30, 9, 12, tzinfo=UTC)
    again = beat_in()
    again.work()
    assert sent(redis_client) == ["refresh of all labs, due 2026-11-30T02:00Z"]
    again.work()
    assert sent(redis_client) == []


def test_a_beat_that_is_killed_has_noted_on_the_disk_what_it_sent(
    ledger: Ledger, beat_in: Beats, redis_client: redis.Redis
) -> None:
    beat_in().work()
    Clock.now += timedelta(seconds=31)
    killed = beat_in()  # it is never closed
    killed.work()
    assert len(sent(redis_client)) == 1
    ledger.open_due(replace(killed.specs()[0], run_id="r1"), datetime(2026, 11, 25, 2, tzinfo=UTC))
    Clock.now += timedelta(hours=1)
    beat_in().work()
    assert sent(redis_client) == []


def test_a_schedule_that_is_changed_has_missed_nothing(beat_in: Beats, redis_client: redis.Redis) -> None:
    first = beat_in()
    Clock.now += timedelta(seconds=31)
    first.work()
    first.scheduler.close()
    sent(redis_client)
    Clock.now += timedelta(hours=5)
    changed = beat_in(jobs="0 4 * * *; simlab01=30 7 * * *")
    changed.work()
    assert sent(redis_client) == []
    Clock.now += timedelta(minutes=30)
    changed.work()
    assert sent(redis_client) == ["refresh of simlab01, due 2026-11-25T07:30Z"]


def test_two_beats_mean_the_same_tick(beat_in: Beats, redis_client: redis.Redis) -> None:
    first, second = (beat_in(name) for name in ("one", "two"))
    Clock.now += timedelta(seconds=30)
    first.work()
    Clock.now += timedelta(seconds=9)
    second.work()
    assert sent(redis_client) == 2 * ["refresh of all labs, due 2026-11-25T02:00Z"]


def test_a_tick_whose_message_is_lost_is_sent_again_until_the_ledger_knows_it(
    ledger: Ledger, beat_in: Beats, redis_client: redis.Redis
) -> None:
    beat = beat_in()
    beat.scheduler.look()
    assert sent(redis_client) == []  # nothing was ever due
    Clock.now += timedelta(seconds=30)
    beat.work()
    assert len(sent(redis_client)) == 1  # and lost
    beat.scheduler.look()
    assert sent(redis_client) == []  # it may be under way
    Clock.now += timedelta(seconds=90)
    beat.scheduler.look()
    assert sent(redis_client) == ["refresh of all labs, due 2026-11-25T02:00Z"]
    (spec,) = beat.specs()
    ledger.open_due(replace(spec, run_id="r1"), datetime(2026, 11, 25, 2, tzinfo=UTC))
    Clock.now += timedelta(seconds=90)
    beat.scheduler.look()
    assert sent(redis_client) == []


def test_what_a_run_owes_is_sent_again_where_nobody_watches(
    ledger: Ledger, beat_in: Beats, redis_client: redis.Redis
) -> None:
    beat = beat_in()
    ledger.open_run(RunSpec(run_id="r1", kind="refresh", source="mice", store="tables"))
    redis_client.hset("training-status:run:r1", "touched", 1.0)  # its plan was sent long ago, and lost
    beat.scheduler.look()
    waiting = [key for key in redis_client.keys(f"{QUEUE}*") if redis_client.type(key) == b"list"]
    assert [redis_client.llen(key) for key in waiting] == [1]


def test_a_beat_that_lives_touches_its_pid_file(tmp_path: Path, beat_in: Beats) -> None:
    beat = beat_in()
    pid_file = tmp_path / "state" / "beat.pid"
    pid_file.write_text("1\n")
    os.utime(pid_file, (0, 0))
    assert beat.work() <= 60
    assert pid_file.stat().st_mtime > 0


def test_a_look_that_fails_does_not_end_beat(beat_in: Beats, caplog: pytest.LogCaptureFixture) -> None:
    beat = beat_in()
    client = redis.Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    beat.scheduler.ledger = Ledger(client)
    beat.scheduler.look()
    assert "cannot look for what is owed: ConnectionError" in caplog.text
    client.close()


@pytest.mark.parametrize("damage", [b"", b"no database", bytes(range(256)) * 40])
def test_a_state_that_is_damaged_is_made_anew(
    tmp_path: Path, beat_in: Beats, redis_client: redis.Redis, damage: bytes
) -> None:
    first = beat_in()
    first.work()
    first.scheduler.close()
    files = [path for path in (tmp_path / "state").iterdir() if path.name.startswith("schedule")]
    assert files
    for path in files:
        path.write_bytes(damage)
    beat = beat_in()
    Clock.now += timedelta(seconds=30)
    beat.work()
    assert sent(redis_client) == ["refresh of all labs, due 2026-11-25T02:00Z"]


def test_each_job_is_an_entry_and_there_are_no_others(beat_in: Beats) -> None:
    beat = beat_in(jobs=f"{NIGHTLY}; a=30 2 * * *")
    names = ["refresh of all labs at '0 2 * * *' UTC", "refresh of a at '30 2 * * *' UTC"]
    assert sorted(beat.scheduler.schedule) == sorted(names)
    assert beat.specs() == [
        RunSpec(run_id="", kind="refresh", source="mice", store="tables", labs=labs) for labs in ((), ("a",))
    ]


# ---- the command


def options(broker: str, root: Path, store: Path, state: Path) -> list[str]:
    named = {"broker": broker, "root": root, "store": store, "state": state}
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def test_a_state_folder_is_one_beats_and_free_however_it_ends(mice: Path, broker: str, tmp_path: Path) -> None:
    store, state = tmp_path / "t", tmp_path / "state"
    store.mkdir()
    arguments = [*COMMAND, "beat", *options(broker, mice, store, state)]
    pid_file, log = state / "beat.pid", tmp_path / "beat.log"

    def runs(pid: int, starts: int) -> bool:
        # Until it has said so, a signal ends it as any process.
        said = log.read_text().count("Starting") == starts
        return said and pid_file.exists() and pid_file.read_text() == f"{pid}\n"

    with process(arguments, log) as first:
        wait_for(lambda: runs(first.pid, 1), "beat to run")
        second = training_status("beat", *options(broker, mice, store, state))
        assert (second.returncode, len(second.stderr.splitlines())) == (2, 1)
        assert "--state (TRAINING_STATUS_STATE): another beat has the folder" in second.stderr
        first.kill()
        first.wait(20)
        assert pid_file.exists()
        with process(arguments, log) as third:
            wait_for(lambda: runs(third.pid, 2), "beat to take the folder of one that was killed")
            os.kill(third.pid, signal.SIGTERM)
            assert third.wait(20) == 0
    assert not pid_file.exists()
    assert PASSWORD not in log.read_text()


def test_a_state_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="cannot be written"), held(tmp_path / "file" / "state"):
        pass


BROKEN = [
    ({"refresh-at": "0 2 * *"}, "--refresh-at (TRAINING_STATUS_REFRESH_AT)", "five fields"),
    ({"refresh-at": "0 25 * * *"}, "--refresh-at (TRAINING_STATUS_REFRESH_AT)", "bad hour"),
    (
        {"refresh-at": "simlab01=0 2 * * *;simlab01=0 3 * * *"},
        "--refresh-at (TRAINING_STATUS_REFRESH_AT)",
        "two entries",
    ),
    ({"refresh-at": "nolab=0 2 * * *"}, "--refresh-at (TRAINING_STATUS_REFRESH_AT)", "no lab 'nolab'"),
    ({"recompute-at": "0 4 * * someday"}, "--recompute-at (TRAINING_STATUS_RECOMPUTE_AT)", "bad day-of-week"),
    ({"recompute-at": "nolab=0 4 * * sun"}, "--recompute-at (TRAINING_STATUS_RECOMPUTE_AT)", "no lab 'nolab'"),
    ({"refresh-at": "never"}, "--refresh-at", "nothing is scheduled"),
    ({"timezone": "Europe/Nowhere"}, "--timezone (TRAINING_STATUS_TIMEZONE)", "no time zone"),
    ({"broker": "amqp://user:hidden@host"}, "--broker (TRAINING_STATUS_BROKER)", "begins with 'amqp'"),
    ({"broker": "redis://:hidden@host:port/0"}, "--broker (TRAINING_STATUS_BROKER)", "cannot be read"),
    ({"root": "/no/such/tree"}, "--root (TRAINING_STATUS_ROOT)", "is not a folder"),
    ({"store": "ftp://user:hidden@host/x"}, "--store (TRAINING_STATUS_STORE)", "cannot be 'ftp'"),
    ({"state": "/dev/null/state"}, "--state (TRAINING_STATUS_STATE)", "cannot be written"),
    ({"patience": "0"}, "--patience", "0"),
]


@pytest.mark.parametrize("by_environment", [False, True])
@pytest.mark.parametrize(("changed", "named", "told"), BROKEN)
def test_what_is_wrong_is_refused_at_start_in_one_line_that_names_the_setting(
    mice: Path,
    broker: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    named: str,
    told: str,
    by_environment: bool,
) -> None:
    (tmp_path / "t").mkdir()
    good = {"broker": broker, "root": str(mice), "store": str(tmp_path / "t"), "state": str(tmp_path / "state")}
    settings = {**good, **changed}
    arguments = []
    for name, value in settings.items():
        if by_environment:
            monkeypatch.setenv(f"TRAINING_STATUS_{name.replace('-', '_').upper()}", value)
        else:
            arguments += [f"--{name}", value]
    assert run(["beat", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert named in said.err
    assert told in said.err
    assert "hidden" not in said.err
    assert not (tmp_path / "state").exists()


def test_a_broker_that_does_not_answer_is_told(mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["beat", *options("redis://:hidden@127.0.0.1:1/0", mice, tmp_path, tmp_path / "state")]) == 2
    said = capsys.readouterr().err
    wanted = "training-status: --broker (TRAINING_STATUS_BROKER): the broker redis://127.0.0.1:1/0 does not answer"
    assert said.startswith(wanted)
    assert len(said.splitlines()) == 1
    assert "hidden" not in said


# Slow, since redis-py tries again where no password was given: it takes that for a connection that broke.
@pytest.mark.parametrize("password", ["", ":wrong@"])
def test_a_password_that_is_missing_or_wrong_is_told(
    mice: Path, broker: str, tmp_path: Path, capsys: pytest.CaptureFixture, password: str
) -> None:
    url = broker.replace(f":{PASSWORD}@", password)
    assert run(["beat", *options(url, mice, tmp_path, tmp_path / "state")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("training-status: --broker (TRAINING_STATUS_BROKER): the broker redis://127.0.0.1:")
    assert "refuses its password" in said
    assert len(said.splitlines()) == 1
    assert PASSWORD not in said


@pytest.mark.parametrize("missing", ["broker", "root", "store"])
def test_a_setting_that_is_missing_is_named(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"broker": "redis://localhost", "root": "mice", "store": "tables"}
    arguments = [part for name, value in given.items() if name != missing for part in (f"--{name}", value)]
    assert run(["beat", *arguments]) == 2
    assert f"--{missing}" in capsys.readouterr().err


def test_a_server_of_one_lab_is_scheduled_by_its_name(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flat = mice / "simlab01"
    assert run(["schedule", "--root", str(flat)]) == 2
    assert "--refresh-at (TRAINING_STATUS_REFRESH_AT)" in capsys.readouterr().err
    assert run(["schedule", "--root", str(flat), "--refresh-at", "simlab01=0 2 * * *"]) == 0


# ---- what is scheduled


def test_the_schedule_shows_the_next_times_in_its_time_zone(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--refresh-at", "0 2 * * *;cortexlab=30 12 * * mon-fri", "--recompute-at", "0 4 * * sun"]
    assert run(["schedule", *given, "--timezone", "Europe/London", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["timezone"] == "Europe/London"
    assert [(job["kind"], job["lab"], job["crontab"]) for job in told["jobs"]] == [
        ("refresh", None, "0 2 * * *"),
        ("refresh", "cortexlab", "30 12 * * mon-fri"),
        ("recompute", None, "0 4 * * sun"),
    ]
    for job in told["jobs"]:
        times = [datetime.fromisoformat(time) for time in job["next"]]
        assert len(times) == 3
        assert datetime.fromisoformat(told["now"]) < times[0] < times[1] < times[2]
        assert {time.utcoffset() for time in times} <= {timedelta(), timedelta(hours=1)}
    assert {datetime.fromisoformat(time).strftime("%a %H:%M") for time in told["jobs"][2]["next"]} == {"Sun 04:00"}
    assert run(["schedule", *given, "--timezone", "Europe/London"]) == 0
    shown = capsys.readouterr().out
    for word in ("Europe/London", "cortexlab", "all", "0 4 * * sun", "12:30", "Sun "):
        assert word in shown


def test_without_settings_labs_are_refreshed_nightly_and_nothing_is_recomputed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_STATUS_REFRESH_AT", "")  # as a compose file gives what is not set
    assert run(["schedule", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(job["kind"], job["lab"], job["crontab"]) for job in told["jobs"]] == [("refresh", None, "0 2 * * *")]
    assert told["timezone"] == "UTC"
