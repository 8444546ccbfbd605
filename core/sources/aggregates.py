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
from datetime import date as Date
from datetime import datetime
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.config import SourceSettings
from core.discover import split_names
from core.errors import (
    ConfigurationError,
    CorruptTable,
    InvalidName,
    SessionUnusable,
    TrainingStatusError,
    TransientError,
)
from core.load import (
    LONGEST_SESSION,
    check_columns,
    delay_and_location,
    protocol_named,
    seconds_told,
    whole_minutes,
)
from core.names import SUBJECTS_FOLDER, check_lab, check_number, check_subject, printable
from core.records import Facts, Fingerprint, LeftOut, LoadedDay, Missing, Session, Trials
from core.reextract import Extraction
from core.schema import TRIALS_ATTRIBUTES
from core.sources.base import Days
from core.sources.downloads import Downloads
from core.sources.files import File, Folder
from core.summarise import put_together

if TYPE_CHECKING:
    from core.sources.bucket import Bucket
    from core.sources.one_settings import OneSettings, SubjectSettings, TaskSettings

MISSING: Final = (
    Missing(what="location", reason="the public aggregates do not tell the rig: no day counts as an ephys day"),
    Missing(what="n_delay", reason="the public aggregates do not tell the delay: no day counts as a delay day"),
)

_BASE = f"aggregates/{SUBJECTS_FOLDER}/"
_FILE = re.compile(r"(?:(#[^/]+#)/)?_ibl_subjectTrials\.table[^/]*\.pqt")
#: Columns that tell which session and task a trial is of.
_OF_TASK = ("session", "session_start_time", "session_number", "task_protocol", "protocol_number")
#: The end of a trial, for a session's duration.
_END = "intervals_1"
#: Raised when the index of a file's sessions, or their fingerprints, change.
_INDEX = 2
#: Attributes that a trial always has: a session without a value is one of which they were not extracted.
_ALWAYS = ("probabilityLeft", "choice", "feedbackType")
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
            _load_day(
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
        self, wanted: Iterable[tuple[str, str]], tasks: Mapping[tuple[str, str], Sequence[_Task]]
    ) -> dict[tuple[str, str], TaskSettings]:
        """Return the task settings of sessions by date and number; none where it is not known which is meant."""
        if self._settings is None:
            return {}
        eids = {place: eid for place in sorted(wanted) if (eid := _eid(tasks[place]))}
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
                self._indexed = self._read(file).index(f"{self._lab}/{self._name}", file.key)
                self._downloads.write(kept, _format_index(self._indexed))
        return self._indexed

    def _read(self, file: File) -> _Table:
        try:
            with self._open(file) as content:
                return _Table.read(content)
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


@dataclass(frozen=True, kw_only=True)
class _Task:
    """The trials of one task of a session."""

    eid: str
    position: int  # among the session's tasks
    protocol: str | None  # its name in full
    columns: dict[str, NDArray[Any]]  # each of shape (n_trials,)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A subject's file, read."""

    tasks: dict[tuple[str, str], list[_Task]]  # by date and number, sorted
    odd: list[tuple[str, str]]  # what cannot be a session, with the reason

    @classmethod
    def read(cls, content: IO[bytes]) -> _Table:
        """Read the columns that are needed, and tell sessions and their tasks apart.

        Raises
        ------
        CorruptTable
            Where columns are missing or of a wrong type.
        ArrowException, OSError, ValueError
            Where it is broken.
        """
        file = pq.ParquetFile(content)
        schema = file.schema_arrow
        _check_schema(schema)
        present = [*TRIALS_ATTRIBUTES, *_OF_TASK, *([_END] if _END in schema.names else [])]
        table = file.read(columns=present, use_threads=False)
        columns = {name: _numbers(table.column(name)) for name in present if name not in _OF_TASK}
        keys, rows = _groups([table.column(name) for name in _OF_TASK])
        tasks: dict[tuple[str, str], list[_Task]] = {}
        odd: list[tuple[str, str]] = []
        for (eid, start, number, protocol, position), at in zip(keys, rows, strict=True):
            try:
                if not isinstance(eid, str) or not eid:
                    raise SessionUnusable(f"{len(at)} trials without session")
                key = _date(start), _number(number)
                if protocol is not None and not isinstance(protocol, str):
                    raise SessionUnusable(f"task_protocol is no text: {protocol!r}"[:200])
                task = _Task(
                    eid=eid,
                    position=_whole("protocol_number", 0 if position is None else position),
                    protocol=protocol,
                    columns={name: values[at] for name, values in columns.items()},
                )
            except SessionUnusable as error:
                odd.append((f"session {eid}", printable(str(error))))
                continue
            tasks.setdefault(key, []).append(task)
        ordered = {key: sorted(tasks[key], key=lambda task: (task.position, task.eid)) for key in sorted(tasks)}
        return cls(tasks=ordered, odd=[*odd, *_take_torn(ordered)])

    def index(self, subject: str, key: str) -> _Index:
        """Return what of it is kept."""
        sessions: dict[str, dict[str, _Known]] = {}
        for (date, number), tasks in self.tasks.items():
            sessions.setdefault(date, {})[number] = _Known(_fingerprint(tasks), _eid(tasks))
        left_out = [LeftOut(session=name, reason=f"trials left out: {reason}") for name, reason in self.odd]
        if not sessions and not left_out:
            left_out.append(LeftOut(session=subject, reason=f"no trials in {key}"))
        return _Index(sessions=sessions, left_out=left_out)


def _take_torn(tasks: dict[tuple[str, str], list[_Task]]) -> list[tuple[str, str]]:
    """Take away the sessions whose trials have several dates or numbers; return them, with the reason."""
    places: dict[str, set[tuple[str, str]]] = {}
    for place, of_session in tasks.items():
        for task in of_session:
            places.setdefault(task.eid, set()).add(place)
    torn = {eid: sorted(of_eid) for eid, of_eid in places.items() if len(of_eid) > 1}
    for place in {place for of_eid in torn.values() for place in of_eid}:
        tasks[place] = [task for task in tasks[place] if task.eid not in torn]
        if not tasks[place]:
            del tasks[place]
    told = {eid: ", ".join("/".join(place) for place in of_eid) for eid, of_eid in sorted(torn.items())}
    return [(f"session {eid}", f"its trials have several dates or numbers: {which}") for eid, which in told.items()]


def _check_schema(schema: pa.Schema) -> None:
    if missing := [name for name in (*TRIALS_ATTRIBUTES, *_OF_TASK) if name not in schema.names]:
        raise CorruptTable(f"no column {', '.join(missing)}")
    for name in (*TRIALS_ATTRIBUTES, _END):
        if name in schema.names:
            kind = schema.field(name).type
            if not (
                pa.types.is_integer(kind)
                or pa.types.is_floating(kind)
                or pa.types.is_boolean(kind)
                or pa.types.is_null(kind)
            ):
                raise CorruptTable(f"column {name} has the type {kind}, numbers are wanted")


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column as numbers, NaN where there is none."""
    values = column if pa.types.is_floating(column.type) else pc.cast(column, pa.float64())
    numbers: NDArray[Any] = values.to_numpy()
    return numbers


def _groups(columns: Sequence[pa.ChunkedArray]) -> tuple[list[tuple[Any, ...]], list[NDArray[np.intp]]]:
    """Return the distinct rows of some columns, and for each where it stands, in the order of the table."""
    combined = np.zeros(len(columns[0]), dtype=np.int64)
    values: list[list[Any]] = []
    for column in columns:
        encoded = column.combine_chunks().dictionary_encode() if len(column) else None
        if encoded is None:
            return [], []
        values.append([*encoded.dictionary.to_pylist(), None])
        codes = pc.fill_null(encoded.indices, len(values[-1]) - 1).to_numpy(zero_copy_only=False).astype(np.int64)
        # Renumbered at each step, so that no product of many columns runs over.
        combined = np.unique(combined * len(values[-1]) + codes, return_inverse=True)[1]
        values[-1] = [values[-1], codes]
    order = np.argsort(combined, kind="stable")
    bounds = np.flatnonzero(np.diff(combined[order])) + 1
    rows = np.split(order, bounds)
    return [tuple(distinct[codes[at[0]]] for distinct, codes in values) for at in rows], rows


def _date(start: Any) -> str:
    if isinstance(start, str):
        with suppress(ValueError):
            start = datetime.fromisoformat(start)
    if isinstance(start, Date):  # a datetime is one, too
        return f"{start.year:04}-{start.month:02}-{start.day:02}"
    raise SessionUnusable(f"session_start_time is no time: {start!r}"[:200])


def _number(value: Any) -> str:
    try:
        return check_number(f"{_whole('session_number', value):03}")
    except InvalidName as error:
        raise SessionUnusable(str(error)) from None


def _whole(name: str, value: Any) -> int:
    try:
        whole = int(value)
        if isinstance(value, str) or whole == value:
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise SessionUnusable(f"{name} is no whole number: {value!r}"[:200])


def _eid(tasks: Sequence[_Task]) -> str:
    """Return which session some tasks are of; "" where they are of several."""
    eids = {task.eid for task in tasks}
    return eids.pop() if len(eids) == 1 else ""


def _fingerprint(tasks: Sequence[_Task]) -> str:
    """Return the fingerprint of what a session is computed from; its date and number are no part of it."""
    digest = blake2b(digest_size=12)
    for task in tasks:
        digest.update(repr((task.eid, task.position, task.protocol)).encode())
        for name, values in task.columns.items():
            digest.update(f"{name} {len(values)} {values.dtype}".encode())
            digest.update(values.tobytes())
    return f"content:{digest.hexdigest()}"


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


def _load_day(
    date: str,
    sessions: Mapping[Path, Sequence[_Task]],
    settings: Mapping[tuple[str, str], TaskSettings],
) -> LoadedDay:
    loaded: list[Session] = []
    left_out: list[LeftOut] = []
    inputs = {}
    for path, tasks in sessions.items():
        of_session = settings.get((date, path.name))
        good, bad = _load_session(path, tasks, of_session)
        loaded += good
        left_out += bad
        inputs[path.name] = _fingerprint(tasks) + (of_session.fingerprint if of_session else "")
    return LoadedDay(date=date, inputs=inputs, sessions=tuple(loaded), left_out=tuple(left_out))


def _load_session(
    path: Path, tasks: Sequence[_Task], settings: TaskSettings | None
) -> tuple[list[Session], list[LeftOut]]:
    """Return one `Session` for each protocol, in the order of its tasks, as :func:`core.load.load_session` does."""
    name = f"{path.parent.name}/{path.name}"
    if not _eid(tasks):
        eids = ", ".join(sorted({task.eid for task in tasks}))
        reason = f"several sessions have this date and number, and none is taken: {eids}"
        return [], [LeftOut(session=name, reason=printable(reason))]
    left_out: list[LeftOut] = []
    by_protocol: dict[str, list[_Task]] = {}
    for task in tasks:
        try:
            protocol = _protocol(task)
        except SessionUnusable as error:
            left_out.append(LeftOut(session=name, reason=printable(f"task {task.position}: {error}")))
            continue
        by_protocol[protocol] = [*by_protocol.pop(protocol, []), task]
    sessions = []
    for protocol, of_protocol in by_protocol.items():
        trials = facts = None
        if protocol != "habituation":
            try:
                trials = put_together([_trials(task) for task in of_protocol])
            except SessionUnusable as error:
                left_out.append(LeftOut(session=name, reason=printable(f"{protocol}: {error}")))
                continue
            of_tasks = settings.by_protocol.get(protocol, []) if settings else []
            if settings and not of_tasks:
                reason = f"{protocol}: rig and delay are not known: {settings.reason}"
                left_out.append(LeftOut(session=name, reason=printable(reason)))
            facts = _facts(of_protocol, of_tasks)
        sessions.append(
            Session(
                path=str(path), number=path.name, protocol=protocol, trials=trials, facts=facts, eid=of_protocol[0].eid
            )
        )
    return sessions, left_out


def _protocol(task: _Task) -> str:
    if not task.protocol:
        raise SessionUnusable("trials without task_protocol")
    chained = task.protocol.split("/")  # Alyx joins the names of a session's tasks so
    name = chained[task.position] if 0 <= task.position < len(chained) > 1 else task.protocol
    return protocol_named(name)


def _trials(task: _Task) -> Trials:
    where = f"task {task.position}"
    if missing := [name for name in _ALWAYS if np.isnan(task.columns[name]).all()]:
        raise SessionUnusable(f"{where}: trials without {', '.join(missing)}")
    return Trials(**check_columns(where, task.columns))


def _facts(tasks: Sequence[_Task], of_tasks: Sequence[dict[str, Any]]) -> Facts:
    """Return what is known of a session beside its trials, as a tree tells it where there are task settings."""
    seconds = [_seconds(task.columns) for task in tasks]
    if not of_tasks:
        return Facts(duration=sum(map(whole_minutes, seconds)), delay=float("nan"), location=None)
    if len(of_tasks) == len(tasks):  # else nobody knows which trials are whose
        told = [seconds_told(settings) for settings in of_tasks]
        seconds = [of_trials if end is None else end for of_trials, end in zip(seconds, told, strict=True)]
    delay, location = delay_and_location(of_tasks)
    return Facts(duration=sum(map(whole_minutes, seconds)), delay=delay, location=location)


def _seconds(columns: dict[str, NDArray[Any]]) -> float:
    """Return a task's length: the end of its last trial, or its response where no end is told; 0 where neither is."""
    response = columns["response_times"]
    ends = columns.get(_END, response)
    ends = np.where(np.isnan(ends), response, ends)
    told = ends[(ends >= 0) & (ends <= LONGEST_SESSION)]
    return float(told[-1]) if told.size else 0.0
