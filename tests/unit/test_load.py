"""Loading a session: its protocol and collections, its trials, and its duration, delay and location."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from core.discover import find_files
from core.errors import SessionUnusable, TrialsNotFound
from core.load import load_session, load_trials, protocol_of, raw_collections, session_facts, trials_collections
from core.records import Facts, Session
from core.schema import TRIALS_ATTRIBUTES
from core.simulation.formats import STALE_SHIFT, write_description
from tests.trees import CLUMSY, clumsy, cut, edit_settings, session, trials

SIX_HOURS = 6 * 3600


def load(folder: Path) -> list[Session]:
    """Load a session of which nothing should be left out."""
    sessions, left_out = load_session(find_files(folder))
    assert left_out == []
    return sessions


def facts(folder: Path, *collections: str) -> Facts:
    """The facts over some raw collections, with the settings that are on disk."""
    found = find_files(folder)
    tasks = [(name, json.loads(found.settings[name].read_text())) for name in collections or ("raw_task_data_00",)]
    return session_facts(found, tasks)


def raw_lines(folder: Path, ends: list[float], *, padding: int = 0, collection: str = "raw_task_data_00") -> None:
    """Write raw trials that end at `ends` (s after the Bpod's start, which is at 2 s); `padding` more bytes a line."""
    lines = [
        {"behavior_data": {"Bpod start timestamp": 2.0, "Trial end timestamp": 2.0 + end}, "filler": "x" * padding}
        for end in ends
    ]
    path = folder / collection / "_iblrig_taskData.raw.jsonable"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# --- protocols --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("_iblrig_tasks_ephysChoiceWorld6.4.2", "ephys"),
        ("samuel_ephysChoiceWorld", "ephys"),
        ("_iblrig_tasks_biasedChoiceWorld3.7.0", "biased"),
        ("_iblrig_tasks_imagingChoiceWorld", "biased"),
        ("_iblrig_tasks_habituationChoiceWorld", "habituation"),
        ("_iblrig_tasks_trainingChoiceWorld6.4.2", "training"),
        ("_iblrig_tasks_trainingPhaseChoiceWorld", "training"),
        ("_iblrig_tasks_advancedChoiceWorld", "training"),
        ("_iblrig_tasks_neuromodulatorChoiceWorld", "training"),
        ("_trainingChoiceWorld_then_ephysChoiceWorld", "ephys"),  # the first of the list, not of the name
        ("_habituationChoiceWorld_biasedChoiceWorld", "biased"),
    ],
)
def test_the_protocol_is_the_first_that_the_name_contains(name: str, protocol: str) -> None:
    assert protocol_of({"PYBPOD_PROTOCOL": name}) == protocol


@pytest.mark.parametrize(
    "name", ["_iblrig_tasks_passiveChoiceWorld", "biasedChoiceWorld", "_iblrig_tasks_TrainingChoiceWorld", "x" * 500]
)
def test_an_unknown_protocol_is_told(name: str) -> None:
    with pytest.raises(SessionUnusable, match="unknown protocol '") as refused:
        protocol_of({"PYBPOD_PROTOCOL": name})
    assert len(str(refused.value)) < 120


@pytest.mark.parametrize("settings", [{}, {"PYBPOD_PROTOCOL": ""}, {"PYBPOD_PROTOCOL": 3}, {"PYBPOD_PROTOCOL": None}])
def test_settings_without_a_protocol(settings: dict[str, Any]) -> None:
    with pytest.raises(SessionUnusable, match="name no protocol"):
        protocol_of(settings)


# --- collections ------------------------------------------------------------------------------------------


def test_collections_of_a_description_in_its_order_with_passive_ones_left_out(tmp_path: Path) -> None:
    write_description(
        tmp_path,
        [
            {"_iblrig_tasks_biasedChoiceWorld": {"collection": "raw_task_data_05"}},
            {"passiveChoiceWorld_something": {"collection": "raw_task_data_01"}},
            {"_iblrig_tasks_trainingChoiceWorld": {"collection": "raw_passive_data"}},
            {"spontaneous": {"collection": "raw_task_data_02"}},
            {"_iblrig_tasks_trainingChoiceWorld": {"collection": "raw_task_data_03"}},
        ],
    )
    assert raw_collections(find_files(tmp_path)) == ["raw_task_data_05", "raw_task_data_03"]


def test_a_collection_that_a_description_does_not_name_follows_from_the_tasks_position(tmp_path: Path) -> None:
    (tmp_path / "_ibl_experiment.description.yaml").write_text(
        "tasks:\n"
        "  - passiveChoiceWorld: {collection: raw_passive_data}\n"
        "  - trainingChoiceWorld: {sync_label: bpod}\n"
        "  - biasedChoiceWorld:\n"
        "  - ephysChoiceWorld: {collection: null}\n"
    )
    assert raw_collections(find_files(tmp_path)) == ["raw_task_data_01", "raw_task_data_02", "raw_task_data_03"]


def test_a_long_description_is_read_as_well(tmp_path: Path) -> None:
    write_description(tmp_path, [{"_iblrig_tasks_trainingChoiceWorld": {"collection": "raw_task_data_07"}}])
    path = tmp_path / "_ibl_experiment.description.yaml"
    path.write_text(path.read_text() + "# " + "x" * 20_000)
    assert raw_collections(find_files(tmp_path)) == ["raw_task_data_07"]


def test_without_a_description_every_folder_with_settings_counts_but_the_passive_one(tmp_path: Path) -> None:
    for name in ("raw_task_data_01", "raw_behavior_data", "raw_passive_data", "raw_video_data"):
        (tmp_path / name).mkdir()
        if "video" not in name:
            (tmp_path / name / "_iblrig_taskSettings.raw.json").write_text("{}")
    assert raw_collections(find_files(tmp_path)) == ["raw_behavior_data", "raw_task_data_01"]


@pytest.mark.parametrize(
    ("raw", "alf"),
    [
        (["raw_behavior_data"], ["alf"]),
        (["raw_task_data_00"], ["alf/task_00"]),
        (["raw_task_data_02", "raw_task_data_00"], ["alf/task_02", "alf/task_00"]),
        (["raw_task_data_100"], ["alf/task_100"]),
        (["raw_something_else"], None),
        (["raw_behavior_data", "raw_task_data_00"], None),
    ],
)
def test_where_the_trials_of_raw_collections_lie(raw: list[str], alf: list[str] | None) -> None:
    assert trials_collections(raw) == alf


def test_where_the_names_do_not_tell_every_collection_with_trials_counts(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", tasks=[("training", clumsy()), ("training", clumsy())])
    (folder / "alf/task_02").mkdir()  # without trials
    assert len(load_trials(find_files(folder))) == 24


# --- trials -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rig", ["v7", "v8"])
@pytest.mark.parametrize("layout", ["table", "npy"])
@pytest.mark.parametrize("uuid_names", [False, True])
def test_both_layouts_give_the_same_trials(tmp_path: Path, rig: Any, layout: Any, uuid_names: bool) -> None:
    (loaded,) = load(session(tmp_path, "2020-01-02", rig=rig, layout=layout, uuid_names=uuid_names))
    assert loaded.protocol == "training"
    assert loaded.number == "001"
    assert loaded.trials is not None
    for name, values in clumsy().items():
        array = getattr(loaded.trials, name)
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, values, err_msg=name)


@pytest.mark.parametrize("layout", ["table", "npy"])
def test_revisions_are_not_added_together_and_the_last_counts(tmp_path: Path, layout: Any) -> None:
    revisions = ("2025-03-03", "2025-03-10")
    (loaded,) = load(session(tmp_path, "2020-01-02", layout=layout, revisions=revisions))
    assert loaded.trials is not None
    np.testing.assert_array_equal(loaded.trials.stimOn_times, clumsy()["stimOn_times"])
    assert len(loaded.trials) == 12


def test_the_table_counts_where_an_array_lies_beside_it(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", leftover_npy=True)
    (loaded,) = load(folder)
    assert loaded.trials is not None
    np.testing.assert_array_equal(loaded.trials.stimOn_times, clumsy()["stimOn_times"])
    beside = np.load(folder / "alf/task_00/_ibl_trials.stimOn_times.npy")
    np.testing.assert_allclose(beside, clumsy()["stimOn_times"] - STALE_SHIFT)


def test_an_array_fills_in_what_the_table_lacks(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02")
    path = folder / "alf/task_00/_ibl_trials.table.pqt"
    pq.write_table(pq.read_table(path).drop_columns(["choice"]), path)
    np.save(folder / "alf/task_00/_ibl_trials.choice.npy", clumsy()["choice"])
    (loaded,) = load(folder)
    assert loaded.trials is not None
    np.testing.assert_array_equal(loaded.trials.choice, clumsy()["choice"])


def test_a_column_of_an_array_is_taken_as_the_array(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    path = folder / "alf/task_00/_ibl_trials.choice.npy"
    np.save(path, np.load(path)[:, np.newaxis])
    (loaded,) = load(folder)
    assert loaded.trials is not None
    np.testing.assert_array_equal(loaded.trials.choice, clumsy()["choice"])


@pytest.mark.parametrize("kind", ["<i8", ">f8", "<f2", "|i1"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_an_array_of_any_format_and_type_is_read(tmp_path: Path, version: tuple[int, int], kind: str) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    path = folder / "alf/task_00/_ibl_trials.choice.npy"
    with path.open("wb") as file, warnings.catch_warnings(action="ignore"):  # NumPy warns of all but the oldest format
        np.lib.format.write_array(file, clumsy()["choice"].astype(kind), version=version)
    read = load_trials(find_files(folder))
    assert np.array_equal(read.choice, clumsy()["choice"])
    assert read.choice.flags.writeable


def test_an_array_laid_out_by_columns_is_read(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    path = folder / "alf/task_00/_ibl_trials.choice.npy"
    np.save(path, clumsy()["choice"][:, None])
    path.write_bytes(path.read_bytes().replace(b"'fortran_order': False", b"'fortran_order': True "))
    assert np.array_equal(load_trials(find_files(folder)).choice, clumsy()["choice"])


@pytest.mark.parametrize("length", [b"(-1,)", b"(13,)", b"(1e,)"])
def test_an_array_that_is_not_as_long_as_it_says_is_told(tmp_path: Path, length: bytes) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    path = folder / "alf/task_00/_ibl_trials.choice.npy"
    content = path.read_bytes()
    assert b"(12,)" in content
    path.write_bytes(content.replace(b"(12,)", length))
    with pytest.raises(SessionUnusable, match="cannot be read"):
        load_trials(find_files(folder))


def test_an_array_of_objects_is_not_unpacked(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    np.save(folder / "alf/task_00/_ibl_trials.choice.npy", clumsy()["choice"].astype(object))
    with pytest.raises(SessionUnusable, match="cannot be read: Object arrays"):
        load_trials(find_files(folder))


def test_single_precision_still_tells_the_blocks(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy", trials=trials(CLUMSY, block=0.2))
    path = folder / "alf/task_00/_ibl_trials.probabilityLeft.npy"
    np.save(path, np.load(path).astype(np.float32))
    (loaded,) = load(folder)
    assert loaded.trials is not None
    assert np.all(loaded.trials.probabilityLeft == 0.2)


def test_an_infinite_time_is_no_time(tmp_path: Path) -> None:
    given = clumsy()
    given["response_times"][[0, 1]] = np.inf, -np.inf
    (loaded,) = load(session(tmp_path, "2020-01-02", trials=given))
    assert loaded.trials is not None
    assert np.isnan(loaded.trials.response_times[:2]).all()
    np.testing.assert_array_equal(loaded.trials.response_times[2:], clumsy()["response_times"][2:])


def test_trials_of_several_collections_are_put_together_in_order(tmp_path: Path) -> None:
    left, right = trials([(-100.0, 3, 0)]), trials([(100.0, 2, 2)])
    (loaded,) = load(session(tmp_path, "2020-01-02", tasks=[("training", left), ("training", right)]))
    assert loaded.trials is not None
    np.testing.assert_array_equal(loaded.trials.choice, [1, 1, 1, -1, -1])


def test_a_collection_has_trials_where_it_has_the_go_cues(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02")
    (folder / "alf/task_00/_ibl_trials.goCueTrigger_times.npy").unlink()
    with pytest.raises(TrialsNotFound, match="no trials found in alf/task_00"):
        load_trials(find_files(folder), ["alf/task_00"])
    with pytest.raises(TrialsNotFound, match="no trials found"):
        load_trials(find_files(folder))


def test_trials_without_probability_left_are_not_found(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    (folder / "alf/task_00/_ibl_trials.probabilityLeft.npy").unlink()
    with pytest.raises(TrialsNotFound, match="alf/task_00: trials without probabilityLeft"):
        load_trials(find_files(folder))


@pytest.mark.parametrize("name", [name for name in TRIALS_ATTRIBUTES if name != "probabilityLeft"])
def test_an_attribute_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    folder = session(tmp_path, "2020-01-02", layout="npy")
    (folder / f"alf/task_00/_ibl_trials.{name}.npy").unlink()
    with pytest.raises(SessionUnusable, match=f"alf/task_00: trials without {name}$"):
        load_trials(find_files(folder))


def test_a_session_of_no_trials_has_arrays_of_length_zero(tmp_path: Path) -> None:
    for layout in ("table", "npy"):
        folder = session(tmp_path / layout, "2020-01-02", layout=layout)
        cut(folder, 0)
        (loaded,) = load(folder)
        assert loaded.trials is not None
        assert len(loaded.trials) == 0


# --- chained protocols ------------------------------------------------------------------------------------


def test_a_session_a_protocol_each_from_its_own_collections(tmp_path: Path) -> None:
    first, second, third = trials([(-100.0, 3, 0)]), trials([(100.0, 2, 2)], block=0.8), trials([(-100.0, 4, 0)])
    folder = session(
        tmp_path, "2020-01-02", tasks=[("training", first), ("biased", second), ("training", third)], delay=900
    )
    biased, training = load(folder)  # a protocol stands where its last task stands
    assert (biased.protocol, training.protocol) == ("biased", "training")
    assert biased.path == training.path == str(folder)
    assert biased.trials is not None
    assert training.trials is not None
    assert len(biased.trials) == 2
    assert len(training.trials) == 7
    assert biased.facts is not None
    assert training.facts is not None
    assert (biased.facts.delay, training.facts.delay) == (0, 900)  # the delay was before the first task


def test_passive_data_is_left_out_in_both_generations(tmp_path: Path) -> None:
    for rig in ("v7", "v8"):
        folder = session(
            tmp_path / rig,
            "2020-01-02",
            tasks=[("ephys", clumsy()), ("_iblrig_tasks_passiveChoiceWorld", None)],
            rig=rig,
        )
        (loaded,) = load(folder)
        assert loaded.protocol == "ephys"


def test_a_task_that_cannot_be_used_leaves_the_other(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", tasks=[("training", clumsy()), ("biased", clumsy())])
    (folder / "raw_task_data_01/_iblrig_taskSettings.raw.json").unlink()
    (loaded,), (left,) = load_session(find_files(folder))
    assert loaded.protocol == "training"
    assert left.session == "2020-01-02/001"
    assert left.reason == "raw_task_data_01: no task settings (_iblrig_taskSettings.raw.json)"


def test_habituation_is_not_looked_into(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", protocol="habituation")
    for path in (folder / "alf/task_00").iterdir():
        path.write_bytes(b"broken")
    (loaded,) = load(folder)
    assert (loaded.protocol, loaded.trials, loaded.facts) == ("habituation", None, None)


# --- duration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "minutes"), [(0, 0), (29.9, 0), (30, 1), (89.9, 1), (90, 2), (3599.9, 60), (SIX_HOURS, 360)]
)
def test_the_duration_is_rounded_to_the_nearest_minute(tmp_path: Path, seconds: float, minutes: float) -> None:
    folder = session(tmp_path, "2020-01-02")
    raw_lines(folder, [1.0, seconds])
    assert facts(folder).duration == minutes


@pytest.mark.parametrize(("rig", "collection"), [("v7", "raw_behavior_data"), ("v8", "raw_task_data_00")])
def test_the_end_that_the_settings_give_counts_before_the_trials(tmp_path: Path, rig: Any, collection: str) -> None:
    folder = session(tmp_path, "2020-01-02", rig=rig, end_time=True)
    raw_lines(folder, [60.0], collection=collection)
    edit_settings(folder, collection, SESSION_END_TIME="2020-01-02T10:14:31.5")  # it starts at nine
    assert facts(folder, collection).duration == 75


@pytest.mark.parametrize("end", [None, "", "soon", 5, "2020-01-02T10:00:00+00:00", "2020-01-02T08:59:59"])
def test_an_end_that_cannot_be_read_leaves_it_to_the_trials(tmp_path: Path, end: Any) -> None:
    folder = session(tmp_path, "2020-01-02")
    raw_lines(folder, [60.0, 600.0])
    edit_settings(folder, SESSION_END_TIME=end)
    assert facts(folder).duration == 10


def test_trailing_trials_beyond_six_hours_are_passed_over(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02")
    raw_lines(folder, [600.0, 1200.0, SIX_HOURS + 0.1, 4294967.295])
    assert facts(folder).duration == 20
    raw_lines(folder, [600.0, 1200.0, -1.0, -1e308])
    assert facts(folder).duration == 20


def test_the_simulated_corrupt_trials_are_passed_over(tmp_path: Path) -> None:
    # Of twelve trials, ten seconds apart, the ninth is the last whole one: answered at 91 s, it ends at 92.5 s.
    folder = session(tmp_path, "2020-01-02", corrupt_trailing=3)
    assert facts(folder).duration == 2
    all_corrupt = session(tmp_path, "2020-01-03", corrupt_trailing=12)
    assert facts(all_corrupt).duration == 0


def test_a_line_longer_than_the_first_read_of_the_end(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02")
    raw_lines(folder, [600.0, 1200.0], padding=200_000)
    assert facts(folder).duration == 20
    raw_lines(folder, [600.0, *[1e9] * 5], padding=200_000)
    assert facts(folder).duration == 10
    raw_lines(folder, [600.0], padding=1 << 16)
    assert facts(folder).duration == 10


@pytest.mark.parametrize(
    "ending", ["", "\n", "\n\n", '{"behavior_data": {"Bpod start', "not json\n", "[1]\n", '"text"\n']
)
def test_a_last_line_that_was_cut_off_or_is_no_trial_is_passed_over(tmp_path: Path, ending: str) -> None:
    folder = session(tmp_path, "2020-01-02")
    raw_lines(folder, [600.0])
    path = folder / "raw_task_data_00/_iblrig_taskData.raw.jsonable"
    path.write_text(path.read_text() + ending)
    assert facts(folder).duration == 10


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02")
    states = {"correct": [[float("nan"), float("inf")]], "error": [[-float("inf"), 1]]}
    line = {"behavior_data": {"Bpod start timestamp": 0.0, "Trial end timestamp": 600.0, "States timestamps": states}}
    assert "NaN" in json.dumps(line)
    assert "-Infinity" in json.dumps(line)
    (folder / "raw_task_data_00/_iblrig_taskData.raw.jsonable").write_text(json.dumps(line) + "\n")
    edit_settings(folder, AUTOMATIC_CALIBRATION=float("nan"), WATER=float("inf"))
    (loaded,) = load(folder)
    assert loaded.facts == Facts(duration=10, delay=0, location="training_rig")


@pytest.mark.parametrize("text", [None, "", "junk\n"])
def test_no_trials_to_tell_the_duration(tmp_path: Path, text: str | None) -> None:
    folder = session(tmp_path, "2020-01-02")
    path = folder / "raw_task_data_00/_iblrig_taskData.raw.jsonable"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert facts(folder).duration == 0


def test_durations_and_delays_of_a_protocols_collections_are_summed_after_rounding(tmp_path: Path) -> None:
    folder = session(tmp_path, "2020-01-02", tasks=[("training", clumsy()), ("training", clumsy())])
    raw_lines(folder, [100.0])  # 1.67 minutes: 2
    raw_lines(folder, [110.0], collection="raw_task_data_01")  # 1.83 minutes: 2; together 3.5
    edit_settings(folder, SESSION_DELAY_START=500)
    edit_settings(folder, "raw_task_data_01", SESSION_DELAY_START=450)
    (loaded,) = load(folder)
    assert loaded.facts == Facts(duration=4, delay=950, location="training_rig")


# --- delay and location -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "delay"),
    [
        ({}, 0),
        ({"SESSION_DELAY_START": 1000}, 1000),
        ({"SESSION_START_DELAY_SEC": 900}, 900),
        ({"SESSION_DELAY_START": 0, "SESSION_START_DELAY_SEC": 900}, 0),
        ({"SESSION_DELAY_START": 12.5}, 12.5),
        ({"SESSION_DELAY_START": "soon"}, 0),
    ],
)
def test_the_delay(tmp_path: Path, settings: dict[str, Any], delay: float) -> None:
    files = find_files(session(tmp_path, "2020-01-02"))
    assert session_facts(files, [("raw_task_data_00", settings)]).delay == delay


@pytest.mark.parametrize(
    ("settings", "location"),
    [
        ({}, "training_rig"),
        ({"RIG_NAME": "_iblrig_alab_ephys_0"}, "ephys_rig"),
        ({"RIG_NAME": "_iblrig_alab_behavior_0"}, "training_rig"),
        ({"PYBPOD_BOARD": "_iblrig_alab_ephys_0"}, "ephys_rig"),
        ({"PYBPOD_BOARD": "_iblrig_alab_behavior_0"}, "training_rig"),
        ({"RIG_NAME": "_iblrig_alab_behavior_0", "PYBPOD_BOARD": "_iblrig_alab_ephys_0"}, "training_rig"),
        ({"RIG_NAME": "_iblrig_alab_ephys_0", "PYBPOD_BOARD": "_iblrig_alab_behavior_0"}, "ephys_rig"),
        ({"RIG_NAME": 7}, "training_rig"),
    ],
)
def test_the_location(tmp_path: Path, settings: dict[str, Any], location: str) -> None:
    files = find_files(session(tmp_path, "2020-01-02"))
    assert session_facts(files, [("raw_task_data_00", settings)]).location == location


@pytest.mark.parametrize("rig", ["v7", "v8"])
def test_delay_and_location_as_rigs_write_them(tmp_path: Path, rig: Any) -> None:
    (loaded,) = load(session(tmp_path, "2020-01-02", rig=rig, ephys=True, delay=1000))
    assert loaded.facts is not None
    assert (loaded.facts.delay, loaded.facts.location) == (1000, "ephys_rig")
