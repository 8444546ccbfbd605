"""The main path for one subject, stage by stage, in one process.

The workers call the same stages in the same order, one or more a task; this is what they add up to, what the tests
hold them against, and what the benchmarks take as the cost without a queue.
"""

from __future__ import annotations

from core.sources import Source
from core.status import compute_statuses
from core.storage import Store
from core.summarise import summarise
from core.synchronise import find_work, look, put_tables
from core.tables import SubjectTables, build_tables, subject_keys


def recompute_subject(source: Source, lab: str, subject: str, store: Store) -> SubjectTables:
    """Compute everything of one subject anew, from its session folders to its tables in the store.

    Parameters
    ----------
    source : Source
        Where its sessions are.
    lab, subject : str
        Whose sessions.
    store : Store
        Where the tables go.

    Returns
    -------
    SubjectTables
        As they were put into the store; empty tables are not put there.
    """
    keys = subject_keys(lab, subject)
    sessions = source.subject(lab, subject)
    seen = look(sessions, store, keys, everything=True)
    days = summarise(sessions.load(find_work(sessions, seen.dates, seen.held)))
    statuses = compute_statuses(days)
    tables = build_tables(lab, subject, days, statuses)
    if statuses:
        put_tables(store, keys, tables, seen.base)
    return tables
