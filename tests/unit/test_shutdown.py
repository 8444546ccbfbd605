"""A worker that hangs in its own end is ended. The hang itself is a race in Celery, so a sleep stands for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HANGS = """
import sys, time
from types import SimpleNamespace
from workers import shutdown

class Process:
    def is_alive(self):
        return sys.argv[1] == "alive"

if sys.argv[1] == "gone":
    def gone(self):
        raise AssertionError("not a child of this process")
    Process.is_alive = gone
shutdown.OUTLIVES = 0.6
pool = SimpleNamespace(_pool=SimpleNamespace(_pool=[Process(), Process()]))
shutdown.EndHungWorker(SimpleNamespace()).stop(SimpleNamespace(pool=pool))
time.sleep(4)
"""


@pytest.mark.parametrize(("pool", "code"), [("dead", 70), ("gone", 70), ("alive", 0)])
def test_a_worker_does_not_outlive_its_pool(pool: str, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _HANGS, pool], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert ("hangs in its end" in ended.stderr) == (code == 70)
