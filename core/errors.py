"""One tree of errors; whether another try can help is a type, so a retry decision is one `isinstance`.

TrainingStatusError
├── TransientError               another try may succeed
│   ├── BrokerUnavailable
│   ├── StoreUnavailable
│   └── StoreConflict            somebody else wrote first: read again, then write
└── PermanentError               another try gives the same
    ├── ConfigurationError       wrong use: the command line ends with exit code 2
    │   ├── InvalidName
    │   ├── StoreMissing
    │   ├── MissingCredentials
    │   └── AccessRefused
    ├── SessionUnusable          one session is left out, the subject goes on
    │   └── TrialsNotFound
    ├── ExtractionNeeded         a session's trials are for another queue to extract
    ├── CorruptTable
    └── MalformedCounts

A subclass's docstring is its message where none is given.
"""

from __future__ import annotations


class TrainingStatusError(Exception):
    """Something went wrong in training-status."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message if message is not None else (type(self).__doc__ or "").strip())


class TransientError(TrainingStatusError):
    """A fault that another try may not meet."""


class BrokerUnavailable(TransientError):
    """The broker cannot be reached."""


class StoreUnavailable(TransientError):
    """The store does not answer, or answers with a fault of its own."""


class StoreConflict(TransientError):
    """The object changed since it was read: read it again."""


class PermanentError(TrainingStatusError):
    """A fault that every try will meet."""


class ConfigurationError(PermanentError):
    """A setting or an option is missing or wrong."""


class InvalidName(ConfigurationError):
    """A lab, subject, date or session number that cannot become a path or a key."""


class StoreMissing(ConfigurationError):
    """The bucket or folder of the store does not exist."""


class MissingCredentials(ConfigurationError):
    """There are no credentials for the store."""


class AccessRefused(ConfigurationError):
    """The store refuses these credentials."""


class SessionUnusable(PermanentError):
    """The session cannot be used."""


class TrialsNotFound(SessionUnusable):
    """The session has no trials."""


class ExtractionNeeded(PermanentError):
    """The session's trials have to be extracted from its raw files."""


class CorruptTable(PermanentError):
    """A stored table cannot be read."""


class MalformedCounts(PermanentError, ValueError):
    """Counts of trials and rightward choices that cannot be fitted."""
