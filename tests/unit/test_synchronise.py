"""What one look at a subject finds, and the writing back: the store is the truth, and nobody's rows are lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import psychometrics, schema, tables
from core.discover import find_files
from core.errors import PermanentError, StoreConflict
from core.pipeline import recompute_subject
from core.records import DayStatus, DaySummary, Fingerprint, LeftOut
from core.sources import TreeSource
from core.sources.base import inputs_of
from core.sources.tree import load_days
from core.status import compute_statuses
from core.storage import Store, open_store
from core.storage.base import StoredObject
from core.storage.memory import MemoryStore
from core.summarise import summarise
from core.synchronise import Look, look, put_tables
from core.tables import SubjectTables, build_tables, read_provenance, read_summaries
from tests.trees import (
    KEYS,
    LAB,
    SUBJECT,
    clumsy,
    edit_settings,
    move,
    objects,
    refresh,
    rows,
    session,
    statuses,
    training,
    trials,
)


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid4().hex}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree of one subject with a session of habituation and three of training on three days."""
    root = tmp_path / "tree"
    session(root, "2020-01-01", protocol="habituation")
    session(root, "2020-01-02")
    session(root, "2020-01-03", 1)
    session(root, "2020-01-03", 2)
    return root


def seen(root: Path, store: Store, *, everything: bool = False, by: Fingerprint = "stat", **options: Any) -> Look:
    return look(TreeSource(root, by).subject(LAB, SUBJECT), store, KEYS, everything=everything, **options)


def stored_bytes(store: Store, key: str = KEYS.summaries) -> bytes:
    stored = store.get(key)
    assert stored is not None
    return stored.data


def stored_summaries(store: Store) -> tuple[list[DaySummary], list[DayStatus]]:
    return read_summaries(stored_bytes(store), KEYS.summaries)


def tables_of(root: Path, *dates: str) -> SubjectTables:
    """The tables of some days of the tree alone."""
    folder = root / LAB / "Subjects" / SUBJECT
    days = summarise(load_days({date: sorted((folder / date).iterdir()) for date in dates}))
    return build_tables(LAB, SUBJECT, days, compute_statuses(days))


class Counting(MemoryStore):
    """A store that counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__(uuid4().hex)
        self.gets: list[str] = []
        self.puts: list[str] = []

    def _get(self, key: str) -> StoredObject | None:
        self.gets.append(key)
        return super()._get(key)

    def _put(self, key: str, data: bytes, replaces: str | None) -> str:
        self.puts.append(key)
        return super()._put(key, data, replaces)


class Overtaken(MemoryStore):
    """A store in which a rival writes all it has, just before the training table is put."""

    def __init__(self, rival: SubjectTables) -> None:
        self.name = uuid4().hex
        super().__init__(self.name)
        self.rival: SubjectTables | None = rival

    def _put(self, key: str, data: bytes, replaces: str | None) -> str:
        if key == KEYS.training and self.rival is not None:
            tables, self.rival = self.rival, None
            other = MemoryStore(self.name)
            current = other.get(key)
            put_tables(other, KEYS, tables, current.etag if current else None)
        return super()._put(key, data, replaces)


# --- looking ----------------------------------------------------------------------------------------------


def test_a_first_look_finds_every_day(root: Path, store: Store) -> None:
    found = seen(root, store)
    assert found == Look(
        dates=("2020-01-01", "2020-01-02", "2020-01-03"), kept=(), base=None, table=None, unchanged=False, left_out=()
    )


def test_where_nothing_has_changed_it_takes_one_request(root: Path) -> None:
    store = Counting()
    assert refresh(root, store)
    store.gets.clear()
    found = seen(root, store)
    assert store.gets == [KEYS.training]
    assert (found.unchanged, found.dates, found.kept) == (True, (), ())
    stored = store.get(KEYS.training)
    assert stored is not None
    assert (found.base, found.table) == (stored.etag, stored.data)


def test_a_new_day_is_seen_and_the_others_are_kept(root: Path, store: Store) -> None:
    refresh(root, store)
    session(root, "2020-01-05")
    found = seen(root, store)
    assert found.dates == ("2020-01-05",)
    assert [day.date for day in found.kept] == ["2020-01-01", "2020-01-02", "2020-01-03"]
    assert not found.unchanged


def test_a_day_before_the_others_is_seen(root: Path, store: Store) -> None:
    refresh(root, store)
    session(root, "2019-12-31", protocol="habituation")
    assert seen(root, store).dates == ("2019-12-31",)


def test_a_new_session_on_a_day_that_is_known_is_seen_and_recomputed(root: Path, store: Store) -> None:
    refresh(root, store)
    assert {row["combined_n_trials"] for row in training(store) if row["date"] == "2020-01-02"} == {12.0}
    session(root, "2020-01-02", 2)
    assert seen(root, store).dates == ("2020-01-02",)
    assert refresh(root, store)
    assert {row["combined_n_trials"] for row in training(store) if row["date"] == "2020-01-02"} == {24.0}


def test_a_changed_session_is_seen_and_recomputed(root: Path, store: Store) -> None:
    refresh(root, store)
    session(root, "2020-01-02", trials=trials([(-100.0, 5, 0), (100.0, 3, 3)]))
    assert seen(root, store).dates == ("2020-01-02",)
    assert refresh(root, store)
    (row, *_) = [row for row in training(store) if row["date"] == "2020-01-02"]
    assert (row["n_trials"], row["performance_easy"]) == (8.0, 1.0)


def test_everything_anew_keeps_nothing_and_still_knows_what_it_replaces(root: Path, store: Store) -> None:
    refresh(root, store)
    stored = store.get(KEYS.training)
    assert stored is not None
    found = seen(root, store, everything=True)
    assert found.dates == ("2020-01-01", "2020-01-02", "2020-01-03")
    assert (found.kept, found.base, found.unchanged) == ((), stored.etag, False)


def test_a_session_that_is_gone_is_told_and_its_day_kept_as_it_was(root: Path, store: Store, tmp_path: Path) -> None:
    refresh(root, store)
    before = objects(store)
    move(root / LAB / "Subjects" / SUBJECT / "2020-01-03/002", tmp_path / "aside")
    found = seen(root, store)
    assert (found.unchanged, found.dates) == (True, ())
    reason = "session 002 is no longer on disk: kept as the table has it (refresh --prune drops it)"
    assert found.left_out == (LeftOut(session="2020-01-03", reason=reason),)
    assert not refresh(root, store)
    assert objects(store) == before
    session(root, "2020-01-06")  # the kept day goes on with the others
    assert seen(root, store).dates == ("2020-01-06",)
    assert refresh(root, store)
    assert set(statuses(store)) == {
        "2020-01-01/001",
        "2020-01-02/001",
        "2020-01-03/001",
        "2020-01-03/002",
        "2020-01-06/001",
    }


def test_a_session_new_on_a_day_of_which_another_is_gone_is_added_to_what_is_kept(
    root: Path, store: Store, tmp_path: Path
) -> None:
    third = session(root, "2020-01-03", 3, trials=trials([(-100.0, 50, 2), (0.0, 9, 4), (100.0, 50, 49)]))
    session(root, "2020-01-04", trials=trials([(-100.0, 60, 2), (0.0, 9, 4), (25.0, 60, 55), (100.0, 60, 59)]))
    whole = fresh(root)
    whole_days, whole_statuses = read_summaries(whole[2] or b"", "key")
    move(third, tmp_path / "third")
    refresh(root, store)

    move(root / LAB / "Subjects" / SUBJECT / "2020-01-03/001", tmp_path / "first")
    move(tmp_path / "third", third)
    found = seen(root, store)
    assert (found.dates, found.held) == (("2020-01-03",), {"2020-01-03": ("001", "002")})
    assert [status.date for status in found.settled] == ["2020-01-01", "2020-01-02"]
    (left,) = found.left_out
    assert left == LeftOut(
        session="2020-01-03",
        reason="session 001 is no longer on disk: kept as the table has it (refresh --prune drops it); "
        "session 003 is new and added beside, without combined values for the day",
    )
    assert refresh(root, store)
    # Of every session what it is by itself, and of every day's status and criteria what they are with all on disk.
    assert set(statuses(store)) >= {f"2020-01-03/00{number}" for number in (1, 2, 3)}
    days, of_days = stored_summaries(store)
    assert repr(of_days) == repr(whole_statuses)
    assert [day.sessions for day in days] == [day.sessions for day in whole_days]
    assert days[2].combined is None
    (one, *_) = [row for row in training(store) if row["session_path"] == str(third)]
    assert (one["n_trials"], one["combined_n_trials"]) == (109.0, 109.0)

    assert not refresh(root, store), "a second time, nothing is new"
    (left,) = seen(root, store).left_out
    assert left.reason == "session 001 is no longer on disk: kept as the table has it (refresh --prune drops it)"
    move(tmp_path / "first", root / LAB / "Subjects" / SUBJECT / "2020-01-03/001")
    assert seen(root, store).dates == ("2020-01-03",), "once all are there, the day is summarised as a whole"
    assert refresh(root, store)
    assert list(objects(store).values()) == whole


def test_a_session_changed_on_a_day_of_which_another_is_gone_waits_for_it(
    root: Path, store: Store, tmp_path: Path
) -> None:
    refresh(root, store)
    before = objects(store)
    move(root / LAB / "Subjects" / SUBJECT / "2020-01-03/001", tmp_path / "first")
    session(root, "2020-01-03", 2, trials=trials([(-100.0, 5, 0), (100.0, 3, 3)]))
    found = seen(root, store)
    assert (found.dates, found.unchanged) == ((), True)
    (left,) = found.left_out
    assert left.reason.endswith("; session 002 is changed, but stays as it was while others are missing")
    assert not refresh(root, store)
    assert objects(store) == before
    assert refresh(root, store, prune=True)
    assert list(objects(store).values()) == fresh(root)


@pytest.mark.parametrize("to", ["2020-01-03/007", "2020-01-09/001"])
def test_a_session_that_has_another_number_or_date_now_is_not_taken_for_gone(root: Path, store: Store, to: str) -> None:
    refresh(root, store)
    folder = root / LAB / "Subjects" / SUBJECT
    move(folder / "2020-01-03/001", folder / to)
    assert seen(root, store).left_out == ()
    assert refresh(root, store)
    assert list(objects(store).values()) == fresh(root)
    assert len(statuses(store)) == 4


def test_a_session_that_has_moved_is_not_counted_twice_where_another_of_its_day_is_gone(
    root: Path, store: Store, tmp_path: Path
) -> None:
    refresh(root, store)
    before = objects(store)
    folder = root / LAB / "Subjects" / SUBJECT / "2020-01-03"
    move(folder / "001", tmp_path / "first")
    move(folder / "002", folder / "005")
    (left,) = seen(root, store).left_out
    assert left.reason.endswith("; session 002 is elsewhere now, but stays here, too, while others are missing")
    assert not refresh(root, store)
    assert objects(store) == before


def test_a_session_whose_folder_cannot_be_listed_is_kept_whether_pruned_or_not(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(root, store)
    before = objects(store)
    scan = os.scandir
    for closed in ("2020-01-03/002", "2020-01-03"):

        def refuse(path: Any, closed: str = closed) -> Any:
            if str(path).endswith(closed):
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", refuse)
            for prune in (False, True):
                (left, *_) = [left for left in seen(root, store, prune=prune).left_out if "on disk" in left.reason]
                assert left.reason.endswith("on disk but cannot be read: kept as the table has it")
                assert not refresh(root, store, prune=prune)
                assert objects(store) == before
    assert seen(root, store).unchanged


def test_prune_brings_a_day_to_what_is_on_disk(root: Path, store: Store, tmp_path: Path) -> None:
    session(root, "2020-01-06")
    refresh(root, store)
    move(root / LAB / "Subjects" / SUBJECT / "2020-01-03/002", tmp_path / "aside")
    found = seen(root, store, prune=True)
    assert (found.dates, found.held, found.left_out) == (("2020-01-03",), {}, ())
    assert [status.date for status in found.settled] == ["2020-01-01", "2020-01-02"]
    assert refresh(root, store, prune=True)
    assert list(objects(store).values()) == fresh(root)
    assert not refresh(root, store, prune=True)
    assert not refresh(root, store, everything=True)


def test_prune_takes_a_day_without_sessions_out_of_the_table(root: Path, store: Store, tmp_path: Path) -> None:
    session(root, "2020-01-06")
    refresh(root, store)
    move(root / LAB / "Subjects" / SUBJECT / "2020-01-02/001", tmp_path / "aside")  # its date's folder is left empty
    move(root / LAB / "Subjects" / SUBJECT / "2020-01-06", tmp_path / "day")
    found = seen(root, store, prune=True)
    assert (found.dates, [day.date for day in found.kept]) == ((), ["2020-01-01", "2020-01-03"])
    assert [status.date for status in found.settled] == ["2020-01-01"]
    assert not found.unchanged
    assert refresh(root, store, prune=True)
    assert {row["date"] for row in training(store)} == {"2020-01-01", "2020-01-03"}
    assert list(objects(store).values()) == fresh(root)


def test_prune_drops_what_was_added_to(root: Path, store: Store, tmp_path: Path) -> None:
    refresh(root, store)
    move(root / LAB / "Subjects" / SUBJECT / "2020-01-03/001", tmp_path / "aside")
    session(root, "2020-01-03", 3)
    refresh(root, store)
    assert len(statuses(store)) == 5
    assert refresh(root, store, prune=True)
    assert list(objects(store).values()) == fresh(root)


def test_prune_leaves_the_tables_of_a_mouse_without_any_session(root: Path, store: Store, tmp_path: Path) -> None:
    refresh(root, store)
    before = objects(store)
    os.rename(root / LAB / "Subjects" / SUBJECT, tmp_path / "aside")
    (root / LAB / "Subjects" / SUBJECT).mkdir()
    found = seen(root, store, prune=True)
    assert (found.dates, found.kept, found.empty, found.unchanged) == ((), (), True, False)
    assert not refresh(root, store, prune=True)
    assert objects(store) == before
    assert seen(root, store).unchanged


# --- how files are known ----------------------------------------------------------------------------------


def test_by_content_a_file_rewritten_in_place_is_seen_and_a_touched_one_is_not(root: Path, store: Store) -> None:
    refresh(root, store, by="content")
    assert seen(root, store, by="content").unchanged
    path = next((root / LAB).glob("*/*/2020-01-02/001/alf/task_00/_ibl_trials.table.pqt"))
    stat, data = path.stat(), path.read_bytes()
    os.utime(path)
    assert seen(root, store, by="content").unchanged
    session(root, "2020-01-02", trials=trials([(-100.0, 5, 5), (0.0, 2, 1), (100.0, 5, 3)]))
    path.write_bytes(path.read_bytes().ljust(len(data), b"x")[: len(data)])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert seen(root, store, by="content").dates == ("2020-01-02",)


def test_another_way_of_knowing_files_costs_a_recomputation_and_nothing_else(
    root: Path, store: Store, tmp_path: Path
) -> None:
    move(root / LAB / "Subjects" / SUBJECT / "2020-01-03/001", tmp_path / "first")
    refresh(root, store)
    for by in ("content", "stat"):
        assert seen(root, store, by=by).dates == ("2020-01-01", "2020-01-02", "2020-01-03")
        assert refresh(root, store, by=by)
        other = open_store(f"memory://{uuid4().hex}")
        refresh(root, other, everything=True, by=by)
        assert list(objects(store).values()) == list(objects(other).values())
        assert not refresh(root, store, by=by)


def test_another_way_of_knowing_files_is_no_change_of_a_session_whose_day_is_kept(
    root: Path, store: Store, tmp_path: Path
) -> None:
    refresh(root, store)
    rows_before = training(store)
    move(root / LAB / "Subjects" / SUBJECT / "2020-01-03/001", tmp_path / "first")
    found = seen(root, store, by="content")
    assert found.dates == ("2020-01-01", "2020-01-02")
    assert "changed" not in found.left_out[0].reason
    refresh(root, store, by="content")
    assert repr(training(store)) == repr(rows_before)


# --- how much is done -------------------------------------------------------------------------------------


def test_a_new_last_day_fits_its_own_window_alone_and_a_late_first_one_all(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(6, 12):
        session(root, f"2020-01-{day:02d}")
    refresh(root, store)
    fitted: list[int] = []
    fit = psychometrics.fit

    def counting(problems: Sequence[Any]) -> Any:
        fitted.append(sum(1 for _, n, _ in problems if sum(n)))
        return fit(problems)

    monkeypatch.setattr(psychometrics, "fit", counting)

    def work(**options: Any) -> int:
        fitted.clear()
        assert refresh(root, store, **options)
        return sum(fitted)

    session(root, "2020-01-12")
    assert work() == 1 + 1  # the session, and its window: training reads one fit
    assert list(objects(store).values()) == fresh(root)
    session(root, "2019-12-31")
    assert work() == 1 + 10  # the session, and the window of every day of training
    assert list(objects(store).values()) == fresh(root)
    session(root, "2020-01-10", 2)
    assert work() == 3 + 3  # each session, both put together; the windows that the day is in
    shutil.rmtree(root / LAB / "Subjects" / SUBJECT / "2020-01-11")
    assert work(prune=True) == 1  # the window of the day behind it
    shutil.rmtree(root / LAB / "Subjects" / SUBJECT / "2020-01-12")
    assert work(prune=True) == 0
    assert list(objects(store).values()) == fresh(root)


def test_statuses_of_another_software_version_are_computed_again(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("core.schema.SOFTWARE_VERSION", "0.0.1")
        refresh(root, store)
    session(root, "2020-01-05")
    found = seen(root, store)
    assert (found.dates, len(found.kept), found.settled) == (("2020-01-05",), 3, ())
    assert refresh(root, store)
    assert list(objects(store).values()) == fresh(root)


def test_summaries_of_the_schema_before_statuses_are_kept_with_what_is_gone(
    root: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = [field for field in schema.SUMMARIES if field.name != "status"]
    summaries = tables._summaries
    with monkeypatch.context() as patch:
        patch.setattr("core.schema.SCHEMA_VERSION", 1)
        patch.setattr(tables, "_summaries", lambda *given: summaries(*given).drop_columns("status"))
        put_tables(store, KEYS, tables_of(root, "2020-01-01", "2020-01-02", "2020-01-03"), None)
    assert [field.name for field in pq.read_schema(pa.BufferReader(stored_bytes(store)))] == [f.name for f in columns]
    found = seen(root, store)
    assert (found.dates, len(found.kept), found.settled, found.unchanged) == ((), 3, (), False)
    move(root / LAB / "Subjects" / SUBJECT / "2020-01-03/002", tmp_path / "aside")
    assert refresh(root, store)
    assert "2020-01-03/002" in statuses(store)
    move(tmp_path / "aside", root / LAB / "Subjects" / SUBJECT / "2020-01-03/002")
    assert not refresh(root, store)
    assert list(objects(store).values()) == fresh(root)


def test_a_full_recompute_drops_what_is_gone(root: Path, store: Store, tmp_path: Path) -> None:
    refresh(root, store)
    move(root / LAB / "Subjects" / SUBJECT / "2020-01-03/002", tmp_path / "aside")
    assert refresh(root, store, everything=True)
    assert "2020-01-03/002" not in statuses(store)


def test_odd_folders_and_what_was_left_out_before_are_told_each_time(root: Path, store: Store) -> None:
    edit_settings(session(root, "2020-01-04"), PYBPOD_PROTOCOL="_iblrig_tasks_other")
    (root / LAB / "Subjects" / SUBJECT / "notes").mkdir()
    refresh(root, store)
    expected = {"notes", "2020-01-04/001"}
    unchanged = seen(root, store)
    assert unchanged.unchanged
    assert {left.session for left in unchanged.left_out} == expected
    session(root, "2020-01-05")
    assert {left.session for left in seen(root, store).left_out} == expected


def test_a_subject_without_a_session_has_nothing_to_do(tmp_path: Path, store: Store) -> None:
    (tmp_path / LAB / "Subjects" / SUBJECT).mkdir(parents=True)
    nothing = Look(dates=(), kept=(), base=None, table=None, unchanged=False, left_out=(), empty=True)
    assert seen(tmp_path, store) == nothing
    assert not refresh(tmp_path, store)
    assert objects(store) == dict.fromkeys(objects(store))


def test_a_tree_that_lost_all_sessions_leaves_the_stored_table_alone(root: Path, store: Store, tmp_path: Path) -> None:
    refresh(root, store)
    before = objects(store)
    os.rename(root / LAB / "Subjects" / SUBJECT, tmp_path / "aside")
    (root / LAB / "Subjects" / SUBJECT).mkdir()
    assert not refresh(root, store)
    assert len(seen(root, store).left_out) == 3
    recompute_subject(TreeSource(root), LAB, SUBJECT, store)
    assert objects(store) == before


def test_a_subject_with_no_usable_session_leaves_the_stored_table_alone(root: Path, store: Store) -> None:
    refresh(root, store)
    before = objects(store)
    for path in (root / LAB).rglob("_iblrig_taskSettings.raw.json"):
        path.write_text("broken")
    tables = recompute_subject(TreeSource(root), LAB, SUBJECT, store)
    assert rows(tables.training) == []
    assert objects(store) == before
    assert not refresh(root, store, everything=True)
    assert objects(store) == before


# --- what lies in the store -------------------------------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True])
def test_a_table_of_a_later_schema_is_refused_and_not_touched(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("core.schema.SCHEMA_VERSION", 99)
        later = tables_of(root, "2020-01-02")
    assert read_provenance(later.training, "key").schema_version == 99
    put_tables(store, KEYS, later, None)
    before = objects(store)
    with pytest.raises(PermanentError, match=r"training\.pqt was written by .* schema version 99, this is .*: upgrade"):
        seen(root, store, everything=everything)
    assert objects(store) == before


def test_a_table_of_an_earlier_schema_is_computed_anew(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("core.schema.SCHEMA_VERSION", 0)
        earlier = tables_of(root, "2020-01-01", "2020-01-02", "2020-01-03")
    put_tables(store, KEYS, earlier, None)
    found = seen(root, store)
    assert found.dates == ("2020-01-01", "2020-01-02", "2020-01-03")
    assert not found.unchanged
    assert refresh(root, store)
    assert objects(store) == dict(zip(objects(store), fresh(root), strict=True))


def fresh(root: Path) -> list[bytes | None]:
    """The four objects of a full recompute into an empty store."""
    empty = open_store(f"memory://{uuid4().hex}")
    recompute_subject(TreeSource(root), LAB, SUBJECT, empty)
    return list(objects(empty).values())


@pytest.mark.parametrize("damage", ["junk", "no end", "no head", "empty"])
def test_a_corrupt_table_is_replaced(root: Path, store: Store, damage: str) -> None:
    refresh(root, store)
    good = objects(store)
    stored = store.get(KEYS.training)
    assert stored is not None
    broken = {
        "junk": b"junk",
        "no end": stored.data[:-20],
        "no head": bytes(200) + stored.data[200:],
        "empty": b"",
    }[damage]
    store.put(KEYS.training, broken, replaces=stored.etag)
    found = seen(root, store)
    assert (found.table, found.unchanged) == (None, False)
    assert refresh(root, store)
    assert objects(store) == good


def test_corrupt_summaries_are_made_anew(root: Path, store: Store) -> None:
    refresh(root, store)
    stored = store.get(KEYS.summaries)
    assert stored is not None
    store.put(KEYS.summaries, b"junk", replaces=stored.etag)
    session(root, "2020-01-05")
    assert seen(root, store).dates == ("2020-01-01", "2020-01-02", "2020-01-03", "2020-01-05")
    refresh(root, store)
    assert list(objects(store).values()) == fresh(root)


def test_summaries_of_another_schema_are_made_anew(root: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh(root, store)
    with monkeypatch.context() as patch:
        patch.setattr("core.schema.SCHEMA_VERSION", 0)
        other = tables_of(root, "2020-01-01", "2020-01-02", "2020-01-03")
    stored = store.get(KEYS.summaries)
    assert stored is not None
    store.put(KEYS.summaries, other.summaries, replaces=stored.etag)
    session(root, "2020-01-05")
    assert seen(root, store).dates == ("2020-01-01", "2020-01-02", "2020-01-03", "2020-01-05")


def test_a_writer_that_died_before_its_last_put_is_caught_up_with(root: Path, store: Store) -> None:
    refresh(root, store)
    session(root, "2020-01-05")
    newer = tables_of(root, "2020-01-01", "2020-01-02", "2020-01-03", "2020-01-05")
    stored = store.get(KEYS.summaries)
    assert stored is not None
    store.put(KEYS.summaries, newer.summaries, replaces=stored.etag)
    found = seen(root, store)
    assert (found.dates, len(found.kept), found.unchanged) == ((), 4, False)
    assert refresh(root, store)
    assert list(objects(store).values()) == fresh(root)


# --- writing back -----------------------------------------------------------------------------------------


def test_all_four_objects_are_put_and_the_training_table_last(root: Path) -> None:
    store = Counting()
    tables = tables_of(root, "2020-01-02")
    assert put_tables(store, KEYS, tables, None)
    assert set(store.puts) == {KEYS.training, KEYS.criteria, KEYS.summaries, KEYS.aggregate}
    assert store.puts[-1] == KEYS.training
    assert objects(store) == {
        KEYS.training: tables.training,
        KEYS.criteria: tables.criteria,
        KEYS.summaries: tables.summaries,
        KEYS.aggregate: tables.aggregate,
    }


def test_a_task_that_is_delivered_again_changes_nothing(root: Path) -> None:
    store = Counting()
    tables = tables_of(root, "2020-01-02")
    assert put_tables(store, KEYS, tables, None)
    store.puts.clear()
    assert not put_tables(store, KEYS, tables, None)  # with the base from before its own write
    assert store.puts == []


def test_what_was_written_by_somebody_else_is_not_overwritten(root: Path, store: Store) -> None:
    theirs, ours = tables_of(root, "2020-01-02"), tables_of(root, "2020-01-03")
    put_tables(store, KEYS, theirs, None)
    before = objects(store)
    with pytest.raises(StoreConflict, match=r"training\.pqt was written by somebody else"):
        put_tables(store, KEYS, ours, None)
    assert objects(store) == before
    stored = store.get(KEYS.training)
    assert stored is not None
    assert put_tables(store, KEYS, ours, stored.etag)
    with pytest.raises(StoreConflict):
        put_tables(store, KEYS, theirs, stored.etag)


def test_a_table_that_vanished_meanwhile_is_a_conflict(root: Path, store: Store) -> None:
    with pytest.raises(StoreConflict):
        put_tables(store, KEYS, tables_of(root, "2020-01-02"), "an etag of something that is gone")
    assert objects(store) == dict.fromkeys(objects(store))


def test_who_is_overtaken_at_the_last_put_loses_and_mends_what_lies_beside_the_table(root: Path) -> None:
    whole = tables_of(root, "2020-01-01", "2020-01-02", "2020-01-03")
    store = Overtaken(rival=whole)
    with pytest.raises(StoreConflict):
        put_tables(store, KEYS, tables_of(root, "2020-01-02"), None)
    stored = store.get(KEYS.training)
    assert stored is not None
    assert stored.data == whole.training, "the rival's rows are not lost"
    # Seen from the training table alone there is nothing to do, but a look after a conflict goes on nevertheless.
    assert seen(root, store).unchanged
    assert not seen(root, store, again=True).unchanged
    assert not refresh(root, store, again=True)  # the training table stands
    assert list(objects(store).values()) == fresh(root)


def test_two_writers_of_the_same_end_in_one_table(root: Path) -> None:
    whole = tables_of(root, "2020-01-01", "2020-01-02", "2020-01-03")
    store = Overtaken(rival=whole)
    with pytest.raises(StoreConflict):
        refresh(root, store)
    assert not refresh(root, store, again=True)
    assert list(objects(store).values()) == fresh(root)


# --- sessions that cannot be reached ----------------------------------------------------------------------


def test_inputs_are_of_the_sessions_that_can_be_reached(root: Path) -> None:
    files = find_files(root / LAB / "Subjects" / SUBJECT / "2020-01-02/001")
    left = LeftOut(session="2020-01-02/002", reason="cannot be read")
    assert inputs_of([files, left]) == {"001": files.fingerprint}


@pytest.mark.parametrize(
    "name",
    [
        "_ibl_experiment.description.yaml",
        "raw_task_data_00/_iblrig_taskSettings.raw.json",
        "alf/task_00/_ibl_trials.table.pqt",
        "alf/task_00/_ibl_trials.choice.npy",
    ],
)
def test_a_file_that_cannot_be_read_is_tried_again_by_the_next_refresh(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = session(root, "2020-01-04", layout="npy" if name.endswith("npy") else "table")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path == folder / name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert refresh(root, store)
        stored = store.get(KEYS.training)
        assert stored is not None
        (left,) = read_provenance(stored.data, KEYS.training).left_out
        assert left == LeftOut(session="2020-01-04/001", reason=f"001/{name} cannot be read: Permission denied")
        assert "2020-01-03/002" in statuses(store), "the others are computed"
        assert not refresh(root, store), "as long as it lasts, the same comes out"
    assert seen(root, store).dates == ("2020-01-04",)  # the file itself has not changed
    assert refresh(root, store)
    assert "2020-01-04/001" in statuses(store)
    assert list(objects(store).values()) == fresh(root)


def test_days_are_loaded_by_session_and_task(tmp_path: Path) -> None:
    first = session(tmp_path, "2020-01-02", 1, tasks=[("training", clumsy()), ("biased", clumsy())])
    second = session(tmp_path, "2020-01-02", 2, protocol="biased")
    broken = session(tmp_path, "2020-01-02", 3)
    edit_settings(broken, PYBPOD_PROTOCOL="other")
    (day,) = load_days({"2020-01-02": [first, second, broken]})
    assert [(one.number, one.protocol) for one in day.sessions] == [
        ("001", "training"),
        ("001", "biased"),
        ("002", "biased"),
    ]
    assert set(day.inputs) == {"001", "002", "003"}  # what is broken is known, and not read again until it changes
    assert [left.session for left in day.left_out] == ["2020-01-02/003"]


def test_the_parts_of_the_way_add_up_to_the_whole(root: Path, store: Store) -> None:
    made: Any = recompute_subject(TreeSource(root), LAB, SUBJECT, store)
    assert objects(store) == {
        KEYS.training: made.training,
        KEYS.criteria: made.criteria,
        KEYS.summaries: made.summaries,
        KEYS.aggregate: made.aggregate,
    }
    assert statuses(store) == {
        "2020-01-01/001": "habituation",
        "2020-01-02/001": "in training",
        "2020-01-03/001": "in training",
        "2020-01-03/002": "in training",
    }
