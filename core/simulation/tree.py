"""A whole tree of simulated labs, in the layout of a local server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from core.errors import ConfigurationError
from core.simulation.formats import write_session
from core.simulation.mouse import Mouse


def simulate(
    directory: Path,
    *,
    labs: int = 3,
    subjects: int = 4,
    days: int = 60,
    seed: int = 0,
    on_session: Callable[[int], None] | None = None,
) -> int:
    """Write `<directory>/<lab>/Subjects/<subject>/<yyyy-mm-dd>/<nnn>/...` for simulated mice.

    Parameters
    ----------
    directory : Path
        Where to; made where it does not exist, and else empty.
    labs : int
        How many labs: simlab01, simlab02, ...
    subjects : int
        How many mice each lab has: SIM01_001, SIM01_002, ...
    days : int
        Calendar days each mouse is trained for; not all of them have a session.
    seed : int
        The same seed gives the same bytes. A mouse is the same whatever the number of labs and subjects,
        and more days only add to it.
    on_session : callable, optional
        Called after each session with the number written so far.

    Returns
    -------
    int
        The number of sessions written.

    Raises
    ------
    ConfigurationError
        If a number is below 1, the seed below 0, or the directory not empty.
    """
    _check(directory, labs=labs, subjects=subjects, days=days, seed=seed)
    directory.mkdir(parents=True, exist_ok=True)
    written = 0
    for lab in range(labs):
        for subject in range(subjects):
            subject_dir = directory / f"simlab{lab + 1:02d}" / "Subjects" / f"SIM{lab + 1:02d}_{subject + 1:03d}"
            for session in Mouse(lab_index=lab, subject_index=subject, seed=seed).sessions(days):
                write_session(
                    subject_dir / f"{session.start:%Y-%m-%d}" / f"{session.number:03d}",
                    tasks=session.tasks,
                    start=session.start,
                    rig=session.rig,
                    delay=session.delay,
                    ephys=session.ephys,
                    layout=session.layout,
                    quirks=session.quirks,
                )
                written += 1
                if on_session is not None:
                    on_session(written)
    return written


def _check(directory: Path, *, labs: int, subjects: int, days: int, seed: int) -> None:
    for name, value, least in (
        ("labs", labs, 1),
        ("subjects", subjects, 1),
        ("days", days, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigurationError(f"{name} must be {least} or more, not {value}")
    if directory.exists() and not directory.is_dir():
        raise ConfigurationError(f"{directory} is not a directory")
    if directory.is_dir() and any(directory.iterdir()):
        raise ConfigurationError(f"{directory} is not empty: name a new or empty directory")
