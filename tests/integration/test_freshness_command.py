"""`status` and `status --check`: how fresh a store is, and the exit code that a monitoring system sees."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.freshness import LABS_KEY, Look, note_looks, read_labs
from core.storage import Store, open_store, update
from core.tables import COHORT_KEY, merge_cohort
from scheduler.cli.main import run

WEEK = timedelta(days=7)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """What says how fresh a store is, after a recompute of two labs just now."""
    (tmp_path / "copy").mkdir()
    copy = open_store(str(tmp_path / "copy"))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    look = Look(run_id="r1", started=now, ended=now, subjects=2, failed=1)
    update(copy, LABS_KEY, lambda _: note_looks(None, "recompute", dict.fromkeys(("simlab01", "simlab02"), look)))
    rows = [
        {"lab": lab, "subject": f"{lab}_m1", "status": "in training", "date": "2026-11-02"}
        | {"latest": True, "sessions": 1, "days": 1}
        for lab in ("simlab01", "simlab02")
    ]
    update(copy, COHORT_KEY, lambda _: merge_cohort(None, rows))
    return copy


def age(store: Store, lab: str, by: timedelta) -> None:
    """Make the latest recompute of a lab older."""

    def older(data: bytes | None) -> bytes | None:
        labs = read_labs(data)
        look = labs.pop(lab).recompute
        assert look is not None
        ended = datetime.fromisoformat(look.ended) - by
        others = {name: known.recompute for name, known in labs.items() if known.recompute}
        return note_looks(None, "recompute", {**others, lab: replace(look, ended=ended.isoformat())})

    update(store, LABS_KEY, older)


def test_a_store_that_is_fresh_passes(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--store", store.uri, "--check"]) == 0
    shown = capsys.readouterr().out
    assert "late" not in shown
    assert shown.count(" UTC") == 4  # last refresh and last recompute of two labs
    assert "simlab01_m1" not in shown


def test_a_lab_that_is_late_is_told_and_fails_the_check(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    age(store, "simlab02", WEEK)
    assert run(["status", "--store", store.uri, "--check"]) == 1
    shown = capsys.readouterr().out
    (told,) = [line for line in shown.splitlines() if line.startswith("late: ")]
    assert told.startswith("late: simlab02: refresh of all labs at '0 2 * * *': no run has ended since ")
    assert run(["status", "--store", store.uri, "--check", "--lab", "simlab01"]) == 0
    assert run(["status", "--store", store.uri, "--check", "--refresh-at", "simlab01=0 2 * * *"]) == 0
    assert run(["status", "--store", store.uri, "--check", "--grace", "300"]) == 0
    assert run(["status", "--store", store.uri, "--check", "--refresh-at", "0 2 1 1 *"]) == 0


def test_the_check_as_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    age(store, "simlab02", WEEK)
    given = ["--refresh-at", "0 2 * * *; newlab=0 3 * * *", "--timezone", "America/New_York"]
    assert run(["status", "--store", store.uri, "--check", "--json", *given]) == 1
    told = {lab["lab"]: lab for lab in json.loads(capsys.readouterr().out)}
    assert [*told] == ["newlab", "simlab01", "simlab02"]
    assert told["newlab"]["last_refresh"] is None
    assert [late["due"] for late in told["newlab"]["late"]] == [None, None]
    assert told["simlab01"]["late"] == []
    assert told["simlab01"]["last_refresh"] == told["simlab01"]["last_recompute"]
    (late,) = told["simlab02"]["late"]
    assert datetime.now(UTC) - datetime.fromisoformat(late["due"]) < timedelta(days=2)
    assert datetime.fromisoformat(late["due"]).minute == 0


def test_a_lab_of_the_schedule_that_was_never_refreshed_fails_and_one_of_no_schedule_does_not(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--store", store.uri, "--check", "--refresh-at", "newlab=0 2 * * *"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("late: ")]
    assert lines == ["late: newlab: refresh of newlab at '0 2 * * *': no run that does it has ended yet"]
    assert run(["status", "--store", store.uri, "--check", "--refresh-at", "simlab01=0 2 * * *"]) == 0
    assert "simlab02" in capsys.readouterr().out


def test_status_shows_when_labs_were_refreshed_and_judges_only_by_a_schedule_that_is_given(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    age(store, "simlab02", WEEK)
    assert run(["status", "--store", store.uri]) == 0
    shown = capsys.readouterr().out
    assert "simlab01_m1" in shown
    assert "last refresh" in shown
    assert "late: " not in shown
    assert run(["status", "--store", store.uri, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["lab"] for row in rows if row["last_refresh"]} == {"simlab01", "simlab02"}
    assert {row["subject"] for row in rows} == {"simlab01_m1", "simlab02_m1"}
    monkeypatch.setenv("TRAINING_STATUS_REFRESH_AT", "0 2 * * *")
    assert run(["status", "--store", store.uri]) == 0
    assert "late: simlab02: " in capsys.readouterr().out


def test_a_store_from_before_labs_were_noted_is_shown_and_is_late(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "copy" / LABS_KEY).unlink()
    assert run(["status", "--store", store.uri]) == 0
    assert "never" in capsys.readouterr().out
    assert run(["status", "--store", store.uri, "--check"]) == 1
    (tmp_path / "empty").mkdir()
    assert run(["status", "--store", str(tmp_path / "empty"), "--check"]) == 2
    assert "no lab was refreshed yet" in capsys.readouterr().err
    assert run(["status", "--store", str(tmp_path / "empty"), "--check", "--refresh-at", "a=0 2 * * *"]) == 1


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--refresh-at", "0 2 * *"], "--refresh-at (TRAINING_STATUS_REFRESH_AT)"),
        (["--recompute-at", "0 4 * * 9"], "--recompute-at (TRAINING_STATUS_RECOMPUTE_AT)"),
        (["--timezone", "Nowhere"], "--timezone (TRAINING_STATUS_TIMEZONE)"),
        (["--check", "--refresh-at", "never"], "--check needs a schedule"),
        (["--grace", "-1"], "--grace"),
    ],
)
def test_a_schedule_that_is_wrong_is_refused(
    store: Store, capsys: pytest.CaptureFixture[str], given: list[str], named: str
) -> None:
    assert run(["status", "--store", store.uri, *given]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert len(said.splitlines()) == 1
