"""Runs through Celery and Redis for the benchmarks: services that are watched, and the time from plan to record."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import redis

from bench.measure import Spent, Watch
from scheduler import runs
from scheduler.embedded import find_server
from tests.faults.proxy import S3Proxy, s3_proxy
from tests.processes import answers, process, wait_for
from tests.processes import worker as worker_process
from tests.servers import aws_environment, create_bucket, free_ports, seaweedfs
from workers.app import configure
from workers.broker import connect
from workers.ledger import Ledger
from workers.records import RunSpec

_LONGEST = 3 * 3600.0  # s, of a run


@dataclass(frozen=True, kw_only=True)
class Services:
    """A Redis, and a worker with a pool of processes, that run."""

    broker: str
    client: redis.Redis
    ledger: Ledger
    log: Path  # the worker's
    worker: int  # process ids
    redis: int

    def run(self, kind: Literal["recompute", "refresh"], root: Path, store: str, *, every: float = 0.01) -> Run:
        """Run to the end, and tell what it took from the plan's message to the run's record."""
        self.client.config_resetstat()
        spec = runs.new_run(kind, source=str(root), store=store)
        with Watch({"worker": [self.worker], "redis": [self.redis]}) as watch:
            runs.start(self.ledger, spec)
            wait_for(lambda: self.ledger.is_ended(spec.run_id), "the run to end", _LONGEST, every=every)
        record = self.ledger.record(spec.run_id)
        assert record is not None
        assert record["error"] is None, record["error"]
        assert not record["failed"], record["failed"][:3]
        commands = self.client.info("commandstats")
        return Run(
            spec=spec,
            spent=watch.spent,
            record=record,
            redis_commands=sum(found["calls"] for found in commands.values()),
            redis_peak=self.client.info("memory")["used_memory_peak"] / 2**20,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has ended."""

    spec: RunSpec
    spent: Spent
    record: Mapping[str, Any]
    redis_commands: int
    redis_peak: float  # MB


@contextmanager
def services(folder: Path, workers: int, env: Mapping[str, str] | None = None) -> Iterator[Services]:
    """Run a Redis and a worker, and yield them when the worker takes tasks."""
    with redis_service(folder) as (broker, server), worker_on(broker, server, folder, workers, env) as running:
        yield running


@contextmanager
def worker_on(
    broker: str, server: int, folder: Path, workers: int, env: Mapping[str, str] | None = None
) -> Iterator[Services]:
    """Run a worker on a Redis, whose process id is `server`, and yield both when the worker takes tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    with worker_process(broker, folder / "worker.log", concurrency=workers, env=env) as worker:
        client = connect(broker)
        configure(broker)
        wait_for(lambda: b" ready" in (folder / "worker.log").read_bytes(), "the worker to be ready")
        wait_for(lambda: len(psutil.Process(worker.pid).children()) >= workers, "its pool")
        try:
            yield Services(
                broker=broker,
                client=client,
                ledger=Ledger(client),
                log=folder / "worker.log",
                worker=worker.pid,
                redis=server,
            )
        finally:
            client.close()


@contextmanager
def redis_service(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a Redis as the embedded one runs, on a loopback port; yield its URL and its process id."""
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    command = [find_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    url = f"redis://127.0.0.1:{port}/0"
    with process([*command, "--appendonly", "yes", "--save", ""], folder / "redis.log") as server:
        wait_for(lambda: answers(url), "Redis to answer")
        yield url, server.pid


@contextmanager
def counted_bucket(folder: Path, bucket: str) -> Iterator[tuple[str, S3Proxy]]:
    """Run a real S3 server with a bucket, and a proxy that counts requests; yield the server's address and the proxy.

    This process, and those that it starts, have the test credentials from now on.
    """
    for variable, value in aws_environment(folder).items():
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value
    with seaweedfs(folder / "s3") as server:
        create_bucket(server, bucket)
        with s3_proxy(server) as proxy:
            yield server, proxy


def command_line(arguments: list[str], folder: Path) -> Spent:
    """Run the command to its end, with all that it starts."""
    from tests.processes import COMMAND

    began = time.perf_counter()
    with process([*COMMAND, *arguments], folder / "command.log") as running:
        with Watch({"command": [running.pid]}) as watch:
            code = running.wait()
        assert code == 0, (folder / "command.log").read_text()[-2000:]
    return Spent(wall=time.perf_counter() - began, cpu=watch.spent.cpu, peak=watch.spent.peak)
