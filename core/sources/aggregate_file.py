"""One subject's file of the public aggregates: trials, told apart by session and task, and the sessions they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date as Date
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.errors import CorruptTable, InvalidName, SessionUnusable
from core.load import (
    LONGEST_SESSION,
    check_columns,
    delay_and_location,
    protocol_named,
    seconds_told,
    whole_minutes,
)
from core.names import check_number, printable
from core.records import Facts, LeftOut, LoadedDay, Session, Trials
from core.schema import TRIALS_ATTRIBUTES
from core.summarise import put_together

if TYPE_CHECKING:
    from core.sources.one_settings import TaskSettings

#: Columns that tell which session and task a trial is of.
_OF_TASK = ("session", "session_start_time", "session_number", "task_protocol", "protocol_number")
#: The end of a trial, for a session's duration.
_END = "intervals_1"
#: Attributes that a trial always has: a session without a value is one of which they were not extracted.
_ALWAYS = ("probabilityLeft", "choice", "feedbackType")


@dataclass(frozen=True, kw_only=True)
class Task:
    """The trials of one task of a session."""

    eid: str
    position: int  # among the session's tasks
    protocol: str | None  # its name in full
    columns: dict[str, NDArray[Any]]  # each of shape (n_trials,)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A subject's file, read."""

    tasks: dict[tuple[str, str], list[Task]]  # by date and number, sorted
    odd: list[tuple[str, str]]  # what cannot be a session, with the reason

    @classmethod
    def read(cls, content: IO[bytes]) -> Table:
        """Read the columns that are needed, and tell sessions and their tasks apart.

        Raises
        ------
        CorruptTable
            Where columns are missing or of a wrong type.
        ArrowException, OSError, ValueError
            Where it is broken.
        """
        file = pq.ParquetFile(content)
        schema = file.schema_arrow
        _check_schema(schema)
        present = [*TRIALS_ATTRIBUTES, *_OF_TASK, *([_END] if _END in schema.names else [])]
        table = file.read(columns=present, use_threads=False)
        columns = {name: _numbers(table.column(name)) for name in present if name not in _OF_TASK}
        keys, rows = _groups([table.column(name) for name in _OF_TASK])
        tasks: dict[tuple[str, str], list[Task]] = {}
        odd: list[tuple[str, str]] = []
        for (eid, start, number, protocol, position), at in zip(keys, rows, strict=True):
            try:
                if not isinstance(eid, str) or not eid:
                    raise SessionUnusable(f"{len(at)} trials without session")
                key = _date(start), _number(number)
                if protocol is not None and not isinstance(protocol, str):
                    raise SessionUnusable(f"task_protocol is no text: {protocol!r}"[:200])
                task = Task(
                    eid=eid,
                    position=_whole("protocol_number", 0 if position is None else position),
                    protocol=protocol,
                    columns={name: values[at] for name, values in columns.items()},
                )
            except SessionUnusable as error:
                odd.append((f"session {eid}", printable(str(error))))
                continue
            tasks.setdefault(key, []).append(task)
        ordered = {key: sorted(tasks[key], key=lambda task: (task.position, task.eid)) for key in sorted(tasks)}
        return cls(tasks=ordered, odd=[*odd, *_take_torn(ordered)])


def _take_torn(tasks: dict[tuple[str, str], list[Task]]) -> list[tuple[str, str]]:
    """Take away the sessions whose trials have several dates or numbers; return them, with the reason."""
    places: dict[str, set[tuple[str, str]]] = {}
    for place, of_session in tasks.items():
        for task in of_session:
            places.setdefault(task.eid, set()).add(place)
    torn = {eid: sorted(of_eid) for eid, of_eid in places.items() if len(of_eid) > 1}
    for place in {place for of_eid in torn.values() for place in of_eid}:
        tasks[place] = [task for task in tasks[place] if task.eid not in torn]
        if not tasks[place]:
            del tasks[place]
    told = {eid: ", ".join("/".join(place) for place in of_eid) for eid, of_eid in sorted(torn.items())}
    return [(f"session {eid}", f"its trials have several dates or numbers: {which}") for eid, which in told.items()]


def _check_schema(schema: pa.Schema) -> None:
    if missing := [name for name in (*TRIALS_ATTRIBUTES, *_OF_TASK) if name not in schema.names]:
        raise CorruptTable(f"no column {', '.join(missing)}")
    for name in (*TRIALS_ATTRIBUTES, _END):
        if name in schema.names:
            kind = schema.field(name).type
            if not (
                pa.types.is_integer(kind)
                or pa.types.is_floating(kind)
                or pa.types.is_boolean(kind)
                or pa.types.is_null(kind)
            ):
                raise CorruptTable(f"column {name} has the type {kind}, numbers are wanted")


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column as numbers, NaN where there is none."""
    values = column if pa.types.is_floating(column.type) else pc.cast(column, pa.float64())
    numbers: NDArray[Any] = values.to_numpy()
    return numbers


def _groups(columns: Sequence[pa.ChunkedArray]) -> tuple[list[tuple[Any, ...]], list[NDArray[np.intp]]]:
    """Return the distinct rows of some columns, and for each where it stands, in the order of the table."""
    combined = np.zeros(len(columns[0]), dtype=np.int64)
    values: list[list[Any]] = []
    for column in columns:
        encoded = column.combine_chunks().dictionary_encode() if len(column) else None
        if encoded is None:
            return [], []
        values.append([*encoded.dictionary.to_pylist(), None])
        codes = pc.fill_null(encoded.indices, len(values[-1]) - 1).to_numpy(zero_copy_only=False).astype(np.int64)
        # Renumbered at each step, so that no product of many columns runs over.
        combined = np.unique(combined * len(values[-1]) + codes, return_inverse=True)[1]
        values[-1] = [values[-1], codes]
    order = np.argsort(combined, kind="stable")
    bounds = np.flatnonzero(np.diff(combined[order])) + 1
    rows = np.split(order, bounds)
    return [tuple(distinct[codes[at[0]]] for distinct, codes in values) for at in rows], rows


def _date(start: Any) -> str:
    if isinstance(start, str):
        with suppress(ValueError):
            start = datetime.fromisoformat(start)
    if isinstance(start, Date):  # a datetime is one, too
        return f"{start.year:04}-{start.month:02}-{start.day:02}"
    raise SessionUnusable(f"session_start_time is no time: {start!r}"[:200])


def _number(value: Any) -> str:
    try:
        return check_number(f"{_whole('session_number', value):03}")
    except InvalidName as error:
        raise SessionUnusable(str(error)) from None


def _whole(name: str, value: Any) -> int:
    try:
        whole = int(value)
        if isinstance(value, str) or whole == value:
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise SessionUnusable(f"{name} is no whole number: {value!r}"[:200])


def eid_of(tasks: Sequence[Task]) -> str:
    """Return which session some tasks are of; "" where they are of several."""
    eids = {task.eid for task in tasks}
    return eids.pop() if len(eids) == 1 else ""


def fingerprint_of(tasks: Sequence[Task]) -> str:
    """Return the fingerprint of what a session is computed from; its date and number are no part of it."""
    digest = blake2b(digest_size=12)
    for task in tasks:
        digest.update(repr((task.eid, task.position, task.protocol)).encode())
        for name, values in task.columns.items():
            digest.update(f"{name} {len(values)} {values.dtype}".encode())
            digest.update(values.tobytes())
    return f"content:{digest.hexdigest()}"


def load_day(
    date: str,
    sessions: Mapping[Path, Sequence[Task]],
    settings: Mapping[tuple[str, str], TaskSettings],
) -> LoadedDay:
    """Load the sessions of one day from their trials.

    Parameters
    ----------
    date : str
        The day.
    sessions : mapping of Path to sequence of Task
        Session folder, as it stands in the table, to the session's tasks.
    settings : mapping of (str, str) to TaskSettings
        What ONE tells of sessions, by date and number; of those that are not there rig and delay are missing.
    """
    loaded: list[Session] = []
    left_out: list[LeftOut] = []
    inputs = {}
    for path, tasks in sessions.items():
        of_session = settings.get((date, path.name))
        good, bad = _load_session(path, tasks, of_session)
        loaded += good
        left_out += bad
        inputs[path.name] = fingerprint_of(tasks) + (of_session.fingerprint if of_session else "")
    return LoadedDay(date=date, inputs=inputs, sessions=tuple(loaded), left_out=tuple(left_out))


def _load_session(
    path: Path, tasks: Sequence[Task], settings: TaskSettings | None
) -> tuple[list[Session], list[LeftOut]]:
    """Return one `Session` for each protocol, in the order of its tasks, as :func:`core.load.load_session` does."""
    name = f"{path.parent.name}/{path.name}"
    if not eid_of(tasks):
        eids = ", ".join(sorted({task.eid for task in tasks}))
        reason = f"several sessions have this date and number, and none is taken: {eids}"
        return [], [LeftOut(session=name, reason=printable(reason))]
    left_out: list[LeftOut] = []
    by_protocol: dict[str, list[Task]] = {}
    for task in tasks:
        try:
            protocol = _protocol(task)
        except SessionUnusable as error:
            left_out.append(LeftOut(session=name, reason=printable(f"task {task.position}: {error}")))
            continue
        by_protocol[protocol] = [*by_protocol.pop(protocol, []), task]
    sessions = []
    for protocol, of_protocol in by_protocol.items():
        trials = facts = None
        if protocol != "habituation":
            try:
                trials = put_together([_trials(task) for task in of_protocol])
            except SessionUnusable as error:
                left_out.append(LeftOut(session=name, reason=printable(f"{protocol}: {error}")))
                continue
            of_tasks = settings.by_protocol.get(protocol, []) if settings else []
            if settings and not of_tasks:
                reason = f"{protocol}: rig and delay are not known: {settings.reason}"
                left_out.append(LeftOut(session=name, reason=printable(reason)))
            facts = _facts(of_protocol, of_tasks)
        sessions.append(
            Session(
                path=str(path), number=path.name, protocol=protocol, trials=trials, facts=facts, eid=of_protocol[0].eid
            )
        )
    return sessions, left_out


def _protocol(task: Task) -> str:
    if not task.protocol:
        raise SessionUnusable("trials without task_protocol")
    chained = task.protocol.split("/")  # Alyx joins the names of a session's tasks so
    name = chained[task.position] if 0 <= task.position < len(chained) > 1 else task.protocol
    return protocol_named(name)


def _trials(task: Task) -> Trials:
    where = f"task {task.position}"
    if missing := [name for name in _ALWAYS if np.isnan(task.columns[name]).all()]:
        raise SessionUnusable(f"{where}: trials without {', '.join(missing)}")
    return Trials(**check_columns(where, task.columns))


def _facts(tasks: Sequence[Task], of_tasks: Sequence[dict[str, Any]]) -> Facts:
    """Return what is known of a session beside its trials, as a tree tells it where there are task settings."""
    seconds = [_seconds(task.columns) for task in tasks]
    if not of_tasks:
        return Facts(duration=sum(map(whole_minutes, seconds)), delay=float("nan"), location=None)
    if len(of_tasks) == len(tasks):  # else nobody knows which trials are whose
        told = [seconds_told(settings) for settings in of_tasks]
        seconds = [of_trials if end is None else end for of_trials, end in zip(seconds, told, strict=True)]
    delay, location = delay_and_location(of_tasks)
    return Facts(duration=sum(map(whole_minutes, seconds)), delay=delay, location=location)


def _seconds(columns: dict[str, NDArray[Any]]) -> float:
    """Return a task's length: the end of its last trial, or its response where no end is told; 0 where neither is."""
    response = columns["response_times"]
    ends = columns.get(_END, response)
    ends = np.where(np.isnan(ends), response, ends)
    told = ends[(ends >= 0) & (ends <= LONGEST_SESSION)]
    return float(told[-1]) if told.size else 0.0
