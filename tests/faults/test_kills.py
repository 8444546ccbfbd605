"""Processes that are killed amid a run: nothing is lost, and the record tells the truth."""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from core.storage import open_store
from tests.faults.kills import Kill
from tests.faults.services import Arena, Herd, assert_as_undisturbed
from workers.records import Progress


class Moment(enum.Enum):
    """How far a run is when something is killed."""

    PLANNING = enum.member(lambda progress: progress.subjects > 0)
    SUMMARISING = enum.member(lambda progress: progress.sessions > 0)
    WRITING = enum.member(lambda progress: progress.ended >= 2)
    LATE = enum.member(lambda progress: progress.ended >= 6)

    def has_come(self, progress: Progress) -> bool:
        """Whether the run is there."""
        condition: Callable[[Progress], bool] = self.value
        return condition(progress)


#: The quick subset: what is most likely to happen, each at one moment.
_QUICK = {
    (Kill.POOL_CHILD, Moment.SUMMARISING),
    (Kill.REDIS, Moment.SUMMARISING),
}
#: Beside those, one early and one late moment for each way to kill.
_ALL = [(kill, moment) for kill in Kill for moment in (Moment.SUMMARISING, Moment.LATE)]
_ALL += [(Kill.WORKER, Moment.WRITING), (Kill.WORKER, Moment.PLANNING), (Kill.REDIS, Moment.WRITING)]


def cases() -> list[object]:
    return [
        pytest.param(
            kill,
            moment,
            id=f"{kill.name.lower()}-{moment.name.lower()}",
            marks=() if (kill, moment) in _QUICK else pytest.mark.slow,
        )
        for kill, moment in _ALL
    ]


@pytest.mark.parametrize(("kill", "moment"), cases())
def test_a_kill_loses_nothing(kill: Kill, moment: Moment, herd: Herd, arena: Arena, folder: Path) -> None:
    victim = arena.worker("victim", keep=False)
    running = arena.run(herd.root, folder)
    run_id = arena.run_id()
    arena.wait(lambda: moment.has_come(arena.ledger.progress(run_id)), f"the moment of {moment.name}")

    kill(victim.process, arena.redis.process)

    arena.redis.keep_alive()
    arena.worker("other")
    record = arena.finish(running)
    assert running.code == 0, running.told
    assert_as_undisturbed(herd, open_store(str(folder)), record, arena)


def test_a_worker_is_killed_while_another_lives(herd: Herd, arena: Arena, folder: Path) -> None:
    victim, _ = arena.worker("victim", keep=False), arena.worker("other")
    running = arena.run(herd.root, folder)
    run_id = arena.run_id()
    arena.wait(lambda: arena.ledger.progress(run_id).sessions > 0, "work to be under way")
    Kill.WORKER(victim.process, arena.redis.process)
    record = arena.finish(running)
    assert running.code == 0, running.told
    assert_as_undisturbed(herd, open_store(str(folder)), record, arena)


def have_ended(arena: Arena, run_id: str, least: int) -> bool:
    return arena.ledger.progress(run_id).ended >= least


@pytest.mark.slow
def test_redis_is_killed_again_and_again(herd: Herd, arena: Arena, folder: Path) -> None:
    arena.worker("one")
    arena.worker("two")
    running = arena.run(herd.root, folder)
    run_id = arena.run_id()
    for ended in (0, 2, 4, 6):
        arena.wait(partial(have_ended, arena, run_id, ended), f"{ended} subjects to end")
        arena.redis.process.kill()
        arena.wait(lambda: arena.redis.has_died, "Redis to be dead")
        arena.redis.keep_alive()
    record = arena.finish(running)
    assert running.code == 0, running.told
    assert_as_undisturbed(herd, open_store(str(folder)), record, arena)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["valkey-server", "worker"])
def test_an_embedded_service_that_is_killed_is_started_again(part: str, herd: Herd, arena: Arena, folder: Path) -> None:
    running = arena.embedded(herd.root, folder)

    def found() -> list[psutil.Process]:
        return [child for child in running.process.children() if any(part in word for word in child.cmdline())]

    arena.wait(lambda: any(folder.rglob("training.pqt")), "the first table")
    (victim,) = found()
    victim.kill()
    record = arena.finish(running)
    assert running.code == 0, running.told
    assert_as_undisturbed(herd, open_store(str(folder)), record, None)


@pytest.mark.slow
def test_a_redis_that_stays_away_is_said_in_one_line(herd: Herd, arena: Arena, folder: Path) -> None:
    running = arena.run(herd.root, folder)
    arena.run_id()
    arena.redis.process.kill()
    arena.wait(lambda: running.has_ended, "the command to give up")
    assert running.code not in (0, 1)  # 1 would say that the run has ended
    assert len(running.told.splitlines()) == 1, running.told
