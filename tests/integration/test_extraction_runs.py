"""Runs with sessions that have raw files alone: their own queue, and what becomes of it when things hang and die.

The extractors are stand-ins: the real ones cannot be made to hang. With the real ones: tests/golden/test_reextract.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import redis
from celery.app.task import Context

from core.config import StoreSettings, WorkerSettings
from core.pipeline import recompute_subject
from core.sources import TreeSource
from core.storage import open_store
from scheduler import runs
from tests.processes import training_status, wait_for, worker
from tests.standin import FAST, SLOW, SLOWER, StandIn, assert_complete, extractor, take_trials, training
from tests.trees import LAB, SUBJECT, session
from workers import context, messages, tasks
from workers.app import EXTRACTION_QUEUE, lists_of
from workers.ledger import Ledger
from workers.records import Subject, Work


def in_line(client: redis.Redis, queue: str = EXTRACTION_QUEUE) -> int:
    return sum(client.llen(name) for name in lists_of(queue))


def test_an_extraction_that_hangs_holds_no_other_subject_and_no_other_run(
    raw_tree: Path,
    broker: str,
    ledger: Ledger,
    redis_client: redis.Redis,
    standin: StandIn,
    complete: dict[str, pd.DataFrame],
    tmp_path: Path,
) -> None:
    store = tmp_path / "tables"
    options = ("--root", raw_tree, "--store", store, "--broker", broker)
    standin.hold(SLOW)
    with (
        worker(broker, tmp_path / "worker.log", concurrency=1),
        extractor(broker, standin, tmp_path / "extractor.log"),
    ):
        started = training_status("recompute", *options, "--extract", "--no-wait", "--json")
        assert started.returncode == 0, started.stderr
        run_id = json.loads(started.stdout)["run_id"]
        wait_for(lambda: standin.begun(SLOW) == 1, "the extraction to begin")
        wait_for(lambda: ledger.progress(run_id).ended == 1, "the subject beside it to end")
        wait_for(lambda: in_line(redis_client) == 1, "the next to stand in line")

        options = ("--root", raw_tree, "--store", tmp_path / "others", "--broker", broker)
        other = training_status("refresh", *options, "--no-extract", "--json")
        assert other.returncode == 0, other.stderr
        reasons = {left["subject"]: left["reason"] for left in json.loads(other.stdout)["left_out"]}
        assert set(reasons) == {SLOW, SLOWER}
        assert all("--extract does, with pip install 'training-status[ibl]'" in reason for reason in reasons.values())
        assert not ledger.is_ended(run_id)

        # What is owed is looked for over and over, and what stands in line stands there once.
        for _ in range(5):
            assert messages.send_owed(ledger, ledger.spec(run_id), patience=0) == 0
        assert in_line(redis_client) == 1
        standin.let_go(SLOW)
        wait_for(lambda: ledger.is_ended(run_id), "the run to end", 120)
        assert (standin.begun(SLOW), standin.begun(SLOWER)) == (1, 1)
    record = ledger.record(run_id)
    assert record is not None
    assert (record["extract"], record["counts"]["done"], record["left_out"]) == (True, 3, [])
    assert_complete(store, complete)


def test_a_piece_is_handed_on_once_and_not_after_its_look(broker: str, ledger: Ledger, tmp_path: Path) -> None:
    spec, subject = (
        runs.new_run("recompute", source="/none", store="/none", extract=True),
        Subject(lab="l", subject="s"),
    )
    ledger.open_run(spec)
    ledger.register(spec.run_id, [subject])
    ledger.set_planned(spec.run_id)
    piece = {"attempt": 0, "piece": 0, "dates": ["2025-03-01"]}
    assert not ledger.hand_on(spec.run_id, subject, **piece)  # type: ignore[arg-type]
    ledger.begin(spec.run_id, subject, Work(pieces=(("2025-03-01",), ("2025-03-02",)), base=None), b"[]")
    assert [ledger.hand_on(spec.run_id, subject, **piece) for _ in range(2)] == [True, False]  # type: ignore[arg-type]
    assert [ledger.is_handed_on(spec.run_id, subject, number) for number in (0, 1)] == [True, False]
    assert not ledger.hand_on(spec.run_id, subject, attempt=1, piece=1, dates=["2025-03-02"])
    assert not ledger.hand_on(spec.run_id, subject, attempt=0, piece=1, dates=["2025-03-03"])

    # Lost, it is sent again to the queue that it was for, and its neighbour to the other.
    assert messages.send_owed(ledger, spec, patience=0) == 1
    client = ledger._redis
    assert (in_line(client), in_line(client, "training-status")) == (1, 1)
    # Celery tries a task again in the queue that its message came from.
    (name,) = client.keys(f"{EXTRACTION_QUEUE}*")
    told = json.loads(client.lindex(name, 0))["properties"]["delivery_info"]
    request = Context(delivery_info=told, args=[], kwargs={}, id="x", task="x")
    assert tasks.summarise_days.signature_from_request(request).options["queue"] == EXTRACTION_QUEUE
    ledger.begin(spec.run_id, subject, Work(pieces=(("2025-03-01",),), base=None, attempt=1), b"[]")
    assert not ledger.is_handed_on(spec.run_id, subject, 0)


def test_a_piece_that_takes_long_lets_others_go_before_it_and_goes_on_from_where_it_was(
    broker: str,
    ledger: Ledger,
    redis_client: redis.Redis,
    standin_here: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, dates = tmp_path / "tree", [f"2025-03-{day:02}" for day in range(1, 5)]
    for date in dates:
        session(root, date)
    recompute_subject(TreeSource(root), LAB, SUBJECT, open_store(str(make(tmp_path / "whole"))))
    for date in dates[:3]:
        take_trials(root / LAB / "Subjects" / SUBJECT / date / "001")

    context.use(WorkerSettings(broker=broker, store=StoreSettings()))
    monkeypatch.setattr(tasks, "EXTRACTION_SPELL", 0.0)
    spec = runs.new_run("recompute", source=str(root), store=str(make(tmp_path / "ours")), extract=True)
    subject, piece = Subject(lab=LAB, subject=SUBJECT), [0, 0, dates]
    ledger.open_run(spec)
    ledger.register(spec.run_id, [subject])
    ledger.set_planned(spec.run_id)
    ledger.begin(spec.run_id, subject, Work(pieces=(tuple(dates),), base=None), b"[]")

    def extract() -> str:
        told: str = tasks.summarise_days.run(spec.run_id, str(subject), *piece, True)
        return told

    assert tasks.summarise_days.run(spec.run_id, str(subject), *piece).startswith("handed on to be extracted")
    rest = "of 4 days, the rest when it is in turn again"
    assert [extract() for _ in range(3)] == [f"{done} {rest}" for done in (1, 2, 3)]
    assert in_line(redis_client) == 1 + 3
    assert ledger.pieces_missing(spec.run_id, subject) == [0]
    assert extract() == "4 sessions"
    assert (standin_here.begun(SUBJECT), ledger.stage(spec.run_id, subject)) == (3, "computing")
    assert extract() == tasks.NOTHING_LEFT

    tasks.compute_statuses.run(spec.run_id, str(subject))
    tasks.write_tables.run(spec.run_id, str(subject))
    whole, ours = (training(open_store(str(tmp_path / name)), SUBJECT) for name in ("whole", "ours"))
    pd.testing.assert_frame_equal(ours, whole)

    # What was made of it belongs to its look.
    ledger.register(spec.run_id, [other := Subject(lab=LAB, subject="other")])
    ledger.begin(spec.run_id, other, Work(pieces=(("2025-03-01",),), base=None, attempt=1), b"[]")
    late = {"attempt": 0, "piece": 0, "dates": ["2025-03-01"], "days": b'["of an earlier look"]'}
    assert not ledger.hand_on(spec.run_id, other, **late)  # type: ignore[arg-type]
    assert ledger.extracted(spec.run_id, other, 0) == b"[]"


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_where_nobody_extracts_it_is_refused_at_the_start(
    raw_tree: Path, broker: str, ledger: Ledger, tmp_path: Path
) -> None:
    refused = training_status(
        "recompute", "--root", raw_tree, "--store", tmp_path / "tables", "--broker", broker, "--extract"
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--extract (TRAINING_STATUS_EXTRACT): no worker extracts on this broker" in refused.stderr
    assert "`training-status worker --extraction`" in refused.stderr
    assert ledger.run_ids() == []


def test_without_ibllib_extraction_is_refused_in_one_line(raw_tree: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "ibllib"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('not here')")
    env = {"PYTHONPATH": str(broken.parent)}
    refused = training_status("worker", "--broker", "redis://localhost:1/0", "--extraction", env=env)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--extraction (TRAINING_STATUS_EXTRACTION): extracting trials needs ibllib (not here): pip" in refused.stderr


def test_one_command_extracts_and_a_refresh_does_what_was_left_out_before(
    raw_tree: Path, standin: StandIn, complete: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    store = tmp_path / "tables"
    options = ("--root", raw_tree, "--store", store, "--workers", "1", "--json")
    store.mkdir()
    for subject in (FAST, SLOW, SLOWER):  # without extraction
        recompute_subject(TreeSource(raw_tree), LAB, subject, open_store(str(store)))
        assert len(set(training(open_store(str(store)), subject)["date"])) == (3 if subject == FAST else 2)

    done = training_status("refresh", *options, env=standin.env)  # ibllib is found: extraction is on
    assert done.returncode == 0, done.stderr
    counts = {"subjects": 3, "done": 2, "unchanged": 1, "failed": 0, "sessions": 2, "left_out": 0}
    assert json.loads(done.stdout)["counts"] == counts
    assert (standin.begun(FAST), standin.begun(SLOW), standin.begun(SLOWER)) == (0, 1, 1)
    assert_complete(store, complete)
