from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings

from core.simulation.tree import simulate
from tests.processes import redis_server
from workers.broker import connect

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


@pytest.fixture(scope="session")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labs with two mice each, over twelve days; not to be changed by a test."""
    root = tmp_path_factory.mktemp("mice") / "tree"
    simulate(root, labs=2, subjects=2, days=12, seed=3)
    return root
