"""Downloads on disk, within a bounded size: what was used longest ago goes first, and never what somebody reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b, file_digest, md5
from pathlib import Path
from tempfile import NamedTemporaryFile

from filelock import FileLock, Timeout

from core.names import SUBJECTS_FOLDER
from core.sources.one_records import Dataset

_LOCKS = ".locks"
_PARTIAL = ".part-"


class Downloads:
    """A folder of downloads that several processes share.

    The folder of a subject's day is read, filled and thrown away under its lock, which ends with the process that has
    it.

    Parameters
    ----------
    root : Path
        The folder.
    limit : int
        Bytes that downloads may take. Days that are being read stay, even where they alone take more; beyond that, each
        process may be ahead of the limit by a hundredth of it.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self._root = root
        self._limit = limit
        self._new = limit  # bytes that this process has added since it looked; at first it looks

    @contextmanager
    def hold(self, folder: Path) -> Iterator[None]:
        """Keep the folder of a day from others while the block runs, then bring all downloads below the limit."""
        with self._lock(folder):
            yield
            if folder.is_dir():
                os.utime(folder)  # when it was used last
        if self._new > self._limit / 100:
            self._shrink()
            self._new = 0

    def provide(self, path: Path, dataset: Dataset, download: Callable[[], Iterator[bytes]]) -> str | None:
        """See that a file is there whole, by downloading it where it is not; its day's folder is held.

        Parameters
        ----------
        path : Path
            Where it lies, or will.
        dataset : Dataset
            Its record.
        download : callable
            Yields its content in pieces.

        Returns
        -------
        str or None
            What is wrong with the content that came, in one line; nothing is kept then.
        """
        if path.is_file() and difference(path, dataset) is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=_PARTIAL, delete=False) as part:
            try:
                for piece in download():
                    part.write(piece)
                part.flush()
                wrong = difference(Path(part.name), dataset)
                if wrong is None:
                    os.replace(part.name, path)
                    self._new += path.stat().st_size
                return wrong
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(part.name)

    def _lock(self, folder: Path, timeout: float = -1) -> FileLock:
        locks = self._root / _LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        name = blake2b(str(folder.relative_to(self._root)).encode(), digest_size=12).hexdigest()
        return FileLock(locks / f"{name}.lock", timeout=timeout)

    def _shrink(self) -> None:
        """Throw away days, those that were used longest ago first, until the rest is below the limit."""
        try:
            with FileLock(self._root / f"{_LOCKS}.lock", timeout=0):  # one process at it is enough
                sizes = {folder: (used, _size(folder)) for folder, used in self._days()}
                total = sum(size for _, size in sizes.values())
                for folder, (_, size) in sorted(sizes.items(), key=lambda item: item[1]):
                    if total <= self._limit:
                        return
                    with suppress(Timeout), self._lock(folder, timeout=0):
                        shutil.rmtree(folder, ignore_errors=True)
                        total -= size
        except Timeout:
            return

    def _days(self) -> Iterator[tuple[Path, float]]:
        for folder in self._root.glob(f"*/*/{SUBJECTS_FOLDER}/*/*"):
            with suppress(FileNotFoundError):
                yield folder, folder.stat().st_mtime


def difference(path: Path, dataset: Dataset) -> str | None:
    """Return how a file differs from its record, in one line; None where it does not, as far as the record tells."""
    size = path.stat().st_size
    if dataset.size is not None and size != dataset.size:
        return f"it has {size} bytes, not {dataset.size}"
    if dataset.hash:
        with path.open("rb") as file:
            found = file_digest(file, lambda: md5(usedforsecurity=False)).hexdigest()
        if found != dataset.hash.replace("-", "").lower():
            return f"its MD5 is {found}, not {dataset.hash}"
    return None


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total
