"""Aggregates as the IBL publishes them, made from session trees: one file of trials a subject."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from core.discover import find_files, find_sessions
from core.load import load_trials, tasks_by_protocol, trials_collections
from core.records import SessionFiles
from core.schema import TRIALS_ATTRIBUTES, TRIALS_MARKER

NAME = "_ibl_subjectTrials.table.pqt"


def eid_of(lab: str, subject: str, date: str, number: str) -> str:
    """Return the id that a session has in these aggregates, and at the server of `tests/alyx.py`."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"session/{lab}/{subject}/{date}/{int(number)}"))


def aggregate(root: Path, to: Path, lab: str, subject: str, dates: Iterable[str] | None = None) -> Path:
    """Write one subject's file below `to`, from its folders in the tree `root`; only some dates where given."""
    folder = to / "aggregates" / "Subjects" / lab / subject
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    frame(root, lab, subject, dates).to_parquet(path, index=False)
    return path


def aggregate_tree(root: Path, to: Path) -> Path:
    """Write every subject's file, and return `to`."""
    for folder in sorted(root.glob("*/Subjects/*")):
        aggregate(root, to, folder.parents[1].name, folder.name)
    return to


def frame(root: Path, lab: str, subject: str, dates: Iterable[str] | None = None) -> pd.DataFrame:
    """Return a subject's trials as the aggregate has them, a row a trial."""
    days, _ = find_sessions(root, lab, subject, None if dates is None else list(dates))
    parts = [_session(find_files(path), lab, subject) for paths in days.values() for path in paths]
    return pd.concat([part for of_session in parts for part in of_session], ignore_index=True)


def _session(files: SessionFiles, lab: str, subject: str) -> Iterable[pd.DataFrame]:
    by_protocol, _ = tasks_by_protocol(files)
    tasks = sorted((name, settings) for tasks in by_protocol.values() for name, settings in tasks)
    for position, (collection, settings) in enumerate(tasks):
        (of_task,) = trials_collections([collection]) or ()
        columns = _columns(files, of_task)
        start = settings.get("SESSION_START_TIME") or settings["SESSION_DATETIME"]
        yield pd.DataFrame(
            {
                **columns,
                "session": eid_of(lab, subject, files.date, files.number),
                "session_start_time": datetime.fromisoformat(start),
                "session_number": int(files.number),
                "task_protocol": settings["PYBPOD_PROTOCOL"],
                "protocol_number": position,
            }
        )


def _columns(files: SessionFiles, collection: str) -> dict[str, Any]:
    datasets = files.trials[collection]
    marker = np.load(datasets[TRIALS_MARKER])
    try:
        trials = load_trials(files, [collection])
    except Exception:  # habituation has no choices
        return {name: np.full(len(marker), np.nan) for name in (*TRIALS_ATTRIBUTES, "intervals_0", "intervals_1")}
    columns: dict[str, Any] = {name: getattr(trials, name) for name in TRIALS_ATTRIBUTES}
    if "table" in datasets:
        table = pq.read_table(datasets["table"])
        intervals = np.column_stack([table.column(f"intervals_{end}").to_numpy() for end in (0, 1)])
    else:
        intervals = np.load(next(datasets["choice"].parent.glob("_ibl_trials.intervals*.npy")))
    return {**columns, "intervals_0": intervals[:, 0], "intervals_1": intervals[:, 1]}
