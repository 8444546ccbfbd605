"""What ONE has of sessions: records of datasets, from an Alyx server or from the tables of a local cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import blake2b, file_digest, md5
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from core.discover import which_file
from core.names import SUBJECTS_FOLDER
from core.records import LeftOut, SessionFiles

#: Kinds of datasets that tell a session's tasks, with their rig and delay.
OF_TASKS = ("description", "settings")

T = TypeVar("T")
R = TypeVar("R")

#: Stands before the fingerprint of a session that is known by its records, see `core.discover.fingerprint_kind`.
BY_RECORDS = "records:"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A file of a session, as ONE knows it."""

    path: str  # within the session: collection, revision in ``#``, name
    size: int | None  # bytes; None where nobody knows
    hash: str | None  # MD5 of the content; None where nobody knows
    url: str | None = None  # where it can be had; None where it lies in the local cache
    exists: bool = True  # whether ONE says that the file is there
    default: bool = True  # the revision that counts
    stamp: str = ""  # changes with the content, where there is no hash


@dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """A session, as ONE knows it, with the datasets that bear on its result."""

    date: str
    number: str
    eid: str
    datasets: tuple[Dataset, ...] = ()

    @property
    def fingerprint(self) -> str:
        """What the session is computed from, told without opening a file."""
        known = sorted((d.path, d.size, d.hash or d.stamp) for d in self.datasets)
        return BY_RECORDS + blake2b(repr(known).encode(), digest_size=12).hexdigest()

    def files(self, folder: Path) -> SessionFiles:
        """Return the session's files, as they lie in `folder` once they are there."""
        description: Path | None = None
        settings: dict[str, Path] = {}
        task_data: dict[str, Path] = {}
        trials: dict[str, dict[str, Path]] = {}
        for dataset in self.datasets:
            found = which_file(dataset.path)
            path = folder / dataset.path
            if found is None:
                continue
            kind, collection, attribute = found
            if kind == "description":
                description = description or path
            elif kind == "settings":
                settings.setdefault(collection, path)
            elif kind == "task_data":
                task_data.setdefault(collection, path)
            else:  # of revisions the last one counts, and they come in order
                trials.setdefault(collection, {})[attribute] = path
        return SessionFiles(
            path=folder,
            description=description,
            settings=settings,
            task_data=task_data,
            trials=trials,
            fingerprint=self.fingerprint,
            eid=self.eid,
        )

    def of_kinds(self, *kinds: str) -> SessionRecord:
        """Return the session with those datasets alone that are of some kinds, see `core.discover.which_file`."""
        found = ((dataset, which_file(dataset.path)) for dataset in self.datasets)
        return replace(self, datasets=tuple(dataset for dataset, which in found if which and which[0] in kinds))

    def with_datasets(self, datasets: Iterable[Dataset]) -> SessionRecord:
        """Return the session with those of `datasets` that bear on its result: of each, the default revision."""
        wanted = [dataset for dataset in datasets if dataset.default and which_file(dataset.path)]
        # Where two revisions call themselves the default, the last one counts, as in a session tree.
        last = {_without_revision(dataset.path): dataset for dataset in sorted(wanted, key=_by_revision)}
        return replace(self, datasets=tuple(sorted(last.values(), key=_by_revision)))


class Records(Protocol):
    """Where records, and the files that they tell of, come from."""

    root: Path  # holds <lab>/Subjects/<subject>/<date>/<number>
    at_once: int  # sessions that are worth having under way at a time, as each waits for answers

    def check(self) -> None:
        """See that the records can be had; raises what :meth:`core.sources.base.Source.check` raises."""
        ...

    def labs(self) -> list[str]:
        """Return the names of all labs."""
        ...

    def subjects(self, lab: str) -> list[str]:
        """Return the names of a lab's subjects that have sessions."""
        ...

    def sessions(self, lab: str, subject: str, dates: Sequence[str] | None) -> list[SessionRecord]:
        """Return a subject's sessions, of some dates or of all, with their datasets."""
        ...

    def raw(self, record: SessionRecord, collections: Sequence[str]) -> list[Dataset]:
        """Return all files of some raw collections of a session, which trials are extracted from."""
        ...

    def hold(self, folder: Path) -> AbstractContextManager[None]:
        """Keep the files of a day, which lie in `folder`, where they are while the block runs."""
        ...

    def provide(self, folder: Path, datasets: Sequence[Dataset]) -> str | None:
        """See that files of a session are there, with the content that their records tell of.

        Returns
        -------
        str or None
            What is wrong with the first that is not, in one line.

        Raises
        ------
        TransientError
            Where the server does not answer.
        AccessRefused
            Where it refuses the credentials.
        """
        ...


def side_by_side(records: Records, provide: Callable[[T], R], wanted: Iterable[T]) -> list[R]:
    """Return what `provide` returns for each, as many at a time as is worth it; the first error ends it."""
    if records.at_once == 1:
        return list(map(provide, wanted))
    with ThreadPoolExecutor(records.at_once) as pool:
        return list(pool.map(provide, wanted))


def session_folder(root: Path, lab: str, subject: str, record: SessionRecord) -> Path:
    """Return where a session's files lie."""
    return root / lab / SUBJECTS_FOLDER / subject / record.date / record.number


def twins(records: Sequence[SessionRecord]) -> Iterator[LeftOut]:
    """Yield the date and number of each session of which there is more than one: nobody knows which one is meant."""
    seen: set[tuple[str, str]] = set()
    for record in records:
        if (record.date, record.number) in seen:
            yield LeftOut(
                session=f"{record.date}/{record.number}",
                reason=f"ONE has another session of this date and number: {record.eid} is left out",
            )
        seen.add((record.date, record.number))


def difference(dataset: Dataset, path: Path) -> str | None:
    """Return how a file differs from its record, in one line; None where it does not, as far as the record tells."""
    size = path.stat().st_size
    if dataset.size is not None and size != dataset.size:
        return f"it has {size} bytes, not {dataset.size}"
    if dataset.hash:
        with path.open("rb") as file:
            found = file_digest(file, lambda: md5(usedforsecurity=False)).hexdigest()
        if found != dataset.hash.replace("-", "").lower():
            return f"its MD5 is {found}, not {dataset.hash}"
    return None


def _by_revision(dataset: Dataset) -> tuple[bool, str]:
    return "#" in dataset.path, dataset.path


def _without_revision(path: str) -> str:
    return str(PurePosixPath(*(part for part in PurePosixPath(path).parts if not part.startswith("#"))))
