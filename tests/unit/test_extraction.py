"""Sessions with raw files and no trials: who extracts them, and what is told and done where nobody does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.config import SourceSettings
from core.discover import find_files
from core.errors import ConfigurationError, ExtractionNeeded
from core.join import join_days
from core.load import load_session, raw_of
from core.pipeline import recompute_subject
from core.records import LeftOut
from core.reextract import INSTALL, Extraction, awaits_extraction, can_extract, trials_loader
from core.sources import Source, TreeSource, open_source
from core.status import compute_statuses
from core.storage import Store, open_store
from core.summarise import summarise
from core.synchronise import Look, find_work, look, put_tables
from core.tables import build_tables, read_provenance
from scheduler import extraction
from scheduler.beat import entries
from scheduler.cli.options import schedule_from
from scheduler.runs import once_more
from tests.alyx import Alyx, alyx
from tests.one import opened
from tests.standin import StandIn, take_trials
from tests.trees import KEYS, LAB, SUBJECT, objects, session, statuses
from workers.records import RunSpec

RAW = "raw_task_data_00"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three days; of the second there are raw files alone."""
    root = tmp_path / "tree"
    for date in ("2025-03-01", "2025-03-02", "2025-03-03"):
        session(root, date)
    take_trials(day(root, 2))
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"memory://{tmp_path.name}")


def day(root: Path, of_month: int) -> Path:
    return root / LAB / "Subjects" / SUBJECT / f"2025-03-{of_month:02}" / "001"


def refresh(root: Path, store: Store, how: Extraction) -> Look:
    """Bring the subject's objects up to date as the workers do."""
    source = TreeSource(root).subject(LAB, SUBJECT)
    seen = look(source, store, KEYS, everything=False, extract=how != "off")
    if not seen.unchanged:
        days = join_days(seen.kept, summarise(source.load(find_work(source, seen.dates, seen.held), how)))
        put_tables(store, KEYS, build_tables(LAB, SUBJECT, days, compute_statuses(days, known=seen.settled)), seen.base)
    return seen


# ---- one session


def test_a_session_with_trials_is_not_extracted(root: Path) -> None:
    files = find_files(day(root, 1))
    for how in ("off", "elsewhere", "here"):
        (loaded,), left_out = load_session(files, trials_loader(how))
        assert (loaded.trials is not None, left_out) == (True, [])


def test_without_extraction_the_reason_says_how_to_have_it(root: Path) -> None:
    sessions, (left,) = load_session(find_files(day(root, 2)), trials_loader())
    assert sessions == []
    assert left.reason.startswith("training: no trials found in alf/task_00")
    assert "--extract" in left.reason
    assert "pip install 'training-status[ibl]'" in left.reason
    assert "\n" not in left.reason
    assert awaits_extraction(left)


def test_where_it_is_for_another_process_the_loading_ends(root: Path) -> None:
    with pytest.raises(ExtractionNeeded, match=r"^2025-03-02/001 has raw files and no trials$"):
        TreeSource(root).subject(LAB, SUBJECT).load({"2025-03-02": [day(root, 2)]}, "elsewhere")


@pytest.mark.usefixtures("standin_here")
def test_trials_are_extracted_here(root: Path) -> None:
    (loaded,), left_out = load_session(find_files(day(root, 2)), trials_loader("here"))
    assert left_out == []
    assert loaded.trials is not None
    assert len(loaded.trials) == 12


@pytest.mark.parametrize("how", ["off", "elsewhere", "here"])
def test_without_raw_trials_there_is_nothing_to_extract(root: Path, how: Extraction) -> None:
    (raw,) = day(root, 2).rglob("_iblrig_taskData.raw*.jsonable")
    raw.unlink()
    _, (left,) = load_session(find_files(day(root, 2)), trials_loader(how))
    assert left.reason == "training: no trials found in alf/task_00 (no _ibl_trials.goCueTrigger_times)"
    assert not awaits_extraction(left)


def test_what_was_tried_and_cannot_be_extracted_awaits_nothing() -> None:
    assert not awaits_extraction(LeftOut(session="x", reason="trials cannot be extracted from raw_task_data_00: Error"))
    assert awaits_extraction(LeftOut(session="x", reason=f"extracting trials needs ibllib (no module): {INSTALL}"))


def test_raw_collections_of_trials_collections(root: Path) -> None:
    files = find_files(day(root, 2))
    assert raw_of(files, ["alf"]) == ["raw_behavior_data"]
    assert raw_of(files, ["alf/task_01", "alf/task_00"]) == ["raw_task_data_01", RAW]
    assert raw_of(files, None) == [RAW]


def test_what_extraction_reads_is_in_the_fingerprint_where_there_are_no_trials(root: Path) -> None:
    before = [find_files(day(root, number)).fingerprint for number in (1, 2)]
    for number in (1, 2):
        (day(root, number) / RAW / "_iblrig_encoderEvents.raw.ssv").write_text("1")
    after = [find_files(day(root, number)).fingerprint for number in (1, 2)]
    assert before[0] == after[0]
    assert before[1] != after[1]


# ---- a subject


def test_a_refresh_extracts_what_was_left_out_before_and_then_leaves_it(
    root: Path, store: Store, standin_here: StandIn
) -> None:
    assert set(recomputed(root, store)) == {"2025-03-01/001", "2025-03-03/001"}
    kept = objects(store)
    assert refresh(root, store, "off").unchanged
    assert objects(store) == kept

    assert refresh(root, store, "here").dates == ("2025-03-02",)
    assert set(statuses(store)) == {"2025-03-01/001", "2025-03-02/001", "2025-03-03/001"}
    stored = store.get(KEYS.training)
    assert stored is not None
    assert read_provenance(stored.data, "").left_out == ()
    assert standin_here.begun(SUBJECT) == 1
    assert refresh(root, store, "here").unchanged
    assert refresh(root, store, "off").unchanged  # what was extracted stays


@pytest.mark.usefixtures("standin_here")
def test_what_cannot_be_extracted_is_tried_once(root: Path, store: Store) -> None:
    recomputed(root, store)
    (day(root, 2) / RAW / "kept.pqt").write_text("no table")
    assert refresh(root, store, "here").dates == ("2025-03-02",)
    seen = refresh(root, store, "here")
    assert seen.unchanged
    (left,) = seen.left_out
    assert left.session == "2025-03-02/001"
    assert "trials cannot be extracted from raw_task_data_00" in left.reason


# ---- raw files that ONE has


@pytest.fixture
def server(root: Path, home: Path) -> Iterator[Alyx]:
    with alyx(root) as state:
        yield state


def of_one(source: Source, how: Extraction) -> tuple[list[str], list[LeftOut], dict[str, dict[str, str]]]:
    """Load the subject; return the sessions with trials, what was left out, and the inputs."""
    subject = source.subject(LAB, SUBJECT)
    days = subject.load(subject.sessions()[0], how)
    loaded = [f"{day.date}/{each.number}" for day in days for each in day.sessions if each.trials and each.facts]
    return loaded, [left for day in days for left in day.left_out], {day.date: day.inputs for day in days}


def test_raw_files_of_a_server_come_only_where_they_are_extracted(
    server: Alyx, root: Path, tmp_path: Path, standin_here: StandIn
) -> None:
    loaded, (left,), _ = of_one(opened(server, tmp_path), "off")
    assert loaded == ["2025-03-01/001", "2025-03-03/001"]
    assert awaits_extraction(left)
    with pytest.raises(ExtractionNeeded, match=r"^2025-03-02/001 has raw files and no trials$"):
        of_one(opened(server, tmp_path), "elsewhere")
    assert not any("kept" in request for request in server.requests)

    whole, none, inputs = of_one(opened(server, tmp_path), "here")
    assert (len(whole), none, standin_here.begun(SUBJECT)) == (3, [], 1)
    assert [sorted(numbers) for numbers in inputs.values()] == [["001"]] * 3
    assert sum("collection__in" in request for request in server.requests) == 1
    summarised = [
        summarise(source.subject(LAB, SUBJECT).load(source.subject(LAB, SUBJECT).sessions()[0], "here"))
        for source in (opened(server, tmp_path), TreeSource(root))
    ]
    measures = [[repr(each.measures) for day in days for each in day.sessions] for days in summarised]
    assert measures[0] == measures[1]


@pytest.mark.usefixtures("standin_here")
def test_a_raw_file_that_the_server_does_not_have_is_asked_for_again(server: Alyx, tmp_path: Path) -> None:
    kept = dict(server.files)
    server.forget(next(each for each in server.datasets if each["name"].startswith("kept")))
    loaded, (left,), inputs = of_one(opened(server, tmp_path), "here")
    assert len(loaded) == 2
    assert inputs["2025-03-02"] == {}
    assert left.session == "2025-03-02/001"
    assert left.reason.startswith("001/raw_task_data_00 cannot be read: raw_task_data_00/kept")
    assert "the data server no file" in left.reason
    server.files.update(kept)
    assert len(of_one(opened(server, tmp_path), "here")[0]) == 3


@pytest.mark.usefixtures("standin_here")
def test_raw_files_of_a_local_cache_are_extracted(root: Path) -> None:
    from one.alf.cache import make_parquet_db

    make_parquet_db(root)
    source = open_source(f"one:local:{root}", SourceSettings())
    assert [awaits_extraction(left) for left in of_one(source, "off")[1]] == [True]
    assert len(of_one(source, "here")[0]) == 3


def recomputed(root: Path, store: Store) -> dict[str, str]:
    recompute_subject(TreeSource(root), LAB, SUBJECT, store)
    return statuses(store)


# ---- who extracts


def test_a_folder_of_that_name_is_not_ibllib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "ibllib"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "ibllib").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not can_extract()
    (tmp_path / "other").mkdir()
    StandIn(tmp_path / "other" / "standin")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other" / "standin")])
    assert can_extract()


def test_a_run_extracts_by_default_where_ibllib_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "can_extract", lambda: True)
    assert [extraction.extracts_here(asked) for asked in (None, True, False)] == [True, True, False]
    monkeypatch.setattr(extraction, "can_extract", lambda: False)
    assert [extraction.extracts_here(asked) for asked in (None, False)] == [False, False]
    with pytest.raises(ConfigurationError, match=r"not installed here: pip install 'training-status\[ibl\]'$"):
        extraction.extracts_here(True)


def test_scheduled_runs_and_runs_that_try_again_extract_as_they_were_asked_to() -> None:
    made = schedule_from("0 2 * * *", "never", "UTC")
    for asked in (True, False):
        (entry,) = entries(made, source="/data", store="tables", extract=asked).values()
        spec = RunSpec.parse(entry["args"][0])
        assert spec.extract is asked
        assert once_more(spec, only=("lab/subject",)).extract is asked
