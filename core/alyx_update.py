"""Write the training status of subjects back to Alyx: the key ``trained_criteria`` of a subject's JSON field.

aggregate table of a subject -> its session paths as eids -> what the field should hold -> sent where it holds another
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, Protocol, TypeVar
from uuid import UUID

from core.errors import ConfigurationError, MissingCredentials, PermanentError, TrainingStatusError, TransientError
from core.sources.alyx import in_our_words
from core.storage import Store
from core.tables import COHORT_KEY, cohort_subjects, read_table, subject_keys

FIELD = "trained_criteria"
#: Status, with underscores -> date, and eid of the session, that it was first reached on.
Criteria = dict[str, list[str]]
State = Literal["sent", "would be sent", "unchanged", "failed"]
T = TypeVar("T")

#: Tries of one subject where the server does not answer; pauses between them double.
_ATTEMPTS = 4
#: Subjects in a row that the server did not answer for; the rest is not tried then, or it would take hours.
_GIVE_UP_AFTER = 3
#: Most sessions that Alyx lists in one answer.
_LONGEST_PAGE = 1000


class Alyx(Protocol):
    """What is used of one-api's client; it must not read cached answers."""

    def rest(self, endpoint: str, action: str, **query: Any) -> Any:
        """Send one request."""
        ...


@dataclass(frozen=True, kw_only=True)
class Update:
    """What became of one subject."""

    lab: str
    subject: str
    state: State
    criteria: Criteria | None = None  # what the field holds now, or would
    reason: str | None = None  # where it failed


def known_subjects(store: Store, labs: Collection[str] = (), subjects: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return the subjects (lab, subject) of the cohort table, sorted; of these labs and names where any are given.

    Raises
    ------
    ConfigurationError
        Where there is no cohort table, or it has none of a lab or a name that is given.
    """
    stored = store.get(COHORT_KEY)
    if stored is None:
        raise ConfigurationError(f"no cohort table in {store.uri}: run `training-status recompute` first")
    known = cohort_subjects(stored.data)
    found = [(lab, name) for lab, name in known if (not labs or lab in labs) and (not subjects or name in subjects)]
    for kind, wanted, there in (
        ("lab", labs, {lab for lab, _ in known}),
        ("subject", subjects, {name for _, name in found}),
    ):
        if missing := sorted(set(wanted) - there):
            raise ConfigurationError(f"no {kind} {missing[0]!r} in the cohort table of {store.uri}")
    return sorted(found)


def update_subjects(
    store: Store,
    connect: Callable[[], Alyx],
    subjects: Collection[tuple[str, str]],
    *,
    dry_run: bool,
    pause: float = 1.0,
) -> Iterator[Update]:
    """Bring the JSON fields of subjects on Alyx up to date, and yield what became of each.

    What goes wrong with one subject is yielded, and not raised. The store is only read.

    Parameters
    ----------
    store : Store
        Has the aggregate tables.
    connect : callable
        Logs in.
    subjects : collection of (str, str)
        Lab and subject.
    dry_run : bool
        Send nothing.
    pause : float
        Seconds before the second try.

    Raises
    ------
    MissingCredentials
        Where there is nothing to log in with.
    """
    if not subjects:
        return
    silent, reason = 0, ""
    try:
        alyx: Alyx | None = _with_patience(connect, pause)
    except MissingCredentials:
        raise
    except TrainingStatusError as error:
        alyx, reason = None, str(error)
    for lab, name in sorted(subjects):
        if alyx is None or silent >= _GIVE_UP_AFTER:
            yield Update(lab=lab, subject=name, state="failed", reason=f"not tried: {reason}")
            continue
        one = _Subject(alyx, lab, name)
        criteria = None
        try:
            criteria = _with_patience(lambda one=one: one.criteria(store), pause)  # type: ignore[misc]
            state = _with_patience(lambda one=one, new=criteria: one.bring_to(new, dry_run), pause)  # type: ignore[misc]
        except TrainingStatusError as error:
            reason = str(error)
            silent = silent + 1 if isinstance(error, TransientError) else 0
            yield Update(lab=lab, subject=name, state="failed", criteria=criteria, reason=reason)
        else:
            silent = 0
            yield Update(lab=lab, subject=name, state=state, criteria=criteria)


def _with_patience(act: Callable[[], T], pause: float) -> T:
    """Return what `act` returns, trying again where another try may succeed."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return act()
        except TransientError:
            time.sleep(pause * 2**attempt)
    return act()


@dataclass
class _Subject:
    """One subject on Alyx."""

    alyx: Alyx
    lab: str
    name: str
    wrote: bool = False  # whether a write was sent, of which the answer may have got lost

    def criteria(self, store: Store) -> Criteria:
        """Return what the field should hold."""
        key = subject_keys(self.lab, self.name).aggregate
        stored = store.get(key)
        if stored is None:
            raise PermanentError(f"{store.uri} has no {key}")
        table = read_table(stored.data, key)
        rows = list(zip(*(table.column(n).to_pylist() for n in ("training_status", "date", "session")), strict=True))
        unnamed = [(date, session) for _, date, session in rows if not _is_eid(session)]
        eids = self._eids(unnamed) if unnamed else {}
        return {status.replace(" ", "_"): [date, eids.get((date, session), session)] for status, date, session in rows}

    def _eids(self, sessions: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Return the eids of sessions (date, path), by one request."""
        dates = [date for date, _ in sessions]
        with in_our_words(f"list the sessions of {self.lab}/{self.name}"):
            listed = list(
                self.alyx.rest(
                    "sessions",
                    "list",
                    lab=self.lab,
                    subject=self.name,
                    date_range=[min(dates), max(dates)],
                    limit=_LONGEST_PAGE,
                )
            )
            found: dict[tuple[str, int], set[str]] = {}
            for session in listed:
                if (session["lab"], session["subject"]) == (self.lab, self.name):
                    found.setdefault((session["start_time"][:10], int(session["number"])), set()).add(session["id"])
        eids = {}
        for date, path in sessions:
            number = PurePosixPath(path).name
            known = found.get((date, int(number)), set())
            if len(known) != 1:
                what = "no session" if not known else f"{len(known)} sessions"
                raise PermanentError(f"Alyx has {what} {self.lab}/{self.name}/{date}/{number}: register it once")
            eids[date, path] = known.pop()
        return eids

    def bring_to(self, criteria: Criteria, dry_run: bool) -> State:
        """Write the key of the subject's JSON field where it holds another value."""
        address, listed = self._find()
        if _field(listed).get(FIELD) == criteria:
            return "sent" if self.wrote else "unchanged"
        # Read once more, as what is sent replaces the whole field. A dry run does it, too: it tells who cannot be read.
        wanted = {**_field(self._read(address, listed)), FIELD: criteria}
        if dry_run:
            return "would be sent"
        self.wrote = True
        with in_our_words(f"write the JSON field of {self.lab}/{self.name}"):
            self.alyx.rest("subjects", "partial_update", id=address, data={"json": wanted})
        if _field(self._read(address, listed)) != wanted:
            raise TransientError(f"{self.lab}/{self.name}: somebody else wrote its JSON field at the same time")
        return "sent"

    def _find(self) -> tuple[str, Mapping[str, Any]]:
        """Return what names the subject in an address, and its record, found by nickname and lab."""
        with in_our_words(f"look for the subject {self.lab}/{self.name}"):
            named = [
                record
                for record in self.alyx.rest("subjects", "list", nickname=self.name)
                if record["nickname"] == self.name
            ]
        found = [record for record in named if record["lab"] == self.lab]
        if len(found) != 1:
            raise PermanentError(f"Alyx has {'no' if not found else len(found)} subject {self.name!r} of {self.lab!r}")
        # Alyx takes the nickname in an address, which says nothing where two labs have it; then only the id would do.
        return self.name if len(named) == 1 else str(found[0]["id"]), found[0]

    def _read(self, name: str, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            with in_our_words(f"read the subject {self.lab}/{self.name}"):
                record: Mapping[str, Any] = self.alyx.rest("subjects", "read", id=name)
        except ConfigurationError as error:
            if name == self.name:
                raise
            raise PermanentError(
                f"{self.name!r} is a subject of several labs, and this server knows subjects by nickname alone: "
                f"it cannot be written safely, so it was not ({error})"
            ) from None
        if (record["id"], record["lab"]) != (listed["id"], self.lab):
            raise PermanentError(f"asked for {self.lab}/{self.name}, Alyx gave another subject: nothing was sent")
        return record


def _field(record: Mapping[str, Any]) -> Mapping[str, Any]:
    value = record.get("json")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PermanentError(
            f"the JSON field of {record['lab']}/{record['nickname']} holds a {type(value).__name__} and no keys: "
            "mend it on Alyx"
        )
    return value


def _is_eid(session: str) -> bool:
    try:
        return str(UUID(session)) == session.lower()
    except ValueError:
        return False
