"""What the ledger holds of a run: what was asked for, what its subjects have to do, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import orjson

from core.records import Fingerprint, LeftOut

#: Where a subject stands that has not ended.
Stage = Literal["waiting", "summarising", "computing", "writing"]


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run was asked to do."""

    run_id: str
    kind: Literal["recompute", "refresh"]
    source: str  # where the sessions are: the path of a session tree, or see `core.sources`
    store: str  # URI of the store
    labs: tuple[str, ...] = ()  # all of them where empty
    subjects: tuple[str, ...] = ()
    only: tuple[str, ...] = ()  # just these, as lab/subject: a run that tries again what failed in another
    started: str = ""  # UTC, ISO 8601
    prune: bool = False  # keep nothing of sessions that are no longer on disk
    fingerprint: Fingerprint = "stat"  # what files are known by
    extract: bool = False  # extract trials from raw files where a session has none, in a queue of its own

    @property
    def same(self) -> str:
        """A name that runs share which do the same: their kind, source, store, labs and subjects."""
        asked = [self.kind, self.source, self.store, *map(sorted, (self.labs, self.subjects, self.only))]
        return blake2b(orjson.dumps(asked), digest_size=8).hexdigest()

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> RunSpec:
        """Return the specification whose fields came as JSON; TypeError where they are not its fields."""
        return cls(**{**raw, **{name: tuple(raw.get(name, ())) for name in ("labs", "subjects", "only")}})


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A subject of a lab; written lab/subject."""

    lab: str
    subject: str

    def __str__(self) -> str:
        return f"{self.lab}/{self.subject}"

    @classmethod
    def parse(cls, text: str) -> Subject:
        """Return the subject that was written as lab/subject."""
        lab, _, subject = text.partition("/")
        return cls(lab=lab, subject=subject)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a subject in a run."""

    state: Literal["done", "unchanged", "failed"]
    sessions: int = 0  # summarised in this run
    left_out: tuple[LeftOut, ...] = ()
    reason: str | None = None  # why it failed
    cohort: tuple[Mapping[str, Any], ...] = ()  # its rows of the cohort table
    pruned: bool = False  # no session of it is left on disk, and nothing is to be kept of such

    def to_json(self) -> bytes:
        """Return the outcome as JSON."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, data: bytes) -> Outcome:
        """Return what :meth:`to_json` wrote."""
        raw = orjson.loads(data)
        left_out = tuple(LeftOut(**left) for left in raw["left_out"])
        return cls(**{**raw, "left_out": left_out, "cohort": tuple(raw["cohort"])})


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a subject under way has to do, as its look found it."""

    pieces: tuple[tuple[str, ...], ...]  # the dates of each message
    base: str | None  # version of the stored training table
    left_out: tuple[LeftOut, ...] = ()
    attempt: int = 0  # looks before this one
    held: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # date -> sessions that are not summarised again

    @classmethod
    def from_json(cls, data: bytes) -> Work:
        """Return what was written as JSON."""
        raw = orjson.loads(data)
        return cls(
            pieces=tuple(tuple(piece) for piece in raw["pieces"]),
            base=raw["base"],
            left_out=tuple(LeftOut(**left) for left in raw["left_out"]),
            attempt=raw["attempt"],
            held={date: tuple(numbers) for date, numbers in raw.get("held", {}).items()},
        )


@dataclass(frozen=True, kw_only=True)
class Produced:
    """All that a subject under way has, once its last piece is there; read at one moment."""

    look: str  # names the look that it comes from
    work: Work
    kept: bytes  # day summaries from the store
    days: tuple[bytes, ...]  # day summaries of the pieces
    settled: bytes  # statuses from the store that still hold
    statuses: bytes | None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands."""

    state: str  # planning, working or ended
    subjects: int  # found so far
    ended: int
    failed: int
    sessions: int  # summarised so far
    labs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # lab -> subjects, ended, sessions
