"""A store in this process's memory: for unit tests, and for trying things out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from core.storage.base import Store, StoredObject, content_etag


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What all stores of one name share."""

    objects: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_places: dict[str, _Place] = {}
_places_lock = threading.Lock()


class MemoryStore(Store):
    """Objects in a dictionary that every store of the same name in this process shares.

    Parameters
    ----------
    name : str
        Other processes, and children after a fork, see nothing of what is written here.
    """

    def __init__(self, name: str) -> None:
        self.uri = f"memory://{name}"
        with _places_lock:
            self._place = _places.setdefault(name, _Place())

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def _get(self, key: str) -> StoredObject | None:
        with self._place.lock:
            data = self._place.objects.get(key)
        return None if data is None else StoredObject(data=data, etag=content_etag(data))

    def _put(self, key: str, data: bytes, replaces: str | None) -> str:
        with self._place.lock:
            current = self._place.objects.get(key)
            if (None if current is None else content_etag(current)) != replaces:
                raise self._conflict(key, replaces)
            self._place.objects[key] = bytes(data)
        return content_etag(data)

    def _discard(self, key: str) -> None:
        with self._place.lock:
            self._place.objects.pop(key, None)

    def _keys(self, prefix: str) -> Iterator[str]:
        with self._place.lock:
            found = [key for key in self._place.objects if key.startswith(prefix)]
        return iter(sorted(found))
