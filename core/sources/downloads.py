"""Downloads on disk, within a bounded size: what was used longest ago goes first, and never what somebody reads."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock

from filelock import FileLock, Timeout

from core.config import SourceSettings
from core.errors import ConfigurationError, TransientError
from core.names import SUBJECTS_FOLDER

_LOCKS = ".locks"
_PARTIAL = ".part-"
_GIGABYTE = 1e9
#: What no other try will mend: the folder is not ours to write to, or is none.
_PERMANENT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})


def cache_folder(settings: SourceSettings) -> Path:
    """Return where downloads lie: where the settings say, else below the user's cache folder."""
    if settings.cache:
        return Path(settings.cache).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "training-status"


class Downloads:
    """A folder of downloads that the processes of a machine share.

    What is used and thrown away together lies in one folder, ``<place>/<lab>/Subjects/<subject>/<name>``; it is read,
    filled and thrown away under its lock, which ends with the process that has it.

    Parameters
    ----------
    root : Path
        Holds the folders, and may hold other files, which do not count.
    limit : int
        Bytes that downloads may take. Folders that are being read stay, even where they alone take more; beyond that,
        each process may be ahead of the limit by a hundredth of it.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root = root
        self._limit = limit
        self._new = limit  # bytes that this process has added since it looked; at first it looks
        self._counting = Lock()  # several threads may add to them

    @classmethod
    def of(cls, settings: SourceSettings) -> Downloads:
        """Return the downloads of these settings."""
        return cls(cache_folder(settings), int(settings.cache_size * _GIGABYTE))

    @contextmanager
    def hold(self, folder: Path) -> Iterator[None]:
        """Keep a folder from others while the block runs, then bring all downloads below the limit.

        Raises
        ------
        ConfigurationError, TransientError
            Where it cannot be written to: for good, or now.
        """
        with self._told():
            lock = self._lock(folder)
            lock.acquire()
        try:
            for left_behind in folder.rglob(f"{_PARTIAL}*"):  # of a process that was killed
                left_behind.unlink(missing_ok=True)
            yield
            with suppress(OSError):
                os.utime(folder)  # when it was used last
        finally:
            lock.release()
        if self._new > self._limit / 100:
            with self._told():
                self._shrink()

    def provide(
        self, path: Path, difference: Callable[[Path], str | None], download: Callable[[], Iterator[bytes]]
    ) -> str | None:
        """See that a file is there whole, by downloading it where it is not; its folder is held.

        Parameters
        ----------
        path : Path
            Where it lies, or will.
        difference : callable
            Returns how a file differs from what it should be, in one line; None where it does not.
        download : callable
            Yields its content in pieces; what it raises leaves nothing behind.

        Returns
        -------
        str or None
            How the content that came differs; nothing is kept then.
        """
        if path.is_file() and difference(path) is None:
            return None
        with self._told():
            return self._replace(path, difference, download())

    def read(self, path: Path) -> bytes | None:
        """Return what :meth:`write` wrote; None where it is not there."""
        with suppress(OSError):
            content = path.read_bytes()
            os.utime(path.parent)
            return content
        return None

    def write(self, path: Path, content: bytes) -> None:
        """Keep some bytes that can be made again, in place of all else in their folder; not where that fails."""
        with suppress(OSError, ConfigurationError, TransientError), self.hold(path.parent):
            self._replace(path, lambda _: None, [content])
            self.leave_alone(path)

    def leave_alone(self, path: Path) -> None:
        """Remove what else lies in the folder of a file, such as its older versions; the folder is held."""
        for other in path.parent.iterdir():
            if other != path:
                other.unlink(missing_ok=True)

    def _replace(self, path: Path, difference: Callable[[Path], str | None], pieces: Iterable[bytes]) -> str | None:
        """Put a file in the place of another once it is whole, and not different from what it should be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=_PARTIAL, delete=False) as part:
            try:
                for piece in pieces:
                    part.write(piece)
                part.flush()
                wrong = difference(Path(part.name))
                if wrong is None:
                    os.replace(part.name, path)
                    self._count(path.stat().st_size)
                return wrong
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(part.name)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what to do where the disk refuses."""
        try:
            yield
        except OSError as error:
            kind = ConfigurationError if error.errno in _PERMANENT else TransientError
            raise kind(
                f"downloads cannot be kept in {self.root}: {error.strerror or error}: "
                "make room, or name another folder with --cache (TRAINING_STATUS_CACHE)"
            ) from error

    def _lock(self, folder: Path, timeout: float = -1) -> FileLock:
        locks = self.root / _LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        name = blake2b(str(folder.relative_to(self.root)).encode(), digest_size=12).hexdigest()
        return FileLock(locks / f"{name}.lock", timeout=timeout)

    def _shrink(self) -> None:
        """Throw away folders, those that were used longest ago first, until the rest is below the limit."""
        with FileLock(self.root / f"{_LOCKS}.lock"):
            if self._new <= self._limit / 100:  # another thread has just done it
                return
            self._count(-self._new)
            sizes = {folder: (used, _size(folder)) for folder, used in self._folders()}
            total = sum(size for _, size in sizes.values())
            for folder, (_, size) in sorted(sizes.items(), key=lambda item: item[1]):
                if total <= self._limit:
                    return
                with suppress(Timeout), self._lock(folder, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
                    total -= size
            if total > self._limit:  # the rest is being read: whoever ends that looks again
                self._count(self._limit)

    def _count(self, more: int) -> None:
        with self._counting:
            self._new += more

    def _folders(self) -> Iterator[tuple[Path, float]]:
        for folder in self.root.glob(f"*/*/{SUBJECTS_FOLDER}/*/*"):
            with suppress(FileNotFoundError):
                yield folder, folder.stat().st_mtime


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total
