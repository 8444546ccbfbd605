"""`training-status doctor`: each thing it looks at, well and not well, with real servers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from core.errors import AccessRefused
from core.storage import Store, open_store
from core.storage.base import valid_key
from core.storage.memory import MemoryStore
from scheduler import doctor
from scheduler.cli.main import run
from scheduler.doctor import PROBE, Check, Finding, examine, probe
from tests.alyx import PASSWORD, USER, alyx
from tests.processes import training_status, wait_for, worker
from tests.servers import create_bucket, free_ports, required, seaweedfs

pytestmark = pytest.mark.usefixtures("aws")

BUCKET = "doctor"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with required(seaweedfs(tmp_path_factory.mktemp("seaweedfs"))) as endpoint:
        create_bucket(endpoint, BUCKET)
        yield endpoint


def look(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, dict[str, str]]]:
    """Run the command, and return its exit code and its findings by name."""
    code = run(["doctor", *map(str, arguments), "--json"])
    document = json.loads(capsys.readouterr().out)
    found = {each["check"]: each for each in document["findings"]}
    assert document["wrong"] == sum(each["state"] == "WRONG" for each in found.values())
    assert len(found) == len(document["findings"])
    for each in found.values():
        assert bool(each["todo"]) == (each["state"] != "OK"), each
    return code, found


def states(found: dict[str, dict[str, str]], *names: str) -> list[str]:
    return [found[name]["state"] for name in names]


def test_everything_is_well_with_a_broker_workers_a_folder_and_a_tree(
    broker: str, mice: Path, tmp_path: Path, redis_client: redis.Redis
) -> None:
    store = tmp_path / "with a space"
    store.mkdir()
    with worker(broker, tmp_path / "worker.log", concurrency=1):
        wait_for(lambda: bool(redis_client.exists("_kombu.binding.celery.pidbox")), "the worker to listen")
        given = ["--broker", broker, "--root", mice, "--refresh-at", "simlab02=0 2 * * *", "--timezone", "Asia/Tokyo"]
        done = training_status("doctor", *given, env={"TRAINING_STATUS_STORE": str(store)})
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "all is well"
    assert all(line.startswith("OK       ") for line in lines[:-1]), done.stdout
    told = done.stdout
    assert f"store {store}: is there" in told
    assert "queues: training-status" in told
    assert "1 processes" in told
    assert "append-only is on" in told
    assert "maxmemory-policy is noeviction" in told
    assert "2 labs, simlab01, simlab02" in told
    assert "refresh of simlab02: " in told
    assert "02:00 Asia/Tokyo" in told
    assert "schedule labs: simlab02 found" in told
    assert "test-password" not in told + done.stderr
    assert [path.name for path in store.rglob("*") if path.name != ".locks"] == []


def test_what_is_not_named_is_skipped_and_nothing_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = look(capsys)
    assert code == 0
    assert states(found, "broker", "store", "source", "schedule labs") == ["SKIPPED"] * 4
    assert states(found, "python", "training-status", "celery", "redis server", "schedule") == ["OK"] * 5


def test_every_check_runs_where_all_others_fail(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    given = ["--broker", f"redis://:hidden-word@127.0.0.1:{port}/0", "--root", tmp_path / "none"]
    given += ["--store", tmp_path / "no" / "folder", "--store", "s3://bucket/x", "--s3-endpoint", "not an address"]
    code, found = look(capsys, *given, "--refresh-at", "every day")
    assert code == 1
    wrong = {name for name, each in found.items() if each["state"] == "WRONG"}
    stores = {f"store {tmp_path}/no/folder", "store s3://bucket/x"}
    assert wrong == {"broker", "workers", "source", "schedule", "schedule labs"} | stores
    assert "there is no such folder" in found[f"store {tmp_path}/no/folder"]["found"]
    assert "--refresh-at (TRAINING_STATUS_REFRESH_AT)" in found["schedule"]["found"]
    assert "hidden-word" not in json.dumps(found)


def test_a_wrong_password_of_the_broker_is_told(broker: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = look(capsys, "--broker", broker.replace("test-password", "other-word"))
    assert code == 1
    assert "refuses its password" in found["broker"]["found"]
    assert "other-word" not in json.dumps(found)


def test_a_broker_that_evicts_and_keeps_nothing_and_has_no_worker(
    broker: str, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    redis_client.config_set("appendonly", "no")
    try:
        code, found = look(capsys, "--broker", broker)
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")
        redis_client.config_set("appendonly", "yes")
    assert code == 1
    assert states(found, "broker", "broker memory", "broker disk", "workers") == ["OK", "WRONG", "WRONG", "WRONG"]
    assert "allkeys-lru" in found["broker memory"]["found"]
    assert found["broker memory"]["todo"] == "set maxmemory-policy noeviction in Redis"
    assert found["broker disk"]["todo"] == "set appendonly yes in Redis"
    assert found["workers"]["found"] == "none listens"


def test_a_bucket_is_well(s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"s3://{BUCKET}/prefix"
    code, found = look(capsys, "--store", uri, "--s3-endpoint", s3)
    assert code == 0
    assert states(found, f"store {uri}", f"writes {uri}") == ["OK", "OK"]
    assert list(open_store(uri, endpoint=s3).keys()) == []


@pytest.mark.parametrize(
    ("uri", "key", "secret", "told"),
    [
        ("s3://no-such-bucket/x", "test", "test", "there is no bucket 'no-such-bucket'"),
        (f"s3://{BUCKET}/x", "nobody", "test", "the access key is not known"),
        (f"s3://{BUCKET}/x", "test", "wrong-word", "the secret key is not the one"),
    ],
)
def test_a_bucket_that_is_not_there_and_wrong_credentials(
    s3: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    key: str,
    secret: str,
    told: str,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    code, found = look(capsys, "--store", uri, "--s3-endpoint", s3)
    assert code == 1
    assert told in found[f"store {uri}"]["found"]
    assert "wrong-word" not in json.dumps(found)


def test_a_bucket_that_can_be_read_only(
    s3: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "reader")
    uri = f"s3://{BUCKET}/prefix"
    code, found = look(capsys, "--store", uri, "--s3-endpoint", s3)
    assert code == 1
    assert states(found, f"store {uri}", f"writes {uri}") == ["OK", "WRONG"]
    assert "s3:PutObject" in found[f"writes {uri}"]["found"]


@contextmanager
def silent() -> Iterator[int]:
    """Listen on a port, and never answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        yield listening.getsockname()[1]


def test_what_hangs_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    with silent() as port:
        given = ["--broker", f"redis://127.0.0.1:{port}/0", "--store", "s3://bucket/x"]
        given += ["--s3-endpoint", f"http://127.0.0.1:{port}", "--timeout", "1"]
        code, found = look(capsys, *given)
    assert code == 1
    assert {found[name]["found"] for name in ("broker", "workers", "store s3://bucket/x")} == {"no answer within 1 s"}


def test_a_login_that_is_taken_and_one_that_is_not(
    mice: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_STATUS_ONE_USER", USER)
    with alyx(mice) as server:
        monkeypatch.setenv("TRAINING_STATUS_ONE_PASSWORD", PASSWORD)
        code, found = look(capsys, "--one", server.url)
        assert (code, states(found, "login --one", "source")) == (0, ["OK", "OK"])
        assert "2 labs, simlab01, simlab02" in found["source"]["found"]
        monkeypatch.setenv("TRAINING_STATUS_ONE_PASSWORD", "wrong-word")
        code, found = look(capsys, "--one", server.url)
    assert (code, found["login --one"]["state"]) == (1, "WRONG")
    assert "--one-password" in found["login --one"]["todo"]
    assert "wrong-word" not in json.dumps(found)


def test_an_unknown_lab_in_the_schedule_is_told(mice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = look(capsys, "--root", mice, "--refresh-at", "nolab=0 2 * * *")
    assert code == 1
    assert states(found, "source", "schedule", "schedule labs") == ["OK", "OK", "WRONG"]
    assert "nolab" in found["schedule labs"]["found"]


@pytest.mark.parametrize("arguments", [["--root", "a", "--one", "local:b"], ["--timeout", "0"], ["--no-such-option"]])
def test_wrong_use_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", *arguments]) == 2
    assert capsys.readouterr().out == ""


class Careless(MemoryStore):
    """Stands in for a server that ignores conditions: none that can be had here does."""

    ignores: tuple[bool, ...] = (True, False)  # of a write that creates, of one that replaces

    def _put(self, key: str, data: bytes, replaces: str | None) -> str:
        if (replaces is None) in self.ignores:
            found = self._get(key)
            replaces = found.etag if found else None
        return super()._put(key, data, replaces)


class CarelessOfReplacing(Careless):
    ignores = (False,)


class Kept(MemoryStore):
    """Stands in for a bucket that lets nothing be removed."""

    def _discard(self, key: str) -> None:
        raise AccessRefused("not allowed")


@pytest.mark.parametrize(("kind", "told"), [(Careless, "If-None-Match"), (CarelessOfReplacing, "If-Match")])
def test_a_server_that_ignores_conditions_is_wrong(kind: type[Store], told: str, tmp_path: Path) -> None:
    store = kind(tmp_path.name)  # type: ignore[call-arg]
    found = probe(store, "writes")
    assert found.state == "WRONG"
    assert f"({told})" in found.found
    assert "conditional writes" in found.todo
    assert list(store.keys()) == []


def test_where_nothing_may_be_removed_one_object_stays_however_often_it_is_tried(tmp_path: Path) -> None:
    store = Kept(tmp_path.name)
    for _ in range(3):
        found = probe(store, "writes")
        assert found.state == "OK"
        assert f"{PROBE} stays there" in found.found
    assert list(store.keys()) == [valid_key(PROBE)]


def test_what_a_check_raises_is_its_finding_and_the_next_one_runs() -> None:
    def fails() -> Iterator[Finding]:
        yield Finding(check="first", state="OK", found="well")
        raise RuntimeError("redis://:secret@host")

    def well() -> Iterator[Finding]:
        yield Finding(check="second", state="OK", found="well")

    checks = [Check(name="fails", look=fails, todo="mend it"), Check(name="second", look=well, todo="")]
    found = list(examine(checks, 10))
    assert [(each.check, each.state) for each in found] == [("first", "OK"), ("fails", "WRONG"), ("second", "OK")]
    assert found[1].found == "failed with RuntimeError"


def test_a_worker_of_another_version_and_one_that_does_not_tell_it_are_wrong(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two versions cannot run in one environment, so their answers are put in the place of the workers'.
    from workers.app import app

    answers: list[dict[str, Any]] = [
        {"a@old": {"version": "0.0.1", "schema": 1, "queues": ["training-status"], "processes": 2}},
        {"b@older": {"error": "KeyError"}},
    ]
    monkeypatch.setattr(type(app.control), "broadcast", lambda *_, **__: answers)
    (_, workers) = doctor.broker_checks(broker)
    found = {each.check: each for each in workers.look()}
    assert {each.state for each in found.values()} == {"WRONG"}
    assert [*found] == ["worker a@old", "worker b@older"]
    assert "training-status 0.0.1" in found["worker a@old"].found
    assert found["worker b@older"].todo == "upgrade it"


def test_a_library_that_is_too_old_or_absent_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.version

    def version(name: str) -> str:
        if name == "pyarrow":
            raise doctor.PackageNotFoundError
        return "5.5.0" if name == "celery" else real(name)

    monkeypatch.setattr(doctor, "version", version)
    found = {each.check: each for each in doctor.versions_check(needs_server=True).look()}
    assert found["celery"].found.startswith("5.5.0 is not ")
    assert (found["celery"].state, found["pyarrow"].state, found["pandas"].state) == ("WRONG", "WRONG", "OK")
