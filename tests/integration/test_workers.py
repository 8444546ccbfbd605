"""Runs on a Redis and workers of their own, into a real S3 server; messages and processes that get lost."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest
import redis

from core.freshness import LABS_KEY
from core.pipeline import recompute_subject
from core.sources import TreeSource
from core.storage import Store, open_store
from core.tables import COHORT_KEY, run_key, subject_keys
from scheduler import runs
from tests.faults.proxy import s3_proxy
from tests.processes import PASSWORD, interruptible, training_status, wait_for, worker
from tests.servers import ACCESS_KEY, aws_environment, create_bucket, required, seaweedfs
from workers import messages
from workers.app import app
from workers.ledger import Ledger
from workers.records import RunSpec, Subject

SUBJECTS = [("simlab01", "SIM01_001"), ("simlab01", "SIM01_002"), ("simlab02", "SIM02_001"), ("simlab02", "SIM02_002")]


@pytest.fixture(scope="module")
def expected(mice: Path) -> dict[str, bytes]:
    """The objects of every subject, from the plain pipeline."""
    store = open_store("memory://expected")
    for lab, subject in SUBJECTS:
        recompute_subject(TreeSource(mice), lab, subject, store)
    return subject_objects(store)


def subject_objects(store: Store) -> dict[str, bytes]:
    found = {}
    for lab, subject in SUBJECTS:
        for key in vars(subject_keys(lab, subject)).values():
            if stored := store.get(key):
                found[key] = stored.data
    return found


def start(ledger: Ledger, mice: Path, store: Path) -> RunSpec:
    spec = runs.new_run("recompute", source=str(mice), store=str(store))
    store.mkdir(exist_ok=True)
    runs.start(ledger, spec)
    return spec


def finish(ledger: Ledger, spec: RunSpec) -> dict:
    wait_for(lambda: ledger.is_ended(spec.run_id), "the run to end", 120)
    record = ledger.record(spec.run_id)
    assert record is not None
    assert record["error"] is None
    return record


def test_a_run_through_s3(mice: Path, broker: str, expected: dict[str, bytes], tmp_path: Path) -> None:
    with required(seaweedfs(tmp_path / "s3")) as server, s3_proxy(server) as proxy:
        endpoint = proxy.endpoint
        create_bucket(server, "mice")
        env = {name: value for name, value in aws_environment(tmp_path).items() if value is not None}
        env["TRAINING_STATUS_S3_ENDPOINT"] = endpoint
        store = "s3://mice/ibl"
        with worker(broker, tmp_path / "worker.log", env=env):
            options = ("--root", mice, "--store", store, "--broker", broker, "--json")
            first = training_status("recompute", *options, env=env)
            proxy.requests.clear()
            again = training_status("refresh", *options, env=env)
            assert_that_each_subject_cost_one_request(proxy.requests, json.loads(again.stdout)["run_id"])
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout)["counts"]["done"] == 4
        assert json.loads(again.stdout)["counts"]["unchanged"] == 4
        with pytest.MonkeyPatch.context() as patch:
            for name, value in aws_environment(tmp_path).items():
                patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
            bucket = open_store(store, endpoint=endpoint)
            assert subject_objects(bucket) == expected
            assert bucket.get(COHORT_KEY) is not None
        shown = training_status("status", "--store", store, env=env)
        assert "SIM02_002" in shown.stdout
        missing = training_status("recompute", "--root", mice, "--store", "s3://nobucket/x", env=env)
        assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1)
        assert "nobucket" in missing.stderr
    log = (tmp_path / "worker.log").read_text()
    assert PASSWORD not in log
    assert f"AWS_SECRET_ACCESS_KEY={ACCESS_KEY}" not in log


def assert_that_each_subject_cost_one_request(requests: list[tuple[str, str]], run_id: str) -> None:
    """Hold what a refresh of what has not changed asks of the store against the least that it can ask."""
    objects = Counter((method, path) for method, path in requests if path.startswith("/mice/ibl/resources/"))
    record, labs = f"/mice/ibl/{run_key(run_id)}", f"/mice/ibl/{LABS_KEY}"
    looks = {("GET", f"/mice/ibl/{subject_keys(lab, subject).training}"): 1 for lab, subject in SUBJECTS}
    assert objects == {
        **looks,
        ("GET", f"/mice/ibl/{COHORT_KEY}"): 1,
        ("GET", record): 2,  # whether it is there already, and what was kept
        ("PUT", record): 1,
        ("GET", labs): 1,  # when each lab was last looked at
        ("PUT", labs): 1,
    }
    assert {method for method, path in requests if not path.startswith("/mice/ibl/resources/")} <= {"GET", "HEAD"}


def test_no_wait_returns_and_the_run_goes_on(
    mice: Path, broker: str, ledger: Ledger, expected: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "t"
    done = training_status("recompute", "--root", mice, "--store", store, "--broker", broker, "--no-wait", "--json")
    assert done.returncode == 0, done.stderr
    run_id = json.loads(done.stdout)["run_id"]
    assert not ledger.is_ended(run_id)  # there is no worker yet
    # Where Ctrl-C came before the first message went out, a worker finds that the run owes its plan.
    with worker(broker, tmp_path / "worker.log", env={"TRAINING_STATUS_PATIENCE": "2"}):
        finish(ledger, ledger.spec(run_id))
    assert subject_objects(open_store(str(store))) == expected


def test_a_worker_that_is_killed_loses_nothing(
    mice: Path, broker: str, ledger: Ledger, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with worker(broker, tmp_path / "first.log") as first:
        spec = start(ledger, mice, tmp_path / "t")
        wait_for(lambda: ledger.progress(spec.run_id).sessions > 0, "work to be under way")
        pool = psutil.Process(first.pid).children(recursive=True)
        os.killpg(first.pid, signal.SIGKILL)
        psutil.wait_procs(pool, timeout=20)
    assert not ledger.is_ended(spec.run_id)
    with worker(broker, tmp_path / "second.log"):
        # What the first had taken comes back after the visibility timeout; what is owed is sent again at once.
        messages.send_owed(ledger, spec, patience=0)
        record = finish(ledger, spec)
    assert record["counts"]["done"] == 4
    assert subject_objects(open_store(str(tmp_path / "t"))) == expected


def test_a_pool_process_that_is_killed_loses_nothing(
    mice: Path, broker: str, ledger: Ledger, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with worker(broker, tmp_path / "worker.log") as running:
        spec = start(ledger, mice, tmp_path / "t")
        wait_for(lambda: ledger.progress(spec.run_id).sessions > 0, "work to be under way")
        psutil.Process(running.pid).children(recursive=True)[-1].kill()
        record = finish(ledger, spec)
    assert record["counts"]["done"] == 4
    assert subject_objects(open_store(str(tmp_path / "t"))) == expected


@pytest.mark.parametrize("stage", ["planning", "waiting", "summarising", "computing", "writing", "finishing"])
def test_messages_that_are_lost_are_sent_again(
    stage: str, mice: Path, broker: str, redis_client: redis.Redis, ledger: Ledger, expected: dict, tmp_path: Path
) -> None:
    spec = start(ledger, mice, tmp_path / "t")
    lost_until(stage, spec, mice, ledger, redis_client, tmp_path)
    assert not [key for key in redis_client.keys("training-status*") if redis_client.type(key) == b"list"]
    with worker(broker, tmp_path / "worker.log", env={"TRAINING_STATUS_PATIENCE": "2"}):
        finish(ledger, spec)
    assert "sent again" in (tmp_path / "worker.log").read_text() or stage in ("planning", "finishing")
    assert subject_objects(open_store(str(tmp_path / "t"))) == expected


def lost_until(stage: str, spec: RunSpec, mice: Path, ledger: Ledger, client: redis.Redis, folder: Path) -> None:
    """Bring a run to a stage in this process, and drop every message on the way."""
    from core.config import StoreSettings, WorkerSettings
    from scheduler import tasks as planning
    from workers import context, tasks

    context.use(WorkerSettings(broker=app.conf.broker_url, store=StoreSettings()))
    dropped = pytest.MonkeyPatch()
    try:
        dropped.setattr(messages, "_send", lambda *_: None)
        dropped.setattr(messages, "send_statuses", lambda *_: None)
        if stage != "planning":
            ledger.register(spec.run_id, [Subject(lab=lab, subject=subject) for lab, subject in SUBJECTS])
            ledger.set_planned(spec.run_id)
        if stage in ("summarising", "computing", "writing", "finishing"):
            planning.recompute.run(spec.run_id, "")
        for lab, name in SUBJECTS:
            subject = Subject(lab=lab, subject=name)
            if stage in ("computing", "writing", "finishing"):
                work = ledger.work(spec.run_id, subject)
                assert work is not None
                for piece, dates in enumerate(work.pieces):
                    tasks.summarise_days.run(spec.run_id, str(subject), work.attempt, piece, list(dates))
            if stage in ("writing", "finishing"):
                tasks.compute_statuses.run(spec.run_id, str(subject))
            if stage == "finishing":
                tasks.write_tables.run(spec.run_id, str(subject))
    finally:
        dropped.undo()
    for key in client.keys("*"):
        if not key.startswith(b"training-status:") or client.type(key) == b"list":
            client.delete(key)


def test_tasks_that_run_again_after_the_end_change_nothing(
    mice: Path, broker: str, ledger: Ledger, tmp_path: Path
) -> None:
    from core.config import StoreSettings, WorkerSettings
    from scheduler import tasks as planning
    from workers import context, tasks

    with worker(broker, tmp_path / "worker.log"):
        spec = start(ledger, mice, tmp_path / "t")
        finish(ledger, spec)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*") if path.is_file()}
    record = ledger.record(spec.run_id)
    context.use(WorkerSettings(broker=broker, store=StoreSettings()))
    lab, name = SUBJECTS[0]
    planning.recompute.run(spec.run_id, "")
    tasks.summarise_days.run(spec.run_id, f"{lab}/{name}", 0, 0, ["2020-01-01"])
    tasks.compute_statuses.run(spec.run_id, f"{lab}/{name}")
    tasks.write_tables.run(spec.run_id, f"{lab}/{name}")
    tasks.finish_run.run(spec.run_id)
    assert ledger.record(spec.run_id) == record
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*") if path.is_file()} == before


def test_what_failed_is_listed_and_tried_again_by_itself(
    mice: Path, broker: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "t"
    lab, name = SUBJECTS[1]
    # A folder stands where the table should: no write can succeed there.
    blocked = store / subject_keys(lab, name).training
    (blocked / "in the way").mkdir(parents=True)
    with worker(broker, tmp_path / "worker.log"):
        done = training_status("recompute", "--root", mice, "--store", store, "--broker", broker, "--json")
        record = json.loads(done.stdout)
        assert done.returncode == 1
        assert [(failed["lab"], failed["subject"]) for failed in record["failed"]] == [(lab, name)]
        assert record["failed"][0]["reason"]
        assert record["counts"]["done"] == 3

        run_id = record["run_id"]
        listed = json.loads(training_status("runs", "--broker", broker, "--json").stdout)
        assert [(run["run_id"], run["state"], run["failed"]) for run in listed] == [(run_id, "ended", 1)]
        shown = json.loads(training_status("runs", run_id, "--broker", broker, "--json").stdout)
        states = {subject["subject"]: subject["state"] for subject in shown["by_subject"]}
        assert states == {subject: "failed" if subject == name else "done" for _, subject in SUBJECTS}
        assert "failed" in training_status("runs", run_id, "--broker", broker).stdout
        watched = training_status("runs", run_id, "--watch", "--broker", broker)
        assert watched.returncode == 1
        assert f"failed: {lab}/{name}" in watched.stderr

        (blocked / "in the way").rmdir()
        blocked.rmdir()
        again = training_status("retry", run_id, "--broker", broker, "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["only"] == [f"{lab}/{name}"]
        assert json.loads(again.stdout)["counts"]["subjects"] == 1
    assert subject_objects(open_store(str(store))) == expected
    nothing = training_status("retry", json.loads(again.stdout)["run_id"], "--broker", broker)
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)
    unknown = training_status("runs", "20000101T000000-000000", "--broker", broker)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)


def test_ctrl_c_on_a_watching_command_leaves_the_run_going(
    mice: Path, broker: str, ledger: Ledger, expected: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "t"
    with interruptible(["recompute", "--root", str(mice), "--store", str(store), "--broker", broker]) as watching:
        wait_for(lambda: bool(ledger.run_ids()), "the run to begin")
        watching.send_signal(signal.SIGINT)
        _, told = watching.communicate(timeout=60)
    run_id = ledger.run_ids()[0]
    assert f"training-status runs {run_id} --watch" in told
    # Where Ctrl-C came before the first message went out, a worker finds that the run owes its plan.
    with worker(broker, tmp_path / "worker.log", env={"TRAINING_STATUS_PATIENCE": "2"}):
        finish(ledger, ledger.spec(run_id))
    assert subject_objects(open_store(str(store))) == expected
