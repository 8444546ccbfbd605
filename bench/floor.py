"""What no recompute can do without: reading. And our own path without a queue. Each in bare processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq

from bench.measure import Spent
from bench.mice import Mouse, sessions_of
from core.discover import find_files
from core.pipeline import recompute_subject
from core.records import SessionFiles
from core.schema import TRIALS_ATTRIBUTES
from core.sources import TreeSource
from core.storage import open_store

TAIL = 1 << 16  # bytes of the raw file's end
Work = Callable[[Path, Sequence[Mouse], str], float]


def read_bytes(root: Path, mice: Sequence[Mouse], store: str) -> float:
    """Read the bytes of the files that must be read; return the seconds."""
    files = _files(root, mice)
    began = time.perf_counter()
    for session in files:
        _read_around(session)
        for datasets in session.trials.values():
            for path in _must_be_read(datasets):
                path.read_bytes()
    return time.perf_counter() - began


def read_columns(root: Path, mice: Sequence[Mouse], store: str) -> float:
    """Read the seven columns as arrays, and the bytes of the other files; return the seconds."""
    files = _files(root, mice)
    began = time.perf_counter()
    for session in files:
        _read_around(session)
        for datasets in session.trials.values():
            for path in _must_be_read(datasets):
                if path.suffix == ".pqt":
                    with pq.ParquetFile(path) as file:
                        file.read(columns=list(TRIALS_ATTRIBUTES), use_threads=False)
                else:
                    np.load(path)
    return time.perf_counter() - began


def plain_loop(root: Path, mice: Sequence[Mouse], store: str) -> float:
    """Recompute mice by the plain path, one after the other, into a store; return the seconds."""
    began = time.perf_counter()
    opened = open_store(store)
    for lab, subject in mice:
        recompute_subject(TreeSource(root), lab, subject, opened)
    return time.perf_counter() - began


class Bare:
    """Bare processes, started and warm, that share out mice.

    Parameters
    ----------
    processes : int
        How many.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))

    def __enter__(self) -> Bare:
        list(self._pool.map(_warm, range(2 * self._processes)))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def run(self, work: Work, root: Path, mice: Sequence[Mouse], store: str = "") -> Spent:
        """Have the processes do `work` on equal shares of the mice; the slowest one's time is the wall time."""
        shares = [mice[at :: self._processes] for at in range(self._processes)]
        done = list(self._pool.map(_timed, *zip(*[(work, root, share, store) for share in shares], strict=True)))
        return Spent(wall=max(wall for wall, _ in done), cpu=sum(cpu for _, cpu in done))


def _timed(work: Work, root: Path, mice: Sequence[Mouse], store: str) -> tuple[float, float]:
    began = sum(psutil.Process().cpu_times()[:2])
    wall = work(root, mice, store)
    return wall, sum(psutil.Process().cpu_times()[:2]) - began


def _warm(number: int) -> None:
    time.sleep(0.3)  # so that each process gets one, and has imported this module


def _files(root: Path, mice: Sequence[Mouse]) -> list[SessionFiles]:
    return [find_files(path) for mouse in mice for path in sessions_of(root, mouse)]


def _must_be_read(datasets: dict[str, Path]) -> list[Path]:
    if "table" in datasets:
        return [datasets["table"]]
    return [datasets[name] for name in TRIALS_ATTRIBUTES if name in datasets]


def _read_around(session: SessionFiles) -> None:
    for path in (session.description, *session.settings.values()):
        if path is not None:
            path.read_bytes()
    for path in session.task_data.values():
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            file.read()
