"""What it costs to know a session's files: by size and time, by content, and, beside it, to compute the session.

    python -m bench.fingerprints [--mice 4] [--days 60]

Files lie in the page cache when they are measured: what is compared is the work of a processor, not of a disk. The
bytes that are read say what a disk or a network adds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from core.discover import find_files, find_sessions, find_subjects
from core.simulation.tree import simulate
from core.sources.tree import load_days
from core.summarise import summarise

LAB = "simlab01"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mice", type=int, default=4)
    parser.add_argument("--days", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "mice"
        simulate(root, labs=1, subjects=options.mice, days=options.days, seed=1)
        days = [find_sessions(root, LAB, subject)[0] for subject in find_subjects(root, LAB)[0]]
        paths = [path for of_subject in days for sessions in of_subject.values() for path in sessions]
        size = sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())
        ways: dict[str, Callable[[], object]] = {
            "stat": lambda: [find_files(path) for path in paths],
            "content": lambda: [find_files(path, "content") for path in paths],
            "compute": lambda: [summarise(load_days(of_subject)) for of_subject in days],
        }
        for name, way in ways.items():
            took = min(_processor_time(way) for _ in range(5 if name != "compute" else 2))
            print(f"{name:8} {1000 * took / len(paths):8.3f} ms a session")
        print(f"{len(paths)} sessions of {size / len(paths) / 1e6:.2f} MB each")


def _processor_time(way: Callable[[], object]) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


if __name__ == "__main__":
    main()
