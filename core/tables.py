"""Build the tables of a subject, and of the cohort, as Parquet bytes; the same days give the same bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from io import BytesIO
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from core import schema
from core.errors import CorruptTable, PermanentError
from core.names import check_lab, check_subject
from core.records import (
    DayStatus,
    DaySummary,
    LeftOut,
    Measures,
    SessionSummary,
    days_from_json,
    days_to_json,
    statuses_from_json,
    statuses_to_json,
)
from core.status import failed_sessions

_METADATA = b"training_status"
COHORT_KEY = "resources/training/cohort.pqt"


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Where a subject's objects lie in the store."""

    training: str
    criteria: str
    summaries: str
    aggregate: str


@dataclass(frozen=True, kw_only=True)
class SubjectTables:
    """A subject's objects, as bytes."""

    training: bytes
    criteria: bytes
    summaries: bytes
    aggregate: bytes
    cohort: tuple[dict[str, Any], ...]  # the subject's rows of the cohort table


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a stored table says of its own making."""

    schema_version: int
    software_version: str
    inputs: str  # fingerprint of all files that it was made from
    left_out: tuple[LeftOut, ...]


def subject_keys(lab: str, subject: str) -> Keys:
    """Return the keys of a subject's objects.

    Raises
    ------
    InvalidName
        Where lab or subject cannot become a key.
    """
    folder = f"resources/training/{check_lab(lab)}/{check_subject(subject)}"
    return Keys(
        training=f"{folder}/training.pqt",
        criteria=f"{folder}/criteria.pqt",
        summaries=f"{folder}/summaries.pqt",
        aggregate=f"aggregates/Subjects/{lab}/{subject}/_ibl_subjectTraining.table.pqt",
    )


def run_key(run_id: str) -> str:
    """Return the key of a run's record."""
    return f"resources/training/runs/{run_id}.json"


def fingerprint(inputs: Mapping[str, Mapping[str, str]]) -> str:
    """Return one fingerprint of a subject's inputs: date to session number to the fingerprint of its files."""
    listed = sorted((date, sorted(sessions.items())) for date, sessions in inputs.items())
    return blake2b(repr(listed).encode(), digest_size=16).hexdigest()


def build_tables(lab: str, subject: str, days: Sequence[DaySummary], statuses: Sequence[DayStatus]) -> SubjectTables:
    """Build all objects of a subject.

    Parameters
    ----------
    lab, subject : str
        Whose they are.
    days : sequence of DaySummary
        All days, in any order.
    statuses : sequence of DayStatus
        Of the days with usable sessions, in date order.

    Returns
    -------
    SubjectTables
        Parquet bytes.
    """
    days = sorted(days, key=lambda day: day.date)
    used = [day for day in days if day.protocol is not None]
    training = _training(used, statuses)
    metadata = {
        "schema_version": schema.SCHEMA_VERSION,
        "software_version": schema.SOFTWARE_VERSION,
        "inputs": fingerprint({day.date: day.inputs for day in days}),
        "left_out": [asdict(left) for day in days for left in day.left_out],
    }
    return SubjectTables(
        training=_write(training, metadata),
        criteria=_write(_criteria(statuses), metadata),
        summaries=_write(_summaries(days, statuses), metadata),
        aggregate=_write(_aggregate(training, _eids(days)), metadata),
        cohort=tuple(_cohort(lab, subject, training)),
    )


def read_provenance(data: bytes, key: str) -> Provenance:
    """Return what the table in `data` says of its making.

    Raises
    ------
    CorruptTable
        Where `data` is no table of ours.
    """
    try:
        raw = orjson.loads(pq.read_schema(pa.BufferReader(data)).metadata[_METADATA])
        return Provenance(
            schema_version=int(raw["schema_version"]),
            software_version=str(raw["software_version"]),
            inputs=str(raw["inputs"]),
            left_out=tuple(LeftOut(**left) for left in raw["left_out"]),
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptTable(f"{key} is no table of training-status: {_first_line(error)}") from error


def read_table(data: bytes, key: str) -> pa.Table:
    """Return the Parquet table in `data`.

    Raises
    ------
    CorruptTable
        Where it cannot be read.
    """
    try:
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptTable(f"{key} cannot be read: {_first_line(error)}") from error


def read_summaries(data: bytes, key: str) -> tuple[list[DaySummary], list[DayStatus]]:
    """Return the day summaries and statuses that :func:`build_tables` stored; errors as in :func:`read_table`.

    There are no statuses in a table of schema version 1.
    """
    table = read_table(data, key)
    try:
        days = table.column("summary").to_pylist()
        statuses = table.column("status").to_pylist() if "status" in table.column_names else []
        return days_from_json(_array(days)), statuses_from_json(_array(text for text in statuses if text is not None))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptTable(f"{key} holds no day summaries: {type(error).__name__}") from error


def _array(texts: Iterable[str]) -> str:
    return "[" + ",".join(texts) + "]"


def cohort_rows(lab: str, subject: str, data: bytes, key: str) -> list[dict[str, Any]]:
    """Return a subject's rows of the cohort table from its stored training table; errors as in :func:`read_table`."""
    return list(_cohort(lab, subject, _read_as(schema.TRAINING, data, key)))


def cohort_subjects(data: bytes) -> set[tuple[str, str]]:
    """Return the subjects (lab, subject) of the stored cohort table; errors as in :func:`merge_cohort`."""
    _refuse_newer(data, COHORT_KEY)
    table = _read_as(schema.COHORT, data, COHORT_KEY)
    return set(zip(table.column("lab").to_pylist(), table.column("subject").to_pylist(), strict=True))


def merge_cohort(
    data: bytes | None, rows: Iterable[Mapping[str, Any]], without: Collection[tuple[str, str]] = ()
) -> bytes:
    """Return the cohort table with the subjects of `rows` brought up to date, the others as they were.

    Parameters
    ----------
    data : bytes or None
        The stored cohort table; None where there is none.
    rows : iterable of mapping
        Rows in the columns of `schema.COHORT`: all of each subject that they name.
    without : collection of (str, str)
        Subjects (lab, subject) that leave the table.

    Raises
    ------
    CorruptTable
        Where `data` is no cohort table.
    PermanentError
        Where it was written by a later version, which this one must not overwrite.
    """
    if data is not None:
        _refuse_newer(data, COHORT_KEY)
    new = list(rows)
    renewed = {(row["lab"], row["subject"]) for row in new} | set(without)
    old = _read_as(schema.COHORT, data, COHORT_KEY).to_pylist() if data is not None else []
    kept = [row for row in old if (row["lab"], row["subject"]) not in renewed]
    merged = sorted(
        [*kept, *new], key=lambda row: (row["lab"], row["subject"], row["date"], schema.LADDER[row["status"]])
    )
    table = pa.Table.from_pylist(merged, schema=schema.COHORT)
    return _write(table, {"schema_version": schema.SCHEMA_VERSION, "software_version": schema.SOFTWARE_VERSION})


def _refuse_newer(data: bytes, key: str) -> None:
    try:
        told = orjson.loads(pq.read_schema(pa.BufferReader(data)).metadata[_METADATA])
        version = int(told["schema_version"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return  # no table of ours: who reads it says so
    if version > schema.SCHEMA_VERSION:
        raise PermanentError(
            f"{key} was written with schema version {version}, this is schema version {schema.SCHEMA_VERSION}: "
            "upgrade this installation"
        )


def _read_as(wanted: pa.Schema, data: bytes, key: str) -> pa.Table:
    table = read_table(data, key)
    if not table.schema.equals(wanted):
        raise CorruptTable(f"{key} has not the columns that it should have")
    return table


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _write(table: pa.Table, metadata: Mapping[str, Any]) -> bytes:
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA: orjson.dumps(metadata)})
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _training(days: Sequence[DaySummary], statuses: Sequence[DayStatus]) -> pa.Table:
    return training_table(days, [status.status for status in statuses], failed_sessions(days, statuses))


def training_table(days: Sequence[DaySummary], statuses: Sequence[str], failed: Mapping[str, str]) -> pa.Table:
    """Return a row per session and signed contrast, sorted by date, session number and contrast.

    Parameters
    ----------
    days, statuses : sequence of DaySummary, of str
        Days with usable sessions, in date order, and their statuses.
    failed : mapping of str to str
        Session path to the status that the session has in place of its day's.

    Returns
    -------
    pyarrow.Table
        In the columns of `schema.TRAINING`.
    """
    columns: dict[str, list[Any]] = {name: [] for name in schema.TRAINING_COLUMNS}
    for day, status in zip(days, statuses, strict=True):
        for session in day.sessions:
            values = session_values(day, session, failed.get(session.path, status))
            rows = len(values["contrasts"])
            for name, column in columns.items():
                column.extend(values[name] if isinstance(values[name], list) else [values[name]] * rows)
    arrays = [pa.array(columns[field.name], type=field.type, from_pandas=False) for field in schema.TRAINING]
    return pa.Table.from_arrays(arrays, schema=schema.TRAINING)


def session_values(day: DaySummary, session: SessionSummary, status: str) -> dict[str, Any]:
    """Return the columns of one session: a list where its rows differ, else the one value of all of them."""
    return {**_row(day, session, status), **_vectors(session.measures, day.combined or session.measures)}


def _row(day: DaySummary, session: SessionSummary, status: str) -> dict[str, Any]:
    """Return what is the same in every row of a session."""
    return {
        "date": day.date,
        "session_path": session.path,
        "task_protocol": session.protocol,
        "location": session.location,
        "training_status": status,
        **_scalars(session.measures, ""),
        **_scalars(day.combined or session.measures, "combined_"),
    }


def _scalars(measures: Measures | None, prefix: str) -> dict[str, float]:
    fits = measures.fits if measures else [[np.nan] * 4] * 3
    return {
        f"{prefix}performance_easy": measures.performance_easy if measures else np.nan,
        f"{prefix}reaction_time": measures.reaction_time if measures else np.nan,
        f"{prefix}n_trials": measures.n_trials if measures else np.nan,
        f"{prefix}sess_duration": measures.duration if measures else np.nan,
        f"{prefix}n_delay": measures.delay if measures else np.nan,
        **{
            f"{prefix}{parameter}_{block}": value
            for (block, _), of_block in zip(schema.BLOCKS, fits, strict=True)
            for parameter, value in zip(schema.FIT_PREFIXES, of_block, strict=True)
        },
    }


def _vectors(session: Measures | None, combined: Measures | None) -> dict[str, list[float]]:
    """Return the columns that differ from row to row; the shorter are filled up with NaN, to one row at least."""
    vectors = {
        "performance": session.counts.proportions() if session else [],
        "contrasts": list(session.counts.contrasts) if session else [],
        "combined_performance": combined.counts.proportions() if combined else [],
        "combined_contrasts": list(combined.counts.contrasts) if combined else [],
    }
    rows = max(1, *map(len, vectors.values()))
    return {name: values + [np.nan] * (rows - len(values)) for name, values in vectors.items()}


def _criteria(statuses: Sequence[DayStatus]) -> pa.Table:
    rows = [
        {"date": day.date, "status": day.status, "window_status": day.window_status, **vars(verdict)}
        for day in statuses
        for verdict in day.verdicts
    ]
    return pa.Table.from_pylist(rows, schema=schema.CRITERIA)


def _summaries(days: Sequence[DaySummary], statuses: Sequence[DayStatus]) -> pa.Table:
    status_of = {status.date: statuses_to_json([status])[1:-1].decode() for status in statuses}
    return pa.Table.from_arrays(
        [
            [day.date for day in days],
            [fingerprint({day.date: day.inputs}) for day in days],
            [days_to_json([day])[1:-1].decode() for day in days],
            pa.array([status_of.get(day.date) for day in days], pa.string()),
        ],
        schema=schema.SUMMARIES,
    )


def _first_days(training: pa.Table) -> dict[str, tuple[str, str]]:
    """Return for each status the date and session path where it first appears, in order of appearance."""
    first: dict[str, tuple[str, str]] = {}
    names = ("training_status", "date", "session_path")
    for status, date, path in zip(*(training.column(name).to_pylist() for name in names), strict=True):
        first.setdefault(status, (date, path))
    return first


def _eids(days: Sequence[DaySummary]) -> dict[str, str]:
    """Return the identifiers in ONE of the sessions that have one, by their paths."""
    return {session.path: session.eid for day in days for session in day.sessions if session.eid}


def _aggregate(training: pa.Table, eids: Mapping[str, str]) -> pa.Table:
    first = _first_days(training)
    frame = pd.DataFrame(
        {"training_status": list(first), "session": [eids.get(path, path) for _, path in first.values()]},
        index=pd.Index([date for date, _ in first.values()], name="date", dtype=object),
        dtype=object,
    )
    return pa.Table.from_pandas(
        frame, schema=pa.schema([(name, pa.string()) for name in (*schema.AGGREGATE_COLUMNS, "date")])
    )


def _cohort(lab: str, subject: str, training: pa.Table) -> Iterable[dict[str, Any]]:
    dates = training.column("date").to_pylist()
    if not dates:
        return
    sessions = list(dict.fromkeys(zip(dates, training.column("session_path").to_pylist(), strict=True)))
    latest = _latest_status(training)
    for status, (date, _) in _first_days(training).items():
        until = [day for day, _ in sessions if day <= date]
        yield {
            "lab": lab,
            "subject": subject,
            "status": status,
            "date": date,
            "sessions": len(until),
            "days": len(set(until)),
            "latest": status == latest,
        }


def _latest_status(training: pa.Table) -> str:
    """Return where the mouse stands: the ladder's last status; habituation only where there is nothing else."""
    statuses: list[str] = training.column("training_status").to_pylist()
    return next((status for status in reversed(statuses) if status != "habituation"), statuses[-1])
