"""A package that stands in for ibllib, for what the real one cannot be made to do: to hang, and to be there at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

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
