"""What is sent: pieces of days, and subjects in their order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import LeftOut
from core.sources import TreeSource
from scheduler.plan import cut, subjects_after
from workers.records import RunSpec, Subject

DATES = [f"2020-{month:02}-{day:02}" for month in range(1, 13) for day in range(1, 29)]


def spec(root: Path, **options: tuple[str, ...]) -> RunSpec:
    return RunSpec(run_id="r", kind="recompute", source=str(root), store="memory://s", **options)


def after(asked: RunSpec, cursor: str) -> Iterator[Subject | LeftOut]:
    return subjects_after(TreeSource(Path(asked.source)), asked, cursor)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("b/Subjects/m2", "b/Subjects/m10", "a/Subjects/m1", "a/Subjects/m 3", "c/other/m1"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@given(st.integers(0, len(DATES)), st.integers(1, 60))
def test_pieces_are_all_days_once_in_order_and_of_nearly_one_length(count: int, size: int) -> None:
    pieces = cut(DATES[:count], size)
    assert [date for piece in pieces for date in piece] == DATES[:count]
    lengths = [len(piece) for piece in pieces]
    assert all(0 < length <= size for length in lengths)
    assert not lengths or max(lengths) - min(lengths) <= 1
    assert len(pieces) == -(-count // size)


def test_subjects_come_by_lab_and_name_and_odd_folders_are_told_once(root: Path) -> None:
    found = list(after(spec(root), ""))
    assert [str(item) for item in found if isinstance(item, Subject)] == ["a/m1", "b/m10", "b/m2"]
    assert [item.session for item in found if isinstance(item, LeftOut)] == ["a/m 3"]
    rest = list(after(spec(root), "a/m1"))
    assert [str(item) for item in rest] == ["b/m10", "b/m2"]
    assert [str(item) for item in after(spec(root), "b/m10")] == ["b/m2"]
    assert list(after(spec(root), "b/m2")) == []


def test_only_what_was_asked_for(root: Path) -> None:
    assert [str(item) for item in after(spec(root, labs=("b",)), "")] == ["b/m10", "b/m2"]
    assert [str(item) for item in after(spec(root, subjects=("m2",)), "")] == ["b/m2"]
    assert [str(item) for item in after(spec(root, only=("b/m2", "a/m1")), "")] == ["a/m1", "b/m2"]
    assert [str(item) for item in after(spec(root, only=("b/m2", "a/m1")), "a/m1")] == ["b/m2"]
