"""What every store can do: whole objects under keys, written only on a condition.

The condition is what lets any number of writers share a table without a lock of their own: a write names the
version it was computed from, and fails where somebody else has written since (`StoreConflict`). `update` is
the loop around it that nearly every caller wants.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from core.errors import InvalidName, StoreConflict

LOCK_FOLDER = ".locks"
"""First segment that no key may have: a folder store keeps its locks there."""

# What S3 and every file system agree on. Other characters are left to the stores, for names of their own.
_SEGMENT = re.compile(r"[A-Za-z0-9._+@ -]+")
_LONGEST_SEGMENT = 255  # bytes, of a file's name
_LONGEST_KEY = 900  # bytes: S3 ends at 1024, and the prefix of the store comes before

_FIRST_PAUSE = 0.02  # seconds: about one read and one write
_LONGEST_PAUSE = 1.0


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One version of an object."""

    data: bytes
    etag: str  # names this version; its form is the store's own, so it is only ever compared or handed back


class Store(ABC):
    """Objects under keys, each read and written whole.

    Keys are relative paths of letters, digits, spaces and ``._+@-``, with ``/`` between their segments. All
    methods may be called from several threads.

    Attributes
    ----------
    uri : str
        The place, as `core.storage.open_store` takes it. Never holds a secret.
    """

    uri: str

    def get(self, key: str) -> StoredObject | None:
        """Read an object.

        Returns
        -------
        StoredObject or None
            None where there is no such object, and only there.

        Raises
        ------
        InvalidName, StoreMissing, MissingCredentials, AccessRefused, StoreUnavailable
        """
        return self._get(valid_key(key))

    def put(self, key: str, data: bytes, *, replaces: str | None) -> str:
        """Write an object whole, on the condition that nobody has written it since.

        Parameters
        ----------
        key : str
        data : bytes
        replaces : str or None
            The etag of the version that `data` was computed from; None where the object must not exist yet.

        Returns
        -------
        str
            The etag of the new version.

        Raises
        ------
        StoreConflict
            The object is not, or no longer, the version named. Nothing was written.
        StoreUnavailable
            Whether it was written is not known: read it again.
        InvalidName, StoreMissing, MissingCredentials, AccessRefused
        """
        return self._put(valid_key(key), data, replaces)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Keys that begin with `prefix`, in the order of their characters, fetched as they are asked for.

        Names in the place that are no keys (a stranger's, or half written) are left out.
        """
        return filter(is_key, self._keys(_valid_prefix(prefix)))

    def discard(self, key: str) -> None:
        """Remove an object that nobody else knows of; that there is none is no error.

        Tables are never removed: this is for a probe, by its own writer. It needs a right that nothing else does
        (s3:DeleteObject).

        Raises
        ------
        InvalidName, StoreMissing, MissingCredentials, AccessRefused, StoreUnavailable
        """
        self._discard(valid_key(key))

    @abstractmethod
    def check(self) -> None:
        """See that the store is there and answers, so that a run fails before its work and not after.

        Raises
        ------
        StoreMissing, MissingCredentials, AccessRefused, StoreUnavailable
            In one line: what is wrong and what to do.
        """

    @abstractmethod
    def _get(self, key: str) -> StoredObject | None: ...

    @abstractmethod
    def _put(self, key: str, data: bytes, replaces: str | None) -> str: ...

    @abstractmethod
    def _discard(self, key: str) -> None: ...

    @abstractmethod
    def _keys(self, prefix: str) -> Iterator[str]: ...

    def _conflict(self, key: str, replaces: str | None) -> StoreConflict:
        """What every store says where the condition of a put does not hold."""
        how = "exists already" if replaces is None else "is no longer the version that was read"
        return StoreConflict(f"{self.uri}: {key!r} {how}: somebody else wrote it; read it again")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


def update(store: Store, key: str, change: Callable[[bytes | None], bytes | None], *, attempts: int = 10) -> bool:
    """Read an object, change it and write it back, again from the start where somebody else wrote meanwhile.

    Parameters
    ----------
    store : Store
    key : str
    change : callable
        Takes the bytes that are there (None where there is no object) and returns the bytes that should be,
        or None to leave it. It is called once an attempt, so it computes from its argument alone. Where an
        answer got lost it may meet its own earlier write: a change that is the same done twice is safe.
    attempts : int
        How often to try before giving up.

    Returns
    -------
    bool
        Whether anything was written; False where the bytes are already as they should be.

    Raises
    ------
    StoreConflict
        Others wrote first, every time.
    """
    if attempts < 1:
        raise ValueError(f"attempts is at least 1, not {attempts}")
    rng = random.Random()
    attempt = 0
    while True:
        found = store.get(key)
        data = change(None if found is None else found.data)
        if data is None or (found is not None and data == found.data):
            return False
        try:
            store.put(key, data, replaces=None if found is None else found.etag)
        except StoreConflict:
            attempt += 1
            if attempt == attempts:
                raise StoreConflict(
                    f"{store.uri}: {key!r} was written by somebody else at each of {attempts} attempts"
                ) from None
            time.sleep(backoff(attempt - 1, rng))
        else:
            return True


def backoff(attempt: int, rng: random.Random) -> float:
    """Seconds to wait after failed attempt number `attempt` (the first is 0).

    Anything from nothing to a bound that doubles: writers that met once then part, whatever their number.
    """
    return rng.uniform(0.0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 16)))


def content_etag(data: bytes) -> str:
    """Name a version by what is in it, for stores that have no names of their own."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def is_key(key: str) -> bool:
    """Whether `key` can name an object, in every kind of store."""
    segments = key.split("/")
    return (
        len(key) <= _LONGEST_KEY
        and segments[0] != LOCK_FOLDER
        and all(_SEGMENT.fullmatch(s) and s not in (".", "..") and len(s) <= _LONGEST_SEGMENT for s in segments)
    )


def valid_key(key: str) -> str:
    """Return `key`, or raise InvalidName where it cannot name an object."""
    if not is_key(key):
        raise InvalidName(
            f"{key[:80]!r} cannot be a key: relative, of letters, digits, spaces, '._+@-' and single '/', "
            f"with no segment '.' or '..', and not under {LOCK_FOLDER!r}"
        )
    return key


def _valid_prefix(prefix: str) -> str:
    """Return `prefix`, or raise InvalidName where no key could begin with it."""
    folder, slash, start = prefix.rpartition("/")
    if slash:
        valid_key(folder)
    if start and not _SEGMENT.fullmatch(start):
        raise InvalidName(f"no key can begin with {prefix[:80]!r}")
    return prefix
