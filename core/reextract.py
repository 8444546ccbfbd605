"""Extract a session's trials anew from its raw Bpod files, by ibllib's own extractors, which are optional.

They take seconds to import and a second or so a session, so they are the last resort; nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import SessionUnusable, TrialsNotFound
from core.load import check_columns
from core.names import printable
from core.records import Trials
from core.schema import TRIALS_ATTRIBUTES

_INSTALL = "pip install 'training-status[ibl]'"
#: What the extractors raise on raw files that they cannot use, by trial.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def reextract_trials(session_path: Path, collections: Sequence[str]) -> Trials:
    """Extract the trials of a session from its raw files, its collections put together in their order.

    Parameters
    ----------
    session_path : Path
        The session's folder.
    collections : sequence of str
        Raw collections, such as ``raw_behavior_data``.

    Returns
    -------
    Trials
        Seven arrays of shape (n_trials,).

    Raises
    ------
    TrialsNotFound
        Where there is nothing to extract from, it cannot be extracted, or ibllib is not installed.
    """
    if not collections or not all((session_path / collection).is_dir() for collection in collections):
        raise TrialsNotFound(f"no raw files in {', '.join(collections) or 'the session'}")
    try:
        get_extractor = import_module("ibllib.io.extractors.bpod_trials").get_bpod_extractor
    except ImportError as error:
        raise TrialsNotFound(f"extracting trials needs ibllib ({error}): {_INSTALL}") from error
    parts = [_extract(get_extractor, session_path, collection) for collection in collections]
    return Trials(**{name: np.concatenate([part[name] for part in parts]) for name in TRIALS_ATTRIBUTES})


def _extract(get_extractor: Any, session_path: Path, collection: str) -> dict[str, NDArray[np.float64]]:
    try:
        extractor = get_extractor(session_path, task_collection=collection)
        # The collection is told twice: to choose the extractor, and for it to read from.
        extracted, _ = extractor.extract(save=False, task_collection=collection)
        table = extracted.get("table", {})
        found = {name: table[name] if name in table else extracted.get(name) for name in TRIALS_ATTRIBUTES}
        columns = {name: np.asarray(values) for name, values in found.items() if values is not None}
        return check_columns(collection, columns)
    except (*_FAILURES, SessionUnusable) as error:
        told = printable(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200])
        raise TrialsNotFound(f"trials cannot be extracted from {collection}: {told}") from error
