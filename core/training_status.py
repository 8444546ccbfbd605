"""The documented functions of `ibllib.pipes.training_status`, for scripts that import that module.

Names, arguments and returned values are those of its documentation (ibllib 4.1); the numbers are those of this
project, and `docs/compatibility.md` lists what differs. Each function is a door to the modules behind it: what has a
whole tree to go through calls those instead.

Settings are read from the environment when a function is called: ``TRAINING_STATUS_STORE`` (the store of the tables),
``TRAINING_STATUS_S3_ENDPOINT``, ``_S3_PROFILE``, ``_S3_REGION`` (how it is reached), and ``TRAINING_STATUS_ROOT`` (the
session tree that a table is uploaded from).
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core import load
from core.discover import subjects_folder
from core.errors import (
    ConfigurationError,
    MissingCredentials,
    SessionUnusable,
    StoreConflict,
    TransientError,
    TrialsNotFound,
)
from core.names import SUBJECTS_FOLDER
from core.records import Facts, LoadedDay, Session, SessionFiles, Trials
from core.schema import TRAINING_COLUMNS, TRIALS_ATTRIBUTES
from core.status import pass_through_hierarchy
from core.storage import Store, open_store, update
from core.summarise import put_together, summarise
from core.tables import session_values, subject_keys
from core.upkeep import (
    bring_up_to_date,
    compute_days,
    dates_of,
    find_session_files,
    find_trials,
    frame_from_csv,
    frame_from_parquet,
    frame_to_parquet,
    load_day,
    load_sessions,
    log_left_out,
    missing_sessions,
    set_statuses,
    unset_dates,
    unset_status,
)

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

#: Where the tables are kept, and who may read them there, if the environment does not say.
BUCKET: Final = "ibl-brain-wide-map-private"
PROFILE: Final = "ibl_training"
#: The session tree of a lab's own server.
SERVER_ROOT: Final = "/mnt/s0/Data"

TABLE_NAME: Final = "training.pqt"
OLD_TABLE_NAME: Final = "training.csv"

#: How often a table is brought up to date anew because somebody else wrote it meanwhile.
_ATTEMPTS: Final = 5


class TrialsBunch(dict[str, NDArray[np.float64]]):
    """Trials by attribute, each of shape (n_trials,): ``trials['choice']`` and ``trials.choice`` are the same."""

    def __getattr__(self, name: str) -> NDArray[np.float64]:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"these trials have no attribute {name!r}") from None

    def __setattr__(self, name: str, values: NDArray[np.float64]) -> None:
        self[name] = values


# ---- the store


def get_training_table_from_aws(lab: str, subject: str) -> pd.DataFrame | None:
    """Return a subject's training table from the store. Stands for the peer's function of this name.

    Parameters
    ----------
    lab, subject : str
        Whose table.

    Returns
    -------
    pandas.DataFrame or None
        A row per session and signed contrast, columns as `schema.TRAINING_COLUMNS`: `training.pqt`, or an old
        `training.csv` where there is none; None where there is neither. Nothing is written to disk.

    Raises
    ------
    MissingCredentials
        Where there are no credentials for the store.
    AccessRefused
        Where the store refuses them.
    CorruptTable
        Where the table cannot be read.
    StoreMissing, StoreUnavailable
        Where the store is not there, or does not answer.
    """
    return _pull(_open_store(), lab, subject)[0]


def upload_training_table_to_aws(lab: str, subject: str) -> None:
    """Put a subject's training table into the store, from its folder. Stands for the peer's function of this name.

    The folder is that of the subject in the session tree that ``TRAINING_STATUS_ROOT`` names, on a lab's own server
    by default.

    Parameters
    ----------
    lab, subject : str
        Whose table.

    Raises
    ------
    ConfigurationError
        Where the subject's folder has no training table.
    MissingCredentials, AccessRefused, CorruptTable, StoreMissing, StoreUnavailable
        As :func:`get_training_table_from_aws` raises them.
    """
    root = Path(os.environ.get("TRAINING_STATUS_ROOT") or SERVER_ROOT)
    key = subject_keys(lab, subject).training
    folder = subjects_folder(root, lab) / subject
    df = load_existing_dataframe(folder)
    if df is None:
        raise ConfigurationError(f"no {TABLE_NAME} in {folder}: there is nothing to upload")
    data = frame_to_parquet(df, key)
    update(_open_store(), key, lambda _: data)


def _open_store() -> Store:
    settings = {name: os.environ.get(f"TRAINING_STATUS_{name}") for name in ("STORE", "S3_ENDPOINT", "S3_REGION")}
    profile = os.environ.get("TRAINING_STATUS_S3_PROFILE") or (None if settings["STORE"] else PROFILE)
    return open_store(
        settings["STORE"] or f"s3://{BUCKET}",
        endpoint=settings["S3_ENDPOINT"],
        profile=profile,
        region=settings["S3_REGION"],
    )


def _pull(store: Store, lab: str, subject: str) -> tuple[pd.DataFrame | None, str | None]:
    """Return the stored table, and the version of its Parquet object that it comes from."""
    key = subject_keys(lab, subject).training
    if stored := store.get(key):
        return frame_from_parquet(stored.data, key), stored.etag
    old_key = key.removesuffix(TABLE_NAME) + OLD_TABLE_NAME
    if stored := store.get(old_key):
        return frame_from_csv(stored.data, old_key), None
    return None, None


# ---- the table on disk


def save_dataframe(df: pd.DataFrame, subj_path: StrPath) -> None:
    """Save a training table as `training.pqt` in the subject's folder. Stands for the peer's function of this name.

    It is written under another name, then renamed: a reader finds the old table or the new one, never a part.

    Parameters
    ----------
    df : pandas.DataFrame
        A row per session and signed contrast; columns beyond `schema.TRAINING_COLUMNS` are left out.
    subj_path : str or Path
        The subject's folder.

    Raises
    ------
    CorruptTable
        Where `df` is no training table.
    OSError
        Where the folder cannot be written to.
    """
    path = Path(subj_path) / TABLE_NAME
    data = frame_to_parquet(df, "the training table to save")
    temporary = path.with_name(f".{TABLE_NAME}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_existing_dataframe(subj_path: StrPath) -> pd.DataFrame | None:
    """Return the training table in the subject's folder. Stands for the peer's function of this name.

    Parameters
    ----------
    subj_path : str or Path
        The subject's folder.

    Returns
    -------
    pandas.DataFrame or None
        A row per session and signed contrast, columns as `schema.TRAINING_COLUMNS`: `training.pqt`, or an old
        `training.csv` where there is none; None where there is neither.

    Raises
    ------
    CorruptTable
        Where the table cannot be read.
    """
    for name, read in ((TABLE_NAME, frame_from_parquet), (OLD_TABLE_NAME, frame_from_csv)):
        path = Path(subj_path) / name
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return read(data, str(path))
    return None


# ---- trials


def load_trials(
    sess_path: StrPath,
    one: Any,
    collections: Sequence[str] | str | None = None,
    force: bool = True,
    mode: Literal["raise", "warn"] = "raise",
) -> TrialsBunch | None:
    """Load the trials of a session. Stands for the peer's function of this name.

    They are looked for in the session's folder; then through ONE; then they are extracted anew from the raw files,
    which needs ibllib. Nothing is written to the session's folder.

    Parameters
    ----------
    sess_path : str or Path
        The session's folder.
    one : one.api.One or None
        A ONE instance; a local one asks no server.
    collections : str or sequence of str, optional
        The trials collections, such as ``alf/task_00``; every one with trials where None.
    force : bool
        Whether to look beyond the session's folder.
    mode : {"raise", "warn"}
        Where trials are found nowhere: raise, or log and return None.

    Returns
    -------
    TrialsBunch or None
        The seven attributes that are used, float64 arrays of shape (n_trials,): `choice` (1 left, -1 right, 0 no
        response), `contrastLeft` and `contrastRight` (0 to 1, NaN on the other side), `feedbackType` (1, -1),
        `probabilityLeft`, `response_times` and `stimOn_times` (s). None where `force` is False and the folder has
        none, or `mode` is "warn" and there are none at all.

    Raises
    ------
    TrialsNotFound
        Where there are none, with the reason of each of the three places.
    ConfigurationError
        Where `mode` is neither of the two.
    """
    if mode not in ("raise", "warn"):
        raise ConfigurationError(f"mode is 'raise' or 'warn', not {mode!r}")
    files = find_session_files(Path(sess_path))
    try:
        trials = find_trials(files, _listed(collections), one=one, force=force)
    except TrialsNotFound as error:
        if not force:
            logger.info("%s", error)
            return None
        if mode == "raise":
            raise
        logger.warning("%s", error)
        return None
    return _bunch(trials)


def load_combined_trials(sess_paths: Iterable[StrPath], one: Any, force: bool = True) -> TrialsBunch | None:
    """Load the trials of several sessions, such as those of a day, put together. Stands for the peer's function.

    Parameters
    ----------
    sess_paths : iterable of str or Path
        The sessions' folders, in the order that the trials are to have.
    one : one.api.One or None
        As in :func:`load_trials`.
    force : bool
        As in :func:`load_trials`.

    Returns
    -------
    TrialsBunch or None
        As :func:`load_trials` returns it. Sessions without trials are left out, and logged; None where none is left.
    """
    found = [load_trials(path, one, force=force, mode="warn") for path in sess_paths]
    parts = [Trials(**trials) for trials in found if trials is not None]
    return _bunch(put_together(parts)) if parts else None


def _bunch(trials: Trials) -> TrialsBunch:
    return TrialsBunch({name: getattr(trials, name) for name in TRIALS_ATTRIBUTES})


def _listed(collections: Sequence[str] | str | None) -> Sequence[str] | None:
    return [collections] if isinstance(collections, str) else collections


# ---- one session, or the sessions of a day


def get_data_collection(session_path: StrPath) -> tuple[list[str], list[str]]:
    """Return where the raw data and the trials of a session lie. Stands for the peer's function of this name.

    Parameters
    ----------
    session_path : str or Path
        The session's folder.

    Returns
    -------
    list of str
        Raw collections of the choice world tasks, such as ``raw_task_data_00``, without passive ones.
    list of str
        Trials collections, such as ``alf/task_00``; where the raw ones have names of another form, those with trials.

    Raises
    ------
    SessionUnusable
        Where the experiment description cannot be read.
    """
    files = find_session_files(Path(session_path))
    raw = load.raw_collections(files)
    alf = load.trials_collections(raw) if raw else []
    return raw, alf if alf is not None else load.collections_with_trials(files)


def compute_session_duration_delay_location(
    sess_path: StrPath, collections: Sequence[str] | str | None = None, **kwargs: Any
) -> tuple[int, int, str]:
    """Return a session's duration, delay and location. Stands for the peer's function of this name.

    Parameters
    ----------
    sess_path : str or Path
        The session's folder.
    collections : str or sequence of str, optional
        Raw collections; those of :func:`get_data_collection` where None.
    **kwargs
        Taken, as the peer takes them, and not used.

    Returns
    -------
    int
        Minutes, each task's rounded to the nearest, summed; 0 for a task whose end cannot be told.
    int
        Seconds between the session's start and its first trial, summed.
    str
        ``ephys_rig`` or ``training_rig``: of the last task.

    Raises
    ------
    SessionUnusable
        Where a collection has no task settings, or none that can be read.
    """
    facts = _facts(find_session_files(Path(sess_path)), _listed(collections))
    return int(facts.duration), round(facts.delay), str(facts.location)  # task settings always tell it


def get_sess_dict(
    session_path: StrPath,
    one: Any,
    protocol: str,
    alf_collections: Sequence[str] | str | None = None,
    raw_collections: Sequence[str] | str | None = None,
    force: bool = True,
) -> dict[str, Any] | None:
    """Return the measures of one session. Stands for the peer's function of this name.

    Parameters
    ----------
    session_path : str or Path
        The session's folder.
    one : one.api.One or None
        As in :func:`load_trials`.
    protocol : str
        ``training``, ``biased``, ``ephys`` or ``habituation``.
    alf_collections, raw_collections : str or sequence of str, optional
        Where trials and raw data lie; where None, where those of the protocol lie, or all of them if the session's
        settings do not name the protocol.
    force : bool
        As in :func:`load_trials`.

    Returns
    -------
    dict or None
        `date`, `session_path`, `task_protocol`, `location`, `training_status` (``habituation`` or
        ``not_computed``); `performance` and `contrasts`, arrays of shape (n_contrasts,); `performance_easy`,
        `reaction_time` (s), `n_trials`, `sess_duration` (minutes), `n_delay` (s), and `bias`, `thres`, `lapselow`,
        `lapsehigh` with `_50`, `_20`, `_80`. Habituation is not looked into: all of it is NaN. None where trials
        cannot be loaded.

    Raises
    ------
    SessionUnusable
        Where there are trials, but no task settings to tell duration, delay and location.
    """
    path = Path(session_path)
    files = find_session_files(path)
    trials = facts = None
    if protocol != "habituation":
        tasks, _ = load.tasks_by_protocol(files)
        own = [collection for collection, _ in tasks.get(protocol, [])]
        alf = _listed(alf_collections) or (load.trials_collections(own) if own else None)
        found = load_trials(path, one, collections=alf, force=force, mode="warn")
        if found is None:
            return None
        trials, facts = Trials(**found), _facts(files, _listed(raw_collections) or own or None)
    session = Session(path=str(path), number=path.name, protocol=protocol, trials=trials, facts=facts)
    (values,) = _measure([LoadedDay(date=path.parent.name, inputs={}, sessions=(session,))])
    return {name: value for name, value in values.items() if not name.startswith("combined_")}


def get_training_info_for_session(
    session_paths: Iterable[StrPath], one: Any, force: bool = True
) -> list[dict[str, Any]]:
    """Return the measures of the sessions of a day, and of the day. Stands for the peer's function of this name.

    Parameters
    ----------
    session_paths : iterable of str or Path
        The folders of the day's sessions, in the order of their numbers.
    one : one.api.One or None
        As in :func:`load_trials`.
    force : bool
        As in :func:`load_trials`.

    Returns
    -------
    list of dict
        As :func:`get_sess_dict` returns them, one for each protocol of each session, with the day's measures under the
        same names after `combined_`: of the sessions of one protocol put together (durations added, the largest
        delay), or the session's own where it is alone or protocols differ. Where the day showed more contrasts than a
        session, or fewer, the shorter arrays end in NaN. Sessions that cannot be used are left out, and logged.
    """
    days: dict[str, list[Session]] = {}
    for path in map(Path, session_paths):
        sessions, left_out = load_sessions(path, one=one, force=force)
        log_left_out(left_out)
        days.setdefault(path.parent.name, []).extend(sessions)
    return _measure(LoadedDay(date=date, inputs={}, sessions=tuple(sessions)) for date, sessions in days.items())


def _facts(files: SessionFiles, collections: Sequence[str] | None) -> Facts:
    names = load.raw_collections(files) if collections is None else collections
    if not names:
        raise SessionUnusable(f"{files.path}: no task settings (_iblrig_taskSettings.raw.json)")
    return load.session_facts(files, [(name, load.read_settings(files, name)) for name in names])


def _measure(days: Iterable[LoadedDay]) -> list[dict[str, Any]]:
    """Return the columns of each session of some days: arrays where its rows differ."""
    values = [
        session_values(day, session, unset_status(session.protocol))
        for day in summarise(list(days))
        for session in day.sessions
    ]
    return [{name: _as_peers(of_session[name]) for name in TRAINING_COLUMNS} for of_session in values]


def _as_peers(value: Any) -> Any:
    if isinstance(value, list):
        return np.array(value, dtype=np.float64)
    return np.nan if value is None else value


# ---- a subject


def get_latest_training_information(sess_path: StrPath, one: Any) -> pd.DataFrame | None:
    """Bring a subject's training table up to date with its sessions. Stands for the peer's function of this name.

    Sessions that the table lacks are computed, and the status of their days and of every day behind them; the rest is
    taken from the table. It is saved in the subject's folder. Where `one` is connected to a server, the table is
    pulled from the store before, and put back if it has changed; without credentials for the store, that is left out
    and logged.

    Parameters
    ----------
    sess_path : str or Path
        The folder of any of the subject's sessions.
    one : one.api.One or None
        As in :func:`load_trials`.

    Returns
    -------
    pandas.DataFrame or None
        A row per session and signed contrast, columns as `schema.TRAINING_COLUMNS`. A day whose window cannot be
        loaded stays ``not_computed``, and is tried again with the next call. None where there is no session to use.

    Raises
    ------
    ConfigurationError
        Where `one` is connected, and its server does not tell which lab the subject is of.
    AccessRefused, CorruptTable, StoreMissing, StoreUnavailable
        As :func:`get_training_table_from_aws` raises them.
    TransientError
        Where that server does not answer.
    StoreConflict
        Where somebody else wrote the table each time that this was about to.
    """
    subj_path = Path(sess_path).parent.parent
    if one is not None and getattr(one, "mode", "local") != "local":
        try:
            df = _synchronise(subj_path, one)
        except MissingCredentials as error:
            logger.warning("the training table is neither pulled nor pushed: %s", error)
        else:
            return df
    df = bring_up_to_date(load_existing_dataframe(subj_path), subj_path, one)
    if df is not None:
        save_dataframe(df, subj_path)
    return df


def check_up_to_date(subj_path: StrPath, df: pd.DataFrame | None) -> pd.DataFrame:
    """Return the sessions on disk that a training table lacks. Stands for the peer's function of this name.

    Sessions are told by date and number: the table may have been made on another machine.

    Parameters
    ----------
    subj_path : str or Path
        The subject's folder.
    df : pandas.DataFrame or None
        The training table; None for one without rows.

    Returns
    -------
    pandas.DataFrame
        Columns `date` (``yyyy-mm-dd``) and `session_path`, in the order of dates and numbers. A second session of a
        day that the table has is among them.
    """
    missing = missing_sessions(df, Path(subj_path))
    return pd.DataFrame({"date": [path.parent.name for path in missing], "session_path": [str(p) for p in missing]})


def find_earliest_recompute_date(df: pd.DataFrame) -> list[str]:
    """Return the dates whose status is to be computed. Stands for the peer's function of this name.

    A status depends on the days before, so these are all from the first that is ``not_computed`` on.

    Parameters
    ----------
    df : pandas.DataFrame
        A training table, with `date` and `training_status`.

    Returns
    -------
    list of str
        ``yyyy-mm-dd``, each once, sorted; empty where every status is computed.
    """
    return unset_dates(df)


def compute_training_status(
    df: pd.DataFrame, compute_date: str | datetime, one: Any, force: bool = True
) -> pd.DataFrame:
    """Compute the training status of a day of the table. Stands for the peer's function of this name.

    The trials of the day and of the two days with sessions before it are loaded from the paths in the table; duration,
    delay and location are taken from the table.

    Parameters
    ----------
    df : pandas.DataFrame
        A training table, with `date`, `session_path`, `task_protocol`, `sess_duration`, `n_delay`, `location` and
        `training_status`; a row per session and signed contrast, or per session.
    compute_date : str, datetime.datetime or pandas.Timestamp
        The day.
    one : one.api.One or None
        As in :func:`load_trials`.
    force : bool
        As in :func:`load_trials`.

    Returns
    -------
    pandas.DataFrame
        `df` itself, with `training_status` set in the day's rows.

    Raises
    ------
    TrialsNotFound
        Where the trials of a session of these days cannot be loaded: a status of a part of them would be another.
    ConfigurationError
        Where the table has no such day.
    """
    date = f"{pd.Timestamp(compute_date):%Y-%m-%d}"
    if date not in dates_of(df):
        raise ConfigurationError(f"the training table has no session on {date}")
    statuses, reasons = compute_days(df, [date], {}, partial(load_day, df, one=one, force=force))
    if date in reasons:
        raise TrialsNotFound(f"the status of {date} cannot be computed: {reasons[date]}")
    set_statuses(df, statuses)
    return df


def pass_through_training_hierachy(status_new: str, status_old: str) -> str:
    """Return the higher of two statuses, since a mouse does not go back. Stands for the peer's function of this name.

    Parameters
    ----------
    status_new, status_old : str
        The status that a day's window gives, and the one of the day before.

    Returns
    -------
    str
        One of the two.

    Raises
    ------
    KeyError
        Where one is not on the ladder (`schema.LADDER`).
    """
    return pass_through_hierarchy(status_new, status_old)


def _synchronise(subj_path: Path, one: Any) -> pd.DataFrame | None:
    """Bring the table in the store up to date, and save it in the subject's folder too."""
    subject = subj_path.name
    lab = _lab(subject, subj_path, one)
    store, key = _open_store(), subject_keys(lab, subject).training
    for attempt in range(_ATTEMPTS):
        stored, etag = _pull(store, lab, subject)
        df = bring_up_to_date(load_existing_dataframe(subj_path) if stored is None else stored, subj_path, one)
        if df is None:
            return None
        save_dataframe(df, subj_path)
        if stored is not None and etag is not None and df.equals(stored):
            return df
        try:
            store.put(key, frame_to_parquet(df, key), replaces=etag)
        except StoreConflict:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return df
    raise AssertionError("the last attempt returns or raises")


def _lab(subject: str, subj_path: Path, one: Any) -> str:
    """Return the subject's lab from the server: the folder above ``Subjects`` need not be a lab."""
    try:
        found = one.alyx.rest("subjects", "list", nickname=subject)
    except OSError as error:
        raise TransientError(f"Alyx does not tell the lab of {subject}: {type(error).__name__}") from error
    labs = sorted({str(row["lab"]) for row in found})
    above = subj_path.parent.parent.name if subj_path.parent.name == SUBJECTS_FOLDER else None
    if len(labs) > 1 and above in labs:
        return str(above)
    if len(labs) != 1:
        raise ConfigurationError(f"Alyx has {subject} in {', '.join(labs) or 'no lab'}: one lab is wanted")
    return labs[0]
