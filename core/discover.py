"""Find labs, subjects and dated sessions in a session tree, and the files of one session.

Lazy and sorted: a subject's folder is looked into when its turn comes. Nothing is read but for fingerprints by content.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from core.errors import ConfigurationError, InvalidName
from core.names import SUBJECTS_FOLDER, check_date, check_lab, check_number, check_subject, is_date
from core.records import Fingerprint, LeftOut, SessionFiles
from core.schema import TRIALS_ATTRIBUTES, TRIALS_MARKER

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ATTRIBUTES = "|".join((TRIALS_MARKER, *TRIALS_ATTRIBUTES))
_TRIALS = re.compile(rf"_ibl_trials\.(?:(table)(?:\.{_UUID})?\.pqt|({_ATTRIBUTES})(?:\.{_UUID})?\.npy)")
_SETTINGS = re.compile(r"_iblrig_taskSettings\.raw.*\.json")
_TASK_DATA = re.compile(r"_iblrig_taskData\.raw.*\.jsonable")
_DESCRIPTION = re.compile(r"_ibl_experiment\.description.*\.yaml")
_REVISION = re.compile(r"#.+#")
#: Why a folder cannot be listed, where another try will hear the same.
_CLOSED = (PermissionError, FileNotFoundError, NotADirectoryError)
#: Trials lie in ``alf`` or one collection below it; a revision may lie below that.
_ALF_DEPTH = 3
_BY_CONTENT = "content:"
_digest = partial(blake2b, digest_size=16)


def check_root(root: Path) -> Path:
    """Return `root` if it is a folder that can be listed.

    Raises
    ------
    ConfigurationError
        Where it is not.
    """
    if not root.is_dir():
        raise ConfigurationError(f"root {str(root)!r} is not a folder: name a tree of <lab>/Subjects/<subject>/<date>")
    if not os.access(root, os.R_OK | os.X_OK):
        raise ConfigurationError(f"root {str(root)!r} cannot be listed: read permission is missing")
    return root


def find_labs(root: Path, wanted: Sequence[str] = ()) -> tuple[list[str], list[LeftOut]]:
    """Return the labs of a session tree, sorted, and the folders that cannot be a lab's by their names or are closed.

    A lab's server may hold ``<root>/Subjects`` with no lab above it; the lab is then the one that `wanted` names,
    never a guess.

    Parameters
    ----------
    root : Path
        The session tree.
    wanted : sequence of str
        Labs to keep; all of them where it is empty.

    Raises
    ------
    ConfigurationError
        Where a wanted lab is not in the tree, or the tree has none.
    """
    check_root(root)
    wanted = sorted({check_lab(lab) for lab in wanted})
    if (root / SUBJECTS_FOLDER).is_dir():
        if len(wanted) != 1:
            raise ConfigurationError(f"{root / SUBJECTS_FOLDER} names no lab: name it with one --lab")
        return wanted, []
    found: list[str] = []
    closed: list[LeftOut] = []
    for name in _folders(root):
        try:
            if S_ISDIR(os.stat(root / name / SUBJECTS_FOLDER).st_mode):
                found.append(name)
        except PermissionError as error:
            closed.append(_closed(ascii(name)[1:-1], error))
        except OSError:  # it has no such folder
            continue
    if missing := [lab for lab in wanted if lab not in found]:
        raise ConfigurationError(f"no lab {missing[0]!r} in {root}: it has {', '.join(found) or 'none'}")
    if not found:
        raise ConfigurationError(f"no <lab>/{SUBJECTS_FOLDER} folder in {root}: is it a session tree?")
    good, odd = split_names(check_lab, wanted or found, "")
    return good, [*odd, *([] if wanted else closed)]


def subjects_folder(root: Path, lab: str) -> Path:
    """Return the folder that holds the subjects of `lab`."""
    flat = root / SUBJECTS_FOLDER
    return flat if flat.is_dir() else root / check_lab(lab) / SUBJECTS_FOLDER


def find_subjects(root: Path, lab: str, wanted: Sequence[str] = ()) -> tuple[list[str], list[LeftOut]]:
    """Return the subjects of a lab, sorted, and the folders whose names cannot be a subject's, or the lab if closed.

    Parameters
    ----------
    root : Path
        The session tree.
    lab : str
        One of its labs.
    wanted : sequence of str
        Subjects to keep; all of them where it is empty.
    """
    try:
        names = _folders(subjects_folder(root, lab))
    except _CLOSED as error:
        return [], [_closed(lab, error)]
    return split_names(check_subject, [name for name in names if not wanted or name in wanted], f"{lab}/")


def absent_subjects(root: Path, wanted: Sequence[str], subjects: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return which subjects a session tree has no folder of, though it has their lab.

    Parameters
    ----------
    root : Path
        The session tree.
    wanted : sequence of str
        Labs to look at; all of the tree's where it is empty.
    subjects : iterable of (str, str)
        Lab and subject.

    Returns
    -------
    list of (str, str)
        Sorted. None of a lab that is not in the tree or cannot be listed: nobody knows then.
    """
    try:
        labs, _ = find_labs(root, wanted)
        found = {lab: find_subjects(root, lab) for lab in labs}
    except (ConfigurationError, OSError):
        return []
    open_labs = {lab: names for lab, (names, odd) in found.items() if lab not in {left.session for left in odd}}
    return sorted((lab, name) for lab, name in set(subjects) if lab in open_labs and name not in open_labs[lab])


def changed_last(root: Path, labs: Sequence[str], subjects: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Return the subjects whose folders changed last, the latest first: a hint of where something is new.

    A folder's time tells of names that came or went: in the subject's own a date, in that of its last date a session.

    Parameters
    ----------
    root : Path
        The session tree.
    labs, subjects : sequence of str
        Those to look at; all where empty.
    count : int
        How many to return at most.

    Returns
    -------
    list of (str, str)
        Lab and subject; folders that cannot be listed are passed over.
    """
    times: list[tuple[int, str, str]] = []
    for lab in find_labs(root, labs)[0]:
        folder = subjects_folder(root, lab)
        for subject in find_subjects(root, lab, subjects)[0]:
            try:
                own = os.stat(folder / subject).st_mtime_ns
                latest = max((name for name in os.listdir(folder / subject) if is_date(name)), default="")
                times.append((max(own, os.stat(folder / subject / latest).st_mtime_ns), lab, subject))
            except OSError:
                continue
    return [(lab, subject) for _, lab, subject in sorted(times, reverse=True)[:count]]


def find_sessions(
    root: Path, lab: str, subject: str, dates: Sequence[str] | None = None
) -> tuple[dict[str, list[Path]], list[LeftOut]]:
    """Return a subject's session folders by date, and the folders whose names are no session's.

    Parameters
    ----------
    root : Path
        The session tree.
    lab, subject : str
        Whose sessions.
    dates : sequence of str, optional
        Look only at these dates; at all of them where None.

    Returns
    -------
    dict of str to list of Path
        Date to session folders, both sorted.
    list of LeftOut
        Folders with odd names, and dates that cannot be listed.
    """
    folder = subjects_folder(root, lab) / check_subject(subject)
    days: dict[str, list[Path]] = {}
    odd: list[LeftOut] = []
    for date in _folders(folder) if dates is None else dates:
        try:
            check_date(date)
        except InvalidName as error:
            odd.append(LeftOut(session=ascii(date)[1:-1], reason=f"folder left out: {error}"))
            continue
        try:
            numbers = _folders(folder / date)
        except _CLOSED as error:
            odd.append(_closed(date, error))
            continue
        for number in numbers:
            try:
                days.setdefault(date, []).append(folder / date / check_number(number))
            except InvalidName as error:
                odd.append(LeftOut(session=f"{date}/{ascii(number)[1:-1]}", reason=f"folder left out: {error}"))
    return days, odd


def find_files(session: Path, by: Fingerprint = "stat") -> SessionFiles:
    """Return the files of one session that bear on its result; each folder is listed once.

    Parameters
    ----------
    session : Path
        The session's folder.
    by : {"stat", "content"}
        Whether the fingerprint takes a file's size and modification time, and no file is opened; or what is in it, and
        each file is read whole.
    """
    known: list[tuple[str, int, int | str]] = []
    description: Path | None = None
    settings: dict[str, Path] = {}
    task_data: dict[str, Path] = {}
    trials: dict[str, dict[str, Path]] = {}
    raw: dict[str, list[os.DirEntry[str]]] = {}

    def note(entry: os.DirEntry[str]) -> Path:
        stat = entry.stat()
        is_read = by == "content" and S_ISREG(stat.st_mode)  # who opens a pipe may wait for ever
        last = _content(entry.path) if is_read else stat.st_mtime_ns
        known.append((os.path.relpath(entry.path, session), stat.st_size, last))
        return Path(entry.path)

    for entry in _entries(session):
        if not entry.is_dir():
            if _DESCRIPTION.fullmatch(entry.name):
                description = description or note(entry)
        elif entry.name == "alf":
            for collection, attribute, found in _trials_files(entry.path):
                trials.setdefault(collection, {})[attribute] = note(found)
        else:
            for file in _entries(entry.path):
                if _SETTINGS.fullmatch(file.name) and entry.name not in settings:
                    settings[entry.name] = note(file)
                elif _TASK_DATA.fullmatch(file.name) and entry.name not in task_data:
                    task_data[entry.name] = note(file)
                else:
                    raw.setdefault(entry.name, []).append(file)
    if sum(TRIALS_MARKER in datasets for datasets in trials.values()) < len(task_data):
        # Trials may be extracted from all that lies beside the raw trials.
        for collection in task_data:
            for file in raw.get(collection, ()):
                note(file)
    digest = blake2b(repr(sorted(known)).encode(), digest_size=12).hexdigest()
    return SessionFiles(
        path=session,
        description=description,
        settings=settings,
        task_data=task_data,
        trials=trials,
        fingerprint=digest if by == "stat" else _BY_CONTENT + digest,
    )


def which_file(path: str) -> tuple[str, str, str] | None:
    """Return what a file of a session is, by its path within the session, as :func:`find_files` tells them.

    Parameters
    ----------
    path : str
        With ``/`` between its parts.

    Returns
    -------
    tuple of (str, str, str), or None
        "description", "settings", "task_data" or "trials"; its collection; its attribute, or "table", of trials. None
        where the file does not bear on the result.
    """
    *folders, name = path.split("/")
    if not folders:
        return ("description", "", "") if _DESCRIPTION.fullmatch(name) else None
    if folders[0] == "alf":
        match = _TRIALS.fullmatch(name) if len(folders) <= _ALF_DEPTH else None
        collection = "/".join(folder for folder in folders if not _REVISION.fullmatch(folder))
        return ("trials", collection, match[1] or match[2]) if match else None
    plain = [folder for folder in folders if not _REVISION.fullmatch(folder)]
    if len(plain) == 1 and _SETTINGS.fullmatch(name):
        return "settings", plain[0], ""
    if len(plain) == 1 and _TASK_DATA.fullmatch(name):
        return "task_data", plain[0], ""
    return None


def fingerprint_kind(fingerprint: str) -> str:
    """Return what a session's fingerprint was made by; two of different kinds tell nothing of each other.

    A :data:`~core.records.Fingerprint`, or "records" where the session's files are known by their records in ONE.
    """
    kind, mark, _ = fingerprint.partition(":")
    return kind if mark else "stat"


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return file_digest(file, _digest).hexdigest()


def _closed(folder: str, error: OSError) -> LeftOut:
    return LeftOut(session=folder, reason=f"folder left out: it cannot be listed: {error.strerror}")


def split_names(check: Callable[[str], str], names: Sequence[str], prefix: str) -> tuple[list[str], list[LeftOut]]:
    """Split names into those that can be one, and those that are left out with the reason.

    Parameters
    ----------
    check : callable
        Raises InvalidName, such as :func:`core.names.check_lab`.
    names : sequence of str
        Of folders or records.
    prefix : str
        Stands before those that are left out, such as the lab and a slash.
    """
    good, odd = [], []
    for name in names:
        try:
            good.append(check(name))
        except InvalidName as error:
            odd.append(LeftOut(session=prefix + ascii(name)[1:-1], reason=f"folder left out: {error}"))
    return good, odd


def _trials_files(alf: str) -> Iterator[tuple[str, str, os.DirEntry[str]]]:
    """Yield (collection, attribute, file) below ``alf``; a later yield of the same pair supersedes an earlier one.

    Revisions come after what they revise, in the order of their names, so that the last one counts.
    """
    folders = [(alf, "alf", 1)]
    while folders:
        path, collection, depth = folders.pop(0)
        revisions = []
        for entry in _entries(path):
            if entry.is_dir():
                if depth < _ALF_DEPTH and _REVISION.fullmatch(entry.name):
                    revisions.append((entry.path, collection, depth + 1))
                elif depth < _ALF_DEPTH:
                    folders.append((entry.path, f"{collection}/{entry.name}", depth + 1))
            elif match := _TRIALS.fullmatch(entry.name):
                yield collection, match[1] or match[2], entry
        folders[:0] = revisions


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _folders(folder: str | Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False
