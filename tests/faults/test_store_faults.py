"""Stores and brokers that fail amid a run: S3 servers, disks, memory; and tables that are there already and bad."""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import schema
from core.storage import Store, open_store
from core.tables import COHORT_KEY, subject_keys
from scheduler import runs
from tests.faults.proxy import S3Proxy, Wrong, s3_proxy
from tests.faults.services import (
    PATIENCE,
    Arena,
    Herd,
    Service,
    assert_as_undisturbed,
    assert_ledger_agrees,
    differences,
    objects,
    undisturbed,
)
from tests.processes import training_status
from tests.servers import LIMITED
from workers.app import configure
from workers.records import Progress

ArenaFor = Callable[..., Arena]


@pytest.fixture
def proxy(aws: None, s3_endpoint: str) -> Iterator[S3Proxy]:
    with s3_proxy(s3_endpoint) as made:
        yield made


@pytest.fixture
def s3_arena(proxy: S3Proxy, arena_for: ArenaFor) -> Arena:
    """An arena whose commands and workers reach the S3 server through the proxy."""
    return arena_for("arena", TRAINING_STATUS_S3_ENDPOINT=proxy.endpoint)


# ---- S3 servers that fail for a while


@pytest.mark.parametrize(
    ("wrong", "method", "path", "times"),
    [
        # More than the three tries that the client has of its own for one call.
        pytest.param(Wrong.ERROR_500, "PUT", "training.pqt", 7, id="500"),
        pytest.param(Wrong.ERROR_503, "", "", 30, id="503", marks=pytest.mark.slow),
        pytest.param(Wrong.DROPPED, "PUT", "", 9, id="dropped-amid-upload", marks=pytest.mark.slow),
        pytest.param(Wrong.ANSWER_LOST, "PUT", "", 9, id="answer-lost", marks=pytest.mark.slow),
        pytest.param(Wrong.ANSWER_LOST, "PUT", "cohort.pqt", 5, id="answer-lost-cohort", marks=pytest.mark.slow),
        pytest.param(Wrong.ANSWER_LOST, "PUT", "/runs/", 5, id="answer-lost-record", marks=pytest.mark.slow),
        pytest.param(Wrong.ANSWER_CUT, "GET", "", 9, id="answer-cut", marks=pytest.mark.slow),
    ],
)
def test_a_server_that_fails_for_a_while_changes_nothing(
    wrong: Wrong, method: str, path: str, times: int, pair: Herd, s3_arena: Arena, proxy: S3Proxy, s3_uri: str,
    bucket: Store,
) -> None:  # fmt: skip
    s3_arena.worker()
    # Tables are there already, so that there is something to read; they are other ones.
    first = s3_arena.finish(s3_arena.run(pair.root, s3_uri))
    assert first["counts"]["done"] == len(pair.subjects)
    spoil_all(bucket, pair)
    running = s3_arena.run(pair.root, s3_uri)
    s3_arena.wait(lambda: s3_arena.run_id() != first["run_id"], "the second run to begin")
    fault = proxy.add(wrong, method=method, path=path, times=times)
    record = s3_arena.finish(running)
    assert fault.met > 0
    assert running.code == 0, running.told
    assert_as_undisturbed(pair, bucket, record, s3_arena)


def spoil_all(store: Store, herd: Herd) -> None:
    """Put something else in the place of every object."""
    for key in herd.objects:
        stored = store.get(key)
        assert stored is not None
        store.put(key, b"not a table", replaces=stored.etag)


@pytest.mark.slow
def test_a_server_that_answers_slowly_changes_nothing(
    pair: Herd, s3_arena: Arena, proxy: S3Proxy, s3_uri: str, bucket: Store
) -> None:
    # Held for longer than the patience of the workers. It is under way in a pool that lives, so nothing is sent again.
    held = proxy.add(Wrong.HELD, method="PUT", path="training.pqt", times=2)
    s3_arena.worker()
    s3_arena.worker("another")
    running = s3_arena.run(pair.root, s3_uri)
    s3_arena.wait(lambda: held.met == 2, "both requests to be held")
    time.sleep(4 * float(PATIENCE["TRAINING_STATUS_PATIENCE"]))
    proxy.let_go()
    record = s3_arena.finish(running)
    assert "sent again" not in s3_arena.log() + s3_arena.log("another")
    assert running.code == 0, running.told
    assert_as_undisturbed(pair, bucket, record, s3_arena)


# ---- S3 servers that refuse


def test_refused_credentials_are_told_and_tried_again(
    pair: Herd, s3_arena: Arena, proxy: S3Proxy, s3_uri: str, bucket: Store
) -> None:
    s3_arena.worker()
    lab, subject = pair.subjects[0]
    refused = proxy.add(Wrong.REFUSED, method="PUT", path=f"{lab}/{subject}/", times=10**6)
    running = s3_arena.run(pair.root, s3_uri)
    record = s3_arena.finish(running)
    assert running.code == 1
    assert refused.met == 1  # what is refused is refused: no second try
    assert [(failed["lab"], failed["subject"]) for failed in record["failed"]] == [(lab, subject)]
    assert "refuses" in record["failed"][0]["reason"] or "AccessDenied" in record["failed"][0]["reason"]
    assert (record["counts"]["done"], record["counts"]["failed"]) == (len(pair.subjects) - 1, 1)
    assert_ledger_agrees(record, s3_arena)
    proxy.heal()
    again = s3_arena.command("retry", record["run_id"], "--json")
    assert s3_arena.finish(again)["counts"] == {
        "subjects": 1,
        "done": 1,
        "unchanged": 0,
        "failed": 0,
        "sessions": pair.sessions // len(pair.subjects),
        "left_out": 0,
    }
    assert differences(objects(bucket, pair.subjects), pair.objects) == []


def test_a_run_whose_end_was_refused_is_tried_again_as_a_whole(
    pair: Herd, s3_arena: Arena, proxy: S3Proxy, s3_uri: str, bucket: Store
) -> None:
    """All subjects are done, but no row of theirs is in the cohort table: a retry of none of them would not mend it."""
    s3_arena.worker()
    proxy.add(Wrong.REFUSED, method="PUT", path="cohort.pqt")
    running = s3_arena.run(pair.root, s3_uri)
    s3_arena.wait(lambda: running.has_ended, "the command to end")
    assert running.code == 2
    assert "refuses" in running.told
    assert bucket.get(COHORT_KEY) is None
    again = s3_arena.command("retry", s3_arena.run_id(), "--json")
    assert_as_undisturbed(pair, bucket, s3_arena.finish(again), s3_arena)
    assert again.code == 0, again.told


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"AWS_SECRET_ACCESS_KEY": "another"}, id="wrong-secret", marks=pytest.mark.slow),
        pytest.param(
            {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader"}, id="read-only", marks=pytest.mark.slow
        ),
    ],
)
def test_workers_without_rights_end_the_run_with_the_reason(
    env: dict[str, str], pair: Herd, s3_arena: Arena, s3_uri: str, bucket: Store
) -> None:
    assert "reader" in LIMITED
    s3_arena.worker(env=env)
    running = s3_arena.run(pair.root, s3_uri)
    s3_arena.wait(lambda: running.has_ended, "the command to end")
    assert running.code == 2
    record = s3_arena.ledger.record(s3_arena.run_id())
    assert record is not None
    assert record["error"]
    assert (record["counts"]["failed"], record["counts"]["done"]) == (len(pair.subjects), 0)
    assert all(failed["reason"] for failed in record["failed"])
    assert objects(bucket, pair.subjects) == {}
    # Both ways lead to the reasons: what the run printed, and what it is asked for later.
    shown = s3_arena.command("runs", record["run_id"])
    s3_arena.wait(lambda: shown.has_ended, "the command to end")
    assert shown.code == 0


def test_a_missing_bucket_is_said_before_anything_starts(pair: Herd, aws: None, s3_endpoint: str, arena: Arena) -> None:
    env = {"TRAINING_STATUS_S3_ENDPOINT": s3_endpoint, "TRAINING_STATUS_BROKER": arena.redis.url}
    told = training_status("recompute", "--root", pair.root, "--store", "s3://nosuchbucket/x", env=env)
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1)
    assert "nosuchbucket" in told.stderr
    assert arena.ledger.run_ids() == []


@pytest.mark.slow
def test_a_bucket_that_is_removed_amid_a_run_is_told(
    pair: Herd, s3_arena: Arena, proxy: S3Proxy, s3_endpoint: str, tmp_path: Path
) -> None:
    name = f"gone-{os.getpid()}"
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket=name)
    running = s3_arena.run(pair.root, f"s3://{name}/x")
    s3_arena.run_id()
    client.delete_bucket(Bucket=name)
    s3_arena.worker()
    s3_arena.wait(lambda: running.has_ended, "the command to end")
    record = s3_arena.ledger.record(s3_arena.run_id())
    assert running.code == 2
    assert record is not None
    assert name in record["error"]
    assert record["counts"]["failed"] == len(pair.subjects)
    assert all(name in failed["reason"] for failed in record["failed"])


# ---- disks and memory


@pytest.mark.parametrize("share", [0.01, pytest.param(0.9, marks=pytest.mark.slow)], ids=["at-once", "amid-a-table"])
def test_a_full_disk_changes_nothing(share: float, pair: Herd, arena: Arena, folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: writes fail amid a file (EFBIG in place of ENOSPC)."""
    worker = arena.worker(log=drained(tmp_path / "log"))
    arena.wait(lambda: len(worker.process.children()) == 2, "the pool")
    limit_files(worker, int(share * max(len(data) for data in pair.objects.values())))
    running = arena.run(pair.root, folder)
    arena.wait(lambda: "another try follows" in (tmp_path / "log.txt").read_text(), "the disk to be full")
    limit_files(worker, resource.RLIM_INFINITY)
    record = arena.finish(running)
    assert running.code == 0, running.told
    assert_as_undisturbed(pair, open_store(str(folder)), record, arena)
    assert not list(folder.rglob("~*"))  # nothing half written is left


def drained(pipe: Path) -> Path:
    """Make a log that is no file of the process that writes it, so that limits on files do not concern it."""
    os.mkfifo(pipe)

    def drain() -> None:
        with pipe.open("rb") as source, pipe.with_suffix(".txt").open("wb", buffering=0) as target:
            while block := os.read(source.fileno(), 65536):
                target.write(block)

    pipe.with_suffix(".txt").touch()
    threading.Thread(target=drain, daemon=True).start()  # ends with the last writer
    return pipe


def limit_files(worker: Service, size: int) -> None:
    """Limit the size of files that a worker's processes can write; those that follow inherit it."""
    for process in (worker.process, *worker.process.children(recursive=True)):
        process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_redis_that_is_out_of_memory_changes_nothing(herd: Herd, arena: Arena, folder: Path) -> None:
    arena.worker("one")
    arena.worker("two")
    running = arena.run(herd.root, folder)
    run_id = arena.run_id()
    arena.wait(lambda: arena.ledger.progress(run_id).ended >= 1, "a subject to end")
    arena.client.config_set("maxmemory-policy", "noeviction")
    arena.client.config_set("maxmemory", "1mb")
    arena.wait(lambda: refused_for_memory(arena) >= 5, "writes to be refused")
    arena.client.config_set("maxmemory", "0")
    record = arena.finish(running)
    assert running.code == 0, running.told
    assert_as_undisturbed(herd, open_store(str(folder)), record, arena)


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_worker_outlives_a_redis_that_is_out_of_memory(long: bool, pair: Herd, arena: Arena, folder: Path) -> None:
    """A message that it takes cannot be noted as taken: it waits; at last it drops it, for it is owed."""
    worker = arena.worker(keep=False)
    arena.wait(lambda: "ready" in arena.log(), "the worker")
    process = worker.process
    process.suspend()  # it waits for messages meanwhile: the first lies in its socket, and in no list any more
    before = messages_sent(arena)
    running = arena.run(pair.root, folder)
    arena.wait(lambda: messages_sent(arena) > before, "the first message")
    arena.client.config_set("maxmemory", "1mb")
    process.resume()
    arena.wait(lambda: refused_for_memory(arena) >= 2, "the taking to be refused")
    dropped = "a message was dropped: Redis is out of memory"
    if long:
        arena.wait(lambda: dropped in arena.log(), "the message to be dropped")
    arena.client.config_set("maxmemory", "0")
    record = arena.finish(running)
    assert running.code == 0, running.told
    assert not worker.has_died
    assert (dropped in arena.log()) == long
    assert_as_undisturbed(pair, open_store(str(folder)), record, arena)


def test_who_watches_outlives_a_redis_that_is_out_of_memory(
    pair: Herd, arena: Arena, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watching writes too: what a run owes is noted as sent again."""
    monkeypatch.setattr(runs, "_RECONCILE_EVERY", 0.0)
    monkeypatch.setattr(runs, "PATIENCE", -1.0)
    configure(arena.redis.url)
    spec = runs.new_run("recompute", source=str(pair.root), store=str(folder))
    arena.ledger.open_run(spec)
    arena.client.config_set("maxmemory", "1mb")
    seen = []

    def look(progress: Progress) -> None:
        seen.append(refused_for_memory(arena))
        if seen[-1] >= 3:
            arena.client.config_set("maxmemory", "0")
            arena.ledger.close_run(spec.run_id, b'{"ended": "by the test"}')

    assert runs.watch(arena.ledger, spec, on_progress=look) == {"ended": "by the test"}
    assert seen[-1] >= 3


def messages_sent(arena: Arena) -> int:
    return int(arena.client.info("commandstats").get("cmdstat_lpush", {}).get("calls", 0))


def refused_for_memory(arena: Arena) -> int:
    errors = arena.client.info("errorstats")
    return int(errors.get("errorstat_OOM", {}).get("count", 0))


# ---- tables that are there already

_QUICK_TABLES = {("training", "refresh")}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if (name, kind) in _QUICK_TABLES else pytest.mark.slow)
        for name in ("training", "summaries", "criteria", "cohort")
        for kind in ("recompute", "refresh")
    ],
)
def test_a_corrupt_table_is_made_anew(name: str, kind: str, pair: Herd, arena: Arena, folder: Path) -> None:
    store = open_store(str(folder))
    lab, subject = pair.subjects[0]
    key = COHORT_KEY if name == "cohort" else getattr(subject_keys(lab, subject), name)
    arena.worker()
    arena.finish(arena.run(pair.root, folder))
    stored = store.get(key)
    assert stored is not None
    store.put(key, stored.data[: len(stored.data) // 2], replaces=stored.etag)
    if name in ("summaries", "criteria") and kind == "refresh":
        # A refresh looks at them only where there is something to do.
        training = store.get(subject_keys(lab, subject).training)
        assert training is not None
        store.put(subject_keys(lab, subject).training, b"PAR1", replaces=training.etag)
    running = arena.run(pair.root, folder, kind)
    record = arena.finish(running)
    assert running.code == 0, running.told
    assert record["failed"] == []
    assert differences(objects(store, pair.subjects), pair.objects) == []
    assert_ledger_agrees(record, arena)


def of_version(data: bytes, version: int) -> bytes:
    """Return a table as a program of another schema version would have written it."""
    table = pq.read_table(pa.BufferReader(data))
    told = table.schema.metadata[b"training_status"]
    changed = told.replace(b'"schema_version":%d' % schema.SCHEMA_VERSION, b'"schema_version":%d' % version)
    assert changed != told
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"training_status": changed}), sink)
    return bytes(sink.getvalue().to_pybytes())


def put_version(store: Store, key: str, version: int) -> bytes:
    stored = store.get(key)
    assert stored is not None
    data = of_version(stored.data, version)
    store.put(key, data, replaces=stored.etag)
    return data


@pytest.mark.parametrize("kind", ["recompute", pytest.param("refresh", marks=pytest.mark.slow)])
def test_an_older_worker_leaves_a_newer_table_alone(kind: str, pair: Herd, arena: Arena, folder: Path) -> None:
    store = open_store(str(folder))
    lab, subject = pair.subjects[0]
    arena.worker()
    arena.finish(arena.run(pair.root, folder))
    newer = put_version(store, subject_keys(lab, subject).training, schema.SCHEMA_VERSION + 1)
    running = arena.run(pair.root, folder, kind)
    record = arena.finish(running)
    assert running.code == 1
    assert [(failed["lab"], failed["subject"]) for failed in record["failed"]] == [(lab, subject)]
    assert f"schema version {schema.SCHEMA_VERSION + 1}" in record["failed"][0]["reason"]
    assert "upgrade" in record["failed"][0]["reason"]
    wanted = {**pair.objects, subject_keys(lab, subject).training: newer}
    assert differences(objects(store, pair.subjects), wanted) == []
    assert_ledger_agrees(record, arena)


@pytest.mark.slow
def test_an_older_worker_leaves_a_newer_cohort_table_alone(pair: Herd, arena: Arena, folder: Path) -> None:
    store = open_store(str(folder))
    arena.worker()
    arena.finish(arena.run(pair.root, folder))
    newer = put_version(store, COHORT_KEY, schema.SCHEMA_VERSION + 1)
    running = arena.run(pair.root, folder)
    arena.wait(lambda: running.has_ended, "the command to end")
    stored = store.get(COHORT_KEY)
    assert stored is not None
    assert stored.data == newer
    assert "upgrade" in running.told


@pytest.mark.slow
def test_a_table_of_an_older_version_is_replaced(pair: Herd, arena: Arena, folder: Path) -> None:
    store = open_store(str(folder))
    lab, subject = pair.subjects[0]
    arena.worker()
    arena.finish(arena.run(pair.root, folder))
    put_version(store, subject_keys(lab, subject).training, schema.SCHEMA_VERSION - 1)
    record = arena.finish(arena.run(pair.root, folder, "refresh"))
    assert (record["counts"]["done"], record["counts"]["unchanged"]) == (1, len(pair.subjects) - 1)
    assert differences(objects(store, pair.subjects), pair.objects) == []


# ---- a disk that hangs, and a task that kills


@pytest.fixture
def hanging(pair: Herd, tmp_path: Path) -> Iterator[Path]:
    """A copy of the tree in which one mouse's latest settings file hangs whoever opens it, as a lost network disk."""
    root = tmp_path / "tree"
    shutil.copytree(pair.root, root)
    lab, subject = pair.subjects[0]
    settings = sorted((root / lab / "Subjects" / subject).rglob("_iblrig_taskSettings.raw.json"))[-1]
    settings.unlink()
    os.mkfifo(settings)
    yield root
    with suppress(OSError):  # whoever still waits for it
        os.close(os.open(settings, os.O_WRONLY | os.O_NONBLOCK))


def test_a_task_that_exceeds_its_limit_is_told(
    pair: Herd, arena: Arena, folder: Path, hanging: Path, tmp_path: Path
) -> None:
    arena.worker(env={"TRAINING_STATUS_TIME_LIMIT": "4"})
    running = arena.run(hanging, folder)
    record = arena.finish(running)
    assert running.code == 1, running.told
    lab, subject = pair.subjects[0]
    assert [(failed["lab"], failed["subject"]) for failed in record["failed"]] == [(lab, subject)]
    assert "time limit" in record["failed"][0]["reason"]
    # Sent again while it hangs, it would take one process of the pool after the other.
    assert "sent again" not in arena.log()
    wanted = undisturbed(hanging, pair.subjects[1:], f"hanging-{tmp_path.name}")
    assert differences(objects(open_store(str(folder)), pair.subjects[1:]), wanted) == []
    assert_ledger_agrees(record, arena)


_KILLS = """
import os, signal, sys

def kill(event, arguments):
    if event == "open" and "{poison}" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

if "worker" in sys.orig_argv:
    sys.addaudithook(kill)
"""


@pytest.mark.slow
def test_a_subject_that_always_kills_its_worker_is_told(pair: Herd, arena: Arena, folder: Path, tmp_path: Path) -> None:
    """A file whose reading kills the process: what a crash in native code, or too little memory, does each time."""
    lab, subject = pair.subjects[0]
    (tmp_path / "shim").mkdir()
    poison = f"{subject}/{sorted(os.listdir(pair.root / lab / 'Subjects' / subject))[-1]}/001/raw_task_data_00/"
    (tmp_path / "shim" / "sitecustomize.py").write_text(_KILLS.format(poison=poison))
    path = os.pathsep.join(filter(None, [str(tmp_path / "shim"), os.environ.get("PYTHONPATH", "")]))
    arena.worker(env={"PYTHONPATH": path})
    running = arena.run(pair.root, folder)
    record = arena.finish(running)
    assert running.code == 1, running.told
    assert [(failed["lab"], failed["subject"]) for failed in record["failed"]] == [(lab, subject)]
    assert record["failed"][0]["reason"]
    assert_ledger_agrees(record, arena)
