"""Messages that are not ours, messages that come twice or too late, and runs that are submitted twice."""

from __future__ import annotations

import base64
import json
import pickle
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu.transport.redis as redis_transport
import orjson
import pytest
import redis

from core import synchronise
from core.config import StoreSettings, WorkerSettings
from core.records import LeftOut
from core.status import compute_statuses
from core.storage import Store, open_store
from core.tables import subject_keys
from scheduler import runs
from scheduler import tasks as planning
from tests.faults.herd import write_mouse
from tests.faults.services import (
    Arena,
    Herd,
    assert_as_undisturbed,
    assert_ledger_agrees,
    differences,
    objects,
    undisturbed,
)
from workers import context, messages, tasks
from workers.app import PRIORITIES, app, priority
from workers.ledger import Ledger
from workers.records import Outcome, RunSpec, Subject

QUEUE = app.conf.task_default_queue  # the list of the most urgent messages has the queue's own name
SUMMARISE = "training_status.summarise_days"


def message(task: str, args: list[Any], *, body: bytes | None = None, content_type: str = "application/json") -> str:
    """Return a message as Celery puts it into Redis."""
    identity = str(uuid.uuid4())
    content = body if body is not None else orjson.dumps([args, {}, {"callbacks": None, "errbacks": None}])
    return json.dumps(
        {
            "body": base64.b64encode(content).decode(),
            "content-encoding": "binary" if body else "utf-8",
            "content-type": content_type,
            "headers": {"lang": "py", "task": task, "id": identity, "root_id": identity, "argsrepr": "", "retries": 0},
            "properties": {
                "correlation_id": identity,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )


class Evil:
    """What a pickle can do to who reads it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


# ---- messages that are not ours

FOREIGN: dict[str, Callable[[str, str, Path], str]] = {
    "garbage": lambda run, subject, trace: "this is no JSON",
    "no-message": lambda run, subject, trace: '{"some": "JSON"}',
    "a-number": lambda run, subject, trace: "17",
    "pickle": lambda run, subject, trace: message(
        SUMMARISE, [], body=pickle.dumps(Evil(trace)), content_type="application/x-python-serialize"
    ),
    "bad-body": lambda run, subject, trace: message(SUMMARISE, [], body=b"\xff\xfe not JSON"),
    "unknown-task": lambda run, subject, trace: message("somebody.else", []),
    "unknown-run": lambda run, subject, trace: message(SUMMARISE, ["20000101T000000-000000", subject, 0, 0, []]),
    "no-arguments": lambda run, subject, trace: message(SUMMARISE, []),
    "wrong-types": lambda run, subject, trace: message(SUMMARISE, [1, 2, 3, 4, 5]),
    "too-few-arguments": lambda run, subject, trace: message(SUMMARISE, [run, subject]),
    "wrong-dates": lambda run, subject, trace: message(SUMMARISE, [run, subject, 0, 0, "../.."]),
    "finish-too-early": lambda run, subject, trace: message("training_status.finish_run", [run]),
    "statuses-too-early": lambda run, subject, trace: message("training_status.compute_statuses", [run, subject]),
    "write-too-early": lambda run, subject, trace: message("training_status.write_tables", [run, subject]),
}
_QUICK = {"pickle"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in _QUICK else pytest.mark.slow) for kind in FOREIGN]
)
def test_a_message_that_is_not_ours_changes_nothing(
    kind: str, pair: Herd, arena: Arena, folder: Path, tmp_path: Path
) -> None:
    running = arena.run(pair.root, folder)
    run_id = arena.run_id()
    arena.ledger.register(run_id, [Subject(lab=lab, subject=subject) for lab, subject in pair.subjects])
    foreign = FOREIGN[kind](run_id, "/".join(pair.subjects[0]), tmp_path / "pickled")
    for _ in range(3):
        arena.client.rpush(QUEUE, foreign)  # that end is taken from first
    arena.worker()
    record = arena.finish(running)
    assert running.code == 0, running.told
    assert_as_undisturbed(pair, open_store(str(folder)), record, arena)
    assert not (tmp_path / "pickled").exists()
    assert arena.client.llen(QUEUE) == 0


# ---- messages that get lost


def all_lists() -> list[str]:
    """Return the names of the lists in which messages wait, the most urgent first."""
    return [QUEUE if at == 0 else f"{QUEUE}{redis_transport.Channel.sep}{at}" for at in PRIORITIES]


def lists_of(client: Any) -> list[str]:
    """Return those in which messages wait."""
    return [name for name in all_lists() if client.exists(name)]


class Thief(threading.Thread):
    """A client that waits for messages of one task as a worker does, takes the first that come, and loses them.

    Redis gives a message to whoever has waited longest. A worker waits a second at a time and the thief for ever, so
    that the first message is always the thief's.
    """

    def __init__(self, url: str, waiting: str, count: int) -> None:
        super().__init__(daemon=True)
        self.stolen: list[str] = []
        self._waiting, self._count = waiting, count
        # Not by `connect`: its clients give up an answer that takes long.
        self._client: Any = redis.Redis.from_url(url, socket_timeout=None)

    def run(self) -> None:
        while len(self.stolen) < self._count:
            _, raw = self._client.brpop(self._waiting, timeout=0)
            self.stolen.append(orjson.loads(raw)["headers"]["task"].removeprefix("training_status."))
        self._client.close()


def test_messages_that_are_taken_out_of_redis_are_sent_again(herd: Herd, arena: Arena, folder: Path) -> None:
    tasks = ["finish_run", "write_tables", "compute_statuses", "summarise_days", "recompute"]
    lists = [all_lists()[priority(f"training_status.{task}", "recompute")] for task in tasks]
    thieves = [Thief(arena.redis.url, waiting, count) for waiting, count in zip(lists, (1, 2, 2, 4, 1), strict=True)]
    for thief in thieves:
        thief.start()
    arena.wait(lambda: arena.client.info("clients")["blocked_clients"] == len(thieves), "the thieves to wait")
    running = arena.run(herd.root, folder)
    arena.worker()
    record = arena.finish(running)
    for thief in thieves:
        thief.join()
    assert running.code == 0, running.told
    for task, thief in zip(tasks, thieves, strict=True):
        assert set(thief.stolen) == {task}
    assert "sent again" in arena.log()
    assert_as_undisturbed(herd, open_store(str(folder)), record, arena)


# ---- what is more urgent


def test_a_refresh_overtakes_a_recompute(herd: Herd, arena: Arena, folder: Path, tmp_path: Path) -> None:
    bulk = arena.run(herd.root, folder)
    bulk_id = arena.run_id()
    arena.wait(lambda: bool(lists_of(arena.client)), "the bulk run to wait for a worker")
    (tmp_path / "own").mkdir()
    options = ("--root", herd.root, "--store", tmp_path / "own", "--lab", "lab2", "--json")
    own = arena.command("refresh", *options)
    arena.wait(lambda: len(arena.ledger.open_runs()) == 2, "both runs to wait")
    arena.wait(lambda: len(lists_of(arena.client)) == 2, "both messages to wait")
    arena.worker()
    record = arena.finish(own)
    assert record["counts"]["done"] == 3
    assert not arena.ledger.is_ended(bulk_id)
    assert_as_undisturbed(herd, open_store(str(folder)), arena.finish(bulk), arena)


# ---- the same run submitted twice


@pytest.fixture
def ledger(broker: str, ledger: Ledger) -> Ledger:
    """The ledger, in a process that does the tasks itself."""
    context.use(WorkerSettings(broker=broker, store=StoreSettings()))
    return ledger


def test_a_run_that_is_submitted_twice_is_one_run(
    herd: Herd, arena: Arena, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = runs.new_run("recompute", source=str(herd.root), store=str(folder))
    sent: list[RunSpec] = []
    monkeypatch.setattr(messages, "send_plan", lambda spec, cursor="": sent.append(spec))
    for _ in range(2):
        runs.start(arena.ledger, spec)
    assert sent == [spec, spec]
    for _ in sent:
        arena.client.lpush(QUEUE, message("training_status.recompute", [spec.run_id, ""]))
    arena.worker("one")
    arena.worker("two")
    record = arena.end(spec.run_id)
    assert_as_undisturbed(herd, open_store(str(folder)), record, arena)


@pytest.mark.slow
def test_two_recomputes_at_once_on_one_broker(herd: Herd, arena: Arena, folder: Path) -> None:
    arena.worker("one")
    arena.worker("two")
    both = [arena.run(herd.root, folder), arena.run(herd.root, folder)]
    for running in both:
        record = arena.finish(running)
        assert running.code == 0, running.told
        assert_as_undisturbed(herd, open_store(str(folder)), record, None)
    for running in both:
        assert_ledger_agrees(running.record, arena)


# ---- tasks that come twice, late, or in another order; taken one by one in this process


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """All messages that are sent in this process are lost."""
    monkeypatch.setattr(messages, "_send", lambda *_: None)
    monkeypatch.setattr(messages, "send_statuses", lambda *_: None)


def start(ledger: Ledger, root: Path, store: Path, names: list[Subject], kind: str = "recompute") -> RunSpec:
    spec = runs.new_run("refresh" if kind == "refresh" else "recompute", source=str(root), store=str(store))
    ledger.open_run(spec)
    ledger.register(spec.run_id, names)
    ledger.set_planned(spec.run_id)
    return spec


def look_at(spec: RunSpec, subject: Subject) -> None:
    planning.recompute.run(spec.run_id, "", str(subject), 0)


def pieces_of(ledger: Ledger, spec: RunSpec, subject: Subject) -> list[tuple[int, int, list[str]]]:
    work = ledger.work(spec.run_id, subject)
    assert work is not None
    return [(work.attempt, piece, list(dates)) for piece, dates in enumerate(work.pieces)]


def take(spec: RunSpec, subject: Subject, pieces: list[tuple[int, int, list[str]]]) -> None:
    for attempt, piece, dates in pieces:
        tasks.summarise_days.run(spec.run_id, str(subject), attempt, piece, dates)


def complete(ledger: Ledger, spec: RunSpec, subject: Subject) -> None:
    """Do what the ledger says is owed, as the reconciler would have it."""
    while (stage := ledger.stage(spec.run_id, subject)) is not None:
        if stage == "waiting":
            look_at(spec, subject)
        elif missing := ledger.pieces_missing(spec.run_id, subject):
            pieces = pieces_of(ledger, spec, subject)
            take(spec, subject, [pieces[piece] for piece in missing])
        else:
            tasks.compute_statuses.run(spec.run_id, str(subject))
            tasks.write_tables.run(spec.run_id, str(subject))


def without_cohort(store: Store, names: list[tuple[str, str]], wanted: dict[str, bytes]) -> list[str]:
    keys = {key for lab, subject in names for key in vars(subject_keys(lab, subject)).values()}
    found = objects(store, names)
    return differences({key: found.get(key, b"") for key in keys}, {key: wanted[key] for key in keys})


MOUSE = ("lab0", "M0_0")
SUBJECT = Subject(lab="lab0", subject="M0_0")


def test_a_piece_of_a_look_that_saw_fewer_days_is_not_taken_for_one_of_the_next(
    ledger: Ledger, lost: None, tmp_path: Path, folder: Path
) -> None:
    """Two messages for one look, and days that arrive between them: pieces have the same numbers and other dates."""
    root = tmp_path / "tree"
    write_mouse(root, *MOUSE, 42)
    spec = start(ledger, root, folder, [SUBJECT])
    look_at(spec, SUBJECT)
    early = pieces_of(ledger, spec, SUBJECT)
    write_mouse(root, *MOUSE, 45, first=42)
    ledger.set_stage(spec.run_id, SUBJECT, "waiting")  # the second message was let in before the first had begun
    look_at(spec, SUBJECT)
    assert [dates for *_, dates in pieces_of(ledger, spec, SUBJECT)] != [dates for *_, dates in early]
    take(spec, SUBJECT, early[:1])
    complete(ledger, spec, SUBJECT)
    assert without_cohort(open_store(str(folder)), [MOUSE], undisturbed(root, [MOUSE], "early")) == []


def test_statuses_of_a_look_that_saw_fewer_days_are_dropped(
    ledger: Ledger, lost: None, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subject begins again while its statuses are computed."""
    root = tmp_path / "tree"
    write_mouse(root, *MOUSE, 8)
    spec = start(ledger, root, folder, [SUBJECT])
    look_at(spec, SUBJECT)
    take(spec, SUBJECT, pieces_of(ledger, spec, SUBJECT))
    statuses_of = compute_statuses

    def interrupted(days: Any, **known: Any) -> Any:
        monkeypatch.setattr(tasks, "statuses_of", statuses_of)
        write_mouse(root, *MOUSE, 10, first=8)
        ledger.set_stage(spec.run_id, SUBJECT, "waiting")
        look_at(spec, SUBJECT)
        return statuses_of(days, **known)

    monkeypatch.setattr(tasks, "statuses_of", interrupted)
    tasks.compute_statuses.run(spec.run_id, str(SUBJECT))
    tasks.write_tables.run(spec.run_id, str(SUBJECT))  # the rest of the chain
    complete(ledger, spec, SUBJECT)
    assert ledger.outcomes(spec.run_id)[SUBJECT].state == "done"
    assert without_cohort(open_store(str(folder)), [MOUSE], undisturbed(root, [MOUSE], "dropped")) == []


def test_a_piece_that_comes_again_sends_on_what_its_process_did_not(
    ledger: Ledger, lost: None, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died between the delivery of the last piece and the message that follows."""
    root = tmp_path / "tree"
    write_mouse(root, *MOUSE, 8)
    spec = start(ledger, root, folder, [SUBJECT])
    look_at(spec, SUBJECT)
    pieces = pieces_of(ledger, spec, SUBJECT)
    take(spec, SUBJECT, pieces)  # and what it sends is lost
    assert ledger.stage(spec.run_id, SUBJECT) == "computing"
    sent: list[Subject] = []
    monkeypatch.setattr(messages, "send_statuses", lambda spec, subject: sent.append(subject))
    monkeypatch.setattr(tasks, "summarise", lambda *_: pytest.fail("a piece that is there is not loaded again"))
    take(spec, SUBJECT, pieces)
    assert sent == [SUBJECT]
    tasks.compute_statuses.run(spec.run_id, str(SUBJECT))
    take(spec, SUBJECT, pieces)
    assert sent == [SUBJECT]


def test_writing_waits_for_all_pieces(ledger: Ledger, lost: None, tmp_path: Path, folder: Path) -> None:
    root = tmp_path / "tree"
    write_mouse(root, *MOUSE, 42)
    spec = start(ledger, root, folder, [SUBJECT])
    look_at(spec, SUBJECT)
    take(spec, SUBJECT, pieces_of(ledger, spec, SUBJECT)[:1])
    tasks.compute_statuses.run(spec.run_id, str(SUBJECT))
    tasks.write_tables.run(spec.run_id, str(SUBJECT))
    complete(ledger, spec, SUBJECT)
    assert without_cohort(open_store(str(folder)), [MOUSE], undisturbed(root, [MOUSE], "waits")) == []
    assert ledger.outcomes(spec.run_id)[SUBJECT].sessions == 42


def test_a_subject_that_has_ended_is_not_begun_again(
    ledger: Ledger, redis_client: redis.Redis, lost: None, pair: Herd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look that was under way when the first one's work came to its end."""
    spec = start(ledger, pair.root, folder, [SUBJECT])
    look = synchronise.look

    def late(*args: Any, **kwargs: Any) -> Any:
        found = look(*args, **kwargs)
        monkeypatch.setattr(planning, "look", look)
        complete(ledger, spec, SUBJECT)
        return found

    monkeypatch.setattr(planning, "look", late)
    look_at(spec, SUBJECT)
    assert ledger.stages(spec.run_id) == {}
    assert list(redis_client.scan_iter("*:work:*")) == []
    assert ledger.outcomes(spec.run_id)[SUBJECT].state == "done"
    assert ledger.progress(spec.run_id).sessions == pair.sessions // len(pair.subjects)


def test_a_stage_that_is_noted_late_does_not_bring_a_subject_back(ledger: Ledger, pair: Herd, folder: Path) -> None:
    """The reconciler and a subject's end at once."""
    spec = start(ledger, pair.root, folder, [SUBJECT])
    ledger.end(spec.run_id, SUBJECT, Outcome(state="done", left_out=(LeftOut(session="x", reason="y"),)))
    ledger.set_stage(spec.run_id, SUBJECT, "summarising")
    assert ledger.stages(spec.run_id) == {}
    assert list(ledger.owed(spec.run_id, before=2e12)) == []


def test_a_run_that_the_ledger_lost_does_not_keep_others_from_being_reconciled(
    ledger: Ledger, redis_client: redis.Redis, lost: None, pair: Herd, folder: Path
) -> None:
    from workers.reconcile import reconcile

    redis_client.sadd("training-status:open", "20000101T000000-000000")
    start(ledger, pair.root, folder, [SUBJECT])
    assert reconcile(ledger, patience=-1) == 1
