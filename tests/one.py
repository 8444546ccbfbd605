"""ONE as a source, opened on a server or a cache of the test's own, and what tests look at then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core.config import SourceSettings
from core.errors import TrainingStatusError
from core.pipeline import recompute_subject
from core.records import LeftOut, LoadedDay
from core.sources import Source, open_source
from core.storage import open_store
from core.tables import SubjectTables
from tests.alyx import DATA_PASSWORD, PASSWORD, TOKEN, USER, Alyx, Record
from tests.trees import frame

LAB, OTHER = "simlab01", "simlab02"
MOUSE = "SIM01_001"

#: What begins the names of the datasets of a session that its loading needs.
TRIALS, SETTINGS = "_ibl_trials.", "_iblrig_taskSettings.raw"

Inputs = dict[str, dict[str, str]]


def settings(folder: Path, **given: Any) -> SourceSettings:
    """How the server is reached; downloads lie below a folder, in `cache`."""
    return SourceSettings(**{"one_user": USER, "one_password": PASSWORD, "cache": str(folder / "cache"), **given})


def opened(server: Alyx | str, folder: Path, **given: Any) -> Source:
    """Open a server as a source, with settings other than the usual where they are given."""
    url = server if isinstance(server, str) else server.url
    return open_source(f"one:{url}", settings(folder, **given))


def look(source: Source, lab: str = LAB, subject: str = MOUSE) -> Inputs:
    """What a refresh compares: the fingerprints of all sessions."""
    of_subject = source.subject(lab, subject)
    return of_subject.inputs(of_subject.sessions()[0])


def load(source: Source, lab: str = LAB, subject: str = MOUSE) -> list[LoadedDay]:
    of_subject = source.subject(lab, subject)
    return of_subject.load(of_subject.sessions()[0])


def told(days: Sequence[LoadedDay]) -> list[LeftOut]:
    """The sessions that were left out."""
    return [left for day in days for left in day.left_out]


def count(inputs: Inputs) -> int:
    return sum(map(len, inputs.values()))


def changed(before: Inputs, after: Inputs) -> list[str]:
    """The dates whose sessions are known by something else."""
    return [date for date in before if before[date] != after[date]]


def tables(source: Source, folder: Path, lab: str = LAB, subject: str = MOUSE) -> SubjectTables:
    store = open_store(str(folder))
    store.check()
    return recompute_subject(source, lab, subject, store)


def assert_same(found: SubjectTables, expected: SubjectTables, eids: dict[str, str] | None = None) -> None:
    """All but where the sessions lie is equal; the aggregate names them by eid."""
    training = [frame(each.training).drop(columns="session_path") for each in (found, expected)]
    assert len(training[0]) > 0
    pd.testing.assert_frame_equal(*training)
    pd.testing.assert_frame_equal(frame(found.criteria), frame(expected.criteria))
    in_one, in_tree = frame(found.aggregate), frame(expected.aggregate)
    assert list(in_one["training_status"]) == list(in_tree["training_status"])
    assert len(in_one) > 0
    if eids is not None:
        assert list(in_one["session"]) == [eids["/".join(Path(path).parts[-3:])] for path in in_tree["session"]]


def files(folder: Path) -> list[Path]:
    """The downloads below a folder; locks are none."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def dataset_of(server: Alyx, name: str = TRIALS, at: int = -1) -> tuple[Record, Record]:
    """A session of the mouse, and a dataset of it whose name begins so; the first session is habituation."""
    session = [s for s in server.sessions if s["subject"] == MOUSE][at]
    return session, next(d for d in server.datasets if d["session"] == session["url"] and d["name"].startswith(name))


def day_of(session: Record) -> str:
    return str(session["start_time"])[:10]


def one_line_without_secrets(error: TrainingStatusError) -> bool:
    text = str(error)
    return bool(text) and "\n" not in text and not any(secret in text for secret in (PASSWORD, TOKEN, DATA_PASSWORD))
