"""Real beats by the real clock, every minute: two of them, a Redis that dies, a beat that was away. Minutes each."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from core.freshness import LABS_KEY, read_labs
from core.storage import open_store
from tests.faults.services import Arena, Herd, Service
from tests.processes import COMMAND, answers, wait_for

pytestmark = pytest.mark.slow

Beats = Callable[..., Service]


@pytest.fixture
def beat(arena: Arena, pair: Herd, folder: Path, stack: ExitStack) -> Beats:
    """Start a beat that refreshes every minute, with a state folder of that name."""

    def start(name: str) -> Service:
        settings = {"BROKER": arena.redis.url, "ROOT": str(pair.root), "STORE": str(folder), "PATIENCE": "5"}
        settings |= {"REFRESH_AT": "* * * * *", "STATE": str(arena.folder / f"{name}-state")}
        env = {f"TRAINING_STATUS_{key}": value for key, value in settings.items()}
        started = stack.enter_context(Service([*COMMAND, "beat"], arena.folder / f"{name}.log", env))
        wait_for(lambda: "beat: Starting" in arena.log(name), "beat to start")
        return started

    return start


def past_seconds(second: int) -> None:
    """Wait, where this minute has passed that second, for the next: what follows takes a while."""
    if datetime.now(UTC).second > second:
        time.sleep(61 - datetime.now(UTC).second)


def due(arena: Arena) -> list[str]:
    """The minutes that runs are for, the earliest first."""
    return sorted(run_id[:13] for run_id in arena.ledger.run_ids())


def ticks(arena: Arena, name: str) -> int:
    """How many ticks a beat has sent."""
    return arena.log(name).count("Sending due task")


def test_two_beats_on_two_machines_start_one_run_a_minute(arena: Arena, beat: Beats, folder: Path) -> None:
    arena.worker()
    past_seconds(45)
    beat("one")
    beat("two")
    wait_for(lambda: min(ticks(arena, "one"), ticks(arena, "two")) >= 2, "both beats to send two ticks", 180)
    arena.wait(lambda: len(due(arena)) >= 2 and not arena.ledger.open_runs(), "the runs to end")
    assert len(due(arena)) == len({*due(arena)})
    assert arena.log().count("begun already") >= 2  # the other beat's ticks
    records = [arena.ledger.record(run_id) for run_id in arena.ledger.run_ids()]
    assert {record["kind"] for record in records if record} == {"refresh"}
    stored = open_store(str(folder)).get(LABS_KEY)
    assert stored is not None
    (lab,) = read_labs(stored.data).values()
    assert lab.refresh is not None
    assert lab.refresh.run_id == arena.ledger.run_ids()[0]


def test_beat_outlives_a_redis_that_is_away_when_a_run_is_due(arena: Arena, beat: Beats) -> None:
    arena.worker()
    past_seconds(45)
    started = beat("one")
    process = started.process
    wait_for(lambda: ticks(arena, "one") == 1, "the first tick", 90)
    arena.wait(lambda: len(due(arena)) == 1 and not arena.ledger.open_runs(), "the first run to end")
    arena.redis.process.kill()
    wait_for(lambda: arena.redis.has_died and not answers(arena.redis.url), "Redis to be gone")
    wait_for(lambda: ticks(arena, "one") == 2, "a tick that cannot be sent", 90)
    time.sleep(35)  # longer than a message's sender tries
    assert process.is_running()
    arena.redis.start()
    arena.wait(lambda: len(due(arena)) >= 2, "the run that was due while Redis was away")
    arena.wait(lambda: not arena.ledger.open_runs(), "it to end")
    assert process.is_running()
    assert process.status() != psutil.STATUS_ZOMBIE
    minutes = [datetime.strptime(minute, "%Y%m%dT%H%M") for minute in due(arena)]
    assert len(minutes) == len({*minutes})
    assert (minutes[1] - minutes[0]).total_seconds() <= 120


def test_a_beat_that_was_killed_catches_up_with_one_run(arena: Arena, beat: Beats) -> None:
    arena.worker()
    past_seconds(45)
    started = beat("one")
    arena.wait(lambda: len(due(arena)) == 1 and not arena.ledger.open_runs(), "the first run to end")
    started.process.kill()
    time.sleep(125)  # two due times or three pass
    past_seconds(40)  # none comes while it starts
    started_at = datetime.now(UTC)
    beat("one")
    arena.wait(lambda: len(due(arena)) >= 2 and not arena.ledger.open_runs(), "one run to catch up")
    time.sleep(3)  # in which others would come
    assert due(arena)[1] >= f"{started_at:%Y%m%dT%H%M}"  # the latest that was missed, and none from before it
