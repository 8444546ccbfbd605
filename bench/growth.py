"""Recomputes of ever more sessions: time a session, and the memory of Redis, of the command and of the workers.

    python -m bench.growth --sizes 600 6000 60000

Mice are simulated once and then multiplied by hard links; each is listed, read and computed like any other. Each size
has services of its own, so that a peak is that size's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import Bar, Watch, machine, say, table, write
from bench.mice import multiply, write_mice
from bench.runs import services
from tests.processes import COMMAND, process, wait_for

WORKERS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a bar is not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[600, 6000, 60000], help="sessions, at least")
    parser.add_argument("--subjects", type=int, default=12, help="mice to multiply (default: %(default)s)")
    parser.add_argument("--days", type=int, default=60, help="of each mouse's life (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mice (default: %(default)s)")
    options = parser.parse_args(arguments)
    here = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        say("simulating")
        made = write_mice(folder / "few", options.subjects, options.days, options.seed)
        found = []
        for size in sorted(options.sizes):
            say(f"{size} sessions")
            (at := folder / str(size)).mkdir()
            sessions = multiply(folder / "few", at / "mice", -(-size // made))
            found.append({"sessions": sessions, **recompute(at)})
    return 0 if report(found, options, here) else 1


def recompute(folder: Path) -> dict[str, Any]:
    """Recompute the tree in `folder` by the command, on services of its own; time begins with the first message."""
    (folder / "tables").mkdir()
    arguments = ["recompute", "--root", str(folder / "mice"), "--store", str(folder / "tables")]
    with services(folder / "services", WORKERS) as running:
        running.client.config_resetstat()
        with process([*COMMAND, *arguments, "--broker", running.broker], folder / "command.log") as command:
            roles = {"command": [command.pid], "worker": [running.worker], "redis": [running.redis]}
            with Watch(roles) as watch:
                wait_for(lambda: "cmdstat_lpush" in running.client.info("commandstats"), "a message", every=0.01)
                began = time.perf_counter()
                code = command.wait()
                wall = time.perf_counter() - began
        assert code == 0, (folder / "command.log").read_text()[-2000:]
        redis_mb = running.client.info("memory")["used_memory_peak"] / 2**20
    return {"wall": wall, "cpu": watch.spent.cpu, "redis peak, MB": redis_mb, "peak, MB": dict(watch.peak)}


def report(found: list[dict[str, Any]], options: argparse.Namespace, here: dict[str, Any]) -> bool:
    """Write the results; return whether every bar is met."""
    rows = [
        [
            f"{size['sessions']:,}",
            size["wall"],
            1e3 * size["wall"] / size["sessions"],
            1e3 * size["cpu"] / size["sessions"],
            size["redis peak, MB"],
            size["peak, MB"]["command"],
            size["peak, MB"]["worker"],
            size["peak, MB"]["pool"],
        ]
        for size in found
    ]
    each = [size["wall"] / size["sessions"] for size in found]
    bars = [
        Bar(what="memory of the command, MB", value=max(size["peak, MB"]["command"] for size in found), limit=200),
        Bar(
            what="memory of a worker's process, MB",
            value=max(max(size["peak, MB"]["worker"], size["peak, MB"]["pool"]) for size in found),
            limit=400,
        ),
        Bar(what="peak of Redis, MB", value=max(size["redis peak, MB"] for size in found), limit=256),
    ]
    if len(found) > 1:
        told = f"time a session at {found[-1]['sessions']:,}, times that at {found[-2]['sessions']:,}"
        bars.insert(0, Bar(what=told, value=each[-1] / each[-2], limit=1.15))
    head = ["sessions", "s", "wall, ms a session", "CPU, ms a session", "Redis peak, MB", "command, MB"]
    head += ["worker's main process, MB", "its largest other, MB"]
    return write("growth", vars(options), {"sizes": found}, [table(head, rows)], bars, here)


if __name__ == "__main__":
    sys.exit(main())
