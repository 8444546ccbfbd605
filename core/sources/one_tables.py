"""The tables of a local ONE cache: which sessions and datasets exist, as ONE last wrote it down."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from core.discover import which_file
from core.errors import ConfigurationError
from core.sources.one_records import Dataset, SessionRecord, difference

#: (lab, subject) -> its sessions.
_Index = dict[tuple[str, str], list[SessionRecord]]


class TableRecords:
    """The sessions of a local ONE cache; no server is asked.

    Parameters
    ----------
    root : Path
        Its folder, which holds ``*.pqt`` and ``<lab>/Subjects/...``.
    """

    at_once = 1

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def check(self) -> None:
        """See that the tables are there and can be read."""
        self._index()

    def labs(self) -> list[str]:
        """Return the names of all labs."""
        return sorted({lab for lab, _ in self._index()})

    def subjects(self, lab: str) -> list[str]:
        """Return the names of a lab's subjects."""
        return sorted(subject for of, subject in self._index() if of == lab)

    def sessions(self, lab: str, subject: str, dates: Sequence[str] | None) -> list[SessionRecord]:
        """Return a subject's sessions, of some dates or of all, with their datasets."""
        records = self._index().get((lab, subject), [])
        return [record for record in records if dates is None or record.date in dates]

    def raw(self, record: SessionRecord, collections: Sequence[str]) -> list[Dataset]:
        """Return nothing that must be provided: what there is lies in the session's folder."""
        return []

    def hold(self, folder: Path) -> AbstractContextManager[None]:
        """Do nothing: no file goes away of our doing."""
        return nullcontext()

    def provide(self, folder: Path, datasets: Sequence[Dataset]) -> str | None:
        """See that the files are there, and as their records say."""
        for dataset in datasets:
            path = folder / dataset.path
            if not path.is_file():
                return f"{dataset.path}: ONE has a record, and no file"
            if wrong := difference(dataset, path):
                return f"{dataset.path} differs from its record in ONE: {wrong}"
        return None

    def _index(self) -> _Index:
        tables = [self.root / "sessions.pqt", self.root / "datasets.pqt"]
        if missing := [table for table in tables if not table.is_file()]:
            raise ConfigurationError(
                f"{missing[0]} is missing: name the folder of a ONE cache (one.alf.cache.make_parquet_db writes tables)"
            )
        return _read(self.root, tuple(table.stat().st_mtime_ns for table in tables))


@lru_cache(maxsize=2)
def _read(root: Path, written: tuple[int, ...]) -> _Index:
    """Read the tables; `written`, when that was, is what tells the caller's cache that they are others now."""
    from one.alf import cache

    try:
        tables = cache.load_tables(root)
        sessions, datasets = tables["sessions"], tables["datasets"]
        for name, table in (("sessions", sessions), ("datasets", datasets)):
            rows = pq.read_metadata(root / f"{name}.pqt").num_rows
            if len(table) != rows:  # it passes over a table that it does not know, and gives an empty one
                raise ValueError(f"{name}.pqt has {rows} rows, and ONE reads {len(table)}")
        datasets = datasets[datasets["rel_path"].map(lambda path: which_file(str(path)) is not None).astype(bool)]
        of_session: dict[str, list[Dataset]] = {}
        for eid, *row in _rows(datasets, ("rel_path", "file_size", "hash", "exists", "default_revision")):
            of_session.setdefault(str(eid), []).append(_dataset(*row))
        index: _Index = {}
        for eid, lab, subject, date, number in _rows(sessions, ("lab", "subject", "date", "number")):
            record = SessionRecord(date=str(date)[:10], number=f"{int(number):03}", eid=str(eid))
            index.setdefault((str(lab), str(subject)), []).append(record.with_datasets(of_session.get(str(eid), ())))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"the tables of the ONE cache {root} cannot be read: {error}") from error
    return index


def _rows(table: Any, columns: Sequence[str]) -> Any:
    """Yield eid and columns of a table, row by row; None for a column that not all tables have.

    The eid is the index, or its first level: tables that ONE keeps from a server's answers do not name it.
    """
    there = [table[name].tolist() if name in table.columns else [None] * len(table) for name in columns]
    return zip(table.index.get_level_values(0).tolist(), *there, strict=True)


def _dataset(path: str, size: Any, digest: Any, exists: Any, default: Any) -> Dataset:
    return Dataset(
        path=path,
        size=None if size is None or size != size else int(size),
        hash=digest if isinstance(digest, str) and digest else None,
        exists=bool(exists),
        default=default is None or bool(default),
    )
