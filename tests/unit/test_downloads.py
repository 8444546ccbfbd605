"""The folder of downloads: bounded, shared by processes, never half a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.config import SourceSettings
from core.errors import ConfigurationError, CorruptTable
from core.sources.downloads import Downloads, cache_folder

#: A process that holds a folder, says so, and goes on once it is told to, or is killed.
HOLDS = """
    import sys
    from pathlib import Path
    from core.sources.downloads import Downloads

    root, folder = Path(sys.argv[1]), Path(sys.argv[2])

    def pieces():
        yield b"half"
        print("half", flush=True)
        sys.stdin.readline()
        yield b"full"

    downloads = Downloads(root, 1000)
    with downloads.hold(folder):
        downloads.provide(folder / "file", lambda path: None, pieces)
"""


def difference_to(content: bytes, path: Path) -> str | None:
    return None if path.read_bytes() == content else f"it is {path.read_bytes()!r}"


def get(downloads: Downloads, folder: Path, content: bytes, asked: list[Path] | None = None) -> str | None:
    """Hold a folder, and see that it has a file of that content."""

    def download() -> Iterator[bytes]:
        if asked is not None:
            asked.append(folder)
        yield content[: len(content) // 2]
        yield content[len(content) // 2 :]

    with downloads.hold(folder):
        return downloads.provide(folder / "file", lambda path: difference_to(content, path), download)


def folder_of(root: Path, day: str) -> Path:
    return root / "server" / "lab" / "Subjects" / "mouse" / day


def holder(root: Path, folder: Path) -> subprocess.Popen[str]:
    """Start a process that is amid a download."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDS), str(root), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    downloads, asked = Downloads(tmp_path, 250), []
    first, second, third, large = (folder_of(tmp_path, day) for day in ("1", "2", "3", "4"))
    for at, folder in enumerate((first, second)):
        assert get(downloads, folder, b"x" * 100, asked) is None
        os.utime(folder, (at + 1, at + 1))
    get(downloads, first, b"x" * 100, asked)  # from the folder; and used now
    get(downloads, third, b"x" * 100, asked)
    assert asked == [first, second, third]
    assert [folder.exists() for folder in (first, second, third)] == [True, False, True]
    with downloads.hold(large):
        downloads.provide(large / "file", lambda _: None, lambda: iter([b"x" * 1000]))
        assert (large / "file").stat().st_size == 1000, "what is being read stays, however large"
    assert not any(folder.exists() for folder in (first, second, third, large))


def test_a_download_that_fails_leaves_nothing_and_one_cut_short_is_made_again(tmp_path: Path) -> None:
    downloads, folder = Downloads(tmp_path, 1000), folder_of(tmp_path, "1")

    def breaks_off() -> Iterator[bytes]:
        yield b"half"
        raise CorruptTable("broke off")

    with pytest.raises(CorruptTable), downloads.hold(folder):
        downloads.provide(folder / "file", lambda _: None, breaks_off)
    assert list(folder.iterdir()) == []
    with downloads.hold(folder):
        wrong = downloads.provide(folder / "file", lambda _: "it is another", lambda: iter([b"other"]))
    assert (wrong, list(folder.iterdir())) == ("it is another", [])
    assert get(downloads, folder, b"complete") is None
    (folder / "file").write_bytes(b"comp")
    assert get(downloads, folder, b"complete") is None
    assert (folder / "file").read_bytes() == b"complete"


def test_of_several_processes_one_downloads_and_the_others_wait(tmp_path: Path) -> None:
    folder, asked = folder_of(tmp_path, "1"), []
    process = holder(tmp_path, folder)
    try:
        assert list(folder.glob("file")) == []
        process.communicate("go on\n", timeout=60)  # its lock is free when it ends
        assert get(Downloads(tmp_path, 1000), folder, b"halffull", asked) is None
        assert asked == []
    finally:
        process.kill()
        process.wait()


def test_a_process_killed_amid_a_download_leaves_no_lock_and_no_half_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "1")
    process = holder(tmp_path, folder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list(folder.iterdir())) == 1, "the half that came"
    assert get(Downloads(tmp_path, 1000), folder, b"whole") is None
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_folder_that_another_process_reads_is_not_thrown_away(tmp_path: Path) -> None:
    read, other, last = (folder_of(tmp_path, day) for day in ("1", "2", "3"))
    get(Downloads(tmp_path, 1 << 20), other, b"x" * 2000)
    process = holder(tmp_path, read)
    try:
        get(Downloads(tmp_path, 1000), last, b"x" * 2000)
        assert (read.exists(), other.exists(), last.exists()) == (True, False, False)
    finally:
        process.communicate("go on\n", timeout=60)


def test_small_notes_replace_what_lies_beside_them(tmp_path: Path) -> None:
    downloads, folder = Downloads(tmp_path, 1000), folder_of(tmp_path, "index")
    assert downloads.read(folder / "1") is None
    downloads.write(folder / "1", b"old")
    downloads.write(folder / "2", b"new")
    assert (downloads.read(folder / "1"), downloads.read(folder / "2")) == (None, b"new")
    downloads.write(folder / "2", b"newer")
    assert [path.read_bytes() for path in folder.iterdir()] == [b"newer"]


def test_a_folder_that_cannot_be_written_to_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    downloads = Downloads.of(SourceSettings(cache=str(tmp_path / "file" / "cache")))
    with pytest.raises(ConfigurationError, match="TRAINING_STATUS_CACHE"):
        get(downloads, folder_of(downloads.root, "1"), b"1")
    note = folder_of(downloads.root, "index") / "1"
    downloads.write(note, b"it is made anew each time")
    assert downloads.read(note) is None


def test_the_folder_lies_where_it_is_told_else_below_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder(SourceSettings(cache=str(tmp_path))) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder(SourceSettings()) == tmp_path / "x" / "training-status"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder(SourceSettings()) == tmp_path / "home" / ".cache" / "training-status"
    assert cache_folder(SourceSettings(cache="~/c")) == tmp_path / "home" / "c"
