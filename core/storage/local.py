"""A store in a folder, for one machine or a shared disk."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from core.errors import AccessRefused, InvalidName, StoreMissing, StoreUnavailable, TrainingStatusError
from core.storage.base import LOCK_FOLDER, Store, StoredObject, content_etag

_LOCK_POLL = 0.01  # seconds between two looks at a lock that another holds
_NO_SUCH_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}


class LocalStore(Store):
    """Objects as files under a folder.

    A reader sees the old object or the new one, never a part: a file is written under a temporary name and
    then renamed. Writers of one key wait for each other at a lock file, which the system frees when its
    holder dies.

    Parameters
    ----------
    root : str or path
        The folder. `check` makes it where only the folder itself is missing; nothing else does.
    lock_timeout : float
        Seconds to wait for another writer of the same key.

    Notes
    -----
    A folder cannot hold both ``a`` and ``a/b``; S3 can. Symbolic links under the folder are not followed.
    """

    def __init__(self, root: str | os.PathLike[str], *, lock_timeout: float = 60.0) -> None:
        self.root = Path(os.path.realpath(root))
        self.uri = self.root.as_uri()
        self._lock_timeout = lock_timeout

    def check(self) -> None:
        """See that the folder is there and can be read; make it where its parent is there."""
        try:
            if not os.path.exists(self.root) and os.path.isdir(self.root.parent):
                self.root.mkdir(exist_ok=True)
            self._require_root()
            with os.scandir(self.root):
                pass
        except OSError as error:
            raise self._fault(error, "open the folder") from error

    def _get(self, key: str) -> StoredObject | None:
        path = self._path(key)
        try:
            data = path.read_bytes()
        except _NO_SUCH_FILE:
            self._require_root()
            return None
        except OSError as error:
            raise self._fault(error, f"read {key!r}") from error
        return StoredObject(data=data, etag=content_etag(data))

    def _put(self, key: str, data: bytes, replaces: str | None) -> str:
        path = self._path(key)
        self._require_root()
        name = _file_name(key)
        try:
            with self._locked(name, key):
                current = self._get(key)
                if (None if current is None else current.etag) != replaces:
                    raise self._conflict(key, replaces)
                self._make_folder(path.parent)
                # '~' is no character of a key, so this can be no object and is never listed. The name is the
                # key's own and not a random one: what a killed writer left is taken over by the next.
                self._write(path.with_name(f"~{name}.tmp"), path, data)
        except OSError as error:
            raise self._fault(error, f"write {key!r}") from error
        return content_etag(data)

    def _discard(self, key: str) -> None:
        path = self._path(key)
        self._require_root()
        try:
            path.unlink(missing_ok=True)
            # Nobody else waits for this lock, as nobody else knows of the object.
            (self.root / LOCK_FOLDER / f"{_file_name(key)}.lock").unlink(missing_ok=True)
        except OSError as error:
            raise self._fault(error, f"remove {key!r}") from error

    def _keys(self, prefix: str) -> Iterator[str]:
        self._require_root()
        folder = prefix[: prefix.rfind("/") + 1]
        yield from self._walk(folder, prefix)

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(self._path(folder)) as entries:
                # A folder sorts with its '/', as its keys do: 'a-b/x' comes before 'a/x'.
                names = sorted(
                    entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
                    for entry in entries
                    if not entry.is_symlink()
                )
        except _NO_SUCH_FILE:
            return
        except OSError as error:
            raise self._fault(error, f"list {folder!r}") from error
        for name in names:
            key = folder + name
            if not key.startswith(prefix) or key == f"{LOCK_FOLDER}/":
                continue
            if name.endswith("/"):
                yield from self._walk(key, prefix)
            else:
                yield key

    def _path(self, key: str) -> Path:
        """Return the file of a key, refusing one that a symbolic link takes elsewhere."""
        path = self.root / key
        if os.path.realpath(path) != str(path):
            raise InvalidName(f"{self.uri}: {key!r} goes through a symbolic link: put a real folder there")
        return path

    def _require_root(self) -> None:
        try:
            found = stat.S_ISDIR(os.stat(self.root).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            found = False
        except OSError as error:
            raise self._fault(error, "open the folder") from error
        if not found:
            raise self._missing()

    def _missing(self) -> StoreMissing:
        return StoreMissing(f"{self.uri}: there is no such folder: make it, or check the name of the store")

    @contextmanager
    def _locked(self, name: str, key: str) -> Iterator[None]:
        folder = self.root / LOCK_FOLDER
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / f"{name}.lock", timeout=self._lock_timeout)
        try:
            lock.acquire(poll_interval=_LOCK_POLL)
        except Timeout:
            raise StoreUnavailable(
                f"{self.uri}: another writer has held {key!r} for {self._lock_timeout:g} s: "
                "try again, or look for a process that hangs"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _make_folder(self, folder: Path) -> None:
        missing: list[Path] = []
        while folder != self.root and not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            _sync_folder(new.parent)

    def _write(self, temporary: Path, path: Path, data: bytes) -> None:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def _fault(self, error: OSError, doing: str) -> TrainingStatusError:
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        said = f"{self.uri}: cannot {doing}: {why}"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return AccessRefused(f"{said}: give this user the right to it, or name another store")
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTEMPTY):
            return InvalidName(f"{said}: a folder cannot hold an object under this name beside those it has")
        if not os.path.isdir(self.root):  # somebody removed it meanwhile
            return self._missing()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreUnavailable(f"{said}: free some space, then try again")
        return StoreUnavailable(f"{said}: look at the disk, then try again")


def _file_name(key: str) -> str:
    """Return the name, of a fixed length, of the files that belong to a key."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a loss of power, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
