"""Ticks of the schedule, on a real Redis with real workers: one run each, and none beside one of the same."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import redis

from core.freshness import LABS_KEY, Lab, Look, read_labs
from scheduler import runs
from tests.processes import training_status, wait_for, worker
from workers import messages
from workers.app import app
from workers.broker import connect
from workers.ledger import Ledger
from workers.records import RunSpec

#: Due times lie in the past, as for messages that come late; nothing was begun since.
DUE = datetime(2026, 11, 1, 2, tzinfo=UTC)
DAY = timedelta(days=1)
WHAT = RunSpec(run_id="", kind="refresh", source="mice", store="tables", labs=("a",))


def named(spec: RunSpec, run_id: str) -> RunSpec:
    return replace(spec, run_id=run_id)


# ---- the guard


def test_a_tick_starts_one_run_however_often_it_comes(ledger: Ledger) -> None:
    now = datetime.now(UTC)
    assert ledger.open_due(named(WHAT, "r1"), now) == ("started", "r1")
    assert ledger.open_due(named(WHAT, "r1"), now) == ("done", "")
    assert ledger.open_due(named(WHAT, "r2"), now) == ("done", "")  # under whatever id
    ledger.close_run("r1", b"{}")
    assert ledger.open_due(named(WHAT, "r3"), now) == ("done", "")
    assert ledger.run_ids() == ["r1"]


def test_of_beats_at_the_same_moment_one_starts_a_run(broker: str, ledger: Ledger) -> None:
    now = datetime.now(UTC)

    def begin(at: int) -> str:
        client = connect(broker)
        try:
            return Ledger(client).open_due(named(WHAT, f"r{at}"), now)[0]
        finally:
            client.close()

    with ThreadPoolExecutor(16) as pool:
        states = list(pool.map(begin, range(64)))
    assert sorted(states) == ["done"] * 63 + ["started"]
    assert len(ledger.open_runs()) == 1


def test_a_run_since_it_was_due_has_done_what_a_late_tick_asks(ledger: Ledger) -> None:
    ledger.open_run(named(WHAT, "by-hand"))
    ledger.close_run("by-hand", b"{}")
    assert ledger.open_due(named(WHAT, "r1"), DUE) == ("done", "")
    assert ledger.knows(WHAT, DUE)
    assert ledger.open_due(named(WHAT, "r2"), datetime.now(UTC) + DAY) == ("started", "r2")


@pytest.mark.parametrize("by_hand", [True, False])
def test_nothing_is_started_beside_a_run_of_the_same_and_the_run_says_so(ledger: Ledger, by_hand: bool) -> None:
    first = datetime.now(UTC)
    if by_hand:
        ledger.open_run(named(WHAT, "r0"))
    else:
        ledger.open_due(named(WHAT, "r0"), first)
    due = [first + day * DAY for day in (1, 2)]
    for at in due:
        assert not ledger.knows(WHAT, at)
        assert ledger.open_due(named(WHAT, "r1"), at) == ("running", "r0")
        assert ledger.knows(WHAT, at)  # so that it is not sent again
        assert ledger.open_due(named(WHAT, "r1"), at) == ("done", "")
    assert ledger.skipped("r0") == [at.isoformat(timespec="seconds") for at in due]
    ledger.close_run("r0", b"{}")
    assert ledger.open_due(named(WHAT, "r1"), due[-1]) == ("done", "")
    assert ledger.open_due(named(WHAT, "r2"), due[-1] + DAY) == ("started", "r2")


def test_a_run_that_the_ledger_has_forgotten_holds_nothing_up(ledger: Ledger, redis_client: redis.Redis) -> None:
    ledger.open_run(named(WHAT, "r0"))
    redis_client.delete("training-status:run:r0")
    assert ledger.open_due(named(WHAT, "r1"), datetime.now(UTC) + DAY) == ("started", "r1")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "recompute"},
        {"source": "other"},
        {"store": "other"},
        {"labs": ("a", "b")},
        {"labs": ()},
        {"subjects": ("m1",)},
        {"only": ("a/m1",)},
    ],
)
def test_runs_that_do_something_else_do_not_stand_in_the_way(ledger: Ledger, change: dict[str, Any]) -> None:
    ledger.open_run(replace(WHAT, run_id="r0", **change))
    assert ledger.open_due(named(WHAT, "r1"), datetime.now(UTC)) == ("started", "r1")


def test_the_order_of_labs_does_not_matter() -> None:
    assert replace(WHAT, labs=("a", "b")).same == replace(WHAT, labs=("b", "a"), run_id="r", started="now").same
    assert replace(WHAT, labs=("a",)).same != replace(WHAT, labs=(), subjects=("a",)).same


def test_a_run_that_has_ended_is_not_opened_again(ledger: Ledger) -> None:
    ledger.open_run(named(WHAT, "r0"))
    ledger.close_run("r0", b"{}")
    ledger.open_run(named(WHAT, "r0"))
    assert ledger.open_runs() == []


def test_skipped_ticks_are_kept_to_a_number(ledger: Ledger) -> None:
    ledger.open_run(named(WHAT, "r0"))
    for day in range(1, 150):
        ledger.open_due(named(WHAT, "r1"), datetime.now(UTC) + day * DAY)
    assert len(ledger.skipped("r0")) == 100


# ---- through a worker


def test_ticks_through_a_worker(mice: Path, broker: str, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    spec = replace(WHAT, source=str(mice), store=str(tmp_path / "t"), labs=())
    one_lab = replace(spec, labs=("simlab01",))
    now = datetime.now(UTC).replace(microsecond=0)
    held = runs.new_run("refresh", source=str(mice), store=str(tmp_path / "t"), labs=("simlab01",))
    ledger.open_run(held)  # and nothing more: it stays open until somebody sends its plan
    log = tmp_path / "worker.log"
    app.send_task("training_status.start_run", [{"kind": "refresh"}, now.isoformat()], priority=0)
    app.send_task("training_status.start_run", [{**asdict(spec), "kind": "odd"}, now.isoformat()], priority=0)
    app.send_task("training_status.start_run", [asdict(spec), "2026-11-01T02:00:00"], priority=0)
    app.send_task("training_status.start_run", [asdict(spec), 7], priority=0)
    messages.send_start(one_lab, now + DAY)
    for _ in range(3):
        messages.send_start(spec, now)
    with worker(broker, log):
        wait_for(lambda: len(ledger.run_ids()) == 2 and len(ledger.open_runs()) == 1, "the run to end")
        for _ in range(3):
            messages.send_start(spec, now)
        messages.send_start(spec, now - DAY)
        wait_for(lambda: log.read_text().count("Z: begun already") == 6, "all ticks to be taken")
        shown = training_status("runs", held.run_id, "--broker", broker)
        as_json = training_status("runs", held.run_id, "--broker", broker, "--json")
        messages.send_plan(held)
        wait_for(lambda: not ledger.open_runs(), "the other run to end")
    assert sorted(ledger.run_ids()) == sorted([held.run_id, f"{now:%Y%m%dT%H%M%S}-{spec.same[:8]}"])
    (run_id,) = set(ledger.run_ids()) - {held.run_id}
    record = ledger.record(run_id)
    assert record is not None
    assert record["counts"] == {"subjects": 4, "done": 4, "unchanged": 0, "failed": 0} | {
        "sessions": sum(1 for _ in mice.glob("*/Subjects/*/*/*")),
        "left_out": 0,
    }
    assert record["started"] >= now.isoformat()
    told = f"due at {(now + DAY).isoformat()} and not started: this run, of the same, had not ended"
    assert told in shown.stdout
    assert json.loads(as_json.stdout)["skipped"] == [(now + DAY).isoformat()]
    text = log.read_text()
    assert f"not started: run {held.run_id} of the same has not ended" in text
    assert text.count("a message that is not ours is dropped") == 4


def objects(folder: Path) -> dict[str, bytes]:
    """The objects of a store, but for the records of runs."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    return {key: data for key, data in found.items() if "/runs/" not in key and not key.startswith(".locks")}


def test_a_run_notes_the_labs_that_it_covers_whole(mice: Path, broker: str, ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()

    def finished(kind: Literal["recompute", "refresh"], **chosen: tuple[str, ...]) -> tuple[dict, dict[str, bytes]]:
        spec = runs.new_run(kind, source=str(mice), store=str(folder), **chosen)
        runs.start(ledger, spec)
        wait_for(lambda: ledger.is_ended(spec.run_id), "the run to end")
        record = ledger.record(spec.run_id)
        assert record is not None
        return record, objects(folder)

    with worker(broker, tmp_path / "worker.log"):
        record, computed = finished("recompute")
        labs = read_labs(computed[LABS_KEY])
        look = Look(run_id=record["run_id"], started=record["started"], ended=record["ended"], subjects=2, failed=0)
        assert labs == {"simlab01": Lab(recompute=look), "simlab02": Lab(recompute=look)}
        # Neither looks at a whole lab.
        assert finished("refresh", subjects=("SIM01_001",))[1] == computed
        assert finished("refresh", only=("simlab01/SIM01_001", "simlab01/SIM01_002"))[1] == computed
        record, refreshed = finished("refresh", labs=("simlab02",))
    assert record["counts"]["unchanged"] == 2
    assert {key for key, data in refreshed.items() if computed.get(key) != data} == {LABS_KEY}
    labs = read_labs(refreshed[LABS_KEY])
    assert labs["simlab01"] == Lab(recompute=look)
    assert labs["simlab02"].recompute == look
    assert labs["simlab02"].refresh is not None
    assert labs["simlab02"].refresh.run_id == record["run_id"]
