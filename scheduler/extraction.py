"""Whether a run extracts trials from raw files: where it is asked for, or ibllib is at hand, and somebody does it."""

from __future__ import annotations

from celery import Celery

from core.errors import ConfigurationError
from core.reextract import INSTALL, can_extract
from workers.app import EXTRACTION_QUEUE

#: Seconds that workers have to say which queues they take from.
_ANSWER_SECONDS = 2.0


def extracts_here(asked: bool | None) -> bool:
    """Return whether a run extracts whose workers are started by this command.

    Parameters
    ----------
    asked : bool or None
        What was asked for; where ibllib can be found if None.

    Raises
    ------
    ConfigurationError
        Where it is asked for and ibllib cannot be found.
    """
    if asked and not can_extract():
        raise ConfigurationError(f"ibllib, which extracts, is not installed here: {INSTALL}")
    return can_extract() if asked is None else asked


def extracts_there(asked: bool | None, app: Celery) -> bool:
    """Return whether a run extracts that goes to the workers of a broker.

    Parameters
    ----------
    asked : bool or None
        What was asked for; if None, where ibllib can be found and a worker extracts.
    app : Celery
        Configured for the broker.

    Raises
    ------
    ConfigurationError
        Where it is asked for and no worker extracts.
    """
    if asked is False or (asked is None and not can_extract()):
        return False
    found = app.control.inspect(timeout=_ANSWER_SECONDS).active_queues() or {}
    listens = any(queue["name"] == EXTRACTION_QUEUE for queues in found.values() for queue in queues)
    if asked and not listens:
        raise ConfigurationError(
            "no worker extracts on this broker: start one with `training-status worker --extraction`, where ibllib is"
        )
    return listens
