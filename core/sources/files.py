"""Files that are only read: as a listing tells them, and in a folder. Those in a bucket: :mod:`core.sources.bucket`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

from core.errors import ConfigurationError
from core.records import Fingerprint


@dataclass(frozen=True, kw_only=True)
class File:
    """A file as a listing tells it."""

    key: str  # its path below the root
    size: int  # bytes
    version: str  # another one where the content changed
    modified: float  # seconds since 1970


class Folder:
    """A folder; the methods are those of :class:`core.sources.bucket.Bucket`.

    Parameters
    ----------
    root : Path
        The folder.
    by : {"stat", "content"}
        Whether a file's version is its size and modification time, or what is in it, for which it is read whole.
    """

    def __init__(self, root: Path, by: Fingerprint = "stat") -> None:
        self.uri = str(root)
        self.root = root
        self._by = by

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders in the folder `prefix`, sorted; none where it is not there.

        Raises
        ------
        ConfigurationError
            Where the root is no folder, or the folder cannot be listed.
        """
        if not self.root.is_dir():
            raise ConfigurationError(f"{self.uri!r} is not a folder: name one that holds aggregates/Subjects")
        try:
            with os.scandir(self.root / prefix) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigurationError(f"{self.uri}/{prefix} cannot be listed: {error.strerror}") from None

    def files(self, prefix: str) -> Iterator[File]:
        """Yield the files below the folder `prefix`, which ends with ``/``; none where it is not there.

        Raises
        ------
        OSError
            Where a folder cannot be listed.
        """
        for folder, _, names in os.walk(self.root / prefix, onerror=_raise):
            for name in names:
                path = Path(folder, name)
                if path.is_file():  # whoever opens a pipe may wait for ever
                    stat = path.stat()
                    yield File(
                        key=path.relative_to(self.root).as_posix(),
                        size=stat.st_size,
                        version=f"{stat.st_size}-{stat.st_mtime_ns}",
                        modified=stat.st_mtime,
                    )

    def version(self, file: File) -> str:
        """Return a file's version."""
        if self._by == "stat":
            return file.version
        with (self.root / file.key).open("rb") as content:
            return file_digest(content, blake2b).hexdigest()


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
