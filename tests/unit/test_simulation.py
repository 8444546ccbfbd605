"""The simulated trees: the same for a seed, in formats that read back, with every status in reach."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from numpy.typing import NDArray

from core.errors import ConfigurationError
from core.simulation import formats, real_mouse
from core.simulation.formats import Quirks, Run, write_description, write_raw, write_session, write_trials
from core.simulation.mouse import (
    HURRIED,
    NEVER_BIASED,
    NEVER_LEARNS,
    TEMPERAMENTS,
    Mouse,
    SimulatedSession,
    Skill,
    draw_habituation,
    draw_trials,
)
from core.simulation.tree import simulate

START = datetime(2025, 3, 3, 9, 30)
TABLE_COLUMNS = [
    "intervals_0",
    "intervals_1",
    "choice",
    "contrastLeft",
    "contrastRight",
    "feedbackType",
    "feedback_times",
    "firstMovement_times",
    "goCue_times",
    "probabilityLeft",
    "response_times",
    "rewardVolume",
    "stimOn_times",
]
SKILLED = Skill(
    contrasts=(1.0, 0.25, 0.125, 0.0625, 0.0),
    threshold=12.0,
    lapse=0.03,
    bias=0.0,
    shift=7.0,
    reaction_time=0.6,
    no_response=0.01,
    n_trials=600,
)


def some_trials(n_trials: int = 30) -> dict[str, NDArray[Any]]:
    """The seven attributes alone, as a test of anything else would give them."""
    rng = np.random.default_rng(1)
    is_left = rng.random(n_trials) < 0.5
    contrast = rng.choice([1.0, 0.25, 0.0], n_trials)
    onset = np.arange(n_trials) * 5.0 + 1.0
    onset[0] = np.nan
    choice = rng.choice([1, -1], n_trials)
    choice[-1] = 0
    return {
        "choice": choice,
        "contrastLeft": np.where(is_left, contrast, np.nan),
        "contrastRight": np.where(is_left, np.nan, contrast),
        "feedbackType": np.where(choice == np.where(is_left, 1, -1), 1, -1),
        "probabilityLeft": np.full(n_trials, 0.5),
        "response_times": np.arange(n_trials) * 5.0 + 2.0,
        "stimOn_times": onset,
    }


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def a_session(tmp_path: Path) -> Path:
    return tmp_path / "alab" / "Subjects" / "A_001" / "2025-03-03" / "001"


def settings_of(raw_dir: Path) -> dict[str, Any]:
    (path,) = raw_dir.glob("_iblrig_taskSettings.raw*.json")
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


def raw_trials_of(raw_dir: Path) -> list[dict[str, Any]]:
    (path,) = raw_dir.glob("_iblrig_taskData.raw*.jsonable")
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the tree ---------------------------------------------------------------------------------------------


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, second, other = tmp_path / "first", tmp_path / "second", tmp_path / "elsewhere" / "other"
    written = simulate(first, labs=2, subjects=2, days=12, seed=5)
    assert simulate(second, labs=2, subjects=2, days=12, seed=5) == written
    simulate(other, labs=2, subjects=2, days=12, seed=6)
    assert contents(first) == contents(second)
    assert contents(first) != contents(other)


def test_a_mouse_is_the_same_in_a_larger_and_longer_tree(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    simulate(small, labs=1, subjects=2, days=10)
    simulate(large, labs=2, subjects=3, days=13)
    assert contents(small).items() <= contents(large).items()


def test_layout_and_count(tmp_path: Path) -> None:
    seen: list[int] = []
    written = simulate(tmp_path, labs=2, subjects=2, days=14, on_session=seen.append)
    sessions = [path for path in tmp_path.glob("*/Subjects/*/*/*") if path.is_dir()]
    assert len(sessions) == written
    assert seen == list(range(1, written + 1))
    pattern = r"simlab(0\d)/Subjects/SIM\1_00\d/2025-\d\d-\d\d/00\d"
    assert all(re.fullmatch(pattern, path.relative_to(tmp_path).as_posix()) for path in sessions)


@pytest.mark.parametrize("wrong", [{"labs": 0}, {"subjects": 0}, {"days": 0}, {"seed": -1}])
def test_refuses_numbers_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"^{next(iter(wrong))} must be .* or more, not"):
        simulate(tmp_path / "tree", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "tree").exists()


def test_refuses_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(ConfigurationError, match="not empty") as error:
        simulate(tmp_path)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["precious"]


def test_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    with pytest.raises(ConfigurationError, match="not a directory"):
        simulate(tmp_path / "file")


def test_every_session_of_a_tree_can_be_read(tmp_path: Path) -> None:
    simulate(tmp_path, labs=2, subjects=3, days=28)
    n_read = 0
    for cue in tmp_path.rglob("_ibl_trials.goCueTrigger_times*.npy"):
        n_trials = len(np.load(cue, allow_pickle=False))
        tables = list(cue.parent.glob("_ibl_trials.table*.pqt"))
        lengths = {len(pd.read_parquet(table)) for table in tables}
        lengths |= {len(np.load(other)) for other in cue.parent.glob("_ibl_trials.*.npy")}
        assert lengths == {n_trials}
        n_read += 1
    settings = list(tmp_path.rglob("_iblrig_taskSettings.raw*.json"))
    passive = [path for path in settings if "passiveChoiceWorld" in path.read_text()]
    assert n_read == len(settings) - len(passive) > 50
    for raw in tmp_path.rglob("_iblrig_taskData.raw*.jsonable"):
        last = raw.read_text().splitlines()[-1]
        assert json.loads(last)["behavior_data"]["Trial end timestamp"] > 600


# --- the ladder -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lives() -> dict[tuple[int, int], list[SimulatedSession]]:
    """Every mouse of the default tree."""
    mice = [Mouse(lab_index=lab, subject_index=subject) for lab in range(3) for subject in range(4)]
    return {(mouse.lab_index, mouse.subject_index): list(mouse.sessions(60)) for mouse in mice}


def all_sessions(lives: dict[tuple[int, int], list[SimulatedSession]]) -> Iterator[SimulatedSession]:
    for sessions in lives.values():
        yield from sessions


def main_protocol(session: SimulatedSession) -> str:
    return [protocol for protocol, trials in session.tasks if trials is not None][-1]


def easy_performance(trials: formats.Trials) -> float:
    contrast = np.fmax(trials["contrastLeft"], trials["contrastRight"])
    return float(np.mean(trials["feedbackType"][contrast >= 0.5] == 1))


def rightward(trials: formats.Trials, probability: float) -> float:
    """How often a mouse goes right without a stimulus, in one kind of block."""
    none = np.fmax(trials["contrastLeft"], trials["contrastRight"]) == 0
    return float(np.mean(trials["choice"][none & (trials["probabilityLeft"] == probability)] == -1))


def test_the_default_tree_has_every_temperament() -> None:
    mice = [Mouse(lab_index=lab, subject_index=subject) for lab in range(3) for subject in range(4)]
    assert {mouse.temperament for mouse in mice} == set(TEMPERAMENTS)


def test_some_mice_go_all_the_way(lives: dict[tuple[int, int], list[SimulatedSession]]) -> None:
    recorded = 0
    for sessions in lives.values():
        ephys = [session for session in sessions if session.ephys]
        delayed = [session for session in ephys if session.delay >= 900]
        protocols = [main_protocol(session) for session in sessions]
        recorded += len(ephys) >= 3 and len(delayed) >= 1
        if any("ephysChoiceWorld" in protocol for protocol in protocols):
            assert "habituationChoiceWorld" in protocols[0]
            assert any("trainingChoiceWorld" in protocol for protocol in protocols)
            assert not ephys[0].delay
    assert recorded >= 4


def test_the_first_mouse_goes_all_the_way_in_forty_days() -> None:
    sessions = list(Mouse(lab_index=0, subject_index=0).sessions(40))
    assert "ephysChoiceWorld" in main_protocol(sessions[-1])


def test_trained_mice_meet_the_criteria(lives: dict[tuple[int, int], list[SimulatedSession]]) -> None:
    delayed = [session for session in all_sessions(lives) if session.delay >= 900]
    assert len(delayed) > 20
    for session in delayed:
        trials = session.tasks[0][1]
        assert trials is not None
        assert len(trials["choice"]) > 400
        assert easy_performance(trials) > 0.9
        assert np.nanmedian(trials["response_times"] - trials["stimOn_times"]) < 2
        assert rightward(trials, 0.2) > rightward(trials, 0.8)


def test_one_mouse_never_learns(lives: dict[tuple[int, int], list[SimulatedSession]]) -> None:
    sessions = lives[0, 3]
    assert Mouse(lab_index=0, subject_index=3).temperament is NEVER_LEARNS
    training = [session for session in sessions if "trainingChoiceWorld" in main_protocol(session)]
    assert len(training) >= 40
    assert not any("biased" in main_protocol(session) for session in sessions)
    assert max(easy_performance(session.tasks[0][1] or {}) for session in training) < 0.8


def test_one_mouse_learns_but_does_not_follow_blocks(
    lives: dict[tuple[int, int], list[SimulatedSession]],
) -> None:
    place = next(place for place, mouse in _mice() if mouse.temperament is NEVER_BIASED)
    biased = [session for session in lives[place] if "biased" in main_protocol(session)]
    assert len(biased) >= 40
    assert not any(session.ephys for session in lives[place])
    shifts = [
        rightward(trials, 0.2) - rightward(trials, 0.8)
        for session in biased
        for protocol, trials in session.tasks
        if trials is not None and "biased" in protocol
    ]
    assert abs(float(np.mean(shifts))) < 0.05


def test_one_mouse_is_hurried_to_the_ephys_rig(
    lives: dict[tuple[int, int], list[SimulatedSession]],
) -> None:
    place = next(place for place, mouse in _mice() if mouse.temperament is HURRIED)
    biased = [session for session in lives[place] if "biased" in main_protocol(session)]
    assert len(biased) >= 40
    assert all(session.ephys and not session.delay for session in biased)


def _mice() -> Iterator[tuple[tuple[int, int], Mouse]]:
    for lab in range(3):
        for subject in range(4):
            yield (lab, subject), Mouse(lab_index=lab, subject_index=subject)


def test_sessions_have_a_realistic_size(lives: dict[tuple[int, int], list[SimulatedSession]]) -> None:
    sizes = [
        len(trials["feedbackType"])
        for session in all_sessions(lives)
        for _, trials in session.tasks
        if trials is not None
    ]
    assert min(sizes) >= 300
    assert max(sizes) <= 1000


def test_the_default_tree_has_every_irregularity(
    lives: dict[tuple[int, int], list[SimulatedSession]],
) -> None:
    seen: Counter[str] = Counter()
    for sessions in lives.values():
        per_day = Counter(session.start.date() for session in sessions)
        for session in sessions:
            kinds = [re.sub(r".*_|\d.*", "", protocol) for protocol, _ in session.tasks]
            seen[" then ".join(kinds)] += 1
            seen[f"{session.rig} {session.layout}"] += 1
            seen["two sessions on a day"] += per_day[session.start.date()] == 2
            for name in ("uuid_names", "leftover_npy", "end_time", "revisions", "corrupt_trailing"):
                seen[name] += bool(getattr(session.quirks, name))
            for _, trials in session.tasks:
                if trials is not None and "choice" in trials:
                    seen["no response"] += bool(np.any(trials["choice"] == 0))
                    seen["stimulus unseen"] += bool(np.isnan(trials["stimOn_times"]).any())
    assert set(seen) == set(+seen)
    assert {
        "trainingChoiceWorld then biasedChoiceWorld",
        "biasedChoiceWorld then biasedChoiceWorld",
        "biasedChoiceWorld then trainingChoiceWorld",
        "ephysChoiceWorld then passiveChoiceWorld",
        "v7 table",
        "v7 npy",
        "v8 table",
        "v8 npy",
        "two sessions on a day",
    } <= set(seen)


def test_a_day_with_training_and_biased_sessions_comes_in_that_order(
    lives: dict[tuple[int, int], list[SimulatedSession]],
) -> None:
    found = 0
    for sessions in lives.values():
        for first, second in pairwise(sessions):
            if first.start.date() == second.start.date():
                assert (first.number, second.number) == (1, 2)
                assert first.start < second.start
                found += "training" in main_protocol(first) and "biased" in main_protocol(second)
    assert found


# --- trials -----------------------------------------------------------------------------------------------


def test_blocks_follow_the_protocol() -> None:
    trials = draw_trials(SKILLED, np.random.default_rng(0), blocks=True)
    probability = trials["probabilityLeft"]
    assert np.all(probability[:90] == 0.5)
    changes = np.flatnonzero(np.diff(probability)) + 1
    assert set(probability[90:]) == {0.2, 0.8}
    assert np.all(np.diff(changes) >= 20)
    assert np.all(np.diff(changes) <= 100)


def test_trials_are_consistent() -> None:
    trials = draw_trials(SKILLED, np.random.default_rng(0), blocks=False, delay=1000.0)
    is_left = ~np.isnan(trials["contrastLeft"])
    assert np.array_equal(is_left, np.isnan(trials["contrastRight"]))
    assert np.array_equal(trials["feedbackType"] == 1, trials["choice"] == np.where(is_left, 1, -1))
    assert np.all(trials["feedbackType"][trials["choice"] == 0] == -1)
    assert np.any(trials["choice"] == 0)
    starts, ends = trials["intervals"].T
    assert starts[0] == 0
    assert np.array_equal(starts[1:], ends[:-1])
    assert np.all((trials["goCueTrigger_times"] > starts) & (trials["response_times"] < ends))
    assert trials["goCueTrigger_times"][0] > 1000


# --- formats ----------------------------------------------------------------------------------------------


def test_table_layout_reads_back(tmp_path: Path) -> None:
    trials = draw_trials(SKILLED, np.random.default_rng(0), blocks=True)
    write_trials(tmp_path / "alf", trials, "table")
    assert sorted(os.listdir(tmp_path / "alf")) == [
        "_ibl_trials.goCueTrigger_times.npy",
        "_ibl_trials.stimOff_times.npy",
        "_ibl_trials.table.pqt",
    ]
    table = pd.read_parquet(tmp_path / "alf" / "_ibl_trials.table.pqt")
    assert list(table) == TABLE_COLUMNS
    integers = {"choice", "feedbackType"}
    assert {str(table[name].dtype) for name in integers} == {"int64"}
    assert {str(table[name].dtype) for name in set(table) - integers} == {"float64"}
    for name in set(TABLE_COLUMNS) & set(trials):
        np.testing.assert_array_equal(table[name], trials[name])
    np.testing.assert_array_equal(table[["intervals_0", "intervals_1"]], trials["intervals"])
    cue = np.load(tmp_path / "alf" / "_ibl_trials.goCueTrigger_times.npy")
    np.testing.assert_array_equal(cue, trials["goCueTrigger_times"])


def test_npy_layout_reads_back(tmp_path: Path) -> None:
    trials = draw_trials(SKILLED, np.random.default_rng(0), blocks=True)
    write_trials(tmp_path, trials, "npy")
    assert not list(tmp_path.glob("*.pqt"))
    for name, values in trials.items():
        read = np.load(tmp_path / f"_ibl_trials.{name}.npy", allow_pickle=False)
        assert read.dtype == (np.int64 if name in {"choice", "feedbackType"} else np.float64)
        np.testing.assert_array_equal(read, values)


def test_what_trials_lack_is_filled_in(tmp_path: Path) -> None:
    trials = some_trials()
    write_trials(tmp_path, trials)
    table = pd.read_parquet(tmp_path / "_ibl_trials.table.pqt")
    assert list(table) == TABLE_COLUMNS
    for name, values in trials.items():
        np.testing.assert_array_equal(table[name], values)
    assert not table[["intervals_0", "intervals_1", "goCue_times", "feedback_times"]].isna().any().any()
    assert np.isfinite(np.load(tmp_path / "_ibl_trials.goCueTrigger_times.npy")).all()


def test_habituation_has_no_table(tmp_path: Path) -> None:
    write_trials(tmp_path, draw_habituation(40, np.random.default_rng(0)), "table")
    names = {path.name.split(".")[1] for path in tmp_path.iterdir()}
    assert {"goCueTrigger_times", "feedbackType", "intervals"} <= names
    assert not names & {"table", "choice", "probabilityLeft", "response_times"}


@pytest.mark.parametrize("name", ["contrastLeft", "feedbackType", "stimOn_times", "response_times"])
def test_incomplete_trials_are_refused(tmp_path: Path, name: str) -> None:
    trials = some_trials()
    del trials[name]
    with pytest.raises(ConfigurationError, match=name):
        write_trials(tmp_path, trials)


def test_uneven_trials_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="differ in length"):
        write_trials(tmp_path, some_trials() | {"choice": np.ones(3)})


def test_uuid_names(tmp_path: Path) -> None:
    session, other = a_session(tmp_path), a_session(tmp_path / "elsewhere")
    for place in (session, other):
        write_session(place, tasks=[("x", some_trials())], start=START, quirks=Quirks(uuid_names=True))
    names = [path.name for path in session.rglob("*.*") if path.is_file() and path.suffix != ".yaml"]
    pattern = r".+\.[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.(npy|pqt|json|jsonable)"
    assert len(names) == len(set(names)) == 5
    assert all(re.fullmatch(pattern, name) for name in names)
    assert contents(session) == contents(other)


@pytest.mark.parametrize("layout", ["table", "npy"])
def test_only_the_last_revision_is_right(tmp_path: Path, layout: formats.Layout) -> None:
    trials = some_trials()
    revisions = ("2025-03-17", "2025-03-31")
    write_trials(tmp_path, trials, layout, quirks=Quirks(revisions=revisions))

    def read(folder: Path) -> Any:
        if layout == "table":
            return pd.read_parquet(folder / "_ibl_trials.table.pqt")["stimOn_times"].to_numpy()
        return np.load(folder / "_ibl_trials.stimOn_times.npy")

    np.testing.assert_array_equal(read(tmp_path / "#2025-03-31#"), trials["stimOn_times"])
    np.testing.assert_array_equal(read(tmp_path / "#2025-03-17#"), trials["stimOn_times"] - 0.5)
    np.testing.assert_array_equal(read(tmp_path), trials["stimOn_times"] - 1.0)
    assert len(list((tmp_path / "#2025-03-31#").iterdir())) == 1


def test_a_leftover_file_contradicts_the_table(tmp_path: Path) -> None:
    write_trials(tmp_path, some_trials(), quirks=Quirks(leftover_npy=True))
    table = pd.read_parquet(tmp_path / "_ibl_trials.table.pqt")
    leftover = np.load(tmp_path / "_ibl_trials.stimOn_times.npy")
    np.testing.assert_array_equal(leftover, table["stimOn_times"] - 0.5)


def test_v7_session(tmp_path: Path) -> None:
    session = a_session(tmp_path)
    protocol = "_iblrig_tasks_ephysChoiceWorld6.4.2"
    tasks: formats.Tasks = [(protocol, some_trials()), ("_iblrig_tasks_passiveChoiceWorld6.4.2", None)]
    write_session(session, tasks=tasks, start=START, rig="v7", delay=950, ephys=True)
    assert sorted(os.listdir(session)) == ["alf", "raw_behavior_data", "raw_passive_data"]
    settings = settings_of(session / "raw_behavior_data")
    assert settings["PYBPOD_PROTOCOL"] == protocol
    assert settings["SESSION_DATETIME"] == "2025-03-03T09:30:00"
    assert settings["SESSION_START_DELAY_SEC"] == 950
    assert settings["IBLRIG_VERSION_TAG"].startswith("6.")
    assert settings["SESSION_NUMBER"] == "001"
    assert settings["PYBPOD_BOARD"] == "_iblrig_alab_ephys_0"
    assert not {"RIG_NAME", "SESSION_START_TIME", "SESSION_END_TIME"} & set(settings)
    assert len(list((session / "raw_passive_data").iterdir())) == 1


def test_v8_session_with_chained_tasks(tmp_path: Path) -> None:
    session = a_session(tmp_path)
    names = [f"_iblrig_tasks_{task}ChoiceWorld" for task in ("training", "biased", "passive")]
    trials = [some_trials(20), some_trials(30), None]
    write_session(
        session,
        tasks=list(zip(names, trials, strict=True)),
        start=START,
        delay=60,
        quirks=Quirks(end_time=True),
    )
    assert sorted(path.name for path in (session / "alf").iterdir()) == ["task_00", "task_01"]
    assert len(pd.read_parquet(session / "alf" / "task_01" / "_ibl_trials.table.pqt")) == 30
    raw = [settings_of(session / f"raw_task_data_{position:02d}") for position in range(3)]
    assert [settings["PYBPOD_PROTOCOL"] for settings in raw] == names
    assert [settings["SESSION_DELAY_START"] for settings in raw] == [60, 0, 0]
    starts = [datetime.fromisoformat(settings["SESSION_START_TIME"]) for settings in raw]
    ends = [datetime.fromisoformat(settings["SESSION_END_TIME"]) for settings in raw]
    assert starts[0] == START
    assert starts[0] < ends[0] < starts[1] < ends[1] < starts[2]
    assert raw[0]["RIG_NAME"] == "_iblrig_alab_behavior_0"
    assert raw[0]["IBLRIG_VERSION"].startswith("8.")
    assert {"device_sound", "ALYX_USER", "SESSION_NUMBER"} <= set(raw[0])
    described = yaml.safe_load((session / "_ibl_experiment.description.yaml").read_text())
    assert [next(iter(task)) for task in described["tasks"]] == names
    assert [next(iter(task.values()))["collection"] for task in described["tasks"]] == [
        "raw_task_data_00",
        "raw_task_data_01",
        "raw_task_data_02",
    ]


def test_raw_trials_tell_times_and_outcomes(tmp_path: Path) -> None:
    trials = draw_trials(SKILLED, np.random.default_rng(0), blocks=True)
    run = Run(protocol="p", lab="alab", subject="A_001", number=1, rig="v8", start=START)
    write_raw(tmp_path, run, trials)
    lines = raw_trials_of(tmp_path)
    bpod = [line["behavior_data"] for line in lines]
    assert set(bpod[0]) == {
        "Bpod start timestamp",
        "Trial start timestamp",
        "Trial end timestamp",
        "States timestamps",
        "Events timestamps",
    }
    ends = [trial["Trial end timestamp"] - trial["Bpod start timestamp"] for trial in bpod]
    np.testing.assert_allclose(ends, trials["intervals"][:, 1], atol=1e-4)
    entered = {
        name: np.array([trial["States timestamps"][name][0][0] for trial in bpod])
        for name in ("correct", "error", "no_go")
    }
    np.testing.assert_array_equal(np.isfinite(entered["correct"]), trials["feedbackType"] == 1)
    np.testing.assert_array_equal(np.isfinite(entered["no_go"]), trials["choice"] == 0)
    responses = [trial["Trial start timestamp"] + trial["States timestamps"]["closed_loop"][0][1] for trial in bpod]
    np.testing.assert_allclose(responses, trials["response_times"], atol=2e-4)
    assert [line["trial_num"] for line in lines] == list(range(600))


def test_corrupt_trailing_timestamps(tmp_path: Path) -> None:
    run = Run(protocol="p", lab="alab", subject="A_001", number=1, rig="v7", start=START)
    write_raw(tmp_path, run, some_trials(), quirks=Quirks(corrupt_trailing=2))
    ends = [line["behavior_data"]["Trial end timestamp"] for line in raw_trials_of(tmp_path)]
    assert [end > 6 * 3600 for end in ends] == [False] * 28 + [True] * 2


def test_description_takes_any_task_details(tmp_path: Path) -> None:
    write_description(tmp_path / "s", [{"aChoiceWorld": {}}, {"b": {"collection": "c"}}], ephys=True)
    described = yaml.safe_load((tmp_path / "s" / "_ibl_experiment.description.yaml").read_text())
    assert described["tasks"] == [{"aChoiceWorld": {}}, {"b": {"collection": "c"}}]
    assert list(described["sync"]) == ["nidq"]
    assert described["version"] == "1.0.0"


def test_session_outside_a_lab_needs_one(tmp_path: Path) -> None:
    session = tmp_path / "A_001" / "2025-03-03" / "002"
    with pytest.raises(ConfigurationError, match="lab"):
        write_session(session, tasks=[("x", some_trials())], start=START)
    write_session(session, tasks=[("x", some_trials())], start=START, lab="alab")
    settings = settings_of(session / "raw_task_data_00")
    assert (settings["ALYX_LAB"], settings["SUBJECT_NAME"], settings["SESSION_NUMBER"]) == (
        "alab",
        "A_001",
        2,
    )


@pytest.mark.parametrize(
    ("tasks", "rig"),
    [([], "v8"), ([("a", some_trials()), ("b", some_trials())], "v7"), ([("a", None), ("b", None)], "v7")],
)
def test_tasks_that_no_rig_runs_are_refused(tmp_path: Path, tasks: formats.Tasks, rig: formats.Rig) -> None:
    with pytest.raises(ConfigurationError):
        write_session(a_session(tmp_path), tasks=tasks, start=START, rig=rig)
    assert not any(tmp_path.iterdir())


# --- the real mouse ---------------------------------------------------------------------------------------


def has_ibllib() -> bool:
    return any(metadata.distributions(name="ibllib"))


@pytest.mark.skipif(not has_ibllib(), reason="ibllib, which carries the real mouse, is not installed")
def test_real_mouse(tmp_path: Path) -> None:
    assert real_mouse.write_real_mouse(tmp_path) == 11
    subject = tmp_path / "mrsicflogellab" / "Subjects" / "SWC_054"
    days = sorted(path.name for path in subject.iterdir())
    assert (days[0], days[-1]) == ("2020-08-21", "2020-09-04")
    settings = {day: settings_of(subject / day / "001" / "raw_behavior_data") for day in days}
    assert [day for day in days if "biased" in settings[day]["PYBPOD_PROTOCOL"]] == days[5:]
    assert [day for day in days if "training" in settings[day]["PYBPOD_PROTOCOL"]] == days[:5]
    assert [day for day in days if "ephys" in settings[day]["PYBPOD_BOARD"]] == days[7:]
    assert [settings[day].get("SESSION_START_DELAY_SEC", 0) for day in days[7:]] == [0, 1000, 1000, 1000]
    sizes = [len(pd.read_parquet(table)) for table in sorted(subject.rglob("*.pqt"))]
    assert sizes == [719, 532, 617, 752, 471, 967, 626, 1104, 387, 782, 887]
    with pytest.raises(ConfigurationError, match="there already"):
        real_mouse.write_real_mouse(tmp_path)


def test_real_mouse_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_installed(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing_installed)
    with pytest.raises(ConfigurationError, match="pip install --no-deps ibllib"):
        real_mouse.write_real_mouse(tmp_path)
    assert not any(tmp_path.iterdir())


def test_real_mouse_reads_arrays_and_runs_nothing(tmp_path: Path) -> None:
    fixture = tmp_path / "fixture"
    arrays = {"2020-08-21": {"choice": np.array([1, -1]), "task_protocol": np.array("training")}}
    fixture.write_bytes(pickle.dumps(arrays))
    read = real_mouse._read_fixture(fixture)
    np.testing.assert_array_equal(read["2020-08-21"]["choice"], [1, -1])
    fixture.write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(pickle.UnpicklingError, match="no place"):
        real_mouse._read_fixture(fixture)
