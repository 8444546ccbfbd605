"""What the benchmarks share: processor time and memory of a tree of processes, medians, and how results are written.

Seconds on a shared machine are noise. So what is compared runs in turns within one run (A B A B ...), the median of
its turns counts, processor time stands beside wall time, and what is held against a bar is a ratio.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("training-status", "celery", "kombu", "redis", "numpy", "scipy", "pandas", "pyarrow", "boto3")
_EVERY = 0.05  # seconds between two looks at the memory


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a piece of work took."""

    wall: float  # s
    cpu: float  # s, user and system, of all processes that took part
    peak: Mapping[str, float] = field(default_factory=dict)  # role -> largest resident memory of one process, MB
    cpu_of: Mapping[str, float] = field(default_factory=dict)  # role -> s


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A measured value, and the limit that it must keep."""

    what: str
    value: float
    limit: float
    at_least: bool = False  # else: at most

    @property
    def met(self) -> bool:
        """Whether it keeps the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def row(self) -> list[str]:
        """The bar as a row of a table."""
        return [self.what, f"{self.value:.4g}", f"{'>=' if self.at_least else '<='} {self.limit:g}", _yes(self.met)]


class Watch:
    """Watches processes, and all that descend from them, while the block runs.

    Parameters
    ----------
    roles : mapping of str to list of int
        What the processes are called, and their ids. Descendants of the role ``worker`` are its ``pool``.
    """

    def __init__(self, roles: Mapping[str, Sequence[int]]) -> None:
        self._roots = [(role, psutil.Process(pid)) for role, pids in roles.items() for pid in pids]
        self._cpu: dict[tuple[str, int, float], float] = {}
        self._before: dict[tuple[str, int, float], float] = {}
        self.peak: dict[str, float] = {}
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._look()
        self._before = dict(self._cpu)
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._go_on)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wall = time.perf_counter() - self._began
        self._stop.set()
        self._thread.join()
        self._look()

    @property
    def spent(self) -> Spent:
        """What was spent in the block."""
        cpu_of: dict[str, float] = {}
        for who, seconds in self._cpu.items():
            cpu_of[who[0]] = cpu_of.get(who[0], 0.0) + seconds - self._before.get(who, 0.0)
        return Spent(wall=self._wall, cpu=sum(cpu_of.values()), peak=dict(self.peak), cpu_of=cpu_of)

    def _go_on(self) -> None:
        while not self._stop.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        for role, root in self._roots:
            with suppress(psutil.Error):
                self._note(role, root)
                for child in root.children(recursive=True):
                    with suppress(psutil.Error):
                        self._note("pool" if role == "worker" else role, child)

    def _note(self, role: str, process: psutil.Process) -> None:
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info().rss / 2**20
            self._cpu[role, process.pid, process.create_time()] = times.user + times.system
        self.peak[role] = max(self.peak.get(role, 0.0), memory)


def in_turns(repeats: int, work: Mapping[str, Callable[[int], Any]]) -> dict[str, list[Any]]:
    """Run each piece of work `repeats` times, in turns, and return what each gave.

    Parameters
    ----------
    repeats : int
        Turns.
    work : mapping of str to callable
        Each is given the number of the turn.
    """
    found: dict[str, list[Any]] = {name: [] for name in work}
    for turn in range(repeats):
        for name, do in work.items():
            say(f"turn {turn + 1} of {repeats}: {name}")
            found[name].append(do(turn))
    return found


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> float:
    """Return how noisy the values are: the largest over the smallest."""
    return max(values) / max(min(values), 1e-12)


def run_python(module: str, *arguments: str | Path, python: str | Path = sys.executable) -> Any:
    """Run a module of this package with `python`, and return the JSON that it prints last.

    Raises
    ------
    RuntimeError
        With the end of what it said, where it fails.
    """
    folder = Path(__file__).parents[1]
    done = subprocess.run(
        [str(python), "-m", module, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on and with; nothing that names the machine."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "memory, GB": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load before": round(os.getloadavg()[0], 2),
        "versions": {name: _version(name) for name in _LIBRARIES},
    }


def write(
    name: str,
    options: Mapping[str, Any],
    measured: Mapping[str, Any],
    tables: Sequence[str],
    bars: Sequence[Bar],
    here: Mapping[str, Any],
) -> bool:
    """Write ``bench/results/<name>.json`` and ``.md``, print the second, and return whether all bars are met.

    Parameters
    ----------
    name : str
        Of the benchmark.
    options : mapping
        What it was run with.
    measured : mapping
        All that was measured.
    tables : sequence of str
        Markdown.
    bars : sequence of Bar
        What must be reached.
    here : mapping
        What :func:`machine` said before the run.
    """
    RESULTS.mkdir(exist_ok=True)
    kept = {key: value for key, value in options.items() if not isinstance(value, Path)}
    document = {
        "benchmark": name,
        "machine": here,
        "options": kept,
        "measured": measured,
        "bars": [{**vars(bar), "met": bar.met} for bar in bars],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1, default=str) + "\n")
    versions = ", ".join(f"{library} {version}" for library, version in here["versions"].items() if version)
    told = f"{here['processor']}, {here['processors']} processors, {here['memory, GB']} GB, {here['system']}"
    parts = [
        f"## {name}",
        f"{told}; load {here['load before']} before the run. Python {here['python']}, {versions}.",
        "Options: " + ", ".join(f"{key} {value}" for key, value in kept.items()) + ".",
        *tables,
    ]
    if bars:
        parts.append(table(["bar", "measured", "must be", "met"], [bar.row() for bar in bars]))
    text = "\n\n".join(parts) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
    return all(bar.met for bar in bars)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def say(text: str) -> None:
    """Tell how far a benchmark is."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Give a function that tells the seconds since the block began."""
    began = time.perf_counter()
    yield lambda: time.perf_counter() - began


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _yes(met: bool) -> str:
    return "yes" if met else "NO"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None
