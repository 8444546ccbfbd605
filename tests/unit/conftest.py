from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.alyx import Alyx, alyx


@pytest.fixture
def server(mice: Path, home: Path) -> Iterator[Alyx]:
    """What stands in for Alyx, with the mice; the test changes it as it likes."""
    with alyx(mice) as running:
        yield running


@pytest.fixture
def empty(home: Path) -> Iterator[Alyx]:
    """The same without records."""
    with alyx() as running:
        yield running
