"""From the start of a worker to the end of its first task, which waits for it, and to the end of a small run.

python -m bench.start --repeats 5
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from bench.measure import Bar, in_turns, machine, median, spread, table, write
from bench.mice import write_mice
from bench.runs import redis_service
from scheduler import runs
from tests.processes import wait_for, worker
from workers.app import configure
from workers.broker import connect
from workers.ledger import Ledger

WORKERS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where the bar is not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.start", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mouse (default: %(default)s)")
    options = parser.parse_args(arguments)
    here = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, redis_service(Path(name) / "redis") as (broker, _):
        write_mice(Path(name) / "mice", 1, 12, options.seed)
        configure(broker)
        found = in_turns(
            options.repeats, {"start": lambda turn: start(broker, Path(name) / "mice", Path(name) / str(turn))}
        )
    first = [first for first, _ in found["start"]]
    ended = [ended for _, ended in found["start"]]
    rows = [
        ["its first task has ended", median(first), f"{spread(first):.2f}"],
        ["a run of one mouse has ended", median(ended), f"{spread(ended):.2f}"],
    ]
    bars = [Bar(what="start of a worker to its first finished task, s", value=median(first), limit=3)]
    measured = {"first task, s": first, "run of one mouse, s": ended}
    tables = [table(["from the start of a worker until", "s", "largest / smallest turn"], rows)]
    return 0 if write("start", vars(options), measured, tables, bars, here) else 1


def start(broker: str, root: Path, folder: Path) -> tuple[float, float]:
    """Start a worker that a run waits for; return the seconds to the end of its first task, and of the run."""
    (folder / "tables").mkdir(parents=True)
    with closing(connect(broker)) as client:
        ledger = Ledger(client)
        spec = runs.new_run("recompute", source=str(root), store=str(folder / "tables"))
        runs.start(ledger, spec)

        def is_planned() -> bool:  # the plan's last step is to enter that the mouse's days are being summarised
            stages = ledger.stages(spec.run_id).values()
            return any(stage != "waiting" for stage in stages) or ledger.is_ended(spec.run_id)

        began = time.perf_counter()
        with worker(broker, folder / "worker.log", concurrency=WORKERS):
            wait_for(is_planned, "the first task to end", every=0.005)
            first = time.perf_counter() - began
            wait_for(lambda: ledger.is_ended(spec.run_id), "the run to end", every=0.005)
            ended = time.perf_counter() - began
    return first, ended


if __name__ == "__main__":
    sys.exit(main())
