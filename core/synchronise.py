"""Keep a subject's objects in the store and its sessions on disk in step: what is to do, and the writing back.

The store is the truth. The training table is pulled before anything is computed, and put back only if it has changed
and only in the place of the version that was pulled; whoever comes second looks again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.discover import fingerprint_kind
from core.errors import CorruptTable, PermanentError, StoreConflict
from core.names import is_date
from core.records import DayStatus, DaySummary, LeftOut
from core.reextract import awaits_extraction
from core.schema import SCHEMA_VERSION, SOFTWARE_VERSION, SUMMARIES_READ
from core.sources.base import SubjectSource
from core.storage import Store, StoredObject
from core.storage.base import update
from core.tables import Keys, Provenance, SubjectTables, fingerprint, read_provenance, read_summaries, read_table

#: Stands before the fingerprint of a session that is not on disk where others were added to its day, so that the day is
#: summarised anew once it is back.
_APART = "apart:"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a subject found."""

    dates: tuple[str, ...]  # days to summarise, sorted
    kept: tuple[DaySummary, ...]  # days that the store already has and that still hold
    base: str | None  # version of the training table that this starts from; None where there is none
    table: bytes | None  # that table, where it can be read
    unchanged: bool  # nothing to do: the stored table is that of these inputs
    left_out: tuple[LeftOut, ...]  # odd folders, sessions that are gone
    empty: bool = False  # there is no session folder on disk
    settled: tuple[DayStatus, ...] = ()  # statuses of the days before the first that is new, changed or gone
    held: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # date -> its sessions that are not to be read


def look(
    source: SubjectSource,
    store: Store,
    keys: Keys,
    *,
    everything: bool,
    again: bool = False,
    prune: bool = False,
    extract: bool = False,
) -> Look:
    """Look at a subject's sessions and its stored table, and tell what is to do.

    A session that is no longer on disk is kept as the store has it; new ones of its day are added to it. One whose
    files are found under another number or date has moved, and is not kept where it was.

    Parameters
    ----------
    source : SubjectSource
        The subject's sessions.
    store : Store
        Where the tables lie.
    keys : Keys
        Of the subject's objects.
    everything : bool
        Compute all days anew; else only those whose inputs are new or changed.
    again : bool
        A look after a :class:`StoreConflict`. What lies beside the training table may then be of the one that came
        second, so it is put back even where the training table is that of these inputs.
    prune : bool
        Keep nothing of sessions that are no longer on disk; of those that are there and cannot be read, all the same.
    extract : bool
        Read days again of which a session was left out because nothing could extract it from its raw files.

    Returns
    -------
    Look
        One request to the store where nothing has changed.

    Raises
    ------
    PermanentError
        Where the stored table was written by a later version, which this one must not overwrite.
    """
    days, odd = source.sessions()
    stored = store.get(keys.training)
    provenance = _provenance(stored, keys.training)
    base = stored.etag if stored else None
    table = stored.data if stored and provenance else None
    closed = {left.session for left in odd if is_date(left.session)}
    empty = not days and not closed
    if everything or provenance is None or provenance.schema_version not in SUMMARIES_READ:
        return Look(
            dates=tuple(days), kept=(), base=base, table=table, unchanged=False, left_out=tuple(odd), empty=empty
        )
    settles = provenance.schema_version == SCHEMA_VERSION and not again
    present = source.inputs(days)
    owed = extract and any(map(awaits_extraction, provenance.left_out))
    if settles and not owed and fingerprint(present) == provenance.inputs:
        left_out = (*odd, *provenance.left_out)
        return Look(dates=(), kept=(), base=base, table=table, unchanged=True, left_out=left_out, empty=empty)

    known, statuses = _stored_summaries(store, keys.summaries)
    moved = _new_fingerprints(known, present)
    found = {
        day.date: _compare(
            day,
            present.get(day.date, {}),
            listed=day.inputs.keys() if day.date in closed else {path.name for path in days.get(day.date, ())},
            moved=moved,
            prune=prune,
        )
        for day in known
    }
    kept = {
        day.date: _set_apart(day, found[day.date])
        for day in known
        if found[day.date].missing
        or (day.inputs == present.get(day.date) and not (owed and any(map(awaits_extraction, day.left_out))))
    }
    todo = tuple(date for date in days if date not in kept or found[date].new)
    earliest = min((*todo, *(day.date for day in known if day.date not in kept)), default=None)
    told = [LeftOut(session=date, reason=found[date].told()) for date in kept if found[date].missing]
    remembered = [left for date, day in kept.items() if date not in todo for left in day.left_out]
    inputs = fingerprint({date: day.inputs for date, day in kept.items()})
    return Look(
        dates=todo,
        kept=tuple(kept.values()),
        base=base,
        table=table,
        unchanged=settles and not todo and inputs == provenance.inputs,
        left_out=(*odd, *told, *remembered),
        empty=empty,
        settled=tuple(status for status in statuses if earliest is None or status.date < earliest),
        held={
            date: tuple(sorted({*kept[date].inputs, *present[date]}.difference(found[date].new)))
            for date in todo
            if date in kept
        },
    )


def find_work(
    source: SubjectSource, dates: Sequence[str], held: Mapping[str, Collection[str]]
) -> dict[str, list[Path]]:
    """Return the session folders of some dates by date, without those that :class:`Look` holds."""
    days, _ = source.sessions(dates)
    return {date: [path for path in paths if path.name not in held.get(date, ())] for date, paths in days.items()}


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


def _stored_summaries(store: Store, key: str) -> tuple[list[DaySummary], list[DayStatus]]:
    """Return the day summaries in the store, and the statuses where the software that is running computed them."""
    stored = store.get(key)
    try:
        if stored is None:
            return [], []
        provenance = read_provenance(stored.data, key)
        if provenance.schema_version not in SUMMARIES_READ:
            return [], []
        days, statuses = read_summaries(stored.data, key)
    except CorruptTable:
        return [], []  # every day is summarised anew
    by_this_software = (provenance.schema_version, provenance.software_version) == (SCHEMA_VERSION, SOFTWARE_VERSION)
    return days, statuses if by_this_software else []


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """How the sessions that the store has of a day differ from those on disk; by number."""

    gone: tuple[str, ...]  # no longer on disk
    unread: tuple[str, ...]  # on disk, but their folders cannot be listed
    new: tuple[str, ...]
    changed: tuple[str, ...]
    moved: tuple[str, ...]  # their files are found under another number or date

    @property
    def missing(self) -> tuple[str, ...]:
        """Sessions that cannot be summarised again."""
        return (*self.gone, *self.unread)

    def told(self) -> str:
        """Return for people why the day is not simply brought to what is on disk."""
        parts = []
        if self.gone:
            parts.append(f"{_named(self.gone)} no longer on disk: kept as the table has it (refresh --prune drops it)")
        if self.unread:
            parts.append(f"{_named(self.unread)} on disk but cannot be read: kept as the table has it")
        if self.new:
            parts.append(f"{_named(self.new)} new and added beside, without combined values for the day")
        if self.changed:
            parts.append(f"{_named(self.changed)} changed, but stays as it was while others are missing")
        if self.moved:
            parts.append(f"{_named(self.moved)} elsewhere now, but stays here, too, while others are missing")
        return "; ".join(parts)


def _compare(
    day: DaySummary, present: Mapping[str, str], *, listed: Collection[str], moved: Collection[str], prune: bool
) -> _Compared:
    """Compare a stored day with the fingerprints of its sessions on disk, and the numbers that are listed there."""
    inputs = {number: digest.removeprefix(_APART) for number, digest in day.inputs.items()}
    away = [number for number in inputs if number not in listed]
    return _Compared(
        moved=tuple(number for number in away if inputs[number] in moved),
        gone=tuple(number for number in away if not prune and inputs[number] not in moved),
        unread=tuple(number for number in inputs if number in listed and number not in present),
        new=tuple(number for number in present if number not in inputs and present[number] not in inputs.values()),
        changed=tuple(
            number
            for number in sorted(inputs.keys() & present.keys())
            if inputs[number] != present[number]
            and fingerprint_kind(inputs[number]) == fingerprint_kind(present[number])
        ),
    )


def _new_fingerprints(known: Sequence[DaySummary], present: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Return the fingerprints of sessions that were not on disk under that date and number before."""
    before = {day.date: day.inputs for day in known}
    return {
        digest
        for date, sessions in present.items()
        for number, digest in sessions.items()
        if before.get(date, {}).get(number) != digest
    }


def _set_apart(day: DaySummary, found: _Compared) -> DaySummary:
    """Return a day that is kept; where others are added to it, with its missing sessions set apart from theirs."""
    if not (found.missing and found.new):
        return day
    apart = {number: _APART + day.inputs[number].removeprefix(_APART) for number in found.missing}
    return replace(day, inputs={**day.inputs, **apart})


def _named(numbers: Sequence[str]) -> str:
    many = len(numbers) > 1
    return f"session{'s' * many} {', '.join(sorted(numbers))} {'are' if many else 'is'}"
