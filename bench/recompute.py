"""A full recompute with two workers, beside the peer, beside bare reading, and beside our own plain loop.

    python -m bench.recompute --subjects 12 --repeats 3 --peer-subjects 1

In turns within one run: our run through Celery and Redis to Parquet tables; (a) the peer over a sample of the same
subjects; (b) the same under joblib on two processes; (c) two bare processes that only read what must be read; (d) our
plain path in one process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.floor import Bare, plain_loop, read_bytes, read_columns
from bench.measure import Bar, Spent, in_turns, machine, median, run_python, say, spread, table, write
from bench.mice import folder_of, mice_of, sessions_of, write_mice
from bench.runs import command_line, services

WORKERS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a bar is not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.recompute", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", type=int, default=80, help="mice (default: %(default)s)")
    parser.add_argument("--days", type=int, default=60, help="of each mouse's life (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--peer-subjects", type=int, default=1, help="mice a turn for the peer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mice (default: %(default)s)")
    parser.add_argument("--tree", type=Path, help="a session tree to use instead of a simulated one")
    parser.add_argument(
        "--peer-python", type=Path, default=".venv-peer/bin/python", help="has ibllib (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    here = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        root = options.tree or Path(name) / "mice"
        if not options.tree:
            say("simulating")
            write_mice(root, options.subjects, options.days, options.seed)
        found, sessions = measure(root, Path(name), options)
    return 0 if report(found, sessions, options, here) else 1


def measure(root: Path, folder: Path, options: argparse.Namespace) -> tuple[dict[str, list[Any]], int]:
    """Run all in turns; return what each took, and how many sessions there are."""
    mice = mice_of(root)
    sessions = sum(len(sessions_of(root, mouse)) for mouse in mice)

    def store(what: str, turn: int) -> str:
        made = folder / f"{what}{turn}"
        made.mkdir()
        return str(made)

    def peer(turn: int, processes: int) -> dict[str, Any]:
        count = options.peer_subjects * processes
        chosen = [mice[(turn * count + at) * 7 % len(mice)] for at in range(count)]
        folders = [folder_of(root, mouse) for mouse in chosen]
        return run_python(
            "bench.peer", "recompute", *folders, "--processes", str(processes), python=options.peer_python
        )

    with services(folder / "services", WORKERS) as running, Bare(WORKERS) as two, Bare(1) as one:
        say("warming up")
        two.run(read_columns, root, mice)  # the files come into the system's cache
        running.run("recompute", root, store("warm", 0))
        found = in_turns(
            options.repeats,
            {
                "ours": lambda turn: running.run("recompute", root, store("ours", turn)).spent,
                "a": lambda turn: peer(turn, 1),
                "c columns": lambda _: two.run(read_columns, root, mice),
                "c bytes": lambda _: two.run(read_bytes, root, mice),
                "b": lambda turn: peer(turn, WORKERS),
                "d": lambda turn: one.run(plain_loop, root, mice, store("plain", turn)),
            },
        )
    say("the command with services of its own")
    whole = ["recompute", "--root", str(root), "--store", store("whole", 0), "--embedded", "--workers", str(WORKERS)]
    found["command"] = [command_line(whole, folder)]
    return found, sessions


def report(found: dict[str, list[Any]], sessions: int, options: argparse.Namespace, here: dict[str, Any]) -> bool:
    """Write the results; return whether every bar is met."""
    names = {
        "ours": f"ours, {WORKERS} workers",
        "a": "(a) ibllib",
        "b": "(b) ibllib, joblib on 2 processes",
        "c bytes": "(c) two processes that only read bytes: tables or arrays, settings, the raw file's end",
        "c columns": "(c') the same, with the seven columns decoded",
        "d": "(d) ours as a plain loop, 1 process",
        "command": "ours as one command that starts and ends its own services",
    }
    peers = {"a", "b"}
    wall = {
        what: [turn["wall"] / turn["sessions"] if what in peers else turn.wall / sessions for turn in turns]
        for what, turns in found.items()
    }
    cpu = {
        what: [turn["cpu"] / turn["sessions"] if what in peers else turn.cpu / sessions for turn in turns]
        for what, turns in found.items()
    }

    def ratio(above: str, below: str) -> float:
        return median([a / b for a, b in zip(wall[above], wall[below], strict=True)])

    rows = [
        [
            names[what],
            1 / median(values),
            1e3 * median(values),
            1e3 * median(cpu[what]),
            f"{median(values) / median(wall['ours']):.3g}",
            f"{spread(values):.2f}",
        ]
        for what, values in wall.items()
    ]
    bars = [
        Bar(what="sessions per second, times (a)", value=ratio("a", "ours"), limit=150, at_least=True),
        Bar(what="sessions per second, times (b)", value=ratio("b", "ours"), limit=75, at_least=True),
        Bar(what="wall time, times (c)", value=ratio("ours", "c bytes"), limit=4),
        Bar(what="wall time, times half of (d)", value=2 * ratio("ours", "d"), limit=1.25),
    ]
    measured = {
        "sessions": sessions,
        "wall, s a session": wall,
        "cpu, s a session": cpu,
        "wall time, times (c')": ratio("ours", "c columns"),
        "peak memory of one process, MB": [turn.peak for turn in found["ours"] if isinstance(turn, Spent)],
        "peer's versions": found["a"][0]["versions"],
    }
    head = ["", "sessions/s", "wall, ms a session", "CPU, ms a session", "times ours", "largest / smallest turn"]
    tables = [f"{sessions} sessions.", table(head, rows)]
    return write("recompute", vars(options), measured, tables, bars, here)


if __name__ == "__main__":
    sys.exit(main())
