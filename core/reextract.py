"""Extract a session's trials anew from its raw Bpod files, by ibllib's own extractors, which are optional.

They take seconds to import and a second or so a session, so they are the last resort, and in a run they have a queue of
their own. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigurationError, ExtractionNeeded, SessionUnusable, TrialsNotFound
from core.load import TrialsLoader, check_columns, load_trials, raw_of
from core.names import printable
from core.records import LeftOut, SessionFiles, Trials
from core.schema import TRIALS_ATTRIBUTES

_EXTRACTORS = "ibllib.io.extractors.bpod_trials"
#: Stands in the reason of every session that is left out because nothing here could extract it, and in no other.
INSTALL = "pip install 'training-status[ibl]'"
_NOT_EXTRACTED = f"raw files are there and were not extracted: --extract does, with {INSTALL}"
#: What the extractors raise on raw files that they cannot use, by trial.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)

#: Who extracts the sessions that have no trials: nobody, another process, this one.
Extraction = Literal["off", "elsewhere", "here"]


def can_extract() -> bool:
    """Return whether ibllib is installed here; it is not imported, which takes seconds."""
    spec = find_spec("ibllib")
    return spec is not None and spec.origin is not None  # a folder of that name is no package


def import_extractors() -> None:
    """Import ibllib's extractors, before any session is extracted.

    Raises
    ------
    ConfigurationError
        Where they cannot be imported.
    """
    try:
        import_module(_EXTRACTORS)
    except ImportError as error:
        raise ConfigurationError(f"extracting trials needs ibllib ({error}): {INSTALL}") from error


def trials_loader(extraction: Extraction = "off") -> TrialsLoader:
    """Return what loads a session's trials from its folder or, where it has none, does with its raw files as told.

    Parameters
    ----------
    extraction : {"off", "elsewhere", "here"}
        The session is left out, with a reason that says how to have it extracted; or :class:`ExtractionNeeded` is
        raised, which ends the loading; or its trials are extracted.
    """
    return partial(_load_trials, extraction)


def awaits_extraction(left_out: LeftOut) -> bool:
    """Return whether a session was left out because nothing could extract it, and not for its own sake."""
    return INSTALL in left_out.reason


def _load_trials(extraction: Extraction, files: SessionFiles, collections: Sequence[str] | None) -> Trials:
    try:
        return load_trials(files, collections)
    except TrialsNotFound as error:
        raw = raw_of(files, collections)
        if not raw or not files.task_data.keys() >= set(raw):
            raise
        if extraction == "off":
            raise TrialsNotFound(f"{error}; {_NOT_EXTRACTED}") from error
        if extraction == "elsewhere":
            raise ExtractionNeeded(f"{files.name} has raw files and no trials") from error
        return reextract_trials(files.path, raw)


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
        get_extractor = import_module(_EXTRACTORS).get_bpod_extractor
    except ImportError as error:
        raise TrialsNotFound(f"extracting trials needs ibllib ({error}): {INSTALL}") from error
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
