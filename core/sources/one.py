"""ONE as a source: sessions as an Alyx server, or the tables of a local ONE cache, have them.

Records tell which sessions and files there are and whether they have changed, so a look opens no file; what a task
loads is downloaded, checked and read a day at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from errno import EIO
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core.config import SourceSettings
from core.discover import split_names
from core.errors import ConfigurationError, InvalidName, TransientError, TrialsNotFound
from core.load import load_trials, raw_of, seconds_told, tasks_by_protocol, trials_collections
from core.names import check_date, check_lab, check_number, check_subject
from core.records import LeftOut, LoadedDay, Missing, SessionFiles, Trials
from core.reextract import Extraction, trials_loader
from core.sources.base import Days, load_day
from core.sources.one_records import OF_TASKS, Records, SessionRecord, session_folder, side_by_side, twins
from core.sources.one_tables import TableRecords

if TYPE_CHECKING:
    from core.sources.alyx import Client

_LOCAL = "local:"


def connect(url: str, settings: SourceSettings) -> Client:
    """Log in to an Alyx server without prompting, see :func:`core.sources.alyx.connect`; imports one-api."""
    from core.sources import alyx

    return alyx.connect(url, settings)


def open_records(address: str, settings: SourceSettings) -> Records:
    """Open what ONE has; nothing is asked yet. Parameters as of :class:`OneSource`."""
    if address.startswith(_LOCAL):
        return TableRecords(Path(address.removeprefix(_LOCAL)))
    from core.sources.alyx import AlyxRecords

    return AlyxRecords(address, settings)


class OneSource:
    """The sessions that ONE has.

    Parameters
    ----------
    address : str
        ``local:<folder>`` of a ONE cache, or the address of an Alyx server.
    settings : SourceSettings
        How the server is reached, and where downloads lie.
    """

    missing: Sequence[Missing] = ()

    def __init__(self, address: str, settings: SourceSettings) -> None:
        self._records = open_records(address, settings)
        self._name = address

    def check(self) -> None:
        """See that the server lets us in, or that the tables can be read."""
        self._records.check()

    def labs(self, wanted: Sequence[str] = ()) -> tuple[list[str], list[LeftOut]]:
        """Return the labs, sorted, and what cannot be one by its name."""
        wanted = sorted({check_lab(lab) for lab in wanted})
        found = self._records.labs()
        if missing := [lab for lab in wanted if lab not in found]:
            raise ConfigurationError(f"no lab {missing[0]!r} in {self._name}: it has {', '.join(found) or 'none'}")
        if not found:
            raise ConfigurationError(f"no lab in {self._name}")
        return split_names(check_lab, wanted or found, "")

    def subjects(self, lab: str, wanted: Sequence[str] = ()) -> tuple[list[str], list[LeftOut]]:
        """Return the subjects of a lab that have sessions, sorted, and what cannot be one by its name."""
        names = [name for name in self._records.subjects(lab) if not wanted or name in wanted]
        return split_names(check_subject, names, f"{lab}/")

    def absent(self, wanted: Sequence[str], subjects: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return which subjects ONE has no sessions of, though it has their lab; none where it cannot be asked."""
        try:
            labs, _ = self.labs(wanted)
            pairs = sorted({(lab, name) for lab, name in subjects if lab in labs})
            found = {lab: set(self._records.subjects(lab)) for lab in {lab for lab, _ in pairs}}
        except (ConfigurationError, TransientError):
            return []
        return [(lab, name) for lab, name in pairs if name not in found[lab]]

    def newest(self, labs: Sequence[str], subjects: Sequence[str], count: int) -> list[tuple[str, str]]:
        """Return none: what changed last is not told without asking for each subject."""
        return []

    def subject(self, lab: str, subject: str) -> OneSubject:
        """Return what ONE has of one subject."""
        return OneSubject(self._records, check_lab(lab), check_subject(subject))


class OneSubject:
    """One subject's sessions in ONE, for one task.

    Parameters
    ----------
    records : Records
        Where they come from.
    lab, subject : str
        Whose.
    """

    def __init__(self, records: Records, lab: str, subject: str) -> None:
        self._source, self._lab, self._subject = records, lab, subject
        self._known: dict[Path, SessionRecord] = {}

    def sessions(self, dates: Sequence[str] | None = None) -> tuple[dict[str, list[Path]], list[LeftOut]]:
        """Return the sessions by date, as the folders in which their files lie or will lie."""
        records = sorted(
            self._source.sessions(self._lab, self._subject, dates), key=lambda r: (r.date, r.number, r.eid)
        )
        odd = list(twins(records))
        days: dict[str, list[Path]] = {}
        for record in records:
            try:
                check_date(record.date), check_number(record.number)
            except InvalidName as error:
                name = f"{ascii(record.date)[1:-1]}/{ascii(record.number)[1:-1]}"
                odd.append(LeftOut(session=name, reason=f"session {record.eid} left out: {error}"))
                continue
            folder = session_folder(self._source.root, self._lab, self._subject, record)
            if folder not in days.setdefault(record.date, []):
                days[record.date].append(folder)
                self._known[folder] = record
        return days, odd

    def inputs(self, days: Days) -> dict[str, dict[str, str]]:
        """Return the fingerprints of the sessions of some days, from their records."""
        return {date: {path.name: self._record(path).fingerprint for path in paths} for date, paths in days.items()}

    def load(self, days: Days, extraction: Extraction = "off") -> list[LoadedDay]:
        """Load the sessions of some days, each file once; of a server, what is needed is downloaded.

        All raw files of a session come where it has no trials, and they are extracted here.
        """

        def load_one(day: tuple[str, Sequence[Path]]) -> LoadedDay:
            date, paths = day
            with self._source.hold(paths[0].parent) if paths else nullcontext():
                files = [self._files(path) for path in paths]
                return load_day(date, files, partial(self._load_trials, extraction))

        if extraction == "here":  # which is no waiting, and ibllib's extractors may not bear company
            return list(map(load_one, days.items()))
        return side_by_side(self._source, load_one, days.items())

    def _load_trials(self, extraction: Extraction, files: SessionFiles, collections: Sequence[str] | None) -> Trials:
        try:
            return load_trials(files, collections)
        except TrialsNotFound:
            if extraction == "here":
                self._provide_raw(files, raw_of(files, collections))
            return trials_loader(extraction)(files, collections)

    def _provide_raw(self, files: SessionFiles, collections: Sequence[str]) -> None:
        """See that all files of raw collections are in place, where there is something to extract."""
        if collections and files.task_data.keys() >= set(collections):
            datasets = self._source.raw(self._record(files.path), collections)
            if wrong := self._source.provide(files.path, datasets):
                # As what cannot be read now: the next refresh tries again.
                raise OSError(EIO, wrong, str(files.path / collections[0]))

    def _record(self, path: Path) -> SessionRecord:
        if path not in self._known:
            self.sessions([path.parent.name])
        return self._known[path]

    def _files(self, path: Path) -> SessionFiles | LeftOut:
        """Return a session's files, those that are needed in place; left out where one is not as ONE says."""
        record = self._record(path)
        try:
            wrong = self._source.provide(path, record.of_kinds(*OF_TASKS).datasets)
            files = record.files(path)
            if wrong is None:
                # Raw trials are large, and seldom needed: newer rigs write the session's end into its settings.
                rest = _needed(files)
                wrong = self._source.provide(path, [d for d in record.datasets if path / d.path in rest])
        except OSError as error:
            raise TransientError(f"downloads cannot be kept in {self._source.root}: {error}") from error
        return files if wrong is None else LeftOut(session=f"{record.date}/{record.number}", reason=wrong)


def _needed(files: SessionFiles) -> set[Path]:
    """Return the files beside settings that loading a session opens."""
    by_protocol, _ = tasks_by_protocol(files)
    needed: set[Path] = set()
    for protocol, tasks in by_protocol.items():
        if protocol == "habituation":
            continue
        wanted = trials_collections([collection for collection, _ in tasks])
        for collection, datasets in files.trials.items():
            if wanted is None or collection in wanted:
                needed.update(datasets.values())
        for collection, settings in tasks:
            if collection in files.task_data and seconds_told(settings) is None:
                needed.add(files.task_data[collection])
    return needed
