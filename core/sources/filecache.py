"""What was downloaded: a folder of bounded size, which the processes of a machine share."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from core.config import SourceSettings
from core.errors import ConfigurationError

_GIGABYTE = 1e9
_HALF_WRITTEN = ".part"
#: Seconds after which a half-written file is one that its writer left behind.
_LEFT_BEHIND = 3600.0


def cache_folder(settings: SourceSettings) -> Path:
    """Return where downloads lie: where the settings say, else below the user's cache folder."""
    if settings.cache:
        return Path(settings.cache).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "training-status"


class FileCache:
    """A folder of files that can be had again; each has a name that changes with its content.

    One process downloads a file, the others wait for it. Names are given as paths below the folder.

    Parameters
    ----------
    folder : Path
        Made on first use.
    size : float
        Gigabytes that all files together may take; those that were not used for longest go. The one that is being
        used stays, however large.
    """

    def __init__(self, folder: Path, size: float) -> None:
        self._folder = folder
        self._bytes = size * _GIGABYTE

    def open(self, name: str, size: int, download: Callable[[IO[bytes]], None]) -> IO[bytes]:
        """Open a file, downloaded first where it is not there whole.

        Parameters
        ----------
        name : str
            Its path; other files of its folder, but for those of the same stem, are older versions and go.
        size : int
            Its bytes.
        download : callable
            Writes its content to a file that is open for writing; what it raises leaves nothing behind.

        Raises
        ------
        ConfigurationError
            Where the folder cannot be written to.
        """
        path = self._folder / name
        with self._told(), self._locked(path.parent):
            if (found := _open(path, size)) is not None:
                return found
            with self._replacing(path) as part:
                download(part)
            for other in path.parent.iterdir():
                if other.name != "lock" and other.stem != path.stem:
                    other.unlink(missing_ok=True)
            opened = path.open("rb")
        self._shrink(path)
        return opened

    def read(self, name: str) -> bytes | None:
        """Return what :meth:`write` wrote; None where it is not there."""
        path = self._folder / name
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Keep some bytes that can be made again; not where the folder cannot be written to."""
        path = self._folder / name
        with suppress(OSError), self._locked(path.parent), self._replacing(path) as part:
            part.write(content)

    def drop(self, name: str) -> None:
        """Remove a file."""
        with suppress(OSError):
            (self._folder / name).unlink()

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Keep others from a folder; the lock of a process that dies goes with it."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[IO[bytes]]:
        """Open a file for writing that takes the place of `path` once it is whole."""
        part = path.with_name(path.name + _HALF_WRITTEN)
        try:
            with part.open("wb") as file:
                yield file
            part.replace(path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"downloads cannot be kept in {self._folder}: {error.strerror or error}: "
                "name another folder with --cache (TRAINING_STATUS_CACHE)"
            ) from None

    def _shrink(self, kept: Path) -> None:
        """Remove what was not used for longest until the rest fits."""
        found = []
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):
                    stat = path.stat()
                    fresh = time.time() - stat.st_mtime < _LEFT_BEHIND
                    if path != kept and name != "lock" and not (name.endswith(_HALF_WRITTEN) and fresh):
                        found.append((stat.st_mtime, stat.st_size, path))
        excess = sum(size for _, size, _ in found) + _size(kept) - self._bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            with suppress(OSError):
                path.unlink()
                excess -= size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process needed the room
        return 0


def _open(path: Path, size: int) -> IO[bytes] | None:
    """Open a file if it is there with that size, and note that it was used."""
    try:
        if path.stat().st_size != size:
            return None
        os.utime(path)
        return path.open("rb")
    except FileNotFoundError:
        return None
