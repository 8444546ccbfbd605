from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from core.storage import Store, open_store
from tests.faults.herd import write_herd
from tests.faults.services import Arena, Herd
from tests.servers import create_bucket, required, seaweedfs

BUCKET = "mice"


@pytest.fixture(scope="session")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Herd:
    """Three labs with three mice each; not to be changed by a test."""
    return write_herd(tmp_path_factory.mktemp("herd") / "tree", labs=3, subjects=3, days=50)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Herd:
    """Two mice: enough where nothing has to be killed amid a run; not to be changed by a test."""
    return write_herd(tmp_path_factory.mktemp("pair") / "tree", labs=1, subjects=2, days=8)


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    """A Redis of the test's own, with workers to be started on it."""
    with Arena(tmp_path / "arena") as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a store."""
    made = tmp_path / "tables"
    made.mkdir()
    return made


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server with a bucket; tests share it, each under a prefix of its own."""
    with required(seaweedfs(tmp_path_factory.mktemp("s3"))) as endpoint:
        create_bucket(endpoint, BUCKET)
        yield endpoint


@pytest.fixture
def s3_uri(tmp_path: Path) -> str:
    """The name of a store on the test server, which is no other test's."""
    return f"s3://{BUCKET}/{tmp_path.parent.name}/{tmp_path.name}"


@pytest.fixture
def bucket(aws: None, s3_endpoint: str, s3_uri: str) -> Store:
    """The store itself, past any proxy."""
    return open_store(s3_uri, endpoint=s3_endpoint)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here ends with the test."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def arena_for(tmp_path: Path, stack: ExitStack) -> Callable[..., Arena]:
    """Make arenas, each with a Redis of its own."""

    def make(name: str, **env: str) -> Arena:
        return stack.enter_context(Arena(tmp_path / name, env))

    return make
