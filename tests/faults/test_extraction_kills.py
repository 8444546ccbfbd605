"""An extraction worker that is killed; the extractors are stand-ins, for the real ones cannot be held on a session."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.processes import training_status, wait_for, worker
from tests.standin import SLOW, StandIn, assert_complete, extractor
from workers.ledger import Ledger


@pytest.mark.slow
def test_an_extraction_worker_that_is_killed_loses_nothing(
    raw_tree: Path,
    broker: str,
    ledger: Ledger,
    standin: StandIn,
    complete: dict[str, pd.DataFrame],
    tmp_path: Path,
) -> None:
    store = tmp_path / "tables"
    standin.hold(SLOW)
    with worker(broker, tmp_path / "worker.log", concurrency=1, env={"TRAINING_STATUS_PATIENCE": "2"}):
        with extractor(broker, standin, tmp_path / "first.log") as first:
            options = ("--root", raw_tree, "--store", store, "--broker", broker, "--extract", "--no-wait", "--json")
            run_id = json.loads(training_status("recompute", *options).stdout)["run_id"]
            wait_for(lambda: standin.begun(SLOW) == 1, "the extraction to begin")
            pool = psutil.Process(first.pid).children(recursive=True)
            os.killpg(first.pid, signal.SIGKILL)
            psutil.wait_procs(pool, timeout=20)
        standin.let_go(SLOW)
        assert not ledger.is_ended(run_id)
        with extractor(broker, standin, tmp_path / "second.log", patience=2):
            wait_for(lambda: ledger.is_ended(run_id), "the run to end", 120)
    record = ledger.record(run_id)
    assert record is not None
    assert (record["counts"]["done"], record["left_out"]) == (3, [])
    assert standin.begun(SLOW) == 2
    assert_complete(store, complete)
