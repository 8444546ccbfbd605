"""Session trees for the benchmarks: simulated mice of full size, and as many more as wanted by hard links."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from core.discover import find_labs, find_sessions, find_subjects
from core.simulation.tree import simulate

Mouse = tuple[str, str]  # lab, subject


def write_mice(root: Path, subjects: int, days: int, seed: int, *, labs: int = 4) -> int:
    """Write a tree of at least `subjects` simulated mice, spread over `labs` labs, and return its sessions."""
    labs = min(labs, subjects)
    return simulate(root, labs=labs, subjects=-(-subjects // labs), days=days, seed=seed)


def mice_of(root: Path) -> list[Mouse]:
    """Return the mice of a tree, by lab and subject."""
    return [(lab, subject) for lab in find_labs(root)[0] for subject in find_subjects(root, lab)[0]]


def folder_of(root: Path, mouse: Mouse) -> Path:
    """Return a mouse's folder."""
    lab, subject = mouse
    return root / lab / "Subjects" / subject


def sessions_of(root: Path, mouse: Mouse) -> list[Path]:
    """Return a mouse's session folders, by date and number."""
    return [path for paths in find_sessions(root, *mouse)[0].values() for path in paths]


def multiply(source: Path, target: Path, times: int) -> int:
    """Write a tree with `times` mice for each of `source`, their files linked to the same data; return its sessions.

    Each copy is a mouse and a lab of its own: all of its files are listed, read and computed like any other's.
    """
    sessions = 0
    for copy in range(times):
        for lab, subject in mice_of(source):
            to = folder_of(target, (f"{lab}x{copy:03d}", f"{subject}x{copy:03d}"))
            shutil.copytree(folder_of(source, (lab, subject)), to, copy_function=os.link)
            sessions += len(sessions_of(source, (lab, subject)))
    return sessions
