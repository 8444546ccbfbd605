"""Small session trees: trials made by hand, written as rigs and extractors write them, and the stages over them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.join import join_days
from core.records import Fingerprint, days_from_json, days_to_json, statuses_from_json, statuses_to_json
from core.simulation.formats import Layout, Quirks, Rig, write_session
from core.sources import TreeSource
from core.status import compute_statuses
from core.storage import Store
from core.summarise import summarise
from core.synchronise import find_work, look, put_tables
from core.tables import Keys, build_tables, subject_keys

LAB, SUBJECT = "testlab", "TS_001"
KEYS = subject_keys(LAB, SUBJECT)

#: Signed contrast, trials, rightward choices of a mouse that is in training and stays there: six of ten easy trials
#: are correct, twelve trials in all.
CLUMSY = ((-100.0, 5, 2), (0.0, 2, 1), (100.0, 5, 3))

Arrays = dict[str, NDArray[Any]]


def trials(counts: Sequence[tuple[float, int, int]], *, block: float = 0.5, reaction: float = 1.0) -> Arrays:
    """Make trials: for each (signed contrast in percent, trials, rightward choices), the rightward ones first.

    A stimulus comes up every ten seconds, from the tenth on, and is answered `reaction` seconds later. Zero contrast
    is shown on the right.
    """
    signed = np.concatenate([np.full(n, x) for x, n, _ in counts])
    choice = np.concatenate([np.where(np.arange(n) < k, -1, 1) for _, n, k in counts])
    side = np.where(signed < 0, 1, -1)
    onset = 10.0 * np.arange(1, len(signed) + 1)
    return {
        "choice": choice,
        "contrastLeft": np.where(signed < 0, -signed / 100, np.nan),
        "contrastRight": np.where(signed < 0, np.nan, signed / 100),
        "feedbackType": np.where(choice == side, 1, -1),
        "probabilityLeft": np.full(len(signed), block),
        "response_times": onset + reaction,
        "stimOn_times": onset,
    }


def join(*parts: Arrays) -> Arrays:
    """Put trials one after another."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    starts = np.cumsum([0] + [len(part["choice"]) for part in parts[:-1]])
    shift = np.concatenate([np.full(len(p["choice"]), 10.0 * at) for p, at in zip(parts, starts, strict=True)])
    return {name: values + shift if name.endswith("_times") else values for name, values in whole.items()}


def protocol_name(protocol: str) -> str:
    """Return how a rig names `protocol`, such as ``training``; a name in full is returned as it is."""
    return protocol if "ChoiceWorld" in protocol or "_" in protocol else f"_iblrig_tasks_{protocol}ChoiceWorld"


def session(
    root: Path,
    date: str,
    number: int = 1,
    *,
    protocol: str = "training",
    trials: Arrays | None = None,
    tasks: Sequence[tuple[str, Arrays | None]] | None = None,
    subject: str = SUBJECT,
    rig: Rig = "v8",
    delay: int = 0,
    ephys: bool = False,
    layout: Layout = "table",
    **quirks: Any,
) -> Path:
    """Write a session of one task, or of `tasks`, and return its folder; trials are `CLUMSY` where none are given."""
    folder = root / LAB / "Subjects" / subject / date / f"{number:03d}"
    given = tasks if tasks is not None else [(protocol, trials if trials is not None else clumsy())]
    write_session(
        folder,
        tasks=[(protocol_name(name), of_task) for name, of_task in given],
        start=datetime.fromisoformat(f"{date}T{8 + number:02d}:00:00"),
        rig=rig,
        delay=delay,
        ephys=ephys,
        layout=layout,
        quirks=Quirks(**quirks),
    )
    return folder


def clumsy() -> Arrays:
    """Return the trials of `CLUMSY`."""
    return trials(CLUMSY)


def cut(folder: Path, n_trials: int) -> None:
    """Leave only the first `n_trials` trials in a session that was written whole."""
    for path in folder.rglob("_ibl_trials.*.npy"):
        np.save(path, np.load(path)[:n_trials])
    for path in folder.rglob("_ibl_trials.table*.pqt"):
        pq.write_table(pq.read_table(path).slice(0, n_trials), path)
    for path in folder.rglob("_iblrig_taskData.raw*.jsonable"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:n_trials]))


def edit_settings(folder: Path, collection: str = "raw_task_data_00", **changes: Any) -> None:
    """Change what the task settings of a session say; None takes a setting away."""
    (path,) = (folder / collection).glob("_iblrig_taskSettings.raw*.json")
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def move(folder: Path, aside: Path) -> None:
    """Move a session's folder, with the times of its files; what is left empty stays."""
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, aside)


def refresh(
    root: Path,
    store: Store,
    *,
    everything: bool = False,
    again: bool = False,
    prune: bool = False,
    by: Fingerprint = "stat",
) -> bool:
    """Bring the subject's objects up to date, stage by stage as the workers do; return whether anything was put."""
    source = TreeSource(root, by).subject(LAB, SUBJECT)
    seen = look(source, store, KEYS, everything=everything, again=again, prune=prune)
    if seen.unchanged:
        return False
    sessions = find_work(source, seen.dates, seen.held)
    new = days_from_json(days_to_json(summarise(source.load(sessions))))
    days = join_days(seen.kept, new)
    statuses = compute_statuses(days, known=statuses_from_json(statuses_to_json(seen.settled)))
    return bool(statuses) and put_tables(store, KEYS, build_tables(LAB, SUBJECT, days, statuses), seen.base)


def objects(store: Store, keys: Keys = KEYS) -> dict[str, bytes | None]:
    """Return the bytes of a subject's four objects by their keys."""
    found = {key: store.get(key) for key in (keys.training, keys.criteria, keys.summaries, keys.aggregate)}
    return {key: stored.data if stored else None for key, stored in found.items()}


def frame(data: bytes) -> pd.DataFrame:
    """Return the Parquet table in `data`."""
    return pd.read_parquet(BytesIO(data))


def rows(data: bytes) -> list[dict[str, Any]]:
    """Return the rows of the Parquet table in `data`."""
    found: list[dict[str, Any]] = pq.read_table(pa.BufferReader(data)).to_pylist()
    return found


def training(store: Store) -> list[dict[str, Any]]:
    """Return the rows of the stored training table."""
    stored = store.get(KEYS.training)
    assert stored is not None, "there is no training table"
    return rows(stored.data)


def statuses(store: Store) -> dict[str, str]:
    """Return the status that the stored training table gives each session, by date/number."""
    return {"/".join(row["session_path"].split("/")[-2:]): row["training_status"] for row in training(store)}
