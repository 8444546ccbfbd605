"""The ledger on a real Redis: every step counts once, however often it is taken."""

from __future__ import annotations

import time

import pytest
import redis

from core.errors import PermanentError
from core.records import LeftOut
from workers.ledger import Ledger
from workers.records import Outcome, RunSpec, Subject, Work

RUN = "20261122T080000-abc123"
SPEC = RunSpec(run_id=RUN, kind="recompute", source="mice", store="tables", labs=("a",), started="2026-11-22T08:00:00")
MOUSE, OTHER = Subject(lab="a", subject="m1"), Subject(lab="a", subject="m2")


@pytest.fixture
def ledger(redis_client: redis.Redis) -> Ledger:
    ledger = Ledger(redis_client)
    ledger.open_run(SPEC)
    return ledger


def begin(ledger: Ledger, subject: Subject = MOUSE, pieces: int = 2, attempt: int = 0) -> None:
    ledger.register(RUN, [subject])
    dates = tuple((f"2020-01-0{day + 1}",) for day in range(pieces))
    ledger.begin(RUN, subject, Work(pieces=dates, base="v1", attempt=attempt), b"[]")


def deliver(ledger: Ledger, piece: int, attempt: int = 0, dates: tuple[str, ...] | None = None) -> bool:
    given = dates or (f"2020-01-0{piece + 1}",)
    days = b'["p%d"]' % piece
    return ledger.deliver(RUN, MOUSE, attempt=attempt, piece=piece, dates=given, days=days, sessions=3)


def test_a_run_is_remembered_as_it_was_asked_for(ledger: Ledger) -> None:
    assert ledger.spec(RUN) == SPEC
    assert not ledger.is_ended(RUN)


def test_an_unknown_run_has_ended_and_cannot_be_specified(ledger: Ledger) -> None:
    assert ledger.is_ended("20000101T000000-000000")
    with pytest.raises(PermanentError, match="no run"):
        ledger.spec("20000101T000000-000000")


def test_the_last_piece_says_so_and_says_so_again(ledger: Ledger) -> None:
    begin(ledger)
    assert not deliver(ledger, 1)
    assert deliver(ledger, 0)
    assert deliver(ledger, 0)  # delivered twice: the one before may have died before it sent what follows
    produced = ledger.produced(RUN, MOUSE)
    assert produced is not None
    assert produced.days == (b'["p0"]', b'["p1"]')
    assert (produced.kept, produced.settled) == (b"[]", b"[]")
    assert ledger.progress(RUN).sessions == 6


def test_what_a_subject_starts_from_is_there_with_its_last_piece(ledger: Ledger) -> None:
    ledger.register(RUN, [MOUSE])
    work = Work(pieces=(("2020-01-01",),), base="v1", held={"2020-01-01": ("001", "003")})
    ledger.begin(RUN, MOUSE, work, b'["kept"]', b'["settled"]')
    assert ledger.work(RUN, MOUSE) == work
    assert deliver(ledger, 0)
    produced = ledger.produced(RUN, MOUSE)
    assert produced is not None
    assert (produced.kept, produced.days, produced.settled) == (b'["kept"]', (b'["p0"]',), b'["settled"]')
    assert produced.work == work


def test_a_piece_of_an_earlier_look_is_dropped(ledger: Ledger) -> None:
    begin(ledger, attempt=0)
    begin(ledger, attempt=1)
    assert not deliver(ledger, 0, attempt=0)
    assert ledger.pieces_missing(RUN, MOUSE) == [0, 1]
    assert not deliver(ledger, 0, attempt=1)
    assert ledger.pieces_missing(RUN, MOUSE) == [1]


def test_nothing_comes_in_for_a_subject_that_has_ended(ledger: Ledger) -> None:
    begin(ledger)
    ledger.end(RUN, MOUSE, Outcome(state="failed", reason="disk"))
    assert not deliver(ledger, 0)
    ledger.set_statuses(RUN, MOUSE, "any look", b"[]")
    ledger.set_stage(RUN, MOUSE, "writing")
    ledger.begin(RUN, MOUSE, Work(pieces=(), base=None), b"[]")
    ledger.register(RUN, [MOUSE])
    assert ledger.produced(RUN, MOUSE) is None
    assert ledger.work(RUN, MOUSE) is None
    assert ledger.stage(RUN, MOUSE) is None


def test_a_piece_of_a_look_that_saw_other_days_is_dropped(ledger: Ledger) -> None:
    begin(ledger)
    assert not deliver(ledger, 0, dates=("2020-01-01", "2020-01-02"))
    assert ledger.pieces_missing(RUN, MOUSE) == [0, 1]


def test_nothing_is_produced_before_the_last_piece(ledger: Ledger) -> None:
    begin(ledger)
    deliver(ledger, 0)
    assert ledger.produced(RUN, MOUSE) is None
    deliver(ledger, 1)
    assert ledger.produced(RUN, MOUSE) is not None


def test_statuses_belong_to_the_look_that_they_come_from(ledger: Ledger) -> None:
    begin(ledger, pieces=1)
    deliver(ledger, 0)
    first = ledger.produced(RUN, MOUSE)
    assert first is not None
    begin(ledger, pieces=1)
    deliver(ledger, 0)
    ledger.set_statuses(RUN, MOUSE, first.look, b"old")
    second = ledger.produced(RUN, MOUSE)
    assert second is not None
    assert second.statuses is None
    ledger.set_statuses(RUN, MOUSE, second.look, b"new")
    again = ledger.produced(RUN, MOUSE)
    assert again is not None
    assert again.statuses == b"new"


def test_steps_that_were_never_left_are_counted(ledger: Ledger) -> None:
    assert [ledger.entered(RUN, MOUSE, "write", f"task{at}") for at in range(3)] == [1, 2, 3]
    assert ledger.entered(RUN, MOUSE, "summarise 0", "task3") == 1
    ledger.left(RUN, MOUSE, "write", "task2")
    assert ledger.entered(RUN, MOUSE, "write", "task4") == 1


def test_what_a_task_is_on_is_not_owed_while_its_worker_keeps_it(ledger: Ledger) -> None:
    begin(ledger, MOUSE)
    begin(ledger, OTHER)
    ledger.entered(RUN, MOUSE, "summarise 0", "task1")
    began = time.time()
    ledger.keep(["task1", "a task of which nothing is known"])
    assert dict(ledger.owed(RUN, began)) == {OTHER: "summarising"}
    ledger.left(RUN, MOUSE, "summarise 0", "task1")
    left = time.time()
    ledger.keep(["task1"])
    assert dict(ledger.owed(RUN, left)) == {MOUSE: "summarising", OTHER: "summarising"}


def test_a_run_does_not_stall_while_a_task_plans_for_it(ledger: Ledger) -> None:
    ledger.planning(RUN, "task1")
    began = time.time()
    ledger.keep(["task1"])
    assert ledger.stalled(RUN, began) is None
    ledger.planning("20000101T000000-000000", "task2")
    ledger.keep(["task2"])
    assert ledger.is_ended("20000101T000000-000000")  # as are all that are not known
    assert ledger.run_ids() == [RUN]


def test_each_time_that_something_is_sent_again_the_wait_is_longer(ledger: Ledger) -> None:
    begin(ledger, MOUSE)
    waits = []
    for _ in range(6):
        sent = time.time()
        ledger.sent_again(RUN, MOUSE, patience=60)
        waits.append(next(wait for wait in range(0, 700, 10) if dict(ledger.owed(RUN, sent + wait + 5))))
    assert waits == [60, 180, 420, 600, 600, 600]
    ledger.set_stage(RUN, MOUSE, "computing")  # news: it is waited for as at first
    assert dict(ledger.owed(RUN, time.time())) == {MOUSE: "computing"}
    ledger.end(RUN, MOUSE, Outcome(state="done"))
    ledger.sent_again(RUN, MOUSE, patience=60)
    assert dict(ledger.owed(RUN, time.time() + 1000)) == {}


def test_a_piece_that_was_delivered_is_known(ledger: Ledger) -> None:
    begin(ledger, MOUSE)
    deliver(ledger, 1)
    assert [ledger.has_piece(RUN, MOUSE, piece) for piece in range(2)] == [False, True]


def test_a_run_is_complete_when_it_is_planned_and_all_have_ended(ledger: Ledger) -> None:
    ledger.register(RUN, [MOUSE])
    assert not ledger.is_complete(RUN)
    ledger.set_planned(RUN)
    assert not ledger.is_complete(RUN)
    ledger.end(RUN, MOUSE, Outcome(state="done"))
    assert ledger.is_complete(RUN)


def test_the_first_outcome_stays_and_counts_once(ledger: Ledger) -> None:
    begin(ledger)
    first = Outcome(state="done", sessions=4, left_out=(LeftOut(session="s", reason="r"),), cohort=({"lab": "a"},))
    ledger.end(RUN, MOUSE, first)
    ledger.end(RUN, MOUSE, Outcome(state="failed", reason="late"))
    assert ledger.outcomes(RUN) == {MOUSE: first}
    assert (ledger.progress(RUN).ended, ledger.progress(RUN).failed) == (1, 0)


def test_the_run_is_over_when_it_is_planned_and_all_have_ended(ledger: Ledger) -> None:
    begin(ledger, MOUSE)
    begin(ledger, OTHER)
    assert not ledger.end(RUN, MOUSE, Outcome(state="done"))
    assert not ledger.set_planned(RUN)
    assert ledger.end(RUN, OTHER, Outcome(state="done"))
    assert ledger.end(RUN, OTHER, Outcome(state="done"))  # the message that ends the run may have been lost


def test_planning_last_finds_all_ended(ledger: Ledger) -> None:
    begin(ledger)
    assert not ledger.end(RUN, MOUSE, Outcome(state="done"))
    assert ledger.set_planned(RUN)


def test_subjects_are_registered_once(ledger: Ledger) -> None:
    ledger.register(RUN, [MOUSE, OTHER])
    ledger.register(RUN, [MOUSE])
    progress = ledger.progress(RUN)
    assert progress.subjects == 2
    assert progress.labs == {"a": {"subjects": 2}}


def test_the_plan_moves_on_once(ledger: Ledger) -> None:
    assert ledger.advance(RUN, "", "a/m2")
    assert not ledger.advance(RUN, "", "a/m2")
    assert ledger.cursor(RUN) == "a/m2"


def test_what_is_owed_is_what_was_not_heard_of(ledger: Ledger) -> None:
    begin(ledger, MOUSE)
    ledger.register(RUN, [OTHER])
    assert list(ledger.owed(RUN, time.time() - 60)) == []
    assert sorted(map(str, dict(ledger.owed(RUN, time.time() + 1)))) == ["a/m1", "a/m2"]
    ledger.end(RUN, MOUSE, Outcome(state="done"))
    assert list(ledger.owed(RUN, time.time() + 1)) == [(OTHER, "waiting")]


def test_a_run_stalls_while_planning_and_before_its_end(ledger: Ledger) -> None:
    assert ledger.stalled(RUN, time.time() - 60) is None
    assert ledger.stalled(RUN, time.time() + 1) == "planning"
    ledger.register(RUN, [MOUSE])
    ledger.set_planned(RUN)
    assert ledger.stalled(RUN, time.time() + 1) is None  # a subject is owed, and that is seen by itself
    ledger.end(RUN, MOUSE, Outcome(state="done"))
    assert ledger.stalled(RUN, time.time() + 1) == "finishing"
    ledger.close_run(RUN, b"{}")
    assert ledger.stalled(RUN, time.time() + 1) is None


def test_the_first_record_ends_the_run_and_stays(ledger: Ledger) -> None:
    ledger.close_run(RUN, b'{"a": 1}')
    ledger.close_run(RUN, b'{"a": 2}')
    assert ledger.record(RUN) == {"a": 1}
    assert ledger.is_ended(RUN)
    assert ledger.progress(RUN).state == "ended"


def test_folders_that_are_no_subjects_are_told_once(ledger: Ledger) -> None:
    odd = LeftOut(session="a/b c", reason="odd name")
    ledger.leave_out(RUN, [odd])
    ledger.leave_out(RUN, [odd])
    assert ledger.left_out(RUN) == [odd]


def test_a_run_that_is_forgotten_is_not_listed(ledger: Ledger, redis_client: redis.Redis) -> None:
    assert ledger.run_ids() == [RUN]
    redis_client.delete(f"training-status:run:{RUN}")
    assert ledger.run_ids() == []
