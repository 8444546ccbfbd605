"""What a source of sessions offers: the one interface through which a run reaches its input.

labs -> subjects -> of one subject: sessions by date -> their fingerprints, their trials
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from core.load import TrialsLoader, load_session
from core.names import printable
from core.records import LeftOut, LoadedDay, Missing, Session, SessionFiles
from core.reextract import Extraction

#: Date -> the day's session folders, both sorted. A folder's last three names are subject, date and number; it need
#: not be there, where the source is no tree.
Days = Mapping[str, Sequence[Path]]


class Source(Protocol):
    """Where the sessions of many labs come from."""

    @property
    def missing(self) -> Sequence[Missing]:
        """What it does not tell of any session; the run's record says so."""
        ...

    def check(self) -> None:
        """See that the source can be reached.

        Raises
        ------
        ConfigurationError
            Where it cannot: what is wrong, and what to do.
        """
        ...

    def labs(self, wanted: Sequence[str] = ()) -> tuple[list[str], list[LeftOut]]:
        """Return the labs, sorted, and what cannot be one.

        Parameters
        ----------
        wanted : sequence of str
            Labs to keep; all of them where it is empty.

        Raises
        ------
        ConfigurationError
            Where a wanted lab is not there, or there is none.
        """
        ...

    def subjects(self, lab: str, wanted: Sequence[str] = ()) -> tuple[list[str], list[LeftOut]]:
        """Return the subjects of a lab, sorted, and what cannot be one; all of them where `wanted` is empty."""
        ...

    def absent(self, wanted: Sequence[str], subjects: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return which of `subjects` (lab, subject) the source no longer has, though it has their lab.

        Parameters
        ----------
        wanted : sequence of str
            Labs to look at; all where it is empty.
        subjects : iterable of (str, str)
            Lab and subject.

        Returns
        -------
        list of (str, str)
            Sorted. None of a lab that cannot be listed: nobody knows then.
        """
        ...

    def newest(self, labs: Sequence[str], subjects: Sequence[str], count: int) -> list[tuple[str, str]]:
        """Return `count` subjects (lab, subject) at most that changed last, the latest first.

        A guess that costs little beside looking at all of them, and never an error; none where nothing tells.

        Parameters
        ----------
        labs, subjects : sequence of str
            Those to look at; all where empty.
        count : int
            How many.
        """
        ...

    def subject(self, lab: str, subject: str) -> SubjectSource:
        """Return what the source has of one subject; nothing is read yet."""
        ...


class SubjectSource(Protocol):
    """One subject of a source, for one task: what it lists it may keep."""

    def sessions(self, dates: Sequence[str] | None = None) -> tuple[dict[str, list[Path]], list[LeftOut]]:
        """Return the session folders by date, and what is no session.

        Parameters
        ----------
        dates : sequence of str, optional
            Look only at these dates; at all of them where None.

        Returns
        -------
        dict of str to list of Path
            See :data:`Days`.
        list of LeftOut
            Odd folders or records, and dates (named by the date alone) whose sessions cannot be listed.
        """
        ...

    def inputs(self, days: Days) -> dict[str, dict[str, str]]:
        """Return the fingerprints of the sessions of some days: date -> number -> fingerprint.

        Sessions that cannot be reached are left out. What a session is computed from must not change without its
        fingerprint. Of all days, this is what a look at an unchanged subject costs.
        """
        ...

    def load(self, days: Days, extraction: Extraction = "off") -> list[LoadedDay]:
        """Load the sessions of some days, each file once.

        A session that cannot be used is left out with its reason. One that cannot be reached now, but may be later, is
        no input of its day either, so that the next refresh tries it again.

        Parameters
        ----------
        days : mapping of str to sequence of Path
            Which.
        extraction : {"off", "elsewhere", "here"}
            What becomes of sessions with raw files and no trials, see :func:`core.reextract.trials_loader`. A source
            without raw files has no use for it.

        Raises
        ------
        ExtractionNeeded
            Where they are extracted elsewhere.
        TransientError
            Where nothing can be reached at the moment: the task is tried again.
        """
        ...


def load_day(
    date: str, sessions: Sequence[SessionFiles | LeftOut], trials_loader: TrialsLoader | None = None
) -> LoadedDay:
    """Load the sessions of one day from their files.

    Parameters
    ----------
    date : str
        The day.
    sessions : sequence of SessionFiles or LeftOut
        Its sessions by number; those that cannot be reached as left out.
    trials_loader : callable, optional
        Loads the trials; from the session's folder where None.
    """
    loaded: list[Session] = []
    left_out: list[LeftOut] = []
    reached = []
    for files in sessions:
        if isinstance(files, LeftOut):
            left_out.append(files)
            continue
        try:
            good, bad = load_session(files, trials_loader)
        except OSError as error:  # it is no input then, so that the next refresh tries it again
            left_out.append(unreached(files.path, error))
            continue
        loaded += good
        left_out += bad
        reached.append(files)
    return LoadedDay(date=date, inputs=inputs_of(reached), sessions=tuple(loaded), left_out=tuple(left_out))


def inputs_of(sessions: Sequence[SessionFiles | LeftOut]) -> dict[str, str]:
    """Return the fingerprints of a day's sessions by number, those that can be reached."""
    return {files.number: files.fingerprint for files in sessions if isinstance(files, SessionFiles)}


def unreached(session: Path, error: OSError) -> LeftOut:
    """Return a session as left out, with the file or folder of it that cannot be listed or read."""
    place = printable(os.path.relpath(error.filename or session, session.parent))
    return LeftOut(session=f"{session.parent.name}/{session.name}", reason=f"{place} cannot be read: {error.strerror}")
