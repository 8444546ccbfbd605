"""When each lab was last looked at as a whole: one small object in the store, which says how fresh the tables are.

Freshness is about looking: a refresh that finds nothing new writes no table, and renews this object all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

log = logging.getLogger(__name__)

LABS_KEY = "resources/training/labs.json"
"""The object: ``{lab: {kind of run: its latest look}}``."""

Kind = Literal["refresh", "recompute"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """A run over a whole lab, at least one of whose subjects did not fail."""

    run_id: str
    started: str  # UTC, ISO 8601, as the run's record has it
    ended: str
    subjects: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Lab:
    """The latest looks at a lab."""

    refresh: Look | None = None
    recompute: Look | None = None

    def last(self, kind: Kind) -> Look | None:
        """Return the latest look that does what a run of `kind` does: for a refresh, a recompute does too."""
        looks = [self.recompute] if kind == "recompute" else [self.refresh, self.recompute]
        return max((look for look in looks if look), key=lambda look: (look.ended, look.run_id), default=None)


def read_labs(data: bytes | None) -> dict[str, Lab]:
    """Return the latest looks at each lab from the object's bytes; none where there is no object.

    An object that cannot be read is as none, with a line in the log: the next run of each lab makes it anew.
    """
    if data is None:
        return {}
    try:
        raw: dict[str, dict[str, dict[str, Any]]] = orjson.loads(data)
        return {lab: Lab(**{kind: Look(**look) for kind, look in kinds.items()}) for lab, kinds in raw.items()}
    except (ValueError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read, and is made anew: %s", LABS_KEY, error)
        return {}


def note_looks(data: bytes | None, kind: Kind, looks: Mapping[str, Look]) -> bytes | None:
    """Return the object's bytes with the looks of one run, where they are later than those it has.

    Parameters
    ----------
    data : bytes or None
        The object as it is stored; None where there is none.
    kind : {'refresh', 'recompute'}
        Of the run.
    looks : mapping of str to Look
        By lab.

    Returns
    -------
    bytes or None
        The object as it should be: the same for the same looks, noted once or twice. None where no lab was
        looked at and nothing is to be written.
    """
    if not looks:
        return None
    labs = {lab: _kinds(known) for lab, known in read_labs(data).items()}
    for lab, look in looks.items():
        known = labs.setdefault(lab, {})
        if kind not in known or (known[kind].ended, known[kind].run_id) < (look.ended, look.run_id):
            known[kind] = look
    return orjson.dumps(labs, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)


def _kinds(lab: Lab) -> dict[str, Look]:
    return {kind: look for kind, look in (("refresh", lab.refresh), ("recompute", lab.recompute)) if look}
