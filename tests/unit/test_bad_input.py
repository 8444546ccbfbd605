"""Broken, missing and odd files: the session is left out with its reason, the others are computed, nothing raises."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.discover import find_labs, find_subjects
from core.errors import InvalidName
from core.pipeline import recompute_subject
from core.records import LeftOut
from core.sources import TreeSource
from core.storage import Store, open_store
from core.synchronise import look
from core.tables import read_provenance
from tests.trees import KEYS, LAB, SUBJECT, clumsy, edit_settings, refresh, session, statuses

BAD = "2020-01-03"
GOOD = ("2020-01-02/001", "2020-01-04/001")
ALF = "alf/task_00"
TABLE = f"{ALF}/_ibl_trials.table.pqt"
CHOICE = f"{ALF}/_ibl_trials.choice.npy"
SETTINGS = "raw_task_data_00/_iblrig_taskSettings.raw.json"
DESCRIPTION = "_ibl_experiment.description.yaml"


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid4().hex}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with two good sessions, and room for a bad one between them."""
    for name in GOOD:
        session(tmp_path / "tree", name.partition("/")[0])
    return tmp_path / "tree"


def left_out(root: Path, store: Store) -> list[LeftOut]:
    """Recompute; the good sessions must be there; return those that were left out."""
    recompute_subject(TreeSource(root), LAB, SUBJECT, store)
    assert {name: status for name, status in statuses(store).items() if name in GOOD} == dict.fromkeys(
        GOOD, "in training"
    )
    assert not set(statuses(store)) - {*GOOD}
    assert not refresh(root, store), "a refresh sees the same"
    stored = store.get(KEYS.training)
    assert stored is not None
    told = [*look(TreeSource(root).subject(LAB, SUBJECT), store, KEYS, everything=True).left_out]
    told += read_provenance(stored.data, KEYS.training).left_out
    assert all(left.reason.isprintable() and left.session.isascii() for left in told), "each in one line"
    return told


def only_reason(root: Path, store: Store) -> str:
    (left,) = left_out(root, store)
    assert left.session == f"{BAD}/001"
    return left.reason


def matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    """Damage that puts other content into a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: write_bytes(folder / name, data)


def write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def shorten(name: str, by: int) -> Callable[[Path], None]:
    """Damage that cuts off a file's end."""
    return lambda folder: write_bytes(folder / name, (folder / name).read_bytes()[:-by])


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def array(name: str, values: Any) -> Callable[[Path], None]:
    """Damage that saves another array."""
    return lambda folder: np.save(folder / f"{ALF}/_ibl_trials.{name}.npy", values, allow_pickle=True)


def column(name: str, values: Any) -> Callable[[Path], None]:
    """Damage that puts another column into the trials table; None takes it away."""

    def damage(folder: Path) -> None:
        table = pq.read_table(folder / TABLE).drop_columns([name])
        pq.write_table(table if values is None else table.append_column(name, values), folder / TABLE)

    return damage


def link(name: str, target: str) -> Callable[[Path], None]:
    """Damage that leaves a link that leads nowhere."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return damage


def folder_instead(name: str) -> Callable[[Path], None]:
    """Damage that puts a folder where a file is expected."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def npy(header: str, data: bytes = b"") -> bytes:
    """An array's file with a header of one's own."""
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


# --- trials -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (write(TABLE, b""), r"training: _ibl_trials\.table\.pqt cannot be read: "),
        (write(TABLE, b"junk"), r"training: _ibl_trials\.table\.pqt cannot be read: "),
        (shorten(TABLE, 1), r"training: _ibl_trials\.table\.pqt cannot be read: "),
        (shorten(TABLE, 500), r"training: _ibl_trials\.table\.pqt cannot be read: "),
        (column("choice", None), r"training: alf/task_00: trials without choice"),
        (column("probabilityLeft", None), r"training: alf/task_00: trials without probabilityLeft"),
        (
            column("choice", pa.array(["left"] * 12)),
            r"_ibl_trials\.table\.pqt cannot be read: could not convert string",
        ),
        (column("choice", pa.array([[1.0]] * 12)), r"training: _ibl_trials\.table\.pqt cannot be read: "),
        (column("contrastLeft", pa.array([1.5] * 12)), r"training: alf/task_00: contrastLeft is outside 0\.\.1"),
        (column("contrastRight", pa.array([-0.25] * 12)), r"training: alf/task_00: contrastRight is outside 0\.\.1"),
        (column("contrastRight", pa.array([float("inf")] * 12)), r"alf/task_00: contrastRight is outside 0\.\.1"),
        (remove(f"{ALF}/_ibl_trials.goCueTrigger_times.npy"), r"training: no trials found in alf/task_00"),
        (link(TABLE, "nowhere"), r"001/alf/task_00/_ibl_trials\.table\.pqt cannot be read: No such file or directory"),
        (folder_instead(TABLE), r"training: alf/task_00: trials without probabilityLeft"),
    ],
)
def test_bad_tables(root: Path, store: Store, damage: Callable[[Path], None], reason: str) -> None:
    damage(session(root, BAD))
    matches(reason, only_reason(root, store))


def test_a_table_with_a_column_twice(root: Path, store: Store) -> None:
    folder = session(root, BAD)
    table = pq.read_table(folder / TABLE)
    pq.write_table(table.append_column("choice", table.column("choice")), folder / TABLE)
    matches(r"_ibl_trials\.table\.pqt cannot be read: .*choice.* exists 2 times", only_reason(root, store))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (write(CHOICE, b""), r"training: _ibl_trials\.choice\.npy cannot be read: "),
        (write(CHOICE, b"junk" * 99), r"training: _ibl_trials\.choice\.npy cannot be read: "),
        (shorten(CHOICE, 1), r"training: _ibl_trials\.choice\.npy cannot be read: "),
        (shorten(CHOICE, 12 * 8 + 60), r"training: _ibl_trials\.choice\.npy cannot be read: "),
        (write(CHOICE, npy("(" * 90)), r"training: _ibl_trials\.choice\.npy cannot be read: "),
        (write(CHOICE, npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1e3,), }")), r"cannot be read: "),
        (
            write(CHOICE, npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9" + "0" * 14 + ",), }")),
            "cannot be read",
        ),
        (array("choice", np.array([1, None] * 6, dtype=object)), r"choice\.npy cannot be read: Object arrays cannot"),
        (array("choice", np.array(["left"] * 12)), r"choice\.npy cannot be read: choice has the type <U4, numbers are"),
        (array("choice", np.zeros(12, complex)), r"choice\.npy cannot be read: choice has the type complex128"),
        (array("choice", np.zeros((12, 2))), r"choice\.npy cannot be read: choice has the shape \(12, 2\), one value"),
        (array("choice", np.float64(1)), r"choice\.npy cannot be read: choice has the shape \(\), one value"),
        (
            array("choice", np.ones(11)),
            r"training: alf/task_00: trials attributes of unequal length: choice 11, contrastL",
        ),
        (array("contrastLeft", np.full(12, 100.0)), r"training: alf/task_00: contrastLeft is outside 0\.\.1"),
        (remove(CHOICE), r"training: alf/task_00: trials without choice$"),
        (link(CHOICE, "nowhere"), r"001/alf/task_00/_ibl_trials\.choice\.npy cannot be read: No such file"),
        (
            link(CHOICE, "_ibl_trials.choice.npy"),
            r"_ibl_trials\.choice\.npy cannot be read: Too many levels of symbolic",
        ),
        (folder_instead(CHOICE), r"training: alf/task_00: trials without choice$"),
    ],
)
def test_bad_arrays(root: Path, store: Store, damage: Callable[[Path], None], reason: str) -> None:
    damage(session(root, BAD, layout="npy"))
    matches(reason, only_reason(root, store))


def test_a_pickle_is_not_run(root: Path, store: Store, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    folder = session(root, BAD, layout="npy")
    np.save(folder / CHOICE, np.array([Trap()] * 12, dtype=object), allow_pickle=True)
    matches("Object arrays cannot be loaded", only_reason(root, store))
    assert not (tmp_path / "sprung").exists()


# --- settings and description -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (write(SETTINGS, ""), r"raw_task_data_00: _iblrig_taskSettings\.raw\.json is not JSON: "),
        (write(SETTINGS, "{"), r"raw_task_data_00: _iblrig_taskSettings\.raw\.json is not JSON: "),
        (write(SETTINGS, b"\xff\xfe\x00"), r"raw_task_data_00: _iblrig_taskSettings\.raw\.json is not JSON: "),
        (write(SETTINGS, "[" * 5000), r"raw_task_data_00: _iblrig_taskSettings\.raw\.json is not JSON: "),
        (write(SETTINGS, "[]"), r"raw_task_data_00: _iblrig_taskSettings\.raw\.json is not a JSON object"),
        (write(SETTINGS, '"text"'), r"raw_task_data_00: _iblrig_taskSettings\.raw\.json is not a JSON object"),
        (write(SETTINGS, "{}"), r"raw_task_data_00: task settings name no protocol \(PYBPOD_PROTOCOL\)"),
        (write(SETTINGS, '{"PYBPOD_PROTOCOL": ["x"]}'), r"raw_task_data_00: task settings name no protocol"),
        (write(SETTINGS, '{"PYBPOD_PROTOCOL": "a\\nb\\u001b"}'), r"raw_task_data_00: unknown protocol 'a\\nb\\x1b'"),
        (remove(SETTINGS), r"raw_task_data_00: no task settings \(_iblrig_taskSettings\.raw\.json\)"),
        (
            link(SETTINGS, "nowhere"),
            r"001/raw_task_data_00/_iblrig_taskSettings\.raw\.json cannot be read: No such file",
        ),
        (
            folder_instead(SETTINGS),
            r"001/raw_task_data_00/_iblrig_taskSettings\.raw\.json cannot be read: Is a directory",
        ),
        (write(DESCRIPTION, "a: ["), r"_ibl_experiment\.description\.yaml cannot be read: while parsing"),
        (write(DESCRIPTION, "- a\n- b"), r"_ibl_experiment\.description\.yaml cannot be read: 'list' object"),
        (write(DESCRIPTION, "just text"), r"_ibl_experiment\.description\.yaml cannot be read: 'str' object"),
        (write(DESCRIPTION, "tasks: 3"), r"_ibl_experiment\.description\.yaml cannot be read: "),
        (write(DESCRIPTION, "tasks: [trainingChoiceWorld]"), r"_ibl_experiment\.description\.yaml cannot be read: "),
        (write(DESCRIPTION, "tasks: [trainingChoiceWorld: 5]"), r"_ibl_experiment\.description\.yaml cannot be read: "),
        (
            write(DESCRIPTION, "date: 2020-13-45"),
            r"_ibl_experiment\.description\.yaml cannot be read: month must be in",
        ),
        (write(DESCRIPTION, "a: !!int ''"), r"_ibl_experiment\.description\.yaml cannot be read: "),
        (
            write(DESCRIPTION, "a: !!python/object/apply:os.getcwd []"),
            r"description\.yaml cannot be read: could not determ",
        ),
        (write(DESCRIPTION, "[" * 3000 + "]" * 3000), r"_ibl_experiment\.description\.yaml cannot be read: "),
        (
            write(DESCRIPTION, "a: " + "[" * 10**5),
            r"_ibl_experiment\.description\.yaml cannot be read: maximum recursion",
        ),
        (write(DESCRIPTION, b"\x00\xff"), r"_ibl_experiment\.description\.yaml cannot be read: "),
        (write(DESCRIPTION, ""), r"no task settings .* and no choice world task found"),
        (write(DESCRIPTION, "tasks: [5: {collection: x}]"), r"no task settings .* and no choice world task found"),
        (
            write(DESCRIPTION, 'tasks: [trainingChoiceWorld: {collection: "raw\\n\\e[31m"}]'),
            r"raw\\n\\x1b\[31m: no task settings \(_iblrig_taskSettings\.raw\.json\)",
        ),
        (
            link(DESCRIPTION, "nowhere"),
            r"001/_ibl_experiment\.description\.yaml cannot be read: No such file or directory",
        ),
    ],
)
def test_bad_settings_and_descriptions(root: Path, store: Store, damage: Callable[[Path], None], reason: str) -> None:
    damage(session(root, BAD))
    matches(reason, only_reason(root, store))


def test_an_empty_session_folder(root: Path, store: Store) -> None:
    (root / LAB / "Subjects" / SUBJECT / BAD / "001").mkdir(parents=True)
    assert only_reason(root, store) == (
        "no task settings (_iblrig_taskSettings.raw.json) and no choice world task found"
    )


def test_a_raw_folder_whose_name_is_no_text(root: Path, store: Store) -> None:
    folder = session(root, BAD)
    (folder / DESCRIPTION).unlink()
    os.rename(folder / "raw_task_data_00", folder / os.fsdecode(b"raw_\xff\n"))
    (folder / os.fsdecode(b"raw_\xff\n") / "_iblrig_taskSettings.raw.json").write_text("{}")
    assert only_reason(root, store) == r"raw_\udcff\n: task settings name no protocol (PYBPOD_PROTOCOL)"


@pytest.mark.parametrize("name", ["raw_task_data_00", "alf", "alf/task_00"])
def test_a_file_where_a_folder_is_expected(root: Path, store: Store, name: str) -> None:
    folder = session(root, BAD)
    os.rename(folder / name, root / "aside")
    (folder / name).write_bytes(b"")
    matches("no task settings|no trials found in alf/task_00", only_reason(root, store))


@pytest.mark.parametrize("name", ["alf", "raw_video_data"])
def test_a_folder_that_is_a_link_back_to_itself(root: Path, store: Store, name: str) -> None:
    folder = session(root, BAD)
    if (folder / name).exists():
        os.rename(folder / name, root / "aside")
    (folder / name).symlink_to(name)
    assert only_reason(root, store) == f"001/{name} cannot be read: Too many levels of symbolic links"


def test_of_chained_protocols_the_good_one_is_used(root: Path, store: Store) -> None:
    folder = session(root, BAD, tasks=[("training", clumsy()), ("biased", clumsy())])
    (folder / "alf/task_01/_ibl_trials.table.pqt").write_bytes(b"junk")
    recompute_subject(TreeSource(root), LAB, SUBJECT, store)
    assert statuses(store) == dict.fromkeys((*GOOD, f"{BAD}/001"), "in training")


# --- rights -----------------------------------------------------------------------------------------------


@contextmanager
def denied(path: Path) -> Iterator[None]:
    """Take all rights to a file or folder away, and root's own ways around it with them."""
    mode = path.stat().st_mode
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # nobody
        yield
    finally:
        os.seteuid(user)
        path.chmod(mode)


@pytest.fixture
def open_root() -> Iterator[Path]:
    """The tree of `root`, in a folder that every user may look into; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        for name in GOOD:
            session(root, name.partition("/")[0])
        Path(folder).chmod(0o755)
        probe = Path(folder) / "probe"
        probe.touch()
        with denied(probe):
            if not os.access(root, os.R_OK | os.X_OK, effective_ids=True):
                pytest.skip("the user nobody cannot look into the folder for temporary files")
        yield root


@pytest.mark.parametrize("name", [SETTINGS, DESCRIPTION, TABLE, f"{ALF}/_ibl_trials.goCueTrigger_times.npy", ALF])
def test_a_file_or_folder_of_a_session_to_which_the_right_is_missing(open_root: Path, store: Store, name: str) -> None:
    path = session(open_root, BAD) / name
    with denied(path):
        recompute_subject(TreeSource(open_root), LAB, SUBJECT, store)
    if name.endswith("goCueTrigger_times.npy"):  # that it is there is all that is asked of it
        assert f"{BAD}/001" in statuses(store)
        return
    assert statuses(store) == dict.fromkeys(GOOD, "in training")
    stored = store.get(KEYS.training)
    assert stored is not None
    assert read_provenance(stored.data, KEYS.training).left_out == (
        LeftOut(session=f"{BAD}/001", reason=f"001/{name} cannot be read: Permission denied"),
    )
    assert refresh(open_root, store), "with the right given, a refresh takes it up"
    assert f"{BAD}/001" in statuses(store)


def test_a_date_to_which_the_right_is_missing(open_root: Path, store: Store) -> None:
    with denied(session(open_root, BAD).parent):
        (left,) = look(TreeSource(open_root).subject(LAB, SUBJECT), store, KEYS, everything=True).left_out
        recompute_subject(TreeSource(open_root), LAB, SUBJECT, store)
    assert left == LeftOut(session=BAD, reason="folder left out: it cannot be listed: Permission denied")
    assert statuses(store) == dict.fromkeys(GOOD, "in training")
    assert refresh(open_root, store)
    assert f"{BAD}/001" in statuses(store)


@pytest.mark.parametrize("closed", ["otherlab", "otherlab/Subjects"])
def test_a_lab_to_which_the_right_is_missing(open_root: Path, closed: str) -> None:
    (open_root / "otherlab/Subjects/S1").mkdir(parents=True)
    reason = "folder left out: it cannot be listed: Permission denied"
    with denied(open_root / closed):
        labs, odd = find_labs(open_root)
        if closed == "otherlab":
            assert (labs, odd) == ([LAB], [LeftOut(session="otherlab", reason=reason)])
            assert find_labs(open_root, [LAB]) == ([LAB], [])
        else:
            assert (labs, odd) == (["otherlab", LAB], [])
            assert find_subjects(open_root, "otherlab") == ([], [LeftOut(session="otherlab", reason=reason)])


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "shown"),
    [
        (f"{BAD}/1", f"{BAD}/1"),
        (f"{BAD}/001_bad", f"{BAD}/001_bad"),
        (f"{BAD}/٠٠١", f"{BAD}/\\u0660\\u0660\\u0661"),
        ("2020-13-45/001", "2020-13-45"),
        ("2020-1-3/001", "2020-1-3"),
        (f"{BAD}\x1b[2J/001", f"{BAD}\\x1b[2J"),
        ("２020-01-03/001", "\\uff12020-01-03"),
        (f"..{BAD}/001", None),  # hidden, as is everything with a dot before it
    ],
)
def test_odd_dates_and_numbers(root: Path, store: Store, folder: str, shown: str | None) -> None:
    good = session(root, BAD)
    place = root / LAB / "Subjects" / SUBJECT / folder
    place.parent.mkdir(parents=True, exist_ok=True)
    os.rename(good, place)
    told = left_out(root, store)
    assert [left.session for left in told] == ([] if shown is None else [shown])
    assert all(left.reason.startswith("folder left out: ") for left in told)


@pytest.mark.parametrize("name", ["a b", "КS014", "S\x07", "a..b", "-S", "S\u202e1", "x" * 65])
def test_odd_subjects(root: Path, store: Store, name: str) -> None:
    (root / LAB / "Subjects" / name).mkdir()
    subjects, (odd,) = find_subjects(root, LAB)
    assert subjects == [SUBJECT]
    assert odd.session.startswith(f"{LAB}/")
    assert odd.session.isascii()
    assert odd.reason.isprintable()
    with pytest.raises(InvalidName):
        recompute_subject(TreeSource(root), LAB, name, store)


def test_an_empty_subject_puts_nothing(tmp_path: Path, store: Store) -> None:
    (tmp_path / LAB / "Subjects" / SUBJECT / BAD).mkdir(parents=True)
    recompute_subject(TreeSource(tmp_path), LAB, SUBJECT, store)
    assert list(store.keys()) == []


def test_many_bad_sessions_are_all_told_and_one_good_one_is_enough(root: Path, store: Store) -> None:
    damages = [write(TABLE, b""), write(SETTINGS, "[]"), write(DESCRIPTION, "a: ["), remove(TABLE)]
    for number, damage in enumerate(damages, start=1):
        damage(session(root, BAD, number))
    edit_settings(session(root, "2020-01-04", 2), PYBPOD_PROTOCOL="_iblrig_tasks_other")
    told = left_out(root, store)
    assert [left.session for left in told] == [*(f"{BAD}/{n:03d}" for n in range(1, 5)), "2020-01-04/002"]
