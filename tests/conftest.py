from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import redis
from hypothesis import settings

from core.simulation.tree import simulate
from tests.processes import redis_server
from tests.servers import aws_environment
from tests.standin import StandIn, complete_tables, write_tree
from workers.app import configure
from workers.broker import connect
from workers.ledger import Ledger

# No test asserts a time, and hypothesis would: 200 ms an example, on a machine that may be busy.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def broker(redis_url: str) -> str:
    """The URL of a Redis that is empty."""
    client = connect(redis_url)
    client.flushall()
    client.close()
    return redis_url


@pytest.fixture
def redis_client(broker: str) -> Iterator[redis.Redis]:
    client = connect(broker)
    yield client
    client.close()


@pytest.fixture
def ledger(broker: str, redis_client: redis.Redis) -> Ledger:
    """The ledger in that Redis, to which this process sends its messages too."""
    configure(broker)
    return Ledger(redis_client)


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process, and those that it starts, the credentials of the test server and nothing else of AWS."""
    for name, value in aws_environment(tmp_path).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, with the caches in it: one-api writes there."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return folder


@pytest.fixture(scope="session")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labs with two mice each, over twelve days; not to be changed by a test."""
    root = tmp_path_factory.mktemp("mice") / "tree"
    simulate(root, labs=2, subjects=2, days=12, seed=3)
    return root


@pytest.fixture
def standin(tmp_path: Path) -> StandIn:
    """What stands in for ibllib."""
    return StandIn(tmp_path / "standin")


@pytest.fixture
def standin_here(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, in this process."""
    import sys

    def names() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "ibllib"]

    for name in names():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(standin.folder))
    yield standin
    for name in names():
        del sys.modules[name]


@pytest.fixture
def raw_tree(tmp_path: Path) -> Path:
    """Three mice; of two of them a day has raw files alone."""
    return write_tree(tmp_path / "tree")


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """The training tables of those mice once all is extracted; not to be changed by a test."""
    return complete_tables(tmp_path_factory.mktemp("complete"))
