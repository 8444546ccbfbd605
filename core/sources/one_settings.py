"""Task settings in ONE of sessions whose trials come from elsewhere: they tell the rig and the delay.

A subject costs the requests of :meth:`core.sources.one_records.Records.sessions`, and a session one small download.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from core.config import SourceSettings
from core.errors import InvalidName, TransientError
from core.load import tasks_by_protocol
from core.names import check_date, check_number
from core.sources.one import open_records
from core.sources.one_records import OF_TASKS, Records, SessionRecord, session_folder, side_by_side


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What ONE tells of a session's tasks."""

    fingerprint: str  # "" where they could not be had, so that the next look asks again
    by_protocol: dict[str, list[dict[str, Any]]]  # the settings of its tasks, in their order
    reason: str = "ONE has no task settings of this protocol"  # why a protocol is not there, in one line


class OneSettings:
    """The task settings that ONE has.

    Parameters
    ----------
    address, settings
        See :class:`core.sources.one.OneSource`.
    """

    def __init__(self, address: str, settings: SourceSettings) -> None:
        self._records = open_records(address, settings)

    def check(self) -> None:
        """See that the server lets us in, or that the tables can be read."""
        self._records.check()

    def subject(self, lab: str, subject: str) -> SubjectSettings:
        """Return what ONE has of one subject; nothing is asked yet."""
        return SubjectSettings(self._records, lab, subject)


class SubjectSettings:
    """The task settings of one subject's sessions in ONE, for one task.

    A session is found by its identifier, `eid`; else, as local caches may have identifiers of their own, by its date
    and number, where ONE has one such session.

    Parameters
    ----------
    records : Records
        Where they come from.
    lab, subject : str
        Whose.
    """

    def __init__(self, records: Records, lab: str, subject: str) -> None:
        self._records, self._lab, self._subject = records, lab, subject

    def fingerprint(self, eid: str, date: str, number: str) -> str:
        """Return what the settings of a session are known by; "" where ONE does not have the session."""
        record = self._record(eid, date, number)
        return f"+{record.fingerprint}" if record else ""

    def read(self, sessions: Sequence[tuple[str, str, str]]) -> list[TaskSettings]:
        """Return the task settings of sessions, downloaded where they are not there yet.

        Parameters
        ----------
        sessions : sequence of (str, str, str)
            Identifier, date and number of each.

        Raises
        ------
        TransientError
            Where the server does not answer, or downloads cannot be kept.
        AccessRefused
            Where it refuses the credentials.
        """
        records = [self._record(*session) for session in sessions]
        return side_by_side(self._records, self._read, records)

    def _read(self, record: SessionRecord | None) -> TaskSettings:
        if record is None:
            return TaskSettings(fingerprint="", by_protocol={}, reason="ONE has no such session")
        folder = session_folder(self._records.root, self._lab, self._subject, record)
        try:
            with self._records.hold(folder.parent):
                wrong = self._records.provide(folder, record.datasets)
                if wrong is not None:
                    return TaskSettings(fingerprint="", by_protocol={}, reason=wrong)
                by_protocol, left_out = tasks_by_protocol(record.files(folder))
        except OSError as error:
            raise TransientError(f"task settings cannot be kept in {self._records.root}: {error}") from error
        settings = {protocol: [each for _, each in tasks] for protocol, tasks in by_protocol.items()}
        fingerprint = f"+{record.fingerprint}"
        if not left_out:
            return TaskSettings(fingerprint=fingerprint, by_protocol=settings)
        reason = "; ".join(left.reason for left in left_out)
        return TaskSettings(fingerprint=fingerprint, by_protocol=settings, reason=reason)

    def _record(self, eid: str, date: str, number: str) -> SessionRecord | None:
        by_eid, by_place = self._known
        same_place = by_place.get((date, number), [])
        return by_eid.get(eid) or (same_place[0] if len(same_place) == 1 else None)

    @cached_property
    def _known(self) -> tuple[dict[str, SessionRecord], dict[tuple[str, str], list[SessionRecord]]]:
        """All sessions, by identifier, and by date and number; asked for once a task."""
        by_eid: dict[str, SessionRecord] = {}
        by_place: dict[tuple[str, str], list[SessionRecord]] = {}
        for each in self._records.sessions(self._lab, self._subject, None):
            with suppress(InvalidName):  # its date and number become a path
                check_date(each.date), check_number(each.number)
                record = each.of_kinds(*OF_TASKS)
                by_eid[record.eid] = record
                by_place.setdefault((record.date, record.number), []).append(record)
        return by_eid, by_place
