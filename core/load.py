"""Load a session: its protocol and collections, its trials, and the facts that only the raw files hold.

Each file is opened once, and of a table only the seven columns that are used are decoded.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from core.errors import SessionUnusable, TrialsNotFound
from core.names import printable
from core.records import Facts, LeftOut, Session, SessionFiles, Trials
from core.schema import PROTOCOLS, TRIALS_ATTRIBUTES, TRIALS_MARKER

_PASSIVE = "raw_passive_data"
_TASK = "raw_task_data_"
#: Trial times beyond this are corrupt and passed over. Source: ibllib's session registration, 6 hours.
LONGEST_SESSION = 6 * 3600.0
#: A raw line is some kilobytes; the first read of the file's end nearly always holds the last trial.
_TAIL = 1 << 16

#: How a .npy file of format 1.0 begins; NumPy writes others only for headers that are long or not ASCII.
_NPY_1 = b"\x93NUMPY\x01\x00"

_NO_JSON = re.compile(rb"-?Infinity|NaN")

_FAST_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Experiment descriptions have a kilobyte or two. The fast reader ends the process on brackets nested some ten thousand
#: deep; the other raises, and reads what is longer than this.
_SHORT_YAML = 1 << 13
#: What the readers of YAML, Parquet and .npy files raise on broken ones, by trial. A named list, because what ends a
#: task from outside, such as its time limit, must not be taken for a broken file.
_BROKEN = (
    OSError,
    yaml.YAMLError,
    pa.ArrowException,
    TokenError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    RecursionError,
    MemoryError,
)

#: Loads trials from a session's files and its trials collections; errors as those of :func:`load_trials`.
TrialsLoader = Callable[[SessionFiles, Sequence[str] | None], Trials]
#: A raw collection with its task settings.
Task = tuple[str, dict[str, Any]]


def load_session(files: SessionFiles, trials_loader: TrialsLoader | None = None) -> tuple[list[Session], list[LeftOut]]:
    """Load what a session's folder holds: one `Session` for each protocol, in the order of its tasks.

    Parameters
    ----------
    files : SessionFiles
        The session's files.
    trials_loader : callable, optional
        Loads the trials; :func:`load_trials`, from the session's folder, where None.

    Returns
    -------
    list of Session
        Empty where nothing can be used.
    list of LeftOut
        The session, or the tasks of it, that could not be used, each with its reason. A broken file never raises.

    Raises
    ------
    OSError
        Where a file is there but cannot be read: that is not the file's fault, and may pass.
    """
    by_protocol, left_out = tasks_by_protocol(files)
    sessions = []
    for protocol, tasks in by_protocol.items():
        try:
            sessions.append(_load_protocol(files, protocol, tasks, trials_loader or load_trials))
        except SessionUnusable as error:
            left_out.append(LeftOut(session=files.name, reason=printable(f"{protocol}: {error}")))
    return sessions, left_out


def tasks_by_protocol(files: SessionFiles) -> tuple[dict[str, list[Task]], list[LeftOut]]:
    """Return the choice world tasks of a session by protocol, those of the last protocol last.

    Parameters
    ----------
    files : SessionFiles
        The session's files.

    Returns
    -------
    dict of str to list of (str, dict)
        Protocol to its raw collections with their task settings.
    list of LeftOut
        The session, or the tasks of it, that could not be told.
    """
    left_out: list[LeftOut] = []
    by_protocol: dict[str, list[Task]] = {}
    try:
        collections = raw_collections(files)
        if not collections:
            raise SessionUnusable("no task settings (_iblrig_taskSettings.raw.json) and no choice world task found")
    except SessionUnusable as error:
        return {}, [LeftOut(session=files.name, reason=printable(str(error)))]
    for collection in collections:
        try:
            settings = read_settings(files, collection)
            protocol = protocol_of(settings)
        except SessionUnusable as error:
            left_out.append(LeftOut(session=files.name, reason=printable(f"{collection}: {error}")))
            continue
        # A protocol stands where its last task stands: the day's protocol is that of the last task.
        by_protocol[protocol] = [*by_protocol.pop(protocol, []), (collection, settings)]
    return by_protocol, left_out


def _load_protocol(files: SessionFiles, protocol: str, tasks: list[Task], trials_loader: TrialsLoader) -> Session:
    trials = facts = None
    if protocol != "habituation":
        names = [collection for collection, _ in tasks]
        trials = trials_loader(files, trials_collections(names))
        facts = session_facts(files, tasks)
    return Session(
        path=str(files.path), number=files.number, protocol=protocol, trials=trials, facts=facts, eid=files.eid
    )


def raw_collections(files: SessionFiles) -> list[str]:
    """Return the raw collections of a session's choice world tasks, in their order; passive ones are left out.

    Raises
    ------
    SessionUnusable
        Where the experiment description cannot be read.
    """
    if files.description is None:
        return [collection for collection in sorted(files.settings) if collection != _PASSIVE]
    content = files.description.read_bytes()
    try:
        description = yaml.load(content, Loader=_FAST_YAML if len(content) < _SHORT_YAML else yaml.SafeLoader) or {}
        tasks = [
            (str(protocol), (details or {}).get("collection"))
            for entry in description.get("tasks") or []
            for protocol, details in entry.items()
        ]
    except _BROKEN as error:
        raise SessionUnusable(f"{files.description.name} cannot be read: {_first_line(error)}") from error
    collections = [
        str(collection or f"{_TASK}{position:02}")
        for position, (protocol, collection) in enumerate(tasks)
        if "ChoiceWorld" in protocol and "passiveChoiceWorld" not in protocol
    ]
    return [collection for collection in collections if collection != _PASSIVE]


def trials_collections(collections: Sequence[str]) -> list[str] | None:
    """Return where the trials of raw collections lie: ``alf``, or ``alf/task_NN`` for ``raw_task_data_NN``.

    None where the names do not tell: every collection with trials then counts.
    """
    if list(collections) == ["raw_behavior_data"]:
        return ["alf"]
    if all(collection.startswith(_TASK) for collection in collections):
        return [f"alf/task_{collection.removeprefix(_TASK)}" for collection in collections]
    return None


def raw_of(files: SessionFiles, collections: Sequence[str] | None) -> list[str]:
    """Return the raw collections that trials collections are extracted from; those of all tasks where None.

    Raises
    ------
    SessionUnusable
        Where the experiment description cannot be read.
    """
    if collections is None:
        return raw_collections(files)
    return [
        name.replace("alf/task_", _TASK) if name.startswith("alf/task_") else "raw_behavior_data"
        for name in collections
    ]


def collections_with_trials(files: SessionFiles) -> list[str]:
    """Return the collections of a session's folder that hold trials, sorted."""
    return [name for name, datasets in sorted(files.trials.items()) if TRIALS_MARKER in datasets]


def read_settings(files: SessionFiles, collection: str) -> dict[str, Any]:
    """Return the task settings of a raw collection.

    Raises
    ------
    SessionUnusable
        Where they are missing, or are no JSON object.
    """
    path = files.settings.get(collection)
    if path is None:
        raise SessionUnusable("no task settings (_iblrig_taskSettings.raw.json)")
    content = path.read_bytes()
    try:
        settings = orjson.loads(_lenient(content))
    except orjson.JSONDecodeError as error:
        raise SessionUnusable(f"{path.name} is not JSON: {_first_line(error)}") from error
    if not isinstance(settings, dict):
        raise SessionUnusable(f"{path.name} is not a JSON object")
    return settings


def protocol_of(settings: dict[str, Any]) -> str:
    """Return the protocol that task settings name: training, biased, ephys or habituation.

    Raises
    ------
    SessionUnusable
        Where they name none that is known.
    """
    name = settings.get("PYBPOD_PROTOCOL")
    if not isinstance(name, str) or not name:
        raise SessionUnusable("task settings name no protocol (PYBPOD_PROTOCOL)")
    return protocol_named(name)


def protocol_named(name: str) -> str:
    """Return the protocol of a task by its name in full, such as ``_iblrig_tasks_biasedChoiceWorld6.4.2``.

    Raises
    ------
    SessionUnusable
        Where it is none that is known.
    """
    for part, protocol in PROTOCOLS.items():
        if part in name:
            return protocol
    raise SessionUnusable(f"unknown protocol {name[:80]!r}")


def load_trials(files: SessionFiles, collections: Sequence[str] | None = None) -> Trials:
    """Load the trials of a session from its folder, its collections put together in their order.

    Parameters
    ----------
    files : SessionFiles
        The session's files.
    collections : sequence of str, optional
        The trials collections, such as ``alf/task_00``; every one with trials where None.

    Returns
    -------
    Trials
        Seven arrays of shape (n_trials,).

    Raises
    ------
    TrialsNotFound
        Where a collection has no trials, or they lack ``probabilityLeft``.
    SessionUnusable
        Where a file cannot be read, an attribute is missing, or lengths differ.
    """
    if collections is None:
        collections = collections_with_trials(files)
    if not collections:
        raise TrialsNotFound(f"no trials found (no _ibl_trials.{TRIALS_MARKER})")
    parts = [_load_collection(files, collection) for collection in collections]
    return Trials(**{name: np.concatenate([part[name] for part in parts]) for name in TRIALS_ATTRIBUTES})


def _load_collection(files: SessionFiles, collection: str) -> dict[str, NDArray[np.float64]]:
    datasets = files.trials.get(collection, {})
    if TRIALS_MARKER not in datasets:
        raise TrialsNotFound(f"no trials found in {collection} (no _ibl_trials.{TRIALS_MARKER})")
    columns: dict[str, NDArray[np.float64]] = {}
    if table := datasets.get("table"):
        columns = _read_table(table)
    for name in TRIALS_ATTRIBUTES:
        if name not in columns and name in datasets:
            columns[name] = _read_array(name, datasets[name])
    return check_columns(collection, columns)


def check_columns(collection: str, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """Return the seven attributes of `columns` as float64, if they are trials.

    Parameters
    ----------
    collection : str
        Where they come from, for messages.
    columns : mapping of str to ndarray
        Attribute to its values, shape (n_trials,) or (n_trials, 1); others are left out.

    Raises
    ------
    TrialsNotFound
        Where there is no ``probabilityLeft``.
    SessionUnusable
        Where another attribute is missing, the arrays are not of one length, or a contrast is not in 0..1.
    """
    if "probabilityLeft" not in columns:
        raise TrialsNotFound(f"{collection}: trials without probabilityLeft")
    if missing := [name for name in TRIALS_ATTRIBUTES if name not in columns]:
        raise SessionUnusable(f"{collection}: trials without {', '.join(missing)}")
    try:
        columns = {name: _as_float(name, columns[name]) for name in TRIALS_ATTRIBUTES}
    except (TypeError, ValueError) as error:
        raise SessionUnusable(f"{collection}: {_first_line(error)}") from error
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise SessionUnusable(f"{collection}: trials attributes of unequal length: {told}")
    for side in ("contrastLeft", "contrastRight"):
        shown = columns[side][~np.isnan(columns[side])]
        if shown.size and not (shown.min() >= 0 and shown.max() <= 1):
            raise SessionUnusable(f"{collection}: {side} is outside 0..1")
    return columns


def _read_table(path: Path) -> dict[str, NDArray[np.float64]]:
    content = path.read_bytes()
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        there = set(file.schema_arrow.names)  # made anew at each call
        present = [name for name in TRIALS_ATTRIBUTES if name in there]
        table = file.read(columns=present, use_threads=False)
        return {name: _as_float(name, table.column(name).to_numpy()) for name in present}
    except _BROKEN as error:
        raise SessionUnusable(f"{path.name} cannot be read: {_first_line(error)}") from error


def _read_array(name: str, path: Path) -> NDArray[np.float64]:
    content = path.read_bytes()
    try:
        return _as_float(name, _array(content))
    except _BROKEN as error:
        raise SessionUnusable(f"{path.name} cannot be read: {_first_line(error)}") from error


def _array(content: bytes) -> NDArray[Any]:
    """Return the array of a .npy file, the usual one-dimensional kind without parsing its header each time."""
    if content[:8] == _NPY_1:
        begin = 10 + int.from_bytes(content[8:10], "little")
        shape, dtype = _npy_header(content[8:begin])
        if len(shape) == 1 and shape[0] > 0 and not dtype.hasobject:
            return np.frombuffer(content, dtype, shape[0], begin)
    array: NDArray[Any] = np.lib.format.read_array(BytesIO(content), allow_pickle=False)
    return array


@lru_cache(maxsize=16)  # the seven attributes of a session mostly share theirs
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    shape, _, dtype = np.lib.format.read_array_header_1_0(BytesIO(header))
    return shape, dtype


def _as_float(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"{name} has the shape {values.shape}, one value a trial is wanted")
    if values.dtype.kind not in "biufO":
        raise ValueError(f"{name} has the type {values.dtype}, numbers are wanted")
    if values.dtype == np.float32 and name == "probabilityLeft":
        # Blocks are told by equality with 0.2 and 0.8, which single precision does not hold exactly.
        return np.round(values.astype(np.float64), 6).astype(np.float64, copy=False)
    values = values.astype(np.float64, copy=False)
    # No trial is infinitely late, and a summary, which is JSON, could not hold it.
    return np.where(np.isinf(values), np.nan, values) if name.endswith("_times") else values


def session_facts(files: SessionFiles, tasks: Sequence[tuple[str, dict[str, Any]]]) -> Facts:
    """Return the duration, delay and location of a session.

    Parameters
    ----------
    files : SessionFiles
        The session's files; of the raw trials only the end is read.
    tasks : sequence of (str, dict)
        Raw collections with their task settings; durations and delays are summed, the last one's location counts.

    Returns
    -------
    Facts
        Duration in minutes, each task's rounded to the nearest; 0 for a task whose start or end cannot be told.
        Delay in seconds. Location.
    """
    duration = sum(whole_minutes(_seconds(files.task_data.get(collection), settings)) for collection, settings in tasks)
    delay, location = delay_and_location([settings for _, settings in tasks])
    return Facts(duration=float(duration), delay=delay, location=location)


def delay_and_location(of_tasks: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """Return the delays of a session's task settings in seconds, summed, and the rig of the last."""
    delay, location = 0.0, "training_rig"
    for settings in of_tasks:
        delay += _number(settings.get("SESSION_DELAY_START", settings.get("SESSION_START_DELAY_SEC", 0)))
        rig = settings.get("RIG_NAME", settings.get("PYBPOD_BOARD"))
        location = "ephys_rig" if isinstance(rig, str) and "ephys" in rig else "training_rig"
    return delay, location


def whole_minutes(seconds: float) -> float:
    """Return a time in minutes, rounded to the nearest."""
    return float(math.floor(seconds / 60 + 0.5))


def _seconds(task_data: Path | None, settings: dict[str, Any]) -> float:
    """Return a task's length in seconds: by its end time, else by its last trial; 0 where neither tells."""
    seconds = seconds_told(settings)
    if seconds is not None:
        return seconds
    return _last_trial_end(task_data) if task_data else 0.0


def seconds_told(settings: dict[str, Any]) -> float | None:
    """Return a task's length in seconds by its settings alone; None where only its raw trials can tell."""
    try:
        start = datetime.fromisoformat(settings.get("SESSION_START_TIME") or settings["SESSION_DATETIME"])
        seconds = (datetime.fromisoformat(settings["SESSION_END_TIME"]) - start).total_seconds()
    except (KeyError, TypeError, ValueError):  # no end, or one that cannot be told from the start
        return None
    return seconds if seconds >= 0 else None


def _last_trial_end(path: Path) -> float:
    """Return when the last trial ended, in seconds after the first began; 0 where no line tells."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            span = _TAIL
            while True:
                start = max(0, size - span)
                file.seek(start)
                lines = file.read().splitlines()
                for line in reversed(lines if start == 0 else lines[1:]):
                    end = _trial_end(line)
                    if end is not None and 0 <= end <= LONGEST_SESSION:
                        return end
                if start == 0:
                    return 0.0
                span *= 8
    except OSError:
        return 0.0


def _trial_end(line: bytes) -> float | None:
    try:
        behaviour = orjson.loads(_lenient(line))["behavior_data"]
        return float(behaviour["Trial end timestamp"] - behaviour["Bpod start timestamp"])
    except (ValueError, TypeError, KeyError):
        return None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _lenient(text: bytes) -> bytes:
    """Return JSON text with null for NaN and infinity, which Python's own encoder writes into raw files."""
    return _NO_JSON.sub(b"null", text)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
