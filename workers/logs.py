"""What worker, beat, flower and up log: lines for people, or one JSON document a line; never a secret.

Each record knows the run, lab, subject and task that it is about, where it is about one.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Literal, TextIO
from urllib.parse import unquote, urlsplit

import orjson

Format = Literal["lines", "json"]
#: What a record can be about, in the order in which it is shown.
SUBJECTS = ("run", "lab", "subject", "task")

_about: ContextVar[dict[str, str] | None] = ContextVar("what records are about", default=None)
#: User and password of any URL, whoever wrote it into a message.
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s'\"]*@")
#: Variables that hold a secret; a broker's URL holds one too.
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "TRAINING_STATUS_FLOWER_PASSWORD")
#: A shorter secret is a word that is everywhere, and cutting it out would only show where it stands.
_SHORTEST_SECRET = 6


@contextmanager
def about(**known: str) -> Iterator[None]:
    """Have every record of the block carry these, beside those of the block around it.

    Parameters
    ----------
    **known : str
        Of :data:`SUBJECTS`: ``run``, ``lab``, ``subject``, ``task``.
    """
    before = _about.get()
    # Set back, and not reset by a token: Celery's signals come from one task, but each in a context of its own.
    _about.set({**(before or {}), **known})
    try:
        yield
    finally:
        _about.set(before)


def of_subject(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have what a task logs carry its subject, for functions of a task, a run's id, ``lab/subject`` and more."""

    @wraps(function)
    def run(task: Any, *args: Any, **kwargs: Any) -> Any:
        with about(**_known(args)):
            return function(task, *args, **kwargs)

    run.is_of_subject = True  # type: ignore[attr-defined]
    return run


def _known(args: Sequence[Any]) -> dict[str, str]:
    """Return what the arguments of a subject's task say that it is about; a message may hold anything."""
    known = {"run": args[0]} if args and isinstance(args[0], str) else {}
    lab, _, subject = str(args[1]).partition("/") if len(args) > 1 else ("", "", "")
    return {**known, "lab": lab, "subject": subject} if subject else known


def configure(service: str, form: Format, level: str, *, stream: TextIO | None = None) -> None:
    """Send the records of this process, and of those that it forks, to standard error.

    Parameters
    ----------
    service : str
        Who this is: ``worker``, ``beat``, ``flower``, ``up``.
    form : {"lines", "json"}
        Lines for people, or one JSON document a line.
    level : str
        The least urgent level that is shown, such as ``INFO``.
    stream : file object, optional
        Where to write instead.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter((_Json if form == "json" else _Lines)(service, _secrets()))
    handler.addFilter(_add_context)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    _keep_from_celery()


def say(message: str, *_: Any) -> None:
    """Log from a signal handler, where the lock of an ordinary record may be held by what was interrupted."""
    record = logging.LogRecord("training_status", logging.INFO, __file__, 0, message.strip(), None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.filter(record):
            os.write(handler.stream.fileno(), f"{handler.format(record)}\n".encode())


def _keep_from_celery() -> None:
    """Have Celery leave the handlers alone, and its tasks' records carry their run and subject."""
    from celery import signals

    def begin(task: Any, args: Any, **_: Any) -> None:
        # A planning task's second argument is the subject behind which it goes on, not one that it is about.
        is_of_subject = getattr(task.run, "is_of_subject", False)
        _about.set({"task": task.name, **_known(args if is_of_subject else args[:1])})

    def end(**_: Any) -> None:
        _about.set(None)

    # The same identities, so that a second call replaces the first one's.
    signals.setup_logging.connect(_set_up_already, weak=False, dispatch_uid="training_status.logs")
    signals.task_prerun.connect(begin, weak=False, dispatch_uid="training_status.logs")
    signals.task_postrun.connect(end, weak=False, dispatch_uid="training_status.logs")


def _set_up_already(**_: Any) -> None:
    pass  # that somebody listens is all that Celery asks


def _add_context(record: logging.LogRecord) -> bool:
    record.about = dict(_about.get() or {})
    return True


def _secrets() -> tuple[str, ...]:
    """Return the secrets that this process was given, the longest first."""
    found = {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    try:
        password = urlsplit(os.environ.get("TRAINING_STATUS_BROKER", "")).password or ""
    except ValueError:
        password = ""
    found |= {password, unquote(password)}
    return tuple(sorted((secret for secret in found if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True))


class _Clean(logging.Formatter):
    def __init__(self, service: str, secrets: tuple[str, ...]) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {service} %(processName)s %(message)s")
        self._service = service
        self._secrets = secrets

    def clean(self, text: str) -> str:
        text = _CREDENTIALS.sub("", text)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class _Lines(_Clean):
    """``2026-11-22 08:00:00,123 INFO worker ForkPoolWorker-1 message [run=... lab=... subject=...]``."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        shown = super().formatMessage(record)
        known = [f"{name}={record.about[name]}" for name in SUBJECTS if name in record.about]  # type: ignore[attr-defined]
        return f"{shown} [{' '.join(known)}]" if known else shown

    def format(self, record: logging.LogRecord) -> str:
        return self.clean(super().format(record))


class _Json(_Clean):
    """``{"time": ..., "level": ..., "message": ..., "run": ..., "lab": ..., "subject": ..., "task": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": self.clean(record.getMessage()),
            "service": self._service,
            "logger": record.name,
            "process": record.processName,
            **record.about,  # type: ignore[attr-defined]
        }
        if record.exc_info:
            told["error"] = self.clean(self.formatException(record.exc_info))
        return orjson.dumps(told).decode()
