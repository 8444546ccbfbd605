"""What an S3 store makes of everything that can go wrong between it and a real server.

Faults of the network are made by a proxy in front of the server, so that what the server did and what its client
saw of it can differ, as they do when an answer gets lost.
"""

from __future__ import annotations

import http.client
import socket
import threading
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.errors import (
    AccessRefused,
    ConfigurationError,
    MissingCredentials,
    StoreConflict,
    StoreMissing,
    StoreUnavailable,
    TrainingStatusError,
)
from core.storage import Store, open_store, update
from core.storage.s3 import S3Store
from tests.servers import create_bucket, free_ports, required, seaweedfs

BUCKET = "errors"
SECRET = "hunter2"  # in no message, whatever goes wrong

USES: dict[str, Callable[[Store], object]] = {
    "check": lambda store: store.check(),
    "get": lambda store: store.get("k"),
    "create": lambda store: store.put("k", b"one", replaces=None),
    "replace": lambda store: store.put("k", b"one", replaces='"00000000000000000000000000000000"'),
    "discard": lambda store: store.discard("k"),
    "keys": lambda store: list(store.keys("")),
}


class Fault(Enum):
    """What happens to one request."""

    NEVER_SENT = auto()  # the connection ends before the server has seen the request
    ANSWER_LOST = auto()  # the server has done it; the connection ends before the answer
    HALF_AN_ANSWER = auto()  # the connection ends in the middle of the body
    DAMAGED = auto()  # a byte of the body is another
    NO_ANSWER = auto()  # nothing comes, and the connection stays


@dataclass(frozen=True)
class Says:
    """An answer in place of the server's."""

    status: int
    code: str = ""  # of S3; where there is none, the answer is a page for people


class Proxy:
    """Passes requests on to a server, except those that meet a fault."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.faults: deque[Fault | Says | None] = deque()  # of the next requests, in their order
        self.seen: list[str] = []  # methods of the requests so far
        self.meanwhile: Callable[[], object] = lambda: None  # called while an answer gets lost
        self.released = threading.Event()  # ends what NO_ANSWER holds
        self.endpoint = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _handle(self) -> None:
        with suppress(OSError):  # the client may be gone
            self._answer()
        self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_DELETE = _handle

    def _answer(self) -> None:
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy.seen.append(self.command)
        fault = proxy.faults.popleft() if proxy.faults else None
        if isinstance(fault, Says):
            page = f"<Error><Code>{fault.code}</Code><Message>{SECRET}</Message></Error>" if fault.code else SECRET
            self._send(fault.status, [("Content-Type", "application/xml")], page.encode())
        elif fault is Fault.NEVER_SENT:
            self._hang_up()
        elif fault is Fault.NO_ANSWER:
            proxy.released.wait()
        else:
            status, headers, answer = self._pass_on(body)
            if fault is Fault.ANSWER_LOST:
                proxy.meanwhile()
                self._hang_up()
            elif fault is Fault.HALF_AN_ANSWER:
                self._send(status, headers, answer, sent=answer[: len(answer) // 2])
                self._hang_up()
            else:
                if fault is Fault.DAMAGED:
                    answer = bytes([answer[0] ^ 1]) + answer[1:]
                self._send(status, headers, answer)

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # the host too: it is signed
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            kept = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server")
            ]
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, *, sent: bytes | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else sent)

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def _in_front_of(upstream: str) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False  # so that leaving the block waits for them
        proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.released.set()
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with required(seaweedfs(tmp_path_factory.mktemp("seaweedfs"))) as endpoint:
        create_bucket(endpoint, BUCKET)
        yield endpoint


@pytest.fixture(autouse=True)
def aws(aws: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


@pytest.fixture
def proxy(endpoint: str) -> Iterator[Proxy]:
    with _in_front_of(endpoint) as proxy:
        yield proxy


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def direct(endpoint: str, prefix: str) -> Store:
    """The place as it is, past the proxy."""
    return S3Store(BUCKET, prefix, endpoint=endpoint)


@pytest.fixture
def store(proxy: Proxy, prefix: str) -> Store:
    """The same place, through the proxy."""
    return S3Store(BUCKET, prefix, endpoint=proxy.endpoint)


@pytest.fixture
def hasty(proxy: Proxy, prefix: str) -> Store:
    """The same place, through the proxy, with one try of each call."""
    return S3Store(BUCKET, prefix, endpoint=proxy.endpoint, read_timeout=0.2, attempts=1)


@contextmanager
def _raises(kind: type[TrainingStatusError], match: str | None = None) -> Iterator[None]:
    """Expect an error of just this kind that says it in one line and gives nothing away."""
    with pytest.raises(kind, match=match) as error:
        yield
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    assert SECRET not in "".join(traceback.format_exception(error.value))


class TestPlace:
    @pytest.mark.parametrize("use", ["check", "get", "create", "keys"])
    def test_no_bucket(self, endpoint: str, use: str) -> None:
        with _raises(StoreMissing, match="no bucket 'nowhere'.*create it"):
            USES[use](open_store("s3://nowhere/prefix", endpoint=endpoint))

    @pytest.mark.parametrize("use", USES)
    def test_no_server(self, use: str) -> None:
        (port,) = free_ports(1)
        with _raises(StoreUnavailable, match=rf"http://127\.0\.0\.1:{port}"):
            USES[use](S3Store(BUCKET, endpoint=f"http://127.0.0.1:{port}", attempts=1))

    @pytest.mark.parametrize(
        "endpoint",
        [
            "localhost:9000",
            "ftp://localhost",
            "http://",
            "http://host:port",
            "http://[::1",
            f"http://user:{SECRET}@127.0.0.1:9000",
            f"http://127.0.0.1:9000/?X-Amz-Signature={SECRET}",
        ],
    )
    def test_no_endpoint(self, endpoint: str, aws: pytest.MonkeyPatch) -> None:
        with _raises(ConfigurationError, match="endpoint"):
            open_store("s3://bucket", endpoint=endpoint)
        aws.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        with _raises(ConfigurationError, match="endpoint"):
            open_store("s3://bucket")

    def test_no_region(self) -> None:
        with _raises(ConfigurationError, match="region"):
            open_store("s3://bucket", region="not a region")


class TestCredentials:
    @pytest.mark.parametrize("use", USES)
    def test_none(self, endpoint: str, aws: pytest.MonkeyPatch, use: str) -> None:
        aws.delenv("AWS_ACCESS_KEY_ID")
        aws.delenv("AWS_SECRET_ACCESS_KEY")
        with _raises(MissingCredentials, match="set AWS_ACCESS_KEY_ID"):
            USES[use](open_store(f"s3://{BUCKET}", endpoint=endpoint))

    def test_half(self, endpoint: str, aws: pytest.MonkeyPatch) -> None:
        aws.delenv("AWS_SECRET_ACCESS_KEY")
        with _raises(MissingCredentials, match="Partial"):
            open_store(f"s3://{BUCKET}", endpoint=endpoint).check()

    def test_profile_of_no_such_name(self, endpoint: str, aws: pytest.MonkeyPatch) -> None:
        with _raises(MissingCredentials, match="no profile 'lab'"):
            open_store(f"s3://{BUCKET}", endpoint=endpoint, profile="lab")
        aws.setenv("AWS_PROFILE", "lab")
        with _raises(MissingCredentials, match="AWS_PROFILE"):
            open_store(f"s3://{BUCKET}", endpoint=endpoint)

    def test_profile(self, endpoint: str, prefix: str, aws: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "credentials").write_text("[lab]\naws_access_key_id=test\naws_secret_access_key=test\n")
        aws.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        aws.delenv("AWS_ACCESS_KEY_ID")
        aws.delenv("AWS_SECRET_ACCESS_KEY")
        store = open_store(f"s3://{BUCKET}/{prefix}", endpoint=endpoint, profile="lab", region="eu-west-2")
        assert update(store, "k", lambda data: b"one") is True

    @pytest.mark.parametrize("use", USES)
    @pytest.mark.parametrize(
        ("access_key", "secret_key", "why"),
        [(SECRET, "test", "access key is not known"), ("test", SECRET, "secret key is not the one")],
        ids=["unknown access key", "wrong secret key"],
    )
    def test_refused(
        self, endpoint: str, aws: pytest.MonkeyPatch, use: str, access_key: str, secret_key: str, why: str
    ) -> None:
        aws.setenv("AWS_ACCESS_KEY_ID", access_key)
        aws.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
        with _raises(AccessRefused, match=why):
            USES[use](open_store(f"s3://{BUCKET}", endpoint=endpoint))

    def test_who_may_only_read_cannot_write(
        self, endpoint: str, direct: Store, prefix: str, aws: pytest.MonkeyPatch
    ) -> None:
        direct.put("k", b"one", replaces=None)
        self._become(aws, "reader")
        store = open_store(f"s3://{BUCKET}/{prefix}", endpoint=endpoint)
        store.check()
        assert list(store.keys("")) == ["k"]
        found = store.get("k")
        assert found is not None
        with _raises(AccessRefused, match="s3:PutObject"):
            store.put("k", b"two", replaces=found.etag)

    def test_no_right_is_needed_beyond_reading_writing_and_listing(
        self, endpoint: str, prefix: str, aws: pytest.MonkeyPatch
    ) -> None:
        self._become(aws, "worker")
        store = open_store(f"s3://{BUCKET}/{prefix}", endpoint=endpoint)
        store.check()
        assert update(store, "k", lambda data: b"one") is True
        assert update(store, "k", lambda data: b"two") is True
        with _raises(StoreConflict):
            store.put("k", b"three", replaces=None)
        assert list(store.keys("")) == ["k"]

    def _become(self, aws: pytest.MonkeyPatch, who: str) -> None:
        aws.setenv("AWS_ACCESS_KEY_ID", who)
        aws.setenv("AWS_SECRET_ACCESS_KEY", who)

    def test_refusal_of_a_missing_object_hints_at_listing(self, store: Store, proxy: Proxy) -> None:
        proxy.faults.append(Says(403, "AccessDenied"))
        with _raises(AccessRefused, match="without s3:ListBucket"):
            store.get("k")


class TestAnswers:
    """What each answer of a server becomes."""

    @pytest.mark.parametrize(
        ("says", "kind"),
        [
            (Says(500, "InternalError"), StoreUnavailable),
            (Says(500), StoreUnavailable),
            (Says(502), StoreUnavailable),
            (Says(503, "SlowDown"), StoreUnavailable),
            (Says(503, "ServiceUnavailable"), StoreUnavailable),
            (Says(429), StoreUnavailable),
            (Says(400, "RequestTimeout"), StoreUnavailable),
            (Says(400, "BadDigest"), StoreUnavailable),
            (Says(403, "AccessDenied"), AccessRefused),
            (Says(403, "RequestTimeTooSkewed"), AccessRefused),
            (Says(403), AccessRefused),
            (Says(401), AccessRefused),
            (Says(400, "ExpiredToken"), AccessRefused),
            (Says(400, "InvalidToken"), AccessRefused),
            (Says(404, "NoSuchBucket"), StoreMissing),
            (Says(400, "InvalidBucketName"), StoreMissing),
            (Says(501, "NotImplemented"), ConfigurationError),
            (Says(400, "InvalidRequest"), ConfigurationError),
            (Says(405), ConfigurationError),
        ],
        ids=lambda value: f"{value.status} {value.code}".strip() if isinstance(value, Says) else "",
    )
    @pytest.mark.parametrize("use", ["check", "get", "create", "replace", "keys"])
    def test_error(self, hasty: Store, proxy: Proxy, says: Says, kind: type[TrainingStatusError], use: str) -> None:
        proxy.faults.append(says)
        with _raises(kind, match=says.code or str(says.status)):
            USES[use](hasty)

    @pytest.mark.parametrize("use", ["check", "get", "create", "replace", "keys"])
    def test_other_region(self, hasty: Store, proxy: Proxy, use: str) -> None:
        proxy.faults.extend([Says(400, "AuthorizationHeaderMalformed")] * 5)  # the client looks for the region
        with _raises(ConfigurationError, match="set the region"):
            USES[use](hasty)

    @pytest.mark.parametrize("use", ["check", "create", "keys"])
    def test_a_page_that_is_not_of_s3_is_not_a_missing_object(self, hasty: Store, proxy: Proxy, use: str) -> None:
        proxy.faults.append(Says(404))
        with _raises(ConfigurationError, match="is the endpoint an S3 server"):
            USES[use](hasty)

    def test_a_404_without_its_reason_is_no_missing_object_and_may_pass(self, hasty: Store, proxy: Proxy) -> None:
        """S3's own answer that broke off looks like this; whether the endpoint is one was seen by `check`."""
        proxy.faults.append(Says(404))
        with _raises(StoreUnavailable, match="not why"):
            hasty.get("k")

    @pytest.mark.parametrize("use", ["check", "keys"])
    def test_a_good_answer_that_is_not_of_s3(self, hasty: Store, proxy: Proxy, use: str) -> None:
        proxy.faults.append(Says(200))
        with _raises(StoreUnavailable):
            USES[use](hasty)

    @pytest.mark.parametrize(
        ("says", "use"),
        [
            (Says(412, "PreconditionFailed"), "create"),
            (Says(412, "PreconditionFailed"), "replace"),
            (Says(409, "ConditionalRequestConflict"), "create"),
            (Says(409, "ConditionalRequestConflict"), "replace"),
            (Says(404, "NoSuchKey"), "replace"),
        ],
    )
    def test_conflict(self, hasty: Store, proxy: Proxy, says: Says, use: str) -> None:
        proxy.faults.append(says)
        with _raises(StoreConflict, match="read it again"):
            USES[use](hasty)

    @pytest.mark.parametrize("first", [Says(500, "InternalError"), Says(503, "ServiceUnavailable"), Says(503)])
    def test_a_fault_that_passes_is_not_seen(self, store: Store, proxy: Proxy, first: Says) -> None:
        proxy.faults.extend([first, None, first, first, None, first, None, first, None])
        store.check()
        store.put("k", b"one", replaces=None)
        found = store.get("k")
        assert found is not None
        assert found.data == b"one"
        assert list(store.keys("")) == ["k"]
        assert not proxy.faults

    def test_tries_are_counted_in_all(self, proxy: Proxy, prefix: str) -> None:
        proxy.faults.extend([Says(500)] * 5)
        with _raises(StoreUnavailable):
            S3Store(BUCKET, prefix, endpoint=proxy.endpoint, attempts=2).get("k")
        assert proxy.seen == ["GET", "GET"]


class TestConnection:
    @pytest.mark.parametrize("use", USES)
    @pytest.mark.parametrize("fault", [Fault.NEVER_SENT, Fault.NO_ANSWER], ids=lambda fault: fault.name)
    def test_no_answer(self, hasty: Store, proxy: Proxy, use: str, fault: Fault) -> None:
        proxy.faults.append(fault)
        with _raises(StoreUnavailable, match=r"no whole answer from http://127\.0\.0\.1:"):
            USES[use](hasty)

    def test_a_try_without_answer_is_followed_by_another(self, proxy: Proxy, prefix: str) -> None:
        store = S3Store(BUCKET, prefix, endpoint=proxy.endpoint, read_timeout=1, attempts=3)
        proxy.faults.extend([Fault.NEVER_SENT, Fault.NO_ANSWER])
        assert store.get("k") is None
        assert proxy.seen == ["GET"] * 3

    @pytest.mark.parametrize("size", [2, 300_000])
    def test_half_an_object_is_not_an_object(self, hasty: Store, direct: Store, proxy: Proxy, size: int) -> None:
        direct.put("k", b"x" * size, replaces=None)
        proxy.faults.append(Fault.HALF_AN_ANSWER)
        with _raises(StoreUnavailable, match="'k'"):
            hasty.get("k")

    @pytest.mark.parametrize("use", ["check", "keys"])
    def test_half_a_listing_is_not_a_listing(self, hasty: Store, direct: Store, proxy: Proxy, use: str) -> None:
        direct.put("k", b"one", replaces=None)
        proxy.faults.append(Fault.HALF_AN_ANSWER)
        with _raises(StoreUnavailable):
            USES[use](hasty)

    def test_damage_on_the_way_is_found(self, hasty: Store, direct: Store, proxy: Proxy) -> None:
        direct.put("k", b"one", replaces=None)
        proxy.faults.append(Fault.DAMAGED)
        with _raises(StoreUnavailable, match="Checksum"):
            hasty.get("k")


class TestLostAnswer:
    """A write that the server made and the client heard nothing of."""

    def test_a_new_object_is_known_as_our_own(self, store: Store, direct: Store, proxy: Proxy) -> None:
        proxy.faults.append(Fault.ANSWER_LOST)
        etag = store.put("k", b"one", replaces=None)
        assert proxy.seen == ["PUT", "PUT", "HEAD"]
        found = direct.get("k")
        assert found is not None
        assert (found.data, found.etag) == (b"one", etag)

    def test_a_new_version_is_known_as_our_own(self, store: Store, direct: Store, proxy: Proxy) -> None:
        first = direct.put("k", b"one", replaces=None)
        proxy.faults.append(Fault.ANSWER_LOST)
        second = store.put("k", b"two", replaces=first)
        assert store.put("k", b"three", replaces=second) != second

    def test_a_step_is_made_once(self, store: Store, proxy: Proxy) -> None:
        for _ in range(3):
            proxy.faults.extend([None, Fault.ANSWER_LOST])
            assert update(store, "k", lambda data: b"%d" % (int(data or 0) + 1)) is True
        found = store.get("k")
        assert found is not None
        assert found.data == b"3"

    def test_the_same_bytes_of_another_are_not_our_own(self, store: Store, direct: Store, proxy: Proxy) -> None:
        first = direct.put("k", b"one", replaces=None)
        proxy.faults.append(Fault.NEVER_SENT)
        direct.put("k", b"two", replaces=first)
        with _raises(StoreConflict):
            store.put("k", b"two", replaces=first)

    def test_what_another_wrote_since_stays(self, store: Store, direct: Store, proxy: Proxy) -> None:
        proxy.meanwhile = lambda: update(direct, "k", lambda data: (data or b"") + b" and theirs")
        proxy.faults.append(Fault.ANSWER_LOST)
        with _raises(StoreConflict):
            store.put("k", b"ours", replaces=None)
        found = direct.get("k")
        assert found is not None
        assert found.data == b"ours and theirs"

    def test_not_knowing_is_not_a_conflict(self, hasty: Store, proxy: Proxy) -> None:
        proxy.faults.extend([Says(412, "PreconditionFailed"), Says(503)])
        with _raises(StoreUnavailable):
            hasty.put("k", b"one", replaces=None)
        assert proxy.seen == ["PUT", "HEAD"]
