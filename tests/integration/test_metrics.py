"""The gauges for Prometheus, from a ledger in a real Redis with records as the last task of a run makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from core.config import StoreSettings, WorkerSettings
from core.records import LeftOut
from scheduler import metrics
from scheduler.metrics import LedgerCollector
from tests.processes import redis_server
from workers import context, tasks
from workers.app import configure
from workers.broker import connect
from workers.ledger import Ledger
from workers.records import Outcome, RunSpec, Subject, Work

MICE = ("labA/A1", "labA/A2", "labB/B1")


class Runs:
    """Runs that are entered into a ledger by hand, and the gauges that tell of them."""

    def __init__(self, ledger: Ledger, store: Path) -> None:
        self.ledger = ledger
        self._store = store
        self._count = 0
        self._registry = CollectorRegistry(auto_describe=True)
        self._registry.register(LedgerCollector(ledger))

    def begin(
        self,
        *mice: str,
        kind: Literal["recompute", "refresh"] = "refresh",
        sessions: int = 0,
        **chosen: tuple[str, ...],
    ) -> RunSpec:
        """Begin a run over some mice, each with `sessions` summarised."""
        self._count += 1
        run_id = f"20260101T0000{self._count:02d}-abcdef"
        spec = RunSpec(
            run_id=run_id,
            kind=kind,
            source="/mice",
            store=str(self._store),
            started="2026-01-01T00:00:00+00:00",
            **chosen,
        )
        self.ledger.open_run(spec)
        subjects = [Subject.parse(mouse) for mouse in mice]
        self.ledger.register(run_id, subjects)
        for subject in subjects if sessions else ():
            dates = ["2026-01-01"]
            self.ledger.begin(run_id, subject, Work(pieces=(tuple(dates),), base=None), b"[]")
            self.ledger.deliver(run_id, subject, attempt=0, piece=0, dates=dates, days=b"[]", sessions=sessions)
        self.ledger.set_planned(run_id)
        return spec

    def end(self, spec: RunSpec, failed: tuple[str, ...] = (), left_out: tuple[str, ...] = ()) -> None:
        """End all subjects of a run, some as failed, some with a session left out, then the run."""
        for subject in self.ledger.stages(spec.run_id):
            left = (LeftOut(session=f"{subject}/x", reason="odd"),) if str(subject) in left_out else ()
            state = "failed" if str(subject) in failed else "done"
            self.ledger.end(spec.run_id, subject, Outcome(state=state, reason="odd", left_out=left))
        tasks.finish_run.run(spec.run_id)

    def run(self, *mice: str, failed: tuple[str, ...] = (), **begun: tuple[str, ...]) -> None:
        """Make a whole run."""
        self.end(self.begin(*mice, **begun), failed)  # type: ignore[arg-type]

    @property
    def gauges(self) -> dict[str, float]:
        """The gauges as Prometheus reads them, without their prefix: name and label values, joined by a blank."""
        found = {}
        for family in text_string_to_metric_families(generate_latest(self._registry).decode()):
            for sample in family.samples:
                labels = " ".join(
                    sample.labels[label] for label in ("lab", "kind", "state", "outcome") if label in sample.labels
                )
                found[f"{family.name.removeprefix('training_status_')} {labels}".strip()] = sample.value
        return found

    def starting(self, name: str) -> dict[str, float]:
        """The gauges of one name, by their labels."""
        return {key.removeprefix(name).strip(): value for key, value in self.gauges.items() if key.split()[0] == name}


@pytest.fixture
def made(broker: str, redis_client: redis.Redis, tmp_path: Path) -> Runs:
    configure(broker)
    context.use(WorkerSettings(broker=broker, store=StoreSettings()))
    return Runs(Ledger(redis_client), tmp_path)


def test_nothing_has_run_yet(made: Runs) -> None:
    assert made.gauges == {
        "ledger_up": 1,
        "open_runs recompute": 0,
        "open_runs refresh": 0,
        "open_runs_failed_subjects": 0,
    }


def test_a_run_under_way(made: Runs) -> None:
    spec = made.begin(*MICE, sessions=7)
    made.ledger.end(spec.run_id, Subject.parse("labA/A1"), Outcome(state="failed", reason="odd"))
    assert made.gauges == {
        "ledger_up": 1,
        "open_runs recompute": 0,
        "open_runs refresh": 1,
        "open_runs_failed_subjects": 1,
        "open_runs_oldest_start_timestamp_seconds": 1767225600,
        "open_runs_subjects labA owed": 1,
        "open_runs_subjects labA ended": 1,
        "open_runs_subjects labB owed": 1,
        "open_runs_subjects labB ended": 0,
        "open_runs_sessions labA": 14,
        "open_runs_sessions labB": 7,
    }


def test_the_last_whole_run_of_a_lab(made: Runs) -> None:
    made.end(made.begin(*MICE, sessions=7), left_out=("labB/B1",))
    made.run("labA/A1", labs=("labA",), subjects=("A1",))  # of a single mouse: not the lab's last run
    gauges = made.gauges
    assert gauges["last_run_subjects labA refresh"] == 2
    assert gauges["last_run_sessions labA refresh"] == 14
    assert gauges["last_run_left_out_sessions labA refresh"] == 0
    assert gauges["last_run_left_out_sessions labB refresh"] == 1
    ended = gauges["last_run_end_timestamp_seconds labA refresh"]
    assert gauges["last_run_duration_seconds labA refresh"] == ended - 1767225600
    assert made.starting("remembered_runs") == {"refresh done": 2}
    made.run("labA/A1", labs=("labA",))
    assert made.gauges["last_run_subjects labA refresh"] == 1
    assert made.gauges["last_run_subjects labB refresh"] == 1  # of the run before
    assert "last_run_subjects labA recompute" not in made.gauges


def test_a_subject_counts_as_failed_until_a_run_that_was_to_compute_it_does(made: Runs) -> None:
    made.run(*MICE, failed=("labA/A1", "labA/A2", "labB/B1"))
    assert made.starting("failed_subjects") == {"labA": 2, "labB": 1}
    made.run("labA/A1", subjects=("A1",))
    assert made.starting("failed_subjects") == {"labA": 1, "labB": 1}
    made.run("labA/A2", "labB/B1", failed=("labB/B1",), only=("labA/A2", "labB/B1"))  # a retry
    assert made.starting("failed_subjects") == {"labA": 0, "labB": 1}
    tasks.close_with_error(made.begin("labB/B1").run_id, "the disk is full")  # it never came to the mouse
    assert made.starting("failed_subjects") == {"labA": 0, "labB": 1}
    made.run("labB/B1", labs=("labB",))
    assert made.starting("failed_subjects") == {"labA": 0, "labB": 0}
    assert made.starting("remembered_runs") == {"refresh done": 2, "refresh failed_subjects": 2, "refresh error": 1}


def test_a_record_is_read_once(made: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    made.run(*MICE, failed=("labA/A1",))
    first = made.gauges
    monkeypatch.delattr(Ledger, "record")
    assert made.gauges == first


def test_a_run_that_is_forgotten_takes_its_gauges_along(made: Runs, redis_client: redis.Redis) -> None:
    made.run(*MICE)
    assert made.starting("remembered_runs") == {"refresh done": 1}
    redis_client.delete(*redis_client.keys("training-status:run:*"))  # as they expire; the list of ids is kept longer
    redis_client.sadd("training-status:open", "20260101T000009-abcdef")
    fresh = Runs(made.ledger, Path())
    assert fresh.gauges["ledger_up"] == 1
    assert fresh.starting("remembered_runs") == {}


def test_a_run_of_another_version_takes_no_other_along(made: Runs, redis_client: redis.Redis) -> None:
    made.run(*MICE)
    spec = made.begin(*MICE)
    redis_client.hset(f"training-status:run:{spec.run_id}", "record", b'{"failed": "later versions say it elsewhere"}')
    redis_client.hset("training-status:run:odd", "spec", b'{"run_id": "odd", "moon": "full"}')
    redis_client.zadd("training-status:runs", {"odd": 0})
    redis_client.sadd("training-status:open", "odd")
    assert made.starting("remembered_runs") == {"refresh done": 1}
    assert made.gauges["open_runs refresh"] == 1


def test_labs_that_are_too_many_are_added_up(made: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_LABS", 2)
    mice = ("labA/A1", "labB/B1", "labC/C1", "labD/D1")
    spec = made.begin(*mice)
    assert made.starting("open_runs_subjects")["(other labs) owed"] == 2
    made.end(spec, failed=("labC/C1", "labD/D1"))
    assert made.starting("failed_subjects") == {"labA": 0, "labB": 0, "(other labs)": 2}
    assert made.starting("last_run_subjects") == {"labA refresh": 1, "labB refresh": 1}


def test_a_ledger_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as url:
        client = connect(url)
    runs = Runs(Ledger(client), tmp_path)
    client.set_retry(None)  # type: ignore[arg-type]
    assert runs.gauges == {"ledger_up": 0}
    client.close()
