"""Labs, subjects, sessions and their files, as they lie in a session tree."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from core.discover import (
    absent_subjects,
    changed_last,
    check_root,
    find_files,
    find_labs,
    find_sessions,
    find_subjects,
    fingerprint_kind,
    subjects_folder,
)
from core.errors import ConfigurationError, InvalidName
from core.records import Fingerprint, LeftOut
from tests.trees import LAB, SUBJECT, session

KINDS: Final[tuple[Fingerprint, ...]] = ("stat", "content")
UUID = "01234567-89ab-4cde-8f01-23456789abcd"


def folders(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).mkdir(parents=True)


def files(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")


# --- labs and subjects ------------------------------------------------------------------------------------


def test_labs_are_sorted_and_other_folders_are_passed_over(tmp_path: Path) -> None:
    folders(tmp_path, "zlab/Subjects", "alab/Subjects", "no_lab/data", ".hidden/Subjects")
    assert find_labs(tmp_path) == (["alab", "zlab"], [])
    assert find_labs(tmp_path, ["zlab"]) == (["zlab"], [])


def test_a_lab_with_an_odd_name_is_told(tmp_path: Path) -> None:
    folders(tmp_path, "alab/Subjects", "a lab/Subjects")
    labs, (odd,) = find_labs(tmp_path)
    assert labs == ["alab"]
    assert odd.session == "a lab"
    assert "cannot be the name of a lab" in odd.reason


def test_a_lab_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    folders(tmp_path, "alab/Subjects", "zlab/Subjects")
    with pytest.raises(ConfigurationError, match=r"no lab 'blab' in .*: it has alab, zlab"):
        find_labs(tmp_path, ["blab"])


def test_a_folder_that_is_no_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is it a session tree"):
        find_labs(tmp_path)
    with pytest.raises(ConfigurationError, match="is not a folder"):
        check_root(tmp_path / "absent")


def test_a_servers_own_tree_needs_the_lab_named_and_never_guesses(tmp_path: Path) -> None:
    folders(tmp_path, "Subjects/S1/2020-01-01/001")
    with pytest.raises(ConfigurationError, match="names no lab: name it with one --lab"):
        find_labs(tmp_path)
    with pytest.raises(ConfigurationError, match="names no lab"):
        find_labs(tmp_path, ["a", "b"])
    assert find_labs(tmp_path, ["alab"]) == (["alab"], [])
    assert subjects_folder(tmp_path, "alab") == tmp_path / "Subjects"
    assert find_subjects(tmp_path, "alab") == (["S1"], [])
    days, _ = find_sessions(tmp_path, "alab", "S1")
    assert days == {"2020-01-01": [tmp_path / "Subjects/S1/2020-01-01/001"]}


def test_subjects_are_sorted_filtered_and_checked(tmp_path: Path) -> None:
    folders(tmp_path, *(f"alab/Subjects/{name}" for name in ("S2", "S1", "S\x07", "КS014")))
    files(tmp_path, "alab/Subjects/file")
    subjects, odd = find_subjects(tmp_path, "alab")
    assert subjects == ["S1", "S2"]
    assert [left.session for left in odd] == [r"alab/S\x07", r"alab/\u041aS014"]
    assert find_subjects(tmp_path, "alab", ["S2"]) == (["S2"], [])


def test_no_name_leads_out_of_the_tree(tmp_path: Path) -> None:
    folders(tmp_path, "tree/alab/Subjects/S1", "secret/Subjects/S1/2020-01-01/001")
    for lab, subject in (("../secret", "S1"), ("alab", "../../../secret/Subjects/S1"), ("alab", "..")):
        with pytest.raises(InvalidName):
            find_sessions(tmp_path / "tree", lab, subject)


def test_a_lab_that_went_away_has_no_subjects_and_is_told(tmp_path: Path) -> None:
    assert find_subjects(tmp_path, "alab") == (
        [],
        [LeftOut(session="alab", reason="folder left out: it cannot be listed: No such file or directory")],
    )


# --- dated sessions ---------------------------------------------------------------------------------------


def test_sessions_by_date_and_number_and_the_odd_ones_told(tmp_path: Path) -> None:
    subject = "alab/Subjects/S1"
    names = ["2020-01-02/002", "2020-01-02/001", "2020-01-01/001", "2020-01-03", "2020-01-02/1", "2020-01-02/001_bad"]
    folders(tmp_path, *(f"{subject}/{name}" for name in [*names, "2020-13-45/001", "notes"]))
    files(tmp_path, f"{subject}/2020-01-01/002")  # a file, no session
    days, odd = find_sessions(tmp_path, "alab", "S1")
    folder = tmp_path / subject
    assert days == {
        "2020-01-01": [folder / "2020-01-01/001"],
        "2020-01-02": [folder / "2020-01-02/001", folder / "2020-01-02/002"],
    }
    assert list(days) == ["2020-01-01", "2020-01-02"]
    assert {left.session: left.reason.partition(" is not ")[2] for left in odd} == {
        "2020-01-02/001_bad": "a session number: three digits are wanted, as in 001",
        "2020-01-02/1": "a session number: three digits are wanted, as in 001",
        "2020-13-45": "a date: write it as yyyy-mm-dd",
        "notes": "a date: write it as yyyy-mm-dd",
    }


def test_only_the_dates_asked_for_are_looked_at(tmp_path: Path) -> None:
    folders(tmp_path, "alab/Subjects/S1/2020-01-01/001", "alab/Subjects/S1/2020-01-02/001")
    days, odd = find_sessions(tmp_path, "alab", "S1", ["2020-01-02"])
    assert list(days) == ["2020-01-02"]
    assert odd == []


def test_a_date_that_went_away_or_is_a_file_is_left_out_and_the_others_are_found(tmp_path: Path) -> None:
    folders(tmp_path, "alab/Subjects/S1/2020-01-02/001")
    files(tmp_path, "alab/Subjects/S1/2020-01-03")
    days, odd = find_sessions(tmp_path, "alab", "S1", ["2020-01-01", "2020-01-02", "2020-01-03"])
    assert list(days) == ["2020-01-02"]
    assert [(left.session, left.reason) for left in odd] == [
        ("2020-01-01", "folder left out: it cannot be listed: No such file or directory"),
        ("2020-01-03", "folder left out: it cannot be listed: Not a directory"),
    ]


def test_a_link_that_leads_back_to_itself_is_no_folder(tmp_path: Path) -> None:
    folders(tmp_path, "alab/Subjects/S1/2020-01-02/001")
    (tmp_path / "alab/Subjects/S1/2020-01-03").symlink_to("2020-01-03")
    days, odd = find_sessions(tmp_path, "alab", "S1")
    assert (list(days), odd) == (["2020-01-02"], [])


# --- the files of a session -------------------------------------------------------------------------------


def test_files_of_a_session_of_iblrig_8(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", 3, layout="npy")
    found = find_files(folder)
    assert (found.path, found.date, found.number, found.name) == (folder, "2020-01-02", "003", "2020-01-02/003")
    assert found.description == folder / "_ibl_experiment.description.yaml"
    assert found.settings == {"raw_task_data_00": folder / "raw_task_data_00/_iblrig_taskSettings.raw.json"}
    assert found.task_data == {"raw_task_data_00": folder / "raw_task_data_00/_iblrig_taskData.raw.jsonable"}
    assert found.trials["alf/task_00"]["choice"] == folder / "alf/task_00/_ibl_trials.choice.npy"
    assert set(found.trials["alf/task_00"]) == {
        "choice",
        "contrastLeft",
        "contrastRight",
        "feedbackType",
        "probabilityLeft",
        "response_times",
        "stimOn_times",
        "goCueTrigger_times",
    }


def test_files_of_a_session_of_iblrig_6_with_a_table(tmp_path: Path) -> None:
    found = find_files(session(tmp_path, "2020-01-02", rig="v7"))
    assert found.description is None
    assert list(found.settings) == ["raw_behavior_data"]
    assert {name: sorted(of) for name, of in found.trials.items()} == {"alf": ["goCueTrigger_times", "table"]}


@pytest.mark.parametrize(("layout", "one"), [("table", "table"), ("npy", "choice")])
def test_names_with_a_uuid(tmp_path: Path, layout: Any, one: str) -> None:
    found = find_files(session(tmp_path, "2020-01-02", layout=layout, uuid_names=True))
    path = found.trials["alf/task_00"][one]
    assert path.name.count("-") == 4
    assert path.name.startswith(f"_ibl_trials.{one}.")
    assert list(found.settings) == list(found.task_data) == ["raw_task_data_00"]


def test_of_several_revisions_the_last_by_name_counts(tmp_path: Path) -> None:
    name = "_ibl_trials.choice.npy"
    files(tmp_path, *(f"alf/{where}{name}" for where in ("", "#2025-03-10#/", "#2025-03-03#/", "#2025-03-09#/")))
    files(tmp_path, "alf/_ibl_trials.stimOn_times.npy", "alf/#2025-03-03#/_ibl_trials.stimOn_times.npy")
    found = find_files(tmp_path).trials
    assert found == {
        "alf": {
            "choice": tmp_path / "alf/#2025-03-10#" / name,
            "stimOn_times": tmp_path / "alf/#2025-03-03#/_ibl_trials.stimOn_times.npy",
        }
    }


def test_a_revision_in_one_collection_leaves_the_others_alone(tmp_path: Path) -> None:
    name = "_ibl_trials.table.pqt"
    files(tmp_path, f"alf/task_00/{name}", f"alf/task_01/{name}", f"alf/task_00/#2025-03-03#/{name}")
    assert find_files(tmp_path).trials == {
        "alf/task_00": {"table": tmp_path / "alf/task_00/#2025-03-03#" / name},
        "alf/task_01": {"table": tmp_path / "alf/task_01" / name},
    }


def test_only_what_bears_on_the_result_is_taken(tmp_path: Path) -> None:
    files(
        tmp_path,
        "alf/_ibl_trials.choice.npy",
        f"alf/_ibl_trials.table.{UUID}.pqt",
        "alf/_ibl_trials.laserProbability.pqt",  # another Parquet file is not the trials table
        "alf/_ibl_trials.table.npy",
        "alf/_ibl_trials.rewardVolume.npy",
        "alf/_ibl_trials.choice.notauuid.npy",
        "alf/_ibl_wheel.position.npy",
        "alf/probe00/spikes.times.npy",
        "raw_video_data/_iblrig_leftCamera.raw.mp4",
        "raw_behavior_data/_iblrig_taskSettings.raw.txt",
        "raw_behavior_data/.hidden_iblrig_taskSettings.raw.json",
    )
    found = find_files(tmp_path)
    assert found.trials == {
        "alf": {
            "choice": tmp_path / "alf/_ibl_trials.choice.npy",
            "table": tmp_path / f"alf/_ibl_trials.table.{UUID}.pqt",
        }
    }
    assert (found.settings, found.task_data, found.description) == ({}, {}, None)


def test_a_dangling_link_of_a_file_that_is_not_used_does_no_harm(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02")
    before = find_files(folder)
    (folder / "alf/task_00/_ibl_trials.wheelMoves_peakAmplitude.npy").symlink_to("not_fetched")
    assert find_files(folder) == before


def test_the_fingerprint_follows_the_files_and_not_their_place(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02")
    before = find_files(folder).fingerprint
    assert find_files(folder).fingerprint == before
    (folder / "raw_video_data").mkdir()
    (folder / "raw_video_data/_iblrig_leftCamera.raw.mp4").write_bytes(b"frames")
    assert find_files(folder).fingerprint == before, "a video does not bear on the result"
    os.rename(folder, tmp_path / "elsewhere")
    assert find_files(tmp_path / "elsewhere").fingerprint == before


@pytest.mark.parametrize("what", ["touched", "longer", "new", "gone"])
def test_any_change_of_a_file_changes_the_fingerprint(tmp_path: Path, what: str) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    before = find_files(folder).fingerprint
    path = folder / "alf/task_00/_ibl_trials.choice.npy"
    stat = path.stat()
    if what == "touched":
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif what == "longer":
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif what == "new":
        (folder / "alf/task_00/_ibl_trials.table.pqt").write_bytes(b"x")
    else:
        path.unlink()
    assert find_files(folder).fingerprint != before


def test_by_content_times_do_not_matter_and_what_is_in_a_file_does(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    path = folder / "alf/task_00/_ibl_trials.choice.npy"
    stat, data = path.stat(), path.read_bytes()
    before = {by: find_files(folder, by).fingerprint for by in KINDS}
    assert [fingerprint_kind(before[by]) for by in KINDS] == list(KINDS)

    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert find_files(folder, "content").fingerprint == before["content"]
    assert find_files(folder, "stat").fingerprint != before["stat"]

    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # rewritten in place, with the same size and time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert find_files(folder, "stat").fingerprint == before["stat"]
    assert find_files(folder, "content").fingerprint != before["content"]


def test_by_content_names_matter_and_files_that_are_not_used_do_not(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    before = find_files(folder, "content").fingerprint
    (folder / "alf/task_00/_ibl_trials.wheelMoves_peakAmplitude.npy").symlink_to("not_fetched")
    assert find_files(folder, "content").fingerprint == before
    copied = tmp_path / "copied without times"
    shutil.copytree(folder, copied, copy_function=shutil.copyfile, symlinks=True)
    assert find_files(copied, "content").fingerprint == before
    attributes = copied / "alf/task_00"
    os.rename(attributes / "_ibl_trials.choice.npy", attributes / "_ibl_trials.choice.0.npy")
    assert find_files(copied, "content").fingerprint != before


def test_by_content_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    before = find_files(folder, "content").fingerprint
    path = folder / "alf/task_00/_ibl_trials.choice.npy"
    path.unlink()
    os.mkfifo(path)
    assert find_files(folder, "content").fingerprint != before


def test_subjects_that_are_no_longer_in_the_tree_are_told_where_their_lab_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path, "alab/Subjects/M1", "blab/Subjects/M1")
    known = [("alab", "M1"), ("alab", "M2"), ("blab", "M9"), ("clab", "M1")]
    assert absent_subjects(tmp_path, [], known) == [("alab", "M2"), ("blab", "M9")]
    assert absent_subjects(tmp_path, ["alab"], known) == [("alab", "M2")]
    assert absent_subjects(tmp_path, ["clab"], known) == []
    assert absent_subjects(tmp_path / "nowhere", [], known) == []
    scan = os.scandir

    def closed(path: Any) -> Any:
        if Path(path) == tmp_path / "blab/Subjects":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert absent_subjects(tmp_path, [], known) == [("alab", "M2")], "a lab that cannot be listed tells nothing"


def test_a_subject_without_sessions_has_none(tmp_path: Path) -> None:
    folders(tmp_path, f"{LAB}/Subjects/{SUBJECT}")
    assert find_sessions(tmp_path, LAB, SUBJECT) == ({}, [])


def test_subjects_whose_folders_changed_last_come_first(tmp_path: Path) -> None:
    for at, path in enumerate(("a/Subjects/m1", "a/Subjects/m2", "b/Subjects/m3", "b/Subjects/m4")):
        for date in ("2020-01-01", "2020-01-02"):
            folders(tmp_path, f"{path}/{date}/001")
            os.utime(tmp_path / path / date, (100, 100))
        os.utime(tmp_path / path, (1000 - at, 1000 - at))
    assert changed_last(tmp_path, (), (), 2) == [("a", "m1"), ("a", "m2")]
    os.utime(tmp_path / "b/Subjects/m4", (2000, 2000))  # a new date
    os.utime(tmp_path / "b/Subjects/m3/2020-01-02", (3000, 3000))  # another session on the last one
    os.utime(tmp_path / "a/Subjects/m2/2020-01-01", (4000, 4000))  # one on another date is not looked for
    assert changed_last(tmp_path, (), (), 3) == [("b", "m3"), ("b", "m4"), ("a", "m1")]
    assert changed_last(tmp_path, ("a",), (), 3) == [("a", "m1"), ("a", "m2")]
    assert changed_last(tmp_path, (), ("m2", "m4"), 3) == [("b", "m4"), ("a", "m2")]
    folders(tmp_path, "b/Subjects/empty")
    assert ("b", "empty") in changed_last(tmp_path, (), (), 9)
