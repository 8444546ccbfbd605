"""Load a session's trials through ONE: from its local cache, or over the network where it is remote.

The ONE instance is handed in, so nothing here makes a connection of its own, and without one nothing is needed of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import AccessRefused, SessionUnusable, TransientError, TrialsNotFound
from core.load import check_columns
from core.names import SUBJECTS_FOLDER, printable
from core.records import Trials
from core.schema import TRIALS_ATTRIBUTES, TRIALS_MARKER

_MARKER = re.compile(rf"_ibl_trials\.{TRIALS_MARKER}\.(?:[\w-]+\.)?npy")
#: HTTP statuses with which Alyx refuses a password (400) or a token.
_REFUSALS = frozenset({400, 401, 403})
#: What ONE raises beside its own errors, by trial: AssertionError where its cache has a session of another lab too.
_FAILURES = (AssertionError, AttributeError, LookupError, TypeError, ValueError)


def load_one_trials(session_path: Path, one: Any, collections: Sequence[str] | None = None) -> Trials:
    """Load the trials of a session through ONE, its collections put together in their order.

    Parameters
    ----------
    session_path : Path
        The session's folder; it need not be there.
    one : one.api.One or None
        Where from; a local one asks no server.
    collections : sequence of str, optional
        The trials collections, such as ``alf/task_00``; every one with trials where None.

    Returns
    -------
    Trials
        Seven arrays of shape (n_trials,).

    Raises
    ------
    TrialsNotFound
        Where `one` is None, or does not have the session, one of the collections, or all seven attributes.
    AccessRefused
        Where the server refuses the credentials.
    TransientError
        Where the server does not answer.
    """
    if one is None:
        raise TrialsNotFound("no ONE was given")
    with _in_our_words("find the session"):
        eid = _find_session(session_path, one)
    with _in_our_words("list the datasets"):
        found = _trials_collections(one.list_datasets(eid))
    wanted = found if collections is None else list(collections)
    if not wanted or not set(wanted) <= set(found):
        place = ", ".join(set(wanted) - set(found)) or "the session"
        raise TrialsNotFound(f"ONE has no trials of {place} (no _ibl_trials.{TRIALS_MARKER})")
    parts = [_load_collection(one, eid, collection) for collection in wanted]
    return Trials(**{name: np.concatenate([part[name] for part in parts]) for name in TRIALS_ATTRIBUTES})


def _find_session(path: Path, one: Any) -> Any:
    """Return the session's identifier in ONE.

    ONE looks for subject, date and number alone, and a subject's name is unique within a lab only.
    """
    eid = one.path2eid(path)
    if eid is None:
        raise TrialsNotFound("ONE does not know the session")
    lab = _lab_of(path)
    known = _lab_of(PurePath(str(one.eid2path(eid)))) if hasattr(one, "eid2path") else None
    # On a lab's own server the folder above "Subjects" is no lab, and says nothing.
    if lab and known and lab != known and len(one.search(lab=lab)):
        raise TrialsNotFound(f"ONE has a session of this subject, date and number in {known}, not in {lab}")
    return eid


def _lab_of(path: PurePath) -> str | None:
    """Return what stands above ``Subjects/<subject>/<date>/<number>``."""
    return path.parts[-5] if len(path.parts) > 4 and path.parts[-4] == SUBJECTS_FOLDER else None


def _trials_collections(datasets: Sequence[Any]) -> list[str]:
    """Return the collections that have trials, without revisions, from the relative paths of a session's datasets."""
    paths = [PurePath(str(dataset)) for dataset in datasets]
    return sorted(
        {
            "/".join(part for part in path.parent.parts if not part.startswith("#"))
            for path in paths
            if _MARKER.fullmatch(path.name)
        }
    )


def _load_collection(one: Any, eid: Any, collection: str) -> dict[str, NDArray[np.float64]]:
    options: dict[str, Any] = {"collection": collection, "attribute": ["table", *TRIALS_ATTRIBUTES]}
    if getattr(one, "mode", None) == "local":
        # A hash takes a quarter of a second a file, and nothing could be downloaded in the file's place.
        options["check_hash"] = False
    with _in_our_words(f"load the trials of {collection}"):
        # A dataset that is listed and yet missing makes the object smaller without a word.
        found = one.load_object(eid, "trials", **options)
        columns = {name: np.asarray(found[name]) for name in TRIALS_ATTRIBUTES if name in found}
    try:
        return check_columns(f"{collection} in ONE", columns)
    except SessionUnusable as error:
        raise TrialsNotFound(str(error)) from error


@contextmanager
def _in_our_words(doing: str) -> Iterator[None]:
    """Turn what ONE, its server and its files raise into errors of ours."""
    failures: tuple[type[Exception], ...] = (*_FAILURES, *_one_errors())
    try:
        yield
    except OSError as error:  # also what the clients of HTTP raise
        status = getattr(getattr(error, "response", None), "status_code", getattr(error, "code", None))
        told = f"ONE cannot {doing}: {_told(error)}"
        if isinstance(error, FileNotFoundError) or status == 404:
            raise TrialsNotFound(told) from error
        if status in _REFUSALS:
            raise AccessRefused(told) from error
        raise TransientError(told) from error
    except failures as error:
        raise TrialsNotFound(f"ONE cannot {doing}: {_told(error)}") from error


def _one_errors() -> tuple[type[Exception], ...]:
    try:
        from one.alf.exceptions import ALFError
    except ImportError:  # then `one` is a stand-in
        return ()
    return (ALFError,)


def _told(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]).rstrip(": ")
