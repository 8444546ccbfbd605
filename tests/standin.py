"""A package that stands in for ibllib, for what the real one cannot be made to do: to hang, and to be there at all."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from core.pipeline import recompute_subject
from core.sources import TreeSource
from core.storage import Store, open_store
from core.tables import subject_keys
from tests.processes import COMMAND, process, wait_for
from tests.trees import LAB, frame, session
from workers.app import EXTRACTION_QUEUE, app

#: Three subjects: of all but the first, the second day has raw files alone.
FAST, SLOW, SLOWER = SUBJECTS = ("A_fast", "B_slow", "C_slower")
DATES = ("2025-03-01", "2025-03-02", "2025-03-03")

#: Beside the raw files of a session: the table that the stand-in says it has extracted.
KEPT = "kept.pqt"

_MODULE = f'''
import time
from pathlib import Path

import pandas as pd

TOLD = Path(__file__).parents[3] / "told"


class Extractor:
    def __init__(self, session_path, task_collection):
        self.path = Path(session_path)

    def extract(self, save, task_collection):
        name = self.path.parts[-3]
        with (TOLD / f"{{name}}.begun").open("a") as file:
            file.write("begun\\n")
        while (TOLD / f"{{name}}.hold").exists():
            time.sleep(0.05)
        return {{"table": pd.read_parquet(self.path / task_collection / "{KEPT}")}}, None


def get_bpod_extractor(session_path, task_collection):
    return Extractor(session_path, task_collection)
'''


class StandIn:
    """The package, in a folder; a session of a subject is extracted once its subject is not held.

    Parameters
    ----------
    folder : Path
        A new folder.
    """

    def __init__(self, folder: Path) -> None:
        package = folder / "ibllib" / "io" / "extractors"
        package.mkdir(parents=True)
        for path in (package, package.parent, package.parent.parent):
            (path / "__init__.py").touch()
        (package / "bpod_trials.py").write_text(_MODULE)
        self.folder = folder
        self.told = folder / "told"
        self.told.mkdir()

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that finds the package."""
        return {"PYTHONPATH": os.pathsep.join(filter(None, (str(self.folder), os.environ.get("PYTHONPATH"))))}

    def hold(self, subject: str) -> None:
        """Have the extraction of a subject's sessions hang."""
        (self.told / f"{subject}.hold").touch()

    def let_go(self, subject: str) -> None:
        """Have it go on."""
        (self.told / f"{subject}.hold").unlink()

    def begun(self, subject: str) -> int:
        """Return how often the extraction of a session of the subject was begun."""
        path = self.told / f"{subject}.begun"
        return len(path.read_text().splitlines()) if path.exists() else 0


def take_trials(session: Path, collection: str = "raw_task_data_00") -> None:
    """Take the trials table of a session away, to where the stand-in finds it: it has raw files alone then."""
    (table,) = session.rglob("_ibl_trials.table*.pqt")
    table.rename(session / collection / KEPT)
    shutil.rmtree(session / "alf")


def write_tree(root: Path) -> Path:
    """Write the three subjects, of two of them a day with raw files alone."""
    for subject in SUBJECTS:
        folders = [session(root, date, subject=subject) for date in DATES]
        if subject != FAST:
            take_trials(folders[1])
    return root


def complete_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the training tables of the three subjects, as if all of their trials lay in their folders."""
    store = open_store(f"memory://{folder.name}")
    for subject in SUBJECTS:
        for date in DATES:
            session(folder / "tree", date, subject=subject)
        recompute_subject(TreeSource(folder / "tree"), LAB, subject, store)
    return {subject: training(store, subject) for subject in SUBJECTS}


def training(store: Store, subject: str) -> pd.DataFrame:
    """Return the training table of a subject, its sessions as date/number."""
    stored = store.get(subject_keys(LAB, subject).training)
    assert stored is not None, f"{subject} has no table"
    table = frame(stored.data)
    return table.assign(session_path=["/".join(path.split("/")[-2:]) for path in table["session_path"]])


def assert_complete(store: Path, expected: dict[str, pd.DataFrame]) -> None:
    """Hold the tables in a folder against :func:`complete_tables`."""
    for subject, table in expected.items():
        pd.testing.assert_frame_equal(training(open_store(str(store)), subject), table)


@contextmanager
def extractor(broker: str, standin: StandIn, log: Path, patience: float = 60) -> Iterator[subprocess.Popen[bytes]]:
    """Run an extraction worker with one process, once its broker hears it."""
    command = [*COMMAND, "worker", "--extraction", "--concurrency", "1", "--patience", str(patience)]
    with process(command, log, {"TRAINING_STATUS_BROKER": broker, **standin.env}) as running:
        wait_for(_listens, "the extraction worker")
        yield running
    assert "Traceback" not in log.read_text()


def _listens() -> bool:
    found = app.control.inspect(timeout=1).active_queues() or {}
    return EXTRACTION_QUEUE in {queue["name"] for queues in found.values() for queue in queues}
