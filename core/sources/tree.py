"""A session tree as a source: what its folders hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from core.discover import absent_subjects, changed_last, check_root, find_files, find_labs, find_sessions, find_subjects
from core.records import Fingerprint, LeftOut, LoadedDay, Missing, SessionFiles
from core.reextract import Extraction, trials_loader
from core.sources.base import Days, inputs_of, load_day, unreached


class TreeSource:
    """A session tree.

    Parameters
    ----------
    root : Path
        Its folder.
    by : {"stat", "content"}
        What files are known by, see :func:`core.discover.find_files`.
    """

    missing: Sequence[Missing] = ()

    def __init__(self, root: Path, by: Fingerprint = "stat") -> None:
        self.root = root
        self.by = by

    def check(self) -> None:
        """See that the folder is there and can be listed, see :func:`core.discover.check_root`."""
        check_root(self.root)

    def labs(self, wanted: Sequence[str] = ()) -> tuple[list[str], list[LeftOut]]:
        """Return the labs, see :func:`core.discover.find_labs`."""
        return find_labs(self.root, wanted)

    def subjects(self, lab: str, wanted: Sequence[str] = ()) -> tuple[list[str], list[LeftOut]]:
        """Return the subjects of a lab, see :func:`core.discover.find_subjects`."""
        return find_subjects(self.root, lab, wanted)

    def absent(self, wanted: Sequence[str], subjects: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return which subjects have no folder, see :func:`core.discover.absent_subjects`."""
        return absent_subjects(self.root, wanted, subjects)

    def newest(self, labs: Sequence[str], subjects: Sequence[str], count: int) -> list[tuple[str, str]]:
        """Return the subjects whose folders changed last, see :func:`core.discover.changed_last`."""
        return changed_last(self.root, labs, subjects, count)

    def subject(self, lab: str, subject: str) -> TreeSubject:
        """Return the folders of one subject."""
        return TreeSubject(self.root, lab, subject, self.by)


class TreeSubject:
    """One subject's folders in a session tree; parameters as those of :class:`TreeSource`."""

    def __init__(self, root: Path, lab: str, subject: str, by: Fingerprint = "stat") -> None:
        self.root, self.lab, self.name, self.by = root, lab, subject, by

    def sessions(self, dates: Sequence[str] | None = None) -> tuple[dict[str, list[Path]], list[LeftOut]]:
        """Return the session folders by date, see :func:`core.discover.find_sessions`."""
        return find_sessions(self.root, self.lab, self.name, dates)

    def inputs(self, days: Days) -> dict[str, dict[str, str]]:
        """Return the fingerprints of the sessions of some days."""
        return {date: inputs_of([_find(path, self.by) for path in paths]) for date, paths in days.items()}

    def load(self, days: Days, extraction: Extraction = "off") -> list[LoadedDay]:
        """Load the sessions of some days, each file once; those without trials are left out by default."""
        return load_days(days, self.by, extraction)


def load_days(days: Days, by: Fingerprint = "stat", extraction: Extraction = "off") -> list[LoadedDay]:
    """Load the sessions of some days from their folders, each file once.

    Parameters
    ----------
    days : mapping of str to sequence of Path
        Date to session folders, by number.
    by : {"stat", "content"}
        What files are known by, see :func:`core.discover.find_files`.
    extraction : {"off", "elsewhere", "here"}
        What becomes of sessions with raw files and no trials, see :func:`core.reextract.trials_loader`.
    """
    loader = trials_loader(extraction)
    return [load_day(date, [_find(path, by) for path in paths], loader) for date, paths in days.items()]


def _find(path: Path, by: Fingerprint) -> SessionFiles | LeftOut:
    try:
        return find_files(path, by)
    except OSError as error:
        return unreached(path, error)
