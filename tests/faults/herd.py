"""A herd of mice with short sessions: many tasks for little work, so that there is time to kill something."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

from core.simulation.formats import write_session
from tests.faults.services import Herd, undisturbed
from tests.trees import protocol_name, trials

FIRST_DAY = date(2024, 3, 4)


def write_mouse(root: Path, lab: str, subject: str, days: int, *, first: int = 0) -> int:
    """Write a session a day, from day `first` on, and return how many."""
    for day in range(first, days):
        folder = root / lab / "Subjects" / subject / f"{FIRST_DAY + timedelta(days=day):%Y-%m-%d}" / "001"
        # Better from day to day, and no two mice alike, so that no two tables are.
        right = min(20, 8 + day // 2 + sum(map(ord, subject)) % 5)
        counts = ((-100.0, 20, 20 - right), (-25.0, 10, 4), (0.0, 6, 3), (25.0, 10, 6), (100.0, 20, right))
        write_session(
            folder,
            tasks=[(protocol_name("training"), trials(counts))],
            start=datetime.combine(FIRST_DAY + timedelta(days=day), datetime.min.time()).replace(hour=9),
        )
    return days - first


def write_herd(root: Path, *, labs: int, subjects: int, days: int) -> Herd:
    """Write a session tree of `labs` x `subjects` mice, and compute what an undisturbed run makes of it."""
    names = [(f"lab{lab}", f"M{lab}_{subject}") for lab in range(labs) for subject in range(subjects)]
    sessions = sum(write_mouse(root, lab, subject, days) for lab, subject in names)
    return Herd(root=root, subjects=names, sessions=sessions, objects=undisturbed(root, names, f"herd{labs}{days}"))
