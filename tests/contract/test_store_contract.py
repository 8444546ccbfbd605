"""What every store holds to, and what each kind adds: one suite, run on all of them."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest

from core.errors import (
    AccessRefused,
    ConfigurationError,
    InvalidName,
    StoreConflict,
    StoreMissing,
    StoreUnavailable,
)
from core.storage import Store, backoff, open_store, update
from core.storage.base import content_etag
from tests.servers import create_bucket, moto_server, required, seaweedfs

pytestmark = pytest.mark.usefixtures("aws")

PROJECT = Path(__file__).parents[2]
BUCKET = "contract"
WRITERS, STEPS = 8, 10


@dataclass(frozen=True, kw_only=True)
class Place:
    """An empty place, and how to open one more store on it."""

    uri: str
    endpoint: str | None = None

    def open(self) -> Store:
        return open_store(self.uri, endpoint=self.endpoint)


@pytest.fixture(scope="module")
def seaweedfs_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with required(seaweedfs(tmp_path_factory.mktemp("seaweedfs"))) as endpoint:
        create_bucket(endpoint, BUCKET)
        yield endpoint


@pytest.fixture(scope="module")
def moto_endpoint() -> Iterator[str]:
    with required(moto_server()) as endpoint:
        create_bucket(endpoint, BUCKET)
        yield endpoint


@pytest.fixture(params=["memory", "local", "seaweedfs", "moto"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    name = uuid.uuid4().hex
    if request.param == "memory":
        return Place(uri=f"memory://{name}")
    if request.param == "local":
        (tmp_path / name).mkdir()
        return Place(uri=str(tmp_path / name))
    return Place(uri=f"s3://{BUCKET}/{name}", endpoint=request.getfixturevalue(f"{request.param}_endpoint"))


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Root of a folder store."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def _data(store: Store, key: str) -> bytes:
    found = store.get(key)
    assert found is not None
    return found.data


def _one_more(data: bytes | None) -> bytes:
    return str(int(data or b"0") + 1).encode()


class TestObjects:
    def test_a_new_place_is_good_and_empty(self, store: Store) -> None:
        store.check()
        assert store.get("lab/subject/training.pqt") is None
        assert list(store.keys("")) == []

    def test_what_is_put_can_be_got(self, store: Store) -> None:
        etag = store.put("lab/subject.pqt", b"rows", replaces=None)
        found = store.get("lab/subject.pqt")
        assert found is not None
        assert (found.data, found.etag) == (b"rows", etag)

    @pytest.mark.parametrize(
        "data", [b"", bytes(range(256)), b"\r\n\0", random.Random(1).randbytes(1_000_000)], ids=len
    )
    def test_bytes_come_back_as_they_went(self, store: Store, data: bytes) -> None:
        store.put("k", data, replaces=None)
        assert _data(store, "k") == data

    @pytest.mark.parametrize("second", [b"one", b"two"], ids=["same bytes", "other bytes"])
    def test_creating_twice_is_a_conflict(self, store: Store, second: bytes) -> None:
        store.put("k", b"one", replaces=None)
        with pytest.raises(StoreConflict, match="'k'"):
            store.put("k", second, replaces=None)
        assert _data(store, "k") == b"one"

    def test_what_is_discarded_is_gone_and_leaves_nothing(self, store: Store) -> None:
        store.put("kept", b"one", replaces=None)
        store.discard("k")
        store.put("k", b"one", replaces=None)
        store.discard("k")
        assert store.get("k") is None
        assert list(store.keys("")) == ["kept"]
        store.put("k", b"two", replaces=None)
        assert _data(store, "k") == b"two"

    def test_the_version_read_can_be_replaced(self, store: Store) -> None:
        first = store.put("k", b"one", replaces=None)
        second = store.put("k", b"two", replaces=first)
        assert second != first
        assert _data(store, "k") == b"two"
        store.put("k", b"", replaces=second)
        assert _data(store, "k") == b""

    def test_a_version_that_is_past_cannot_be_replaced(self, store: Store) -> None:
        first = store.put("k", b"one", replaces=None)
        store.put("k", b"two", replaces=first)
        with pytest.raises(StoreConflict, match="'k'"):
            store.put("k", b"three", replaces=first)
        assert _data(store, "k") == b"two"

    def test_the_version_of_another_object_cannot_be_replaced(self, store: Store) -> None:
        store.put("a", b"one", replaces=None)
        other = store.put("b", b"two", replaces=None)
        with pytest.raises(StoreConflict):
            store.put("a", b"three", replaces=other)
        assert _data(store, "a") == b"one"

    def test_an_object_that_is_not_there_cannot_be_replaced(self, store: Store) -> None:
        etag = store.put("a", b"one", replaces=None)
        with pytest.raises(StoreConflict):
            store.put("b", b"two", replaces=etag)
        assert store.get("b") is None

    def test_stores_on_one_place_see_each_other(self, place: Place) -> None:
        one, other = place.open(), place.open()
        first = one.put("k", b"one", replaces=None)
        other.put("k", b"two", replaces=first)
        assert _data(one, "k") == b"two"
        with pytest.raises(StoreConflict):
            one.put("k", b"three", replaces=first)
        assert list(one.keys("")) == list(other.keys("")) == ["k"]

    def test_a_reader_never_sees_a_part(self, place: Place) -> None:
        size, rounds = 200_000, 15
        store = place.open()
        etag = store.put("k", b"0" * size, replaces=None)
        seen: list[bytes] = []
        done = threading.Event()

        def read() -> None:
            reader = place.open()
            while not done.is_set():
                seen.append(_data(reader, "k"))

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            try:
                for digit in range(rounds):
                    etag = store.put("k", b"%d" % (digit % 10) * size, replaces=etag)
            finally:
                done.set()
            for reader in readers:
                reader.result()
        assert all(len(data) == size and len(set(data)) == 1 for data in seen)


class TestKeys:
    NAMES = (
        "a/x",
        "a-b/x",
        "a.b",
        "a/b/c",
        "a/b+c",
        "a/b c@1",
        "A",
        "_a/y",
        "aa/z",
        "resources/training/lab/SWC_054/training.pqt",
    )

    def test_all_in_order(self, store: Store) -> None:
        for name in self.NAMES:
            store.put(name, b"", replaces=None)
        assert list(store.keys("")) == sorted(self.NAMES)

    @pytest.mark.parametrize("prefix", ["a", "a/", "a/b", "a/b/", "resources/training/la", "b", "a/b/c/", "A"])
    def test_only_those_that_begin_so(self, store: Store, prefix: str) -> None:
        for name in self.NAMES:
            store.put(name, b"", replaces=None)
        assert list(store.keys(prefix)) == sorted(name for name in self.NAMES if name.startswith(prefix))

    def test_only_those_of_this_place(self, place: Place) -> None:
        place.open().put("k", b"", replaces=None)
        neighbour = open_store(place.uri + "-2", endpoint=place.endpoint)
        neighbour.check()
        assert list(neighbour.keys("")) == []

    @pytest.mark.parametrize("place", ["memory", "moto"], indirect=True)
    def test_more_than_a_page(self, place: Place) -> None:
        names = [f"runs/{number:05}.json" for number in range(1_050)]
        store = place.open()
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda name: store.put(name, b"", replaces=None), names):
                pass
        assert list(store.keys("runs/")) == names

        requests = _count_listings(store)
        assert list(islice(store.keys("runs/"), 3)) == names[:3]
        assert len(requests) <= 1, "the first keys ask for the first page alone"

    BAD = (
        "",
        "/",
        "/etc/passwd",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "../b",
        "a/./b",
        "a\\b",
        "a\nb",
        "a\n",
        "a\0",
        "é",
        "a:b",
        "~a",
        "a?b",
        "x" * 256,
        "/".join("x" * 200 for _ in range(6)),
        ".locks/a",
    )

    @pytest.mark.parametrize("key", BAD, ids=repr)
    @pytest.mark.parametrize("place", ["memory", "local"], indirect=True)
    def test_what_cannot_be_a_key(self, store: Store, key: str) -> None:
        for use in (
            lambda: store.get(key),
            lambda: store.put(key, b"", replaces=None),
            lambda: update(store, key, _one_more),
        ):
            with pytest.raises(InvalidName) as error:
                use()
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize("prefix", ["/", "/a", "a//", "../", "a/../", "./", "a\\", "a\n", "*", ".locks/"])
    @pytest.mark.parametrize("place", ["memory", "local"], indirect=True)
    def test_what_no_key_can_begin_with(self, store: Store, prefix: str) -> None:
        with pytest.raises(InvalidName):
            store.keys(prefix)


def _count_listings(store: Store) -> list[object]:
    """List that grows by one with each request for a page; empty for ever where there are no requests."""
    requests: list[object] = []
    client = getattr(store, "_client", None)
    if client is not None:
        client.meta.events.register("before-call.s3.ListObjectsV2", lambda **of: requests.append(of["params"]))
    return requests


class TestUpdate:
    def test_says_whether_it_wrote(self, store: Store) -> None:
        assert update(store, "k", lambda data: None) is False
        assert store.get("k") is None
        assert update(store, "k", _one_more) is True
        assert update(store, "k", _one_more) is True
        assert update(store, "k", lambda data: b"2") is False
        assert update(store, "k", lambda data: None) is False
        assert _data(store, "k") == b"2"

    def test_an_empty_object_is_not_a_missing_one(self, store: Store) -> None:
        assert update(store, "k", lambda data: b"") is True
        assert update(store, "k", lambda data: b"was none" if data is None else data) is False

    def test_computes_again_from_what_another_wrote(self, place: Place) -> None:
        store, other = place.open(), place.open()
        seen: list[bytes | None] = []

        def change(data: bytes | None) -> bytes:
            seen.append(data)
            if len(seen) == 1:
                other.put("k", b"other's ", replaces=None)
            return (data or b"") + b"mine"

        assert update(store, "k", change) is True
        assert seen == [None, b"other's "]
        assert _data(store, "k") == b"other's mine"

    def test_gives_up_where_others_always_win(self, place: Place) -> None:
        store, other = place.open(), place.open()
        calls: list[bytes | None] = []

        def change(data: bytes | None) -> bytes:
            calls.append(data)
            update(other, "k", _one_more)
            return b"mine"

        with pytest.raises(StoreConflict, match="3 attempts"):
            update(store, "k", change, attempts=3)
        assert calls == [None, b"1", b"2"]
        assert _data(store, "k") == b"3"

    @pytest.mark.parametrize("place", ["memory"], indirect=True)
    def test_needs_an_attempt(self, store: Store) -> None:
        with pytest.raises(ValueError, match="attempts"):
            update(store, "k", _one_more, attempts=0)

    def test_a_change_that_fails_writes_nothing(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError):
            update(store, "k", lambda data: bytes(1 // 0))
        assert store.get("k") is None

    def test_no_step_of_many_threads_is_lost(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        def slow_etag(data: bytes) -> str:
            time.sleep(0.0005)  # in memory, threads would hardly ever meet between the comparison and the write
            return content_etag(data)

        monkeypatch.setattr("core.storage.memory.content_etag", slow_etag)

        def work(store: Store) -> None:
            for _ in range(STEPS):
                # so many attempts that only losing a step can fail the test, not a slow machine
                assert update(store, "counter", _one_more, attempts=1_000)

        with ThreadPoolExecutor(WRITERS) as pool:
            for done in [pool.submit(work, place.open()) for _ in range(WRITERS)]:
                done.result()
        assert _data(place.open(), "counter") == str(WRITERS * STEPS).encode()

    def test_pauses_grow_to_a_bound_and_differ(self) -> None:
        pauses = [[backoff(attempt, random.Random(seed)) for seed in range(200)] for attempt in range(12)]
        highest = [max(of_attempt) for of_attempt in pauses]
        assert highest[:5] == sorted(highest[:5])
        assert highest[4] > 8 * highest[0] > 0
        assert all(0 <= pause <= 1 for of_attempt in pauses for pause in of_attempt)
        assert all(len(set(of_attempt)) > 100 for of_attempt in pauses)
        assert backoff(3, random.Random(5)) == backoff(3, random.Random(5))
        assert backoff(100_000, random.Random(5)) <= 1


class TestFolder:
    """What only a folder can meet."""

    def test_check_makes_the_folder_but_not_its_parent(self, tmp_path: Path) -> None:
        open_store(str(tmp_path / "new")).check()
        assert (tmp_path / "new").is_dir()
        with pytest.raises(StoreMissing, match="no such folder"):
            open_store(str(tmp_path / "none" / "new")).check()
        (tmp_path / "file").touch()
        with pytest.raises(StoreMissing, match="no such folder"):
            open_store(str(tmp_path / "file")).check()

    def test_a_folder_that_is_gone_is_not_an_empty_one(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path / "gone"))
        for use in (
            lambda: store.get("k"),
            lambda: store.put("k", b"", replaces=None),
            lambda: list(store.keys("")),
        ):
            with pytest.raises(StoreMissing):
                use()
        assert not (tmp_path / "gone").exists()

    def test_no_step_of_many_processes_is_lost(self, folder: Path) -> None:
        program = (
            "import sys; from core.storage import open_store, update\n"
            f"for _ in range({STEPS}):\n"
            "    update(open_store(sys.argv[1]), 'counter', lambda data: b'%d' % (int(data or 0) + 1),"
            " attempts=1_000)\n"
        )
        workers = [_python(program, folder) for _ in range(4)]
        assert [worker.wait() for worker in workers] == [0, 0, 0, 0]
        assert (folder / "counter").read_bytes() == b"%d" % (4 * STEPS)

    def test_a_writer_killed_before_the_rename_leaves_the_old_object(self, folder: Path) -> None:
        store = open_store(str(folder))
        first = store.put("lab/k", b"old", replaces=None)
        program = (
            "import os, signal, sys; from core.storage import open_store\n"
            "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
            "open_store(sys.argv[1]).put('lab/k', b'new', replaces=sys.argv[2])\n"
        )
        assert _python(program, folder, first).wait() != 0
        assert len(list((folder / "lab").iterdir())) == 2, "the killed writer left its temporary file"
        assert _data(store, "lab/k") == b"old"
        assert list(store.keys("")) == ["lab/k"]
        store.put("lab/k", b"newer", replaces=first)
        assert [path.name for path in (folder / "lab").iterdir()] == ["k"], "the next writer tidied up"

    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (errno.ENOSPC, StoreUnavailable),
            (errno.EIO, StoreUnavailable),
            (errno.EROFS, AccessRefused),
            (errno.EACCES, AccessRefused),
        ],
    )
    def test_a_failed_write_leaves_the_old_object_and_nothing_else(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
    ) -> None:
        store = open_store(str(folder))
        first = store.put("k", b"old", replaces=None)

        def fail(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(expected) as error:
                store.put("k", b"new", replaces=first)
        assert os.strerror(number) in str(error.value)
        assert "\n" not in str(error.value)
        assert sorted(path.name for path in folder.iterdir()) == [".locks", "k"]
        assert _data(store, "k") == b"old"

    def test_a_lock_that_stays_held_is_said(self, folder: Path) -> None:
        from core.storage.local import LocalStore

        holding, release = threading.Event(), threading.Event()
        store = LocalStore(folder, lock_timeout=0.05)

        def hold(number: int) -> None:
            holding.set()
            release.wait()

        with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", hold)
            slow = pool.submit(store.put, "k", b"one", replaces=None)
            try:
                assert holding.wait(30)
                with pytest.raises(StoreUnavailable, match="another writer"):
                    store.put("k", b"two", replaces=None)
            finally:
                release.set()
            slow.result()
        assert _data(store, "k") == b"one"

    def test_locks_and_strangers_are_not_listed(self, folder: Path) -> None:
        store = open_store(str(folder))
        store.put("lab/k", b"", replaces=None)
        (folder / "lab" / "~copy of k").touch()
        (folder / "lab" / "é").touch()
        assert list(store.keys("")) == ["lab/k"]
        assert (folder / ".locks").is_dir()

    def test_links_do_not_lead_out(self, folder: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "k").write_bytes(b"secret")
        (folder / "lab").symlink_to(outside, target_is_directory=True)
        (folder / "k").symlink_to(outside / "k")
        store = open_store(str(folder))
        for key in ("lab/k", "lab/new", "k"):
            with pytest.raises(InvalidName, match="symbolic link"):
                store.get(key)
            with pytest.raises(InvalidName, match="symbolic link"):
                store.put(key, b"", replaces=None)
        assert list(store.keys("")) == []
        assert sorted(path.name for path in outside.iterdir()) == ["k"]

    def test_the_folder_itself_may_be_a_link(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        store = open_store(str(tmp_path / "link"))
        store.put("lab/k", b"one", replaces=None)
        assert (folder / "lab" / "k").read_bytes() == b"one"

    def test_an_object_cannot_be_where_a_folder_is(self, folder: Path) -> None:
        store = open_store(str(folder))
        store.put("a/b", b"", replaces=None)
        assert store.get("a") is None
        assert store.get("a/b/c") is None
        for key in ("a", "a/b/c"):
            with pytest.raises(InvalidName, match="cannot hold"):
                store.put(key, b"", replaces=None)
        assert list(store.keys("")) == ["a/b"]

    def test_others_of_the_group_can_read_what_is_written(self, folder: Path) -> None:
        before = os.umask(0o022)
        try:
            open_store(str(folder)).put("k", b"", replaces=None)
        finally:
            os.umask(before)
        assert (folder / "k").stat().st_mode & 0o777 == 0o644


def _python(program: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )


class TestOpenStore:
    @pytest.mark.parametrize(
        ("uri", "shown"),
        [
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/some/prefix", "s3://bucket/some/prefix"),
            ("S3://bucket/some/prefix/", "s3://bucket/some/prefix"),
            ("memory://name", "memory://name"),
        ],
    )
    def test_names(self, uri: str, shown: str) -> None:
        store = open_store(uri)
        assert store.uri == shown
        assert shown in repr(store)
        assert open_store(store.uri).uri == shown

    def test_names_of_folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "my store é"
        folder.mkdir()
        open_store(str(folder)).put("k", b"one", replaces=None)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        names = ("my store é", "./my store é", "~/my store é", folder.as_uri(), f"file://localhost{folder}")
        for name in names:
            store = open_store(name)
            assert _data(store, "k") == b"one"
            assert store.uri == folder.as_uri()

    @pytest.mark.parametrize(
        "uri",
        [
            "",
            " ",
            "s3://",
            "s3:///key",
            "s3://bu cket",
            "s3://bucket//a",
            "s3://bucket/../a",
            "s3://bucket/a?b",
            "s3:/bucket",
            "s3://bucket/a\nb",
            "file://",
            "file:///",
            "file://host/folder",
            "file:///folder?a",
            "memory://",
            "memory://a/b",
            "gs://bucket",
            "https://user:hunter2@host/bucket?X-Amz-Signature=hunter2",
            "s3://user:hunter2@bucket/prefix",
            "~no-such-user-at-all/folder",
        ],
    )
    def test_what_is_no_store(self, uri: str) -> None:
        with pytest.raises(ConfigurationError) as error:
            open_store(uri)
        assert "\n" not in str(error.value)
        assert "hunter2" not in "".join(traceback.format_exception(error.value)).replace(repr(uri), "")

    def test_a_memory_is_shared_under_its_name_alone(self) -> None:
        name = uuid.uuid4().hex
        open_store(f"memory://{name}").put("k", b"one", replaces=None)
        assert open_store(f"memory://{name}").get("k") is not None
        assert open_store(f"memory://{name}x").get("k") is None

    @pytest.mark.parametrize("uri", ["memory://name", "."])
    def test_boto_is_not_imported_for_others(self, uri: str) -> None:
        program = (
            "import sys; from core.storage import open_store; open_store(sys.argv[1]).check()\n"
            "assert not {'boto3', 'botocore', 'urllib3'} & set(sys.modules)\n"
        )
        assert _python(program, uri).wait() == 0
