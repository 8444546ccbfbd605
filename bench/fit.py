"""Fits per second, batched and single, beside psychofit with the peer's call, on the same problems.

    python -m bench.fit --problems 1000 --peer-problems 40 --repeats 3

The problems are the blocks of sessions of simulated mice. The log-likelihoods of all fits are compared in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import Bar, in_turns, machine, median, run_python, spread, table, write
from bench.mice import mice_of, write_mice
from core import psychometrics
from core.discover import find_sessions
from core.records import DaySummary
from core.sources.tree import load_days
from core.status import make_window
from core.summarise import summarise

Problem = tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]]


def find_problems(root: Path, most: int) -> list[Problem]:
    """Return what a recompute of a tree fits: the blocks of each day, and the windows, `most` of them at most."""
    problems: list[Problem] = []
    for lab, subject in mice_of(root):
        days = [day for day in summarise(load_days(find_sessions(root, lab, subject)[0])) if day.protocol]
        for position, day in enumerate(days):
            problems += _of_day(day)
            window = make_window(days, position)
            found = [window.counts(which) for which in ("all", "20", "80")] if window.days else []
            problems += [(counts.contrasts, counts.n, counts.k) for counts in found if counts.total]
        if len(problems) >= most:
            break
    return problems[:most]


def _of_day(day: DaySummary) -> list[Problem]:
    found = (day.all_counts, day.right_counts, day.left_counts)
    return [(counts.contrasts, counts.n, counts.k) for counts in found if counts.total]


def _ours(problems: Sequence[Problem], batch: int) -> dict[str, Any]:
    began = time.perf_counter()
    found = [psychometrics.fit(problems[at : at + batch]) for at in range(0, len(problems), batch)]
    return {"parameters": np.vstack(found), "rate": len(problems) / (time.perf_counter() - began)}


def _peers(problems: Sequence[Problem], seed: int, python: Path, folder: Path) -> dict[str, Any]:
    file = folder / "problems.json"
    file.write_text(json.dumps(problems))
    found = run_python("bench.peer", "fit", file, "--seed", str(seed), python=python)
    return {**found, "rate": len(problems) / found["wall"]}


def _scores(parameters: Any, problems: Sequence[Problem]) -> Any:
    return np.array(
        [psychometrics.log_likelihood(found, *problem) for found, problem in zip(parameters, problems, strict=True)]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a bar is not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.fit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=2000, help="fitted by us (default: %(default)s)")
    parser.add_argument("--peer-problems", type=int, default=60, help="of them, by the peer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns, a seed each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mice (default: %(default)s)")
    parser.add_argument(
        "--peer-python", type=Path, default=".venv-peer/bin/python", help="has ibllib (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    here = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        write_mice(Path(name) / "mice", max(8, options.problems // 150), 40, options.seed)
        problems = find_problems(Path(name) / "mice", options.problems)
        order = np.random.default_rng(options.seed).permutation(len(problems))
        problems = [problems[at] for at in order]
        sample = problems[: options.peer_problems]
        found = in_turns(
            options.repeats,
            {
                "batched": lambda _: _ours(problems, 1000),
                "by tasks": lambda _: _ours(problems, 100),
                "single": lambda _: _ours(sample, 1),
                "psychofit": lambda turn: _peers(sample, turn, options.peer_python, Path(name)),
            },
        )
    ours = _scores(found["batched"][0]["parameters"][: len(sample)], sample)
    theirs = np.array([_scores(turn["parameters"], sample) for turn in found["psychofit"]])
    best = np.nanmax(theirs, axis=0)
    rates = {what: [turn["rate"] for turn in turns] for what, turns in found.items()}
    peer = rates["psychofit"]
    ratios = {what: median([a / b for a, b in zip(rates[what], peer, strict=True)]) for what in rates}
    measured = {
        "problems": len(problems),
        "peer's problems": len(sample),
        "fits per second": rates,
        "ratios": ratios,
        "shortfall to the peer's best": float((best - ours).max()),
        "peer short by more than 1e-6, share of its fits": float((theirs < ours - 1e-6).mean()),
        "peer short by more than 1, share of its fits": float((theirs < ours - 1).mean()),
        "same parameters alone and in a batch": bool(
            np.array_equal(found["single"][0]["parameters"], found["batched"][0]["parameters"][: len(sample)])
        ),
        "peer's versions": found["psychofit"][0]["versions"],
    }
    rows = [
        [what, median(values), 1e3 / median(values), f"{ratios[what]:.3g}", f"{spread(values):.2f}"]
        for what, values in rates.items()
    ]
    likelihoods = [
        ["our largest shortfall to the best of the peer's turns", f"{float((best - ours).max()):.1e}"],
        ["the peer's fits that fall short of ours by more than 1e-6", f"{float((theirs < ours - 1e-6).mean()):.0%}"],
        ["by more than 1", f"{float((theirs < ours - 1).mean()):.0%}"],
    ]
    bars = [
        Bar(what="fits per second, batched, times psychofit's", value=ratios["batched"], limit=200, at_least=True),
        Bar(what="fits per second, single, times psychofit's", value=ratios["single"], limit=10, at_least=True),
        Bar(what="shortfall of log-likelihood to psychofit's best", value=float((best - ours).max()), limit=1e-6),
    ]
    tables = [
        table(["fits", "per second", "ms each", "times psychofit", "largest / smallest turn"], rows),
        table(["log-likelihoods", ""], likelihoods),
    ]
    return 0 if write("fit", vars(options), measured, tables, bars, here) else 1


if __name__ == "__main__":
    sys.exit(main())
