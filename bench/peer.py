"""The peer's part of the benchmarks: run by the interpreter that has ibllib, it prints one line of JSON.

    .venv-peer/bin/python -m bench.peer recompute FOLDER ... [--processes 2]
    .venv-peer/bin/python -m bench.peer fit PROBLEMS.json

Only the peer's own public calls are timed; importing it is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.parity import quiet


def recompute(folder: Path) -> tuple[float, int]:
    """Have the peer compute a subject from nothing; return the seconds, and how many sessions it has."""
    sessions = sorted(folder.glob("????-??-??/*"))
    with quiet():
        from ibllib.pipes.training_status import get_latest_training_information

        began = time.perf_counter()
        get_latest_training_information(sessions[-1], SimpleNamespace(mode="local"), save=False)
        return time.perf_counter() - began, len(sessions)


def recompute_all(folders: Sequence[Path], processes: int) -> dict[str, Any]:
    """Recompute subjects, one after the other or under joblib, and return sessions, wall and processor time."""
    from joblib import Parallel, delayed

    with Parallel(n_jobs=processes) as pool:
        pool(delayed(_warm)() for _ in range(4 * processes))
        began, cpu = time.perf_counter(), time.process_time()
        done = pool(delayed(recompute)(folder) for folder in folders)
        wall = time.perf_counter() - began
    return {
        "wall": wall,
        "cpu": time.process_time() - cpu if processes == 1 else sum(seconds for seconds, _ in done),
        "sessions": sum(sessions for _, sessions in done),
        "by_subject": [{"seconds": seconds, "sessions": sessions} for seconds, sessions in done],
    }


def _warm() -> None:
    with quiet():
        import ibllib.pipes.training_status  # noqa: F401

        time.sleep(0.5)  # so that each process gets one


def fit_all(problems: Sequence[Sequence[Any]], seed: int) -> dict[str, Any]:
    """Fit each problem as the peer does for a training status; return parameters and seconds."""
    with quiet():
        import psychofit

        np.random.seed(seed)
        parameters = []
        began = time.perf_counter()
        for x, n, k in problems:
            contrasts, trials = np.asarray(x, float), np.asarray(n, float)
            found, _ = psychofit.mle_fit_psycho(
                np.vstack([contrasts, trials, np.asarray(k, float) / trials]),
                P_model="erf_psycho_2gammas",
                parstart=np.array([contrasts.mean(), 20.0, 0.05, 0.05]),
                parmin=np.array([contrasts.min(), 0.0, 0.0, 0.0]),
                parmax=np.array([contrasts.max(), 100.0, 1.0, 1.0]),
            )
            parameters.append(np.asarray(found, float).tolist())
        return {"parameters": parameters, "wall": time.perf_counter() - began}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two, and print what it gave."""
    parser = argparse.ArgumentParser(prog="python -m bench.peer", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("recompute")
    one.add_argument("folders", nargs="+", type=Path)
    one.add_argument("--processes", type=int, default=1)
    two = commands.add_parser("fit")
    two.add_argument("problems", type=Path)
    two.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.command == "recompute":
        found = recompute_all(options.folders, options.processes)
    else:
        found = fit_all(json.loads(options.problems.read_text()), options.seed)
    found["versions"] = {name: version(name) for name in ("ibllib", "psychofit", "numpy", "pandas")}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
