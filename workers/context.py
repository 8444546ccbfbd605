"""What a task needs beside its message: the ledger, the stores, the sources, the settings.

One per process, made on first use.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

from core.config import StoreSettings, WorkerSettings
from core.errors import ConfigurationError
from core.records import Fingerprint
from core.sources import Source, open_source
from core.storage import Store, open_store
from workers.broker import connect
from workers.ledger import Ledger

_settings: WorkerSettings | None = None


class Context:
    """Connections of one process; a process that is forked makes its own.

    Parameters
    ----------
    settings : WorkerSettings
        Of the worker.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._stores: dict[str, Store] = {}
        self._sources: dict[tuple[str, Fingerprint], Source] = {}

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger in the broker's Redis."""
        return Ledger(connect(self.settings.broker))

    def store(self, uri: str) -> Store:
        """Return the store at `uri`, opened once."""
        if uri not in self._stores:
            self._stores[uri] = open_as(uri, self.settings.store)
        return self._stores[uri]

    def source(self, uri: str, by: Fingerprint) -> Source:
        """Return the source at `uri` whose files are known `by` that, opened once."""
        if (uri, by) not in self._sources:
            self._sources[uri, by] = open_source(uri, self.settings.source, by)
        return self._sources[uri, by]


def open_as(uri: str, settings: StoreSettings) -> Store:
    """Return the store at `uri`, reached as `settings` say."""
    return open_store(uri, endpoint=settings.s3_endpoint, profile=settings.s3_profile, region=settings.s3_region)


def use(settings: WorkerSettings) -> None:
    """Set the settings of this process, before its first task."""
    global _settings
    _settings = settings
    context.cache_clear()


@lru_cache(maxsize=1)
def context() -> Context:
    """Return this process's context.

    Raises
    ------
    ConfigurationError
        Where no settings were set: a worker is started by ``training-status worker``.
    """
    if _settings is None:
        raise ConfigurationError("this worker has no settings: start it with `training-status worker`")
    return Context(_settings)
