"""Keep a subject's objects in the store and its sessions on disk in step: what is to do, and the writing back.

The store is the truth. The training table is pulled before anything is computed, and put back only if it has changed
and only in the place of the version that was pulled; whoever comes second looks again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.discover import find_files, find_sessions
from core.errors import CorruptTable, PermanentError, StoreConflict
from core.load import load_session
from core.names import printable
from core.records import DaySummary, LeftOut, Session, SessionFiles
from core.schema import SCHEMA_VERSION
from core.storage import Store, StoredObject
from core.storage.base import update
from core.summarise import LoadedDay
from core.tables import Keys, Provenance, SubjectTables, fingerprint, read_provenance, read_summaries, read_table


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a subject found."""

    dates: tuple[str, ...]  # days to summarise, sorted
    kept: tuple[DaySummary, ...]  # days that the store already has and that still hold
    base: str | None  # version of the training table that this starts from; None where there is none
    table: bytes | None  # that table, where it can be read
    unchanged: bool  # nothing to do: the stored table is that of these inputs
    left_out: tuple[LeftOut, ...]  # odd folders, days that are gone


def look(
    root: Path, lab: str, subject: str, store: Store, keys: Keys, *, everything: bool, again: bool = False
) -> Look:
    """Look at a subject's sessions and its stored table, and tell what is to do.

    Parameters
    ----------
    root : Path
        The session tree.
    lab, subject : str
        Whose sessions.
    store : Store
        Where the tables lie.
    keys : Keys
        Of the subject's objects.
    everything : bool
        Compute all days anew; else only those whose inputs are new or changed.
    again : bool
        A look after a :class:`StoreConflict`. What lies beside the training table may then be of the one that came
        second, so it is put back even where the training table is that of these inputs.

    Returns
    -------
    Look
        One request to the store where nothing has changed.

    Raises
    ------
    PermanentError
        Where the stored table was written by a later version, which this one must not overwrite.
    """
    days, odd = find_sessions(root, lab, subject)
    stored = store.get(keys.training)
    provenance = _provenance(stored, keys.training)
    base = stored.etag if stored else None
    table = stored.data if stored and provenance else None
    if everything or provenance is None or provenance.schema_version < SCHEMA_VERSION:
        return Look(dates=tuple(days), kept=(), base=base, table=table, unchanged=False, left_out=tuple(odd))
    inputs = {date: inputs_of([_find(path) for path in paths]) for date, paths in days.items()}
    if fingerprint(inputs) == provenance.inputs and not again:
        left_out = (*odd, *provenance.left_out)
        return Look(dates=(), kept=(), base=base, table=table, unchanged=True, left_out=left_out)
    known = {day.date: day for day in _stored_summaries(store, keys.summaries)}
    gone = [day for day in known.values() if not day.inputs.keys() <= inputs.get(day.date, {}).keys()]
    settled = {day.date for day in gone} | {date for date, day in known.items() if day.inputs == inputs.get(date)}
    todo = tuple(date for date in days if date not in settled)
    kept = tuple(day for date, day in known.items() if date in settled)
    told = [LeftOut(session=day.date, reason=_told_gone(day, inputs.get(day.date, {}))) for day in gone]
    remembered = [left for day in kept for left in day.left_out]
    return Look(
        dates=todo,
        kept=kept,
        base=base,
        table=table,
        unchanged=not again and not todo and fingerprint({day.date: day.inputs for day in kept}) == provenance.inputs,
        left_out=(*odd, *told, *remembered),
    )


def load_days(days: Mapping[str, Sequence[Path]]) -> list[LoadedDay]:
    """Load the sessions of some days, each file once.

    Parameters
    ----------
    days : mapping of str to sequence of Path
        Date to session folders, by number.
    """
    return [_load_day(date, [_find(path) for path in paths]) for date, paths in days.items()]


def inputs_of(sessions: Sequence[SessionFiles | LeftOut]) -> dict[str, str]:
    """Return the fingerprints of a day's sessions by number, those that can be reached."""
    return {files.number: files.fingerprint for files in sessions if isinstance(files, SessionFiles)}


def put_tables(store: Store, keys: Keys, tables: SubjectTables, base: str | None) -> bool:
    """Put a subject's objects into the store, in the place of the version that they were computed from.

    The training table goes last: until it is there, a refresh sees that something is owed.

    Parameters
    ----------
    store : Store
        Where to.
    keys : Keys
        Of the objects.
    tables : SubjectTables
        The objects.
    base : str or None
        What :class:`Look` said.

    Returns
    -------
    bool
        Whether the training table was written; False where it was the same already.

    Raises
    ------
    StoreConflict
        Where somebody else has put another table there since: look again and compute anew.
    """
    current = store.get(keys.training)
    same = current is not None and current.data == tables.training
    if not same and (current.etag if current else None) != base:
        raise StoreConflict(f"{keys.training} was written by somebody else in the meantime")
    for key, data in (
        (keys.summaries, tables.summaries),
        (keys.criteria, tables.criteria),
        (keys.aggregate, tables.aggregate),
    ):
        _put(store, key, data)
    if not same:
        store.put(keys.training, tables.training, replaces=base)
    return not same


def _put(store: Store, key: str, data: bytes) -> None:
    update(store, key, lambda _: data)


def _load_day(date: str, sessions: Sequence[SessionFiles | LeftOut]) -> LoadedDay:
    loaded: list[Session] = []
    left_out: list[LeftOut] = []
    reached = []
    for files in sessions:
        if isinstance(files, LeftOut):
            left_out.append(files)
            continue
        try:
            good, bad = load_session(files)
        except OSError as error:  # it is no input then, so that the next refresh tries it again
            left_out.append(_unreached(files.path, error))
            continue
        loaded += good
        left_out += bad
        reached.append(files)
    return LoadedDay(date=date, inputs=inputs_of(reached), sessions=tuple(loaded), left_out=tuple(left_out))


def _find(path: Path) -> SessionFiles | LeftOut:
    try:
        return find_files(path)
    except OSError as error:
        return _unreached(path, error)


def _unreached(session: Path, error: OSError) -> LeftOut:
    """Return a session as left out, with the file or folder of it that cannot be listed or read."""
    place = printable(os.path.relpath(error.filename or session, session.parent))
    return LeftOut(session=f"{session.parent.name}/{session.name}", reason=f"{place} cannot be read: {error.strerror}")


def _provenance(stored: StoredObject | None, key: str) -> Provenance | None:
    """Return what the stored table says of itself; None where there is none, or none that can be read."""
    if stored is None:
        return None
    try:
        read_table(stored.data, key)  # what a table says of itself stands at its end, and outlives its rows
        provenance = read_provenance(stored.data, key)
    except CorruptTable:
        return None  # it is computed anew and replaced
    if provenance.schema_version > SCHEMA_VERSION:
        raise PermanentError(
            f"{key} was written by training-status {provenance.software_version} with schema version "
            f"{provenance.schema_version}, this is schema version {SCHEMA_VERSION}: upgrade this installation"
        )
    return provenance


def _stored_summaries(store: Store, key: str) -> list[DaySummary]:
    stored = store.get(key)
    try:
        if stored is None or read_provenance(stored.data, key).schema_version != SCHEMA_VERSION:
            return []
        return read_summaries(stored.data, key)
    except CorruptTable:
        return []  # every day is summarised anew


def _told_gone(day: DaySummary, present: Mapping[str, str]) -> str:
    missing = ", ".join(sorted(day.inputs.keys() - present.keys()))
    return f"session {missing} is no longer on disk: the day is kept as it was"
