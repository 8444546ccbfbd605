"""Secrets do not leave the places where they were put: no log, record, ledger, argument or error text has one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from core.storage import Store
from tests.faults.proxy import S3Proxy, Wrong, s3_proxy
from tests.faults.services import Arena, Herd, assert_as_undisturbed
from tests.processes import PASSWORD, training_status
from tests.servers import LIMITED
from workers.broker import connect
from workers.ledger import Ledger

ArenaFor = Callable[..., Arena]
#: Secrets that are long enough to be found by their text.
S3_SECRET = "wrong-s3-secret-3f9c"
URL_SECRET = "secret-in-url-77ab"
SECRETS = (PASSWORD, S3_SECRET, URL_SECRET)


@pytest.fixture
def proxy(aws: None, s3_endpoint: str) -> Iterator[S3Proxy]:
    with s3_proxy(s3_endpoint) as made:
        yield made


def everything_in(client: redis.Redis) -> str:
    """Return all that a Redis holds, messages and ledger, as text."""
    found: list[object] = []
    connection: Any = client  # typed for both of its kinds, this one answers in bytes
    for key in connection.scan_iter("*"):
        read = {
            b"string": connection.get,
            b"list": lambda key: connection.lrange(key, 0, -1),
            b"set": connection.smembers,
            b"zset": lambda key: connection.zrange(key, 0, -1),
            b"hash": connection.hgetall,
        }[connection.type(key)]
        found += [key, read(key)]
    return repr(found)


def assert_no_secret(where: str, text: str, secrets: tuple[str, ...] = SECRETS) -> None:
    lines = [line for line in text.splitlines() for secret in secrets if secret in line]
    assert lines == [], f"a secret in {where}"


def assert_nothing_told(arena: Arena, folder: Path, *outputs: str) -> None:
    """Look for secrets in all that a run leaves behind, and in what commands said."""
    for log in arena.folder.rglob("*.log"):
        assert_no_secret(log.name, log.read_text())
    for said in (*arena.folder.rglob("stdout"), *arena.folder.rglob("stderr")):
        assert_no_secret(said.name, said.read_text())
    for path in folder.rglob("*.json") if folder.exists() else ():
        assert_no_secret(path.name, path.read_text())
    assert_no_secret("Redis", everything_in(arena.client))
    for output in outputs:
        assert_no_secret("output", output)


@pytest.mark.parametrize("level", ["INFO", pytest.param("DEBUG", marks=pytest.mark.slow)])
def test_a_run_with_faults_tells_no_secret(
    level: str, pair: Herd, proxy: S3Proxy, s3_uri: str, bucket: Store, arena_for: ArenaFor, tmp_path: Path
) -> None:
    arena = arena_for("arena", TRAINING_STATUS_S3_ENDPOINT=proxy.endpoint, TRAINING_STATUS_LOG_LEVEL=level)
    proxy.add(Wrong.ERROR_500, method="PUT", times=5)
    running = arena.run(pair.root, s3_uri)
    arena.run_id()
    # What waits for a worker is told as well: task arguments.
    assert_no_secret("messages", everything_in(arena.client))
    arena.worker()
    record = arena.finish(running)
    assert_as_undisturbed(pair, bucket, record, arena)
    # Each worker that connects anew may tell where to.
    arena.redis.process.kill()
    arena.wait(lambda: arena.redis.has_died, "Redis to be dead")
    arena.wait(lambda: "onnection" in arena.log(), "the worker to see it")
    arena.redis.keep_alive()
    runs = arena.command("runs", record["run_id"])
    arena.wait(lambda: runs.has_ended, "the command to end")
    assert runs.code == 0, runs.told
    assert_nothing_told(arena, tmp_path / "tables", json.dumps(record))
    assert PASSWORD in arena.redis.url  # what was looked for is what was used


@pytest.mark.slow
def test_a_refused_s3_secret_is_not_told(
    pair: Herd, proxy: S3Proxy, s3_uri: str, arena_for: ArenaFor, tmp_path: Path
) -> None:
    assert "reader" in LIMITED
    arena = arena_for("arena", TRAINING_STATUS_S3_ENDPOINT=proxy.endpoint)
    arena.worker(env={"AWS_SECRET_ACCESS_KEY": S3_SECRET})
    running = arena.run(pair.root, s3_uri)
    arena.wait(lambda: running.has_ended, "the command to end")
    record = arena.ledger.record(arena.run_id())
    assert record is not None
    assert record["counts"]["failed"] == len(pair.subjects)
    direct = training_status(
        "recompute", "--root", pair.root, "--store", s3_uri,
        env={"TRAINING_STATUS_S3_ENDPOINT": proxy.endpoint, "AWS_SECRET_ACCESS_KEY": S3_SECRET},
    )  # fmt: skip
    assert (direct.returncode, len(direct.stderr.splitlines())) == (2, 1)
    assert_nothing_told(arena, tmp_path, json.dumps(record), direct.stdout, direct.stderr)


ENDPOINTS = [
    f"http://user:{URL_SECRET}@127.0.0.1:9",
    f"http://127.0.0.1:9/?token={URL_SECRET}",
    f"user:{URL_SECRET}@127.0.0.1",
    f"http://user:{URL_SECRET}@[broken",
]


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["TRAINING_STATUS_S3_ENDPOINT", "AWS_ENDPOINT_URL"])
def test_a_hostile_endpoint_is_not_repeated(
    variable: str, pair: Herd, aws: None, arena: Arena, folder: Path, s3_uri: str, tmp_path: Path
) -> None:
    for endpoint in ENDPOINTS:
        told = training_status(
            "recompute", "--root", pair.root, "--store", s3_uri, "--broker", arena.redis.url, env={variable: endpoint}
        )
        assert (told.returncode, len(told.stderr.splitlines())) == (2, 1), endpoint
        assert_no_secret("output", told.stdout + told.stderr)


@pytest.mark.slow
def test_a_hostile_endpoint_of_a_worker_is_refused_at_its_start_and_not_repeated(
    arena_for: ArenaFor, tmp_path: Path
) -> None:
    arena = arena_for("arena")
    for endpoint in ENDPOINTS:
        told = training_status("worker", "--broker", arena.redis.url, env={"TRAINING_STATUS_S3_ENDPOINT": endpoint})
        assert (told.returncode, len(told.stderr.splitlines())) == (2, 1), endpoint
        assert "TRAINING_STATUS_S3_ENDPOINT" in told.stderr
        assert_nothing_told(arena, tmp_path, told.stdout, told.stderr)


STORES = [f"s3://key:{URL_SECRET}@mice/x", f"ftp://key:{URL_SECRET}@host/x", f"memory://a/{URL_SECRET}"]


@pytest.mark.slow
def test_a_store_with_credentials_is_refused_without_them(pair: Herd, aws: None) -> None:
    for store in STORES:
        told = training_status("recompute", "--root", pair.root, "--store", store)
        assert (told.returncode, len(told.stderr.splitlines())) == (2, 1), store
        assert_no_secret("output", told.stdout + told.stderr)


BROKERS = [
    f"redis://:{URL_SECRET}@127.0.0.1:9/0",
    f"amqp://user:{URL_SECRET}@127.0.0.1:9/0",
    f"redis://:{URL_SECRET}@127.0.0.1:notaport/0",
    f"redis://:{URL_SECRET}@127.0.0.1:9/0?password={URL_SECRET}",
    f"redis://:{URL_SECRET}@127.0.0.1:9/notadatabase",
    f"redis://:{URL_SECRET}@127.0.0.1:9/0?socket_timeout={URL_SECRET}",
    f"rediss://:{URL_SECRET}@127.0.0.1:9/0?ssl_cert_reqs={URL_SECRET}",
]


@pytest.mark.slow
def test_a_brokers_password_is_not_told(pair: Herd, arena: Arena, folder: Path) -> None:
    wrong = arena.redis.url.replace(PASSWORD, URL_SECRET)
    for broker in (*BROKERS, wrong):
        for arguments in (("recompute", "--root", pair.root, "--store", folder), ("worker",), ("runs",)):
            told = training_status(*arguments, "--broker", broker)
            assert_no_secret("output", told.stdout + told.stderr)
            assert (told.returncode, len(told.stderr.splitlines())) == (2, 1), (broker, arguments, told.stderr)
    client = connect(arena.redis.url)
    assert Ledger(client).run_ids() == []
    client.close()
