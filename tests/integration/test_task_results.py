"""What tasks tell people who watch: a line for what was done, an error for what failed, and whose task it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
from celery.exceptions import Retry

from core.config import StoreSettings, WorkerSettings
from core.errors import PermanentError, StoreUnavailable
from core.sources.tree import TreeSubject
from core.synchronise import look
from scheduler import runs
from scheduler import tasks as planning
from scheduler.plan import CHUNK_SUBJECTS, FIRST_SUBJECTS
from workers import context, tasks
from workers.ledger import Ledger
from workers.records import Subject


@pytest.fixture
def ledger(broker: str, ledger: Ledger) -> Ledger:
    """The ledger, in a process that does the tasks itself."""
    context.use(WorkerSettings(broker=broker, store=StoreSettings()))
    return ledger


def test_a_subject_that_fails_while_planning_holds_up_no_other(
    ledger: Ledger, mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: TreeSubject, *args: Any, **options: Any) -> Any:
        if source.name == "SIM01_002":
            raise PermanentError("its table is odd")
        return look(source, *args, **options)

    monkeypatch.setattr(planning, "look", refuse)
    spec = runs.new_run("recompute", source=str(mice), store=str(tmp_path))
    ledger.open_run(spec)
    with pytest.raises(tasks.Failed, match=r"^simlab01/SIM01_002: its table is odd$"):
        planning.recompute.run(spec.run_id, "")
    (failed,) = ledger.outcomes(spec.run_id).items()
    assert (str(failed[0]), failed[1].reason) == ("simlab01/SIM01_002", "its table is odd")
    assert set(ledger.stages(spec.run_id).values()) == {"summarising"}
    assert len(ledger.stages(spec.run_id)) == 3
    # Delivered again, it finds them all taken.
    assert planning.recompute.run(spec.run_id, "") == "4 subjects looked at; run 1 of 4, 1 failed"


def test_a_run_that_cannot_go_on_is_an_error_too(ledger: Ledger, mice: Path, tmp_path: Path) -> None:
    spec = runs.new_run("recompute", source=str(tmp_path / "nothing"), store=str(tmp_path))
    ledger.open_run(spec)
    with pytest.raises(tasks.Failed, match=f"^run {spec.run_id}: .*nothing"):
        planning.recompute.run(spec.run_id, "")
    record = ledger.record(spec.run_id)
    assert record is not None
    assert "nothing" in record["error"]
    assert planning.recompute.run(spec.run_id, "") == tasks.NOTHING_LEFT


def test_another_try_is_shown_as_the_first_was(ledger: Ledger, redis_client: redis.Redis) -> None:
    subject, task = Subject(lab="simlab01", subject="SIM01_001"), tasks.write_tables
    task.push_request(
        id="a-task", args=["run", str(subject)], kwargs={}, retries=0, called_directly=False, argsrepr=str(subject),
        kwargsrepr="", delivery_info={"exchange": "", "routing_key": "training-status", "priority": 1},
    )  # fmt: skip
    try:
        with pytest.raises(Retry):
            tasks.try_again(task, str(subject), StoreUnavailable("the store is slow"))
    finally:
        task.pop_request()
    lists: list[Any] = [key for key in redis_client.keys("training-status*") if redis_client.type(key) == b"list"]
    (message,) = [orjson.loads(item) for key in lists for item in redis_client.lrange(key, 0, -1)]  # type: ignore[union-attr]
    assert (message["headers"]["id"], message["headers"]["retries"]) == ("a-task", 1)
    assert message["headers"]["argsrepr"] == str(subject)


def test_a_refresh_looks_first_where_something_is_new_and_at_every_subject_once(
    ledger: Ledger, redis_client: redis.Redis, tmp_path: Path
) -> None:
    root = tmp_path / "mice"
    names = [f"m{number:02}" for number in range(CHUNK_SUBJECTS + FIRST_SUBJECTS + 2)]
    for at, name in enumerate(names):
        (root / "alab/Subjects" / name).mkdir(parents=True)
        os.utime(root / "alab/Subjects" / name, (1000 + at, 1000 + at))
    newest = {f"alab/{name}" for name in names[-FIRST_SUBJECTS:]}
    (tmp_path / "t").mkdir()
    for kind, first in (("refresh", newest), ("recompute", set())):
        task = planning.refresh if kind == "refresh" else planning.recompute
        spec = runs.new_run(kind, source=str(root), store=str(tmp_path / "t"))
        ledger.open_run(spec)
        task.run(spec.run_id, "")
        begun = {str(subject) for subject in ledger.outcomes(spec.run_id)}
        assert begun == first | {f"alab/{name}" for name in names[:CHUNK_SUBJECTS]}
        task.run(spec.run_id, f"alab/{names[CHUNK_SUBJECTS - 1]}")
        assert {str(subject) for subject in ledger.outcomes(spec.run_id)} == {f"alab/{name}" for name in names}
        assert ledger.progress(spec.run_id).subjects == len(names)
