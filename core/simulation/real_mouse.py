"""The real mouse SWC_054, from a file that ibllib carries among its own tests.

The trials are data of the International Brain Laboratory, under the Creative Commons licence CC BY 4.0;
they are read where ibllib is installed and are no part of this project.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from datetime import date, datetime, time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigurationError
from core.simulation.formats import RIG_VERSIONS, write_session

SUBJECT = "SWC_054"
FIXTURE = "brainbox/tests/fixtures/trials_test.pickle"
FIRST_EPHYS_DAY = date(2020, 9, 1)
FIRST_DELAY_DAY = date(2020, 9, 2)
DELAY = 1000  # s


def write_real_mouse(directory: Path, lab: str = "mrsicflogellab") -> int:
    """Write the eleven sessions of SWC_054, 2020-08-21 to 2020-09-04, as its rig would have left them.

    Parameters
    ----------
    directory : Path
        The root of a tree; sessions go to `<directory>/<lab>/Subjects/SWC_054/<date>/001`.
    lab : str
        The lab to put the mouse in.

    Returns
    -------
    int
        The number of sessions written.

    Raises
    ------
    ConfigurationError
        If ibllib is not installed or lacks the file, or the mouse is there already.

    Notes
    -----
    The trials are data of the International Brain Laboratory, licensed CC BY 4.0
    (https://creativecommons.org/licenses/by/4.0/). Seven attributes of each trial and the protocol are in
    the file. The rest is filled in: goCueTrigger_times from stimOn_times, the rig (electrophysiology from
    2020-09-01), the delay (1000 s from 2020-09-02) and the time of day.
    """
    subject_dir = directory / lab / "Subjects" / SUBJECT
    if subject_dir.exists():
        raise ConfigurationError(f"{subject_dir} is there already")
    sessions = _read_fixture(_fixture_path())
    for day, arrays in sorted(sessions.items()):
        when = date.fromisoformat(day)
        trials = {name: values for name, values in arrays.items() if name != "task_protocol"}
        write_session(
            subject_dir / day / "001",
            tasks=[(f"_iblrig_tasks_{arrays['task_protocol']}ChoiceWorld{RIG_VERSIONS['v7']}", trials)],
            start=datetime.combine(when, time(10)),
            rig="v7",
            delay=DELAY if when >= FIRST_DELAY_DAY else 0,
            ephys=when >= FIRST_EPHYS_DAY,
        )
    return len(sessions)


def _fixture_path() -> Path:
    """Where the file lies, without importing ibllib: it may have been installed without what it needs."""
    try:
        path = Path(str(metadata.distribution("ibllib").locate_file(FIXTURE)))
    except metadata.PackageNotFoundError:
        raise ConfigurationError("ibllib is not installed: pip install --no-deps ibllib") from None
    if not path.is_file():
        raise ConfigurationError(f"this ibllib has no {FIXTURE}: pip install --no-deps ibllib")
    return path


def _read_fixture(path: Path) -> Mapping[str, Mapping[str, NDArray[Any]]]:
    with path.open("rb") as file:
        sessions: Mapping[str, Mapping[str, NDArray[Any]]] = _ArraysOnly(file).load()
    return sessions


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled arrays and nothing else, so that the file cannot run code."""

    # The array's own account of how it is rebuilt: the function's module was renamed in NumPy 2, and its old
    # name, which is in the file, is deprecated.
    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Admit only what an array is made of."""
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays") from None
