"""What Flower has seen outlives it, and it goes on when Redis comes back."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.faults.services import Arena, Herd
from tests.faults.tls import tls_relay
from tests.flower import flower, get, tasks
from tests.processes import PASSWORD, redis_server, training_status, wait_for, worker


def run(arena: Arena, pair: Herd, folder: Path) -> str:
    """Make a run to its end, and return its id."""
    record = arena.finish(arena.run(pair.root, folder))
    return str(record["run_id"])


def has_seen(port: int, run_id: str) -> bool:
    """Whether Flower knows the end of a run."""
    return any(
        run_id in task["args"] and task["name"].endswith("finish_run") and task["result"] for task in tasks(port)
    )


def shown(port: int) -> dict[str, tuple[str, ...]]:
    """Return what Flower's list tells of each task."""
    told = ("name", "args", "state", "result", "received", "started", "runtime", "worker")
    return {task["uuid"]: tuple(task[name] for name in told) for task in tasks(port)}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_flower_has_seen_outlives_it(
    how: signal.Signals, pair: Herd, arena: Arena, folder: Path, tmp_path: Path
) -> None:
    arena.worker()
    with flower(arena.redis.url, tmp_path) as (port, running):
        wait_for(lambda: '"status": true' in get(port, "/workers?json=1"), "Flower to see the worker")
        run_id = run(arena, pair, folder)
        wait_for(lambda: has_seen(port, run_id), "Flower to see the run")
        seen = shown(port)
        if how == signal.SIGKILL:
            state = tmp_path / "state" / "flower"
            before = {file: file.stat().st_mtime_ns for file in state.parent.glob("flower*")}
            wait_for(
                lambda: {file: file.stat().st_mtime_ns for file in state.parent.glob("flower*")} != before,
                "the state to be saved",
            )
            wait_for(lambda: not list(state.parent.glob("*.tmp*")), "all of it")
        running.send_signal(how)
        assert running.wait(30) == (-signal.SIGKILL if how == signal.SIGKILL else 0)
    assert {file.stat().st_mode & 0o077 for file in (tmp_path / "state").iterdir()} == {0}
    with flower(arena.redis.url, tmp_path) as (port, _):
        assert shown(port) == seen
    assert "Traceback" not in (tmp_path / "flower.log").read_text()


@pytest.mark.slow
def test_flower_goes_on_when_redis_comes_back(pair: Herd, arena: Arena, folder: Path, tmp_path: Path) -> None:
    arena.worker()
    with flower(arena.redis.url, tmp_path) as (port, _):
        arena.redis.process.kill()
        arena.wait(lambda: arena.redis.has_died, "Redis to be dead")
        assert "training_status_ledger_up 0.0" in get(port, "/metrics")
        assert "Flower" in get(port, "/broker")
        arena.redis.keep_alive()
        arena.wait(lambda: "training_status_ledger_up 1.0" in get(port, "/metrics"), "the ledger to be back")
        arena.wait(lambda: "worker_online{worker=" in get(port, "/metrics"), "the worker to be seen")
        run_id = run(arena, pair, folder)
        wait_for(lambda: has_seen(port, run_id), "Flower to see the run")
    assert PASSWORD not in (tmp_path / "flower.log").read_text()


@pytest.mark.slow
def test_all_of_it_over_tls_with_a_certificate_of_ones_own(pair: Herd, folder: Path, tmp_path: Path) -> None:
    with (
        redis_server(tmp_path / "redis") as plain,
        tls_relay(urlsplit(plain).port or 0, tmp_path) as (relay, certificate),
    ):
        bare = f"rediss://:{PASSWORD}@127.0.0.1:{relay}/0?ssl_cert_reqs=required"
        url = f"{bare}&ssl_ca_certs={certificate}"
        with worker(url, tmp_path / "worker.log"), flower(url, tmp_path) as (port, _):
            wait_for(lambda: '"status": true' in get(port, "/workers?json=1"), "Flower to see the worker")
            told = training_status("recompute", "--root", pair.root, "--store", folder, "--broker", url, "--json")
            assert told.returncode == 0, told.stderr
            wait_for(lambda: has_seen(port, json.loads(told.stdout)["run_id"]), "Flower to see the run")
            queues = get(port, "/broker")
            assert "training_status_ledger_up 1.0" in get(port, "/metrics")
        assert "celery@" in queues  # as the consumer of the queue
        assert PASSWORD not in queues + (tmp_path / "flower.log").read_text() + (tmp_path / "worker.log").read_text()
        refused = training_status("flower", "--broker", bare, env={"TRAINING_STATUS_FLOWER_PASSWORD": "x"})
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert PASSWORD not in refused.stderr
