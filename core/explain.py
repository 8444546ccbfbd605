"""Say why a mouse has its status, from the stored criteria: values, limits, and in words what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from core.criteria import CRITERIA
from core.errors import ConfigurationError
from core.status import next_status
from core.storage import Store
from core.tables import read_table, subject_keys

#: Criteria that can be measured in every window whose sessions' source tells the rig and the delay.
_NOT_TOLD: Final = {"ephys_days": "the rig", "delay_days": "the delay"}


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One criterion on one day, in the words of people."""

    target: str
    name: str
    value: float
    comparison: str
    limit: float
    passed: bool
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Where a mouse stands on a day, and what is missing for the next status."""

    lab: str
    subject: str
    date: str
    status: str
    window_status: str  # what the day's window alone gives; lower where the status is held from earlier days
    next_status: str | None
    verdicts: tuple[Explained, ...]
    missing: str  # one sentence


def find_criteria(store: Store, subject: str, lab: str | None) -> tuple[str, list[dict[str, Any]]]:
    """Return a subject's lab and the rows of its criteria table.

    Raises
    ------
    ConfigurationError
        Where the store has no such subject, or several labs have one and `lab` is None.
    """
    labs = [lab] if lab else _labs_with(store, subject)
    if len(labs) > 1:
        raise ConfigurationError(f"{subject} is a name in {', '.join(labs)}: name the lab with --lab")
    for name in labs:
        key = subject_keys(name, subject).criteria
        if stored := store.get(key):
            return name, read_table(stored.data, key).to_pylist()
    raise ConfigurationError(f"no tables of {subject} in {store.uri}: run `training-status recompute` first")


def explain_day(lab: str, subject: str, rows: Sequence[dict[str, Any]], date: str | None) -> Explanation:
    """Explain a day of a subject.

    Parameters
    ----------
    lab, subject : str
        Whose day.
    rows : sequence of dict
        The subject's criteria table, rows as `schema.CRITERIA`.
    date : str or None
        The day, ``yyyy-mm-dd``; the last one judged where None.

    Raises
    ------
    ConfigurationError
        Where no criterion was judged on that day.
    """
    dates = sorted({row["date"] for row in rows})
    day = date or (dates[-1] if dates else "any day")
    of_day = [row for row in rows if row["date"] == day]
    if not of_day:
        span = f"{dates[0]} to {dates[-1]}" if dates else "none"
        raise ConfigurationError(
            f"{lab}/{subject} was not judged on {day}: no session then, or habituation (days judged: {span})"
        )
    status, window_status = of_day[0]["status"], of_day[0]["window_status"]
    meanings = {(target, c.name): c.meaning for target, criteria in CRITERIA.items() for c in criteria}
    verdicts = tuple(
        Explained(
            **{name: row[name] for name in ("target", "name", "value", "comparison", "limit", "passed")},
            meaning=meanings.get((row["target"], row["name"]), ""),
        )
        for row in of_day
    )
    above = next_status(status)
    return Explanation(
        lab=lab,
        subject=subject,
        date=day,
        status=status,
        window_status=window_status,
        next_status=above,
        verdicts=verdicts,
        missing=_missing(above, [v for v in verdicts if v.target == above and not v.passed]),
    )


def _missing(above: str | None, failed: Sequence[Explained]) -> str:
    if above is None:
        return "There is no higher status."
    if not failed:
        return (
            f"Every criterion of {above} is met in this window, but another rule holds it back: see docs/criteria.md."
        )
    return f"For {above} is missing: " + "; ".join(_in_words(verdict) for verdict in failed) + "."


def _in_words(verdict: Explained) -> str:
    if math.isnan(verdict.value) and verdict.name in _NOT_TOLD:
        what = _NOT_TOLD[verdict.name]
        return f"{verdict.name} is not known: {what} of a day in this window is missing in its source"
    if math.isnan(verdict.value):
        return f"{verdict.name} could not be measured in this window"
    return f"{verdict.name} is {verdict.value:.4g}, must be {verdict.comparison} {verdict.limit:g}"


def _labs_with(store: Store, subject: str) -> list[str]:
    keys = store.keys("resources/training/")
    return [key.split("/")[2] for key in keys if key.endswith(f"/{subject}/criteria.pqt")]
