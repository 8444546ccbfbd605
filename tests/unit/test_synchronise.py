"""What one look at a subject finds, and the writing back: the store is the truth, and nobody's rows are lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from core.discover import find_files
from core.errors import PermanentError, StoreConflict
from core.pipeline import recompute_subject
from core.records import LeftOut
from core.status import compute_statuses
from core.storage import Store, open_store
from core.storage.base import StoredObject
from core.storage.memory import MemoryStore
from core.summarise import summarise
from core.synchronise import Look, inputs_of, load_days, look, put_tables
from core.tables import SubjectTables, build_tables, read_provenance
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


def seen(root: Path, store: Store, *, everything: bool = False, again: bool = False) -> Look:
    return look(root, LAB, SUBJECT, store, KEYS, everything=everything, again=again)


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
    assert seen(tmp_path, store) == Look(dates=(), kept=(), base=None, table=None, unchanged=False, left_out=())
    assert not refresh(tmp_path, store)
    assert objects(store) == dict.fromkeys(objects(store))


def test_a_tree_that_lost_all_sessions_leaves_the_stored_table_alone(root: Path, store: Store, tmp_path: Path) -> None:
    refresh(root, store)
    before = objects(store)
    os.rename(root / LAB / "Subjects" / SUBJECT, tmp_path / "aside")
    (root / LAB / "Subjects" / SUBJECT).mkdir()
    assert not refresh(root, store)
    assert len(seen(root, store).left_out) == 3
    recompute_subject(root, LAB, SUBJECT, store)
    assert objects(store) == before


def test_a_subject_with_no_usable_session_leaves_the_stored_table_alone(root: Path, store: Store) -> None:
    refresh(root, store)
    before = objects(store)
    for path in (root / LAB).rglob("_iblrig_taskSettings.raw.json"):
        path.write_text("broken")
    tables = recompute_subject(root, LAB, SUBJECT, store)
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
    recompute_subject(root, LAB, SUBJECT, empty)
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
    made: Any = recompute_subject(root, LAB, SUBJECT, store)
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
