"""Keep one subject's training table, as a data frame, up to date with its sessions, wherever their trials are.

This serves callers that have a table and a subject's folder, and neither a store with day summaries nor workers: trials
of days that the table has already are loaded again for the windows that need them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO, StringIO
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from core import load
from core.discover import find_files
from core.errors import CorruptTable, InvalidName, SessionUnusable, TrainingStatusError, TrialsNotFound
from core.names import check_date, check_number
from core.one_trials import load_one_trials
from core.records import DayStatus, DaySummary, Facts, LeftOut, LoadedDay, Session, SessionFiles, SessionSummary, Trials
from core.reextract import reextract_trials
from core.schema import LADDER, TRAINING
from core.status import WINDOW_DAYS, compute_statuses, failed_sessions, pass_through_hierarchy
from core.summarise import summarise
from core.tables import read_table, training_table

logger = logging.getLogger(__name__)

#: Columns without which a table is no training table.
_NEEDED: Final = ("date", "session_path", "task_protocol", "training_status")
NOT_COMPUTED: Final = "not_computed"
#: Statuses that are passed over where the next day's is held against the one before.
_OFF_LADDER: Final = ("habituation", NOT_COMPUTED)
#: The status that a session would have if it had not been set to one of these: the 40th session in training has that
#: of training, and a biased one under ready4ephysrig has trained 1b, as no window with a biased day gives less.
_UNDER: Final = {"untrainable": "in training", "unbiasable": "trained 1b"}


def find_trials(files: SessionFiles, collections: Sequence[str] | None, *, one: Any, force: bool) -> Trials:
    """Return a session's trials from the first place that has them.

    Parameters
    ----------
    files : SessionFiles
        What lies in the session's folder.
    collections : sequence of str or None
        The trials collections, such as ``alf/task_00``; every one with trials where None.
    one : one.api.One or None
        Asked after the folder; the raw files, which need ibllib, come last.
    force : bool
        Whether to look beyond the folder.

    Raises
    ------
    TrialsNotFound
        Where no place has them, with the reason of each.
    """
    places: list[tuple[str, Callable[[], Trials]]] = [("folder", lambda: load.load_trials(files, collections))]
    if force:
        places += [
            ("ONE", lambda: load_one_trials(files.path, one, collections)),
            ("raw files", lambda: reextract_trials(files.path, load.raw_of(files, collections))),
        ]
    reasons = []
    for place, find in places:
        try:
            return find()
        except (TrainingStatusError, OSError) as error:
            reasons.append(f"{place}: {error}")
    raise TrialsNotFound(f"no trials of {files.path}: {'; '.join(reasons)}")


def find_session_files(path: Path) -> SessionFiles:
    """Return the files of a session; none where its folder is not there or cannot be listed."""
    try:
        return find_files(path)
    except OSError as error:
        logger.info("%s cannot be listed: %s", path, error.strerror)
        return SessionFiles(path=path, description=None, settings={}, task_data={}, trials={}, fingerprint="")


def load_sessions(path: Path, *, one: Any, force: bool) -> tuple[list[Session], list[LeftOut]]:
    """Load what a session's folder holds, as :func:`core.load.load_session`, with trials as :func:`find_trials`."""
    files = find_session_files(path)
    try:
        return load.load_session(files, partial(find_trials, one=one, force=force))
    except OSError as error:
        return [], [LeftOut(session=files.name, reason=f"cannot be read: {error.strerror}")]


def log_left_out(left_out: Iterable[LeftOut]) -> None:
    """Log what was not used, a line each."""
    for left in left_out:
        logger.warning("%s left out: %s", left.session, left.reason)


def unset_status(protocol: str | None) -> str:
    """Return the status of a session before it is computed."""
    return protocol if protocol == "habituation" else NOT_COMPUTED


def frame_from_parquet(data: bytes, name: str) -> pd.DataFrame:
    """Return a training table, in the columns of `schema.TRAINING`, from Parquet bytes.

    Raises
    ------
    CorruptTable
        Where it is none; `name` is what the message calls it.
    """
    return _to_frame(_conform(read_table(data, name).to_pandas(), name))


def frame_from_csv(data: bytes, name: str) -> pd.DataFrame:
    """Return a training table that the peer wrote; returns and errors as :func:`frame_from_parquet`."""
    try:
        df = pd.read_csv(StringIO(data.decode()), dtype={"date": str, "session_path": str})
    except (ValueError, TypeError) as error:
        raise CorruptTable(f"{name} cannot be read: {(str(error).splitlines() or [''])[0][:120]}") from error
    return _to_frame(_conform(df, name))


def frame_to_parquet(df: pd.DataFrame, name: str) -> bytes:
    """Return a training table as Parquet bytes; errors as :func:`frame_from_parquet`.

    They say nothing of the files that the table was made from, so whoever refreshes the store computes it anew.
    """
    buffer = BytesIO()
    pq.write_table(_conform(df, name), buffer, compression="zstd")
    return buffer.getvalue()


def _to_frame(table: pa.Table) -> pd.DataFrame:
    df: pd.DataFrame = table.to_pandas()
    return df


def _conform(df: pd.DataFrame, name: str) -> pa.Table:
    """Return `df` in the columns and types of `schema.TRAINING`: the peer's tables have them in another order."""
    if missing := [column for column in _NEEDED if column not in df]:
        raise CorruptTable(f"{name} is no training table: it has no {', '.join(missing)}")
    if unknown := sorted(set(map(str, df["training_status"])) - LADDER.keys()):
        raise CorruptTable(f"{name} has {unknown[0]!r} for a training status")
    nothing = pd.Series(np.nan, index=df.index)
    arrays = []
    try:
        for field in TRAINING:
            column = df.get(field.name, nothing)
            if field.name == "date":
                values: Any = dates_of(df)
            elif pa.types.is_string(field.type):
                values = [None if pd.isna(value) else str(value) for value in column]
            else:
                values = pd.to_numeric(column).to_numpy(np.float64)
            arrays.append(pa.array(values, type=field.type, from_pandas=False))
    except (TypeError, ValueError) as error:
        raise CorruptTable(f"{name} is no training table: {(str(error).splitlines() or [''])[0][:120]}") from error
    return pa.Table.from_arrays(arrays, schema=TRAINING)


def missing_sessions(df: pd.DataFrame | None, subj_path: Path) -> list[Path]:
    """Return the session folders of a subject that its table lacks, by date and number, sorted."""
    known = set() if df is None else set(zip(dates_of(df), _numbers(df), strict=True))
    return [path for path in _sessions_on_disk(subj_path) if (path.parent.name, path.name) not in known]


def unset_dates(df: pd.DataFrame) -> list[str]:
    """Return the dates from the first whose status is not computed on, each once, sorted."""
    dates = dates_of(df)
    unset = [date for date, status in zip(dates, df["training_status"], strict=True) if status == NOT_COMPUTED]
    return [date for date in sorted(set(dates)) if date >= min(unset)] if unset else []


def bring_up_to_date(df: pd.DataFrame | None, subj_path: Path, one: Any) -> pd.DataFrame | None:
    """Return a subject's table with the sessions that it lacks, and every status.

    Parameters
    ----------
    df : pandas.DataFrame or None
        The table, which is left as it is; None where there is none yet.
    subj_path : Path
        The subject's folder.
    one : one.api.One or None
        As :func:`find_trials` takes it.

    Returns
    -------
    pandas.DataFrame or None
        Columns of `schema.TRAINING`; None where there is neither a table nor a session to use. What cannot be loaded
        is logged; the status of a day whose window cannot be loaded is left as it is.
    """
    new = _summarise_missing(df, subj_path, one)
    if df is None and not new:
        return None
    table = _with_days(df, new)
    # A habituation day is computed as it stands, and yet pushes another day out of the windows behind it.
    if changed := sorted({*new, *unset_dates(table)}):
        table["training_status"] = _without_failures(table)
        dates = [date for date in sorted(set(dates_of(table))) if date >= changed[0]]
        load_one = partial(load_day, table, one=one, force=True, subj_path=subj_path)
        statuses, reasons = compute_days(table, dates, new, load_one)
        for date, reason in reasons.items():
            logger.warning("the status of %s is left as it is: %s", date, reason)
        set_statuses(table, statuses)
        for path, status in failed_sessions(*_skeleton(table)).items():
            table.loc[table["session_path"] == path, "training_status"] = status
    return table


def _summarise_missing(df: pd.DataFrame | None, subj_path: Path, one: Any) -> dict[str, DaySummary]:
    """Summarise the days that have a session which the table lacks, with all of their sessions."""
    days = []
    for date in dict.fromkeys(path.parent.name for path in missing_sessions(df, subj_path)):
        on_disk = {path.name: path for path in _sessions_on_disk(subj_path, date)}
        known = set() if df is None else {n for d, n in zip(dates_of(df), _numbers(df), strict=True) if d == date}
        sessions: list[Session] = []
        for number in sorted(on_disk.keys() | known):
            found, left_out = load_sessions(on_disk[number], one=one, force=True) if number in on_disk else ([], [])
            log_left_out(left_out)
            sessions += found
        loaded = {session.number for session in sessions}
        if loaded - known and known - loaded:
            # Rows are never lost for want of their files: without them the day cannot be put together anew.
            logger.warning("%s is left as it is: a session of it in the table cannot be loaded any more", date)
        elif loaded - known:
            days.append(LoadedDay(date=date, inputs={}, sessions=tuple(sessions)))
    return {day.date: day for day in summarise(days)}


def _with_days(df: pd.DataFrame | None, new: Mapping[str, DaySummary]) -> pd.DataFrame:
    """Return the table with the rows of new days in place of theirs, sorted by date and session number."""
    statuses = [unset_status(day.protocol) for day in new.values()]
    tables = [training_table(list(new.values()), statuses, {})]
    if df is not None:
        kept = df[~np.isin(np.array(dates_of(df), dtype=str), list(new))]
        tables.insert(0, _conform(kept, "the training table"))
    table = _to_frame(pa.concat_tables(tables))
    # A session's rows stay in their order.
    order = sorted(range(len(table)), key=list(zip(table["date"], _numbers(table), strict=True)).__getitem__)
    return table.iloc[order].reset_index(drop=True)


def compute_days(
    df: pd.DataFrame, dates: Sequence[str], known: Mapping[str, DaySummary], load_one: Callable[[str], LoadedDay]
) -> tuple[dict[str, str], dict[str, str]]:
    """Compute the statuses of consecutive days of a table.

    Parameters
    ----------
    df : pandas.DataFrame
        The table, of which the statuses of earlier days are taken.
    dates : sequence of str
        The days, sorted.
    known : mapping of str to DaySummary
        Days that are summarised already.
    load_one : callable
        Loads the others, as :func:`load_day` does.

    Returns
    -------
    dict of str to str
        Date to status; one that cannot be computed keeps what it has, if that is not lower than the day before.
    dict of str to str
        The date of each of those to the reason.
    """
    every = sorted(set(dates_of(df)))
    first, last = every.index(dates[0]), every.index(dates[-1])
    needed = every[max(0, first - WINDOW_DAYS + 1) : last + 1]
    loaded, unread = [], {}
    for date in needed:
        if date not in known:
            try:
                loaded.append(load_one(date))
            except (SessionUnusable, OSError) as error:
                unread[date] = str(error)
    days = {**known, **{day.date: day for day in summarise(loaded)}}
    computed = compute_statuses([days[date] for date in needed if date not in unread])
    alone = {day.date: day.window_status for day in computed}
    old = dict(zip(dates_of(df), _without_failures(df), strict=True))
    held = next((old[date] for date in reversed(every[:first]) if old[date] not in _OFF_LADDER), None)
    statuses, reasons = {}, {}
    for position in range(first, last + 1):
        date = every[position]
        missing = [day for day in every[max(0, position - WINDOW_DAYS + 1) : position + 1] if day in unread]
        if missing:
            reasons[date] = unread[missing[0]]
        status = old[date] if missing else alone[date]
        if status not in _OFF_LADDER:
            status = held = status if held is None else pass_through_hierarchy(status, held)
        statuses[date] = status
    return statuses, reasons


def load_day(df: pd.DataFrame, date: str, *, one: Any, force: bool, subj_path: Path | None = None) -> LoadedDay:
    """Load the sessions that a table has on a day, with the facts that it has of them.

    Parameters
    ----------
    df : pandas.DataFrame
        The table.
    date : str
        One of its days.
    one, force
        As :func:`find_trials` takes them.
    subj_path : Path, optional
        The subject's folder on this machine, where the paths in the table may be those of another.

    Raises
    ------
    TrialsNotFound
        Where the trials of one of the sessions cannot be loaded.
    """
    of_day = df[np.array(dates_of(df), dtype=str) == date].drop_duplicates(["session_path", "task_protocol"])
    sessions = []
    for number, row in sorted(zip(_numbers(of_day), of_day.to_dict("records"), strict=True), key=itemgetter(0)):
        path, protocol = str(row["session_path"]), str(row["task_protocol"])
        trials = facts = None
        if protocol != "habituation":
            here = subj_path / date / number if subj_path else Path(path)
            files = find_session_files(here if here.is_dir() else Path(path))
            trials = find_trials(files, _collections_of(files, protocol, of_day, path), one=one, force=force)
            delay, location = float(row["n_delay"]), row["location"]
            known = isinstance(location, str)
            facts = Facts(
                duration=float(row["sess_duration"]),
                delay=0.0 if known and math.isnan(delay) else delay,
                location=location if known else None,
            )
        sessions.append(Session(path=path, number=number, protocol=protocol, trials=trials, facts=facts))
    return LoadedDay(date=date, inputs={}, sessions=tuple(sessions))


def _collections_of(files: SessionFiles, protocol: str, of_day: pd.DataFrame, path: str) -> list[str] | None:
    """Return where the trials of one protocol of a session lie; None for everywhere."""
    tasks, _ = load.tasks_by_protocol(files)
    if protocol in tasks:
        return load.trials_collections([collection for collection, _ in tasks[protocol]])
    if (of_day["session_path"] == path).sum() > 1:
        raise TrialsNotFound(f"{path} ran several protocols, and its settings are not there to tell their trials apart")
    return None


def set_statuses(df: pd.DataFrame, statuses: Mapping[str, str]) -> None:
    """Set the status in the rows of each date of `statuses`."""
    computed = pd.Series(dates_of(df), index=df.index).map(statuses)
    df["training_status"] = computed.where(computed.notna(), df["training_status"])


def _without_failures(df: pd.DataFrame) -> pd.Series[str]:
    """Return the statuses of a table's rows as if no session had been untrainable or unbiasable."""
    return df["training_status"].replace(_UNDER)


def _skeleton(df: pd.DataFrame) -> tuple[list[DaySummary], list[DayStatus]]:
    """Return the days of a table with no more than which session had which protocol, and their statuses."""
    days: dict[str, list[SessionSummary]] = {}
    statuses: dict[str, str] = {}
    columns = [df[name] for name in ("session_path", "task_protocol", "training_status")]
    for date, path, protocol, status in zip(dates_of(df), *columns, strict=True):
        session = SessionSummary(path=path, number=path, protocol=protocol, location=None, measures=None)
        sessions = days.setdefault(date, [])
        if session not in sessions:
            sessions.append(session)
        statuses[date] = status
    return (
        [
            DaySummary(date=date, inputs={}, protocol=sessions[-1].protocol, sessions=tuple(sessions))
            for date, sessions in days.items()
        ],
        [DayStatus(date=date, status=status, window_status=status) for date, status in statuses.items()],
    )


def dates_of(df: pd.DataFrame) -> list[str]:
    """Return the date of each row as ``yyyy-mm-dd``, from text or from dates."""
    return [str(date)[:10] for date in df["date"]]


def _numbers(df: pd.DataFrame) -> list[str]:
    """Return the session number of each row, from paths of any system."""
    return [str(path).replace("\\", "/").rstrip("/").rpartition("/")[2] for path in df["session_path"]]


def _sessions_on_disk(subj_path: Path, date: str = "????-??-??") -> list[Path]:
    return [path for path in sorted(subj_path.glob(f"{date}/???")) if path.is_dir() and _is_session(path)]


def _is_session(path: Path) -> bool:
    try:
        check_date(path.parent.name)
        check_number(path.name)
    except InvalidName:
        return False
    return True
