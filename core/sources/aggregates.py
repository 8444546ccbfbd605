"""The public aggregates as a source: one file of trials a subject, in a bucket or a folder.

    <root>/aggregates/Subjects/<lab>/<subject>/_ibl_subjectTrials.table*.pqt

A look at a subject lists its folder. Which sessions a version of its file holds is kept beside the downloads, so that
the file is read only where it is new, or its sessions are to be computed. What the file does not tell of a session, its
rig and delay, comes from its task settings in ONE, where a ONE is named beside the aggregates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal, NamedTuple

import orjson
import pyarrow as pa

from core.config import SourceSettings
from core.discover import split_names
from core.errors import (
    ConfigurationError,
    CorruptTable,
    TrainingStatusError,
    TransientError,
)
from core.names import SUBJECTS_FOLDER, check_lab, check_subject, printable
from core.records import Fingerprint, LeftOut, LoadedDay, Missing
from core.reextract import Extraction
from core.sources.aggregate_file import Table, Task, eid_of, fingerprint_of, load_day
from core.sources.base import Days
from core.sources.downloads import Downloads
from core.sources.files import File, Folder

if TYPE_CHECKING:
    from core.sources.bucket import Bucket
    from core.sources.one_settings import OneSettings, SubjectSettings, TaskSettings

MISSING: Final = (
    Missing(what="location", reason="the public aggregates do not tell the rig: no day counts as an ephys day"),
    Missing(what="n_delay", reason="the public aggregates do not tell the delay: no day counts as a delay day"),
)

_BASE = f"aggregates/{SUBJECTS_FOLDER}/"
_FILE = re.compile(r"(?:(#[^/]+#)/)?_ibl_subjectTrials\.table[^/]*\.pqt")
#: Raised when the index of a file's sessions, or their fingerprints, change.
_INDEX = 2
#: What is raised on a file that is no Parquet file, or a broken one.
_BROKEN = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError)


def open_aggregates(
    uri: str, settings: SourceSettings, by: Fingerprint = "stat", one: str | None = None
) -> AggregatesSource:
    """Open the public aggregates; nothing is asked of them yet.

    Parameters
    ----------
    uri : str
        A folder, or ``s3://bucket/prefix``: what holds ``aggregates/Subjects``.
    settings : SourceSettings
        The endpoint of the bucket, and where downloads lie.
    by : {"stat", "content"}
        What a file in a folder is known by; one in a bucket is always known by its ETag.
    one : str, optional
        The ONE that has the sessions' task settings, see :class:`core.sources.one.OneSource`.

    Raises
    ------
    ConfigurationError
        Where the name is of no form known.
    """
    kind, separator, rest = uri.partition("://")
    files: Folder | Bucket
    if not separator:
        files, place = Folder(Path(uri).absolute(), by), str(Path(uri).absolute())
    elif kind.lower() == "s3":
        from core.sources.bucket import Bucket

        bucket, _, prefix = rest.partition("/")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", bucket):
            raise ConfigurationError(f"{bucket[:80]!r} cannot be a bucket: the aggregates are s3://bucket/prefix")
        endpoint = settings.aggregates_endpoint or None
        files, place = Bucket(bucket, prefix.strip("/"), endpoint=endpoint), f"{endpoint} {uri}"
    else:
        raise ConfigurationError(f"the aggregates cannot be at {kind[:20]!r}: name s3://bucket/prefix or a folder")
    downloads = Downloads.of(settings)
    # The files of each place lie apart: two servers can give the same version to different files.
    apart = downloads.root / f"aggregates-{blake2b(place.encode(), digest_size=8).hexdigest()}"
    if one is None:
        return AggregatesSource(files, downloads, apart)
    from core.sources.one_settings import OneSettings

    return AggregatesSource(files, downloads, apart, OneSettings(one, settings))


class AggregatesSource:
    """The public aggregates.

    Parameters
    ----------
    files : Folder or Bucket
        Where they lie.
    downloads : Downloads
        Where files of a bucket, and the indices of all, are kept,
    apart : Path
        in this folder of it.
    settings : OneSettings, optional
        The task settings of the sessions, which tell their rig and delay; these are missing without.
    """

    def __init__(
        self, files: Folder | Bucket, downloads: Downloads, apart: Path, settings: OneSettings | None = None
    ) -> None:
        self._files, self._downloads, self._apart, self._settings = files, downloads, apart, settings
        self.missing: Sequence[Missing] = () if settings else MISSING

    def check(self) -> None:
        """See that there is a lab, and that ONE lets us in where it is named."""
        self.labs()
        if self._settings:
            try:
                self._settings.check()
            except (ConfigurationError, TransientError) as error:
                raise type(error)(f"{error}; without --one, rig and delay are missing") from None

    def labs(self, wanted: Sequence[str] = ()) -> tuple[list[str], list[LeftOut]]:
        """Return the labs, and folders whose names cannot be a lab's; one request."""
        found = self._files.folders(_BASE)
        if missing := [check_lab(lab) for lab in wanted if check_lab(lab) not in found]:
            raise ConfigurationError(f"no lab {missing[0]!r} in {self._uri}: it has {', '.join(found) or 'none'}")
        if not found:
            raise ConfigurationError(f"no {_BASE}<lab> in {self._files.uri}: does it hold the public aggregates?")
        return split_names(check_lab, sorted(set(wanted)) or found, "")

    def subjects(self, lab: str, wanted: Sequence[str] = ()) -> tuple[list[str], list[LeftOut]]:
        """Return the subjects of a lab that have a file of trials, and folders that cannot be a subject's."""
        try:
            found = self._found(lab)
        except PermissionError as error:
            where = f"{printable(str(error.filename))} cannot be listed: {error.strerror}"
            return [], [LeftOut(session=lab, reason=f"folder left out: {where}")]
        if wanted:
            found = {name: has for name, has in found.items() if name in wanted}
        good, odd = split_names(check_subject, sorted(name for name, has in found.items() if has), f"{lab}/")
        without = [name for name, has in found.items() if not has]
        reason = "folder left out: it holds no _ibl_subjectTrials.table*.pqt"
        return good, [*odd, *(LeftOut(session=f"{lab}/{ascii(name)[1:-1]}", reason=reason) for name in sorted(without))]

    def absent(self, wanted: Sequence[str], subjects: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return which subjects have no file of trials any more, of the labs that can be listed."""
        try:
            labs, _ = self.labs(wanted)
            found = {lab: {name for name, has in self._found(lab).items() if has} for lab in labs}
        except (TrainingStatusError, OSError):
            return []
        return sorted((lab, name) for lab, name in set(subjects) if lab in found and name not in found[lab])

    def newest(self, labs: Sequence[str], subjects: Sequence[str], count: int) -> list[tuple[str, str]]:
        """Return `count` subjects (lab, subject) at most whose files changed last, the latest first."""
        times: dict[tuple[str, str], float] = {}
        try:
            for lab in self.labs(labs)[0]:
                for subject, file in self._listed(lab):
                    if _is_trials(file) and (not subjects or subject in subjects):
                        times[lab, subject] = max(times.get((lab, subject), 0.0), file.modified)
        except (TrainingStatusError, OSError):
            return []
        good = {name for name in times if not split_names(check_subject, [name[1]], "")[1]}
        return sorted(good, key=lambda name: (-times[name], name))[:count]

    def subject(self, lab: str, subject: str) -> AggregatesSubject:
        """Return what there is of one subject; nothing is asked yet."""
        check_lab(lab), check_subject(subject)
        settings = self._settings.subject(lab, subject) if self._settings else None
        return AggregatesSubject(self._files, self._downloads, self._apart, lab, subject, settings)

    @property
    def _uri(self) -> str:
        return f"{self._files.uri}/{_BASE.rstrip('/')}"

    def _found(self, lab: str) -> dict[str, bool]:
        """Return the folders of a lab, and whether each holds a file of trials."""
        found: dict[str, bool] = {}
        for subject, file in self._listed(lab):
            found[subject] = found.get(subject, False) or _is_trials(file)
        return found

    def _listed(self, lab: str) -> Iterator[tuple[str, File]]:
        """Yield the files of a lab's subjects with the subject: one listing."""
        for file in self._files.files(f"{_BASE}{check_lab(lab)}/"):
            parts = file.key.split("/", 4)
            if len(parts) == 5:
                yield parts[3], file


def _is_trials(file: File) -> bool:
    """Whether a file in a subject's folder is its trials."""
    return _FILE.fullmatch(file.key.split("/", 4)[4]) is not None


class _Known(NamedTuple):
    """A session that the file holds."""

    fingerprint: str
    eid: str  # "" where several sessions have its date and number


@dataclass(frozen=True, kw_only=True)
class _Index:
    """What a version of a subject's file holds."""

    sessions: dict[str, dict[str, _Known]]  # by date and number, sorted
    left_out: list[LeftOut]  # trials of which the session cannot be told


class AggregatesSubject:
    """One subject's file, for one task.

    Parameters
    ----------
    files, downloads, apart
        See :class:`AggregatesSource`.
    lab, subject : str
        Whose.
    settings : SubjectSettings, optional
        The task settings of its sessions.
    """

    def __init__(
        self,
        files: Folder | Bucket,
        downloads: Downloads,
        apart: Path,
        lab: str,
        subject: str,
        settings: SubjectSettings | None = None,
    ) -> None:
        self._files, self._downloads, self._settings = files, downloads, settings
        self._folder = apart / lab / SUBJECTS_FOLDER / subject
        self._lab, self._name = lab, subject
        self._looked: tuple[File | None, list[LeftOut]] | None = None
        self._indexed: _Index | None = None

    def sessions(self, dates: Sequence[str] | None = None) -> tuple[dict[str, list[Path]], list[LeftOut]]:
        """Return the sessions by date, and trials and files that were not used.

        Raises
        ------
        CorruptTable
            Where the file is no table of trials.
        """
        file, odd = self._file()
        if file is None:
            return {}, odd
        index = self._index(file)
        wanted = index.sessions if dates is None else [date for date in dates if date in index.sessions]
        folder = Path(self._lab, SUBJECTS_FOLDER, self._name)
        days = {date: [folder / date / number for number in index.sessions[date]] for date in wanted}
        return days, [*odd, *index.left_out]

    def inputs(self, days: Days) -> dict[str, dict[str, str]]:
        """Return the fingerprints of the sessions of some days: of what the file, and ONE, hold of each."""
        file, _ = self._file()
        known = self._index(file).sessions if file else {}
        return {
            date: {
                path.name: self._fingerprint(known[date][path.name], date, path.name)
                for path in paths
                if path.name in known.get(date, {})
            }
            for date, paths in days.items()
        }

    def load(self, days: Days, extraction: Extraction = "off") -> list[LoadedDay]:
        """Load the sessions of some days; the file is read once. There are no raw files, and nothing to extract."""
        file, _ = self._file()
        wanted = {(date, path.name): path for date, paths in days.items() for path in paths}
        tasks = self._read(file).tasks if file and wanted else {}
        settings = self._read_settings(tasks.keys() & wanted.keys(), tasks)
        return [
            load_day(
                date,
                {path: tasks[date, path.name] for path in paths if (date, path.name) in tasks},
                settings,
            )
            for date, paths in days.items()
        ]

    def _fingerprint(self, known: _Known, date: str, number: str) -> str:
        """Return what a session is known by, with the task settings that ONE has of it."""
        if self._settings is None or not known.eid:
            return known.fingerprint
        return known.fingerprint + self._settings.fingerprint(known.eid, date, number)

    def _read_settings(
        self, wanted: Iterable[tuple[str, str]], tasks: Mapping[tuple[str, str], Sequence[Task]]
    ) -> dict[tuple[str, str], TaskSettings]:
        """Return the task settings of sessions by date and number; none where it is not known which is meant."""
        if self._settings is None:
            return {}
        eids = {place: eid for place in sorted(wanted) if (eid := eid_of(tasks[place]))}
        read = self._settings.read([(eid, *place) for place, eid in eids.items()])
        return dict(zip(eids, read, strict=True))

    def _file(self) -> tuple[File | None, list[LeftOut]]:
        """Return the subject's file, the last of several; and what was not used. One request a task."""
        if self._looked is None:
            folder = f"{_BASE}{self._lab}/{self._name}/"
            found = []
            for file in self._files.files(folder):
                if match := _FILE.fullmatch(file.key[len(folder) :]):
                    found.append((match[1] or "", file.modified, file.key, file))
            found.sort(key=lambda each: each[:3])
            last = found[-1] if found else None
            # An older revision is what a revision is for; a second file beside the first is one too many.
            odd = [
                LeftOut(
                    session=f"{self._lab}/{self._name}",
                    reason=f"{printable(key[len(folder) :])} not used: {printable(last[2][len(folder) :])} is newer",
                )
                for revision, _, key, _ in found[:-1]
                if last and revision == last[0]
            ]
            if last is None:
                reason = f"no _ibl_subjectTrials.table*.pqt in {self._files.uri}/{folder}"
                odd.append(LeftOut(session=f"{self._lab}/{self._name}", reason=reason))
            # A version by content is taken once a task.
            self._looked = (replace(last[3], version=self._files.version(last[3])) if last else None), odd
        return self._looked

    def _index(self, file: File) -> _Index:
        """Return what the file holds: as it was kept, or from the file itself."""
        if self._indexed is None:
            kept = self._kept("index", file)
            self._indexed = _parse_index(self._downloads.read(kept))
            if self._indexed is None:
                self._indexed = _index_of(self._read(file), f"{self._lab}/{self._name}", file.key)
                self._downloads.write(kept, _format_index(self._indexed))
        return self._indexed

    def _read(self, file: File) -> Table:
        try:
            with self._open(file) as content:
                return Table.read(content)
        except (CorruptTable, *_BROKEN) as error:
            with suppress(OSError):
                self._kept("trials", file).unlink()  # the copy may be what is broken
            if isinstance(error, CorruptTable):
                raise CorruptTable(f"{self._files.uri}/{file.key}: {error}") from None
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the file's content
                raise
            line = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CorruptTable(f"{self._files.uri}/{file.key} cannot be read: {printable(line)}") from None

    @contextmanager
    def _open(self, file: File) -> Iterator[IO[bytes]]:
        files = self._files
        if isinstance(files, Folder):
            with (files.root / file.key).open("rb") as content:
                yield content
            return
        kept = self._kept("trials", file)
        with self._downloads.hold(kept.parent):
            self._downloads.provide(kept, partial(_difference, file), partial(files.download, file))
            self._downloads.leave_alone(kept)
            with kept.open("rb") as content:
                yield content

    def _kept(self, kind: Literal["index", "trials"], file: File) -> Path:
        """Return where something of a version of the file is kept."""
        version = blake2b(repr((file.key, file.version)).encode(), digest_size=12).hexdigest()
        return self._folder / kind / version


def _difference(file: File, path: Path) -> str | None:
    size = path.stat().st_size
    return None if size == file.size else f"it has {size} bytes, not {file.size}"


def _index_of(table: Table, subject: str, key: str) -> _Index:
    """Return what of a table is kept."""
    sessions: dict[str, dict[str, _Known]] = {}
    for (date, number), tasks in table.tasks.items():
        sessions.setdefault(date, {})[number] = _Known(fingerprint_of(tasks), eid_of(tasks))
    left_out = [LeftOut(session=name, reason=f"trials left out: {reason}") for name, reason in table.odd]
    if not sessions and not left_out:
        left_out.append(LeftOut(session=subject, reason=f"no trials in {key}"))
    return _Index(sessions=sessions, left_out=left_out)


def _format_index(index: _Index) -> bytes:
    left_out = [(left.session, left.reason) for left in index.left_out]
    sessions = {
        date: {number: list(known) for number, known in of_date.items()} for date, of_date in index.sessions.items()
    }
    return orjson.dumps({"version": _INDEX, "sessions": sessions, "left_out": left_out})


def _parse_index(content: bytes | None) -> _Index | None:
    """Return what :func:`_format_index` wrote; None where there is none, or it cannot be read."""
    if content is None:
        return None
    try:
        raw = orjson.loads(content)
        if raw["version"] != _INDEX:
            return None
        left_out = [LeftOut(session=session, reason=reason) for session, reason in raw["left_out"]]
        sessions = {
            date: {number: _Known(*known) for number, known in of_date.items()}
            for date, of_date in raw["sessions"].items()
        }
        return _Index(sessions=sessions, left_out=left_out)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
