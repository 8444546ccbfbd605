"""The documented functions, called as scripts that import the peer's module call them."""

from __future__ import annotations

import inspect
import logging
import shutil
from collections.abc import Mapping
from datetime import datetime
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from core import training_status as ts
from core import upkeep
from core.errors import (
    AccessRefused,
    ConfigurationError,
    CorruptTable,
    MissingCredentials,
    SessionUnusable,
    StoreConflict,
    TransientError,
    TrialsNotFound,
)
from core.pipeline import recompute_subject
from core.records import Trials
from core.schema import TRAINING_COLUMNS, TRIALS_ATTRIBUTES
from core.simulation.formats import Quirks, write_session
from core.simulation.tree import simulate
from core.sources import TreeSource
from core.storage import open_store
from core.tables import subject_keys

LAB, SUBJECT = "alab", "A_001"
TRAINING = "_iblrig_tasks_trainingChoiceWorld"
BIASED = "_iblrig_tasks_biasedChoiceWorld"
HABITUATION = "_iblrig_tasks_habituationChoiceWorld"
SESSION_KEYS = {name for name in TRAINING_COLUMNS if not name.startswith("combined_")}

SIGNATURES = """
get_training_table_from_aws(lab, subject)
upload_training_table_to_aws(lab, subject)
save_dataframe(df, subj_path)
load_existing_dataframe(subj_path)
load_trials(sess_path, one, collections=None, force=True, mode='raise')
load_combined_trials(sess_paths, one, force=True)
get_latest_training_information(sess_path, one)
find_earliest_recompute_date(df)
compute_training_status(df, compute_date, one, force=True)
pass_through_training_hierachy(status_new, status_old)
compute_session_duration_delay_location(sess_path, collections=None, **kwargs)
get_data_collection(session_path)
get_sess_dict(session_path, one, protocol, alf_collections=None, raw_collections=None, force=True)
get_training_info_for_session(session_paths, one, force=True)
check_up_to_date(subj_path, df)
"""


def some_trials(n_trials: int, seed: int = 0, blocks: bool = False, accuracy: float = 0.8) -> dict[str, NDArray[Any]]:
    """Easy trials and ones at zero contrast, as many of them right as `accuracy` says."""
    rng = np.random.default_rng(seed)
    is_left = rng.random(n_trials) < 0.5
    contrast = rng.choice([1.0, 0.5, 0.0], n_trials)
    correct = rng.random(n_trials) < accuracy
    onset = np.arange(n_trials) * 5.0 + 1.0
    return {
        "choice": np.where(is_left == correct, 1, -1),
        "contrastLeft": np.where(is_left, contrast, np.nan),
        "contrastRight": np.where(is_left, np.nan, contrast),
        "feedbackType": np.where(correct, 1, -1),
        "probabilityLeft": rng.choice([0.5, 0.2, 0.8], n_trials) if blocks else np.full(n_trials, 0.5),
        "response_times": onset + 1,
        "stimOn_times": onset,
    }


def habituation_trials(n_trials: int) -> dict[str, NDArray[Any]]:
    trials = some_trials(n_trials)
    del trials["probabilityLeft"], trials["choice"]
    return trials


@pytest.fixture
def subj_path(tmp_path: Path) -> Path:
    """A subject's folder, empty."""
    path = tmp_path / LAB / "Subjects" / SUBJECT
    path.mkdir(parents=True)
    return path


def write(
    subj_path: Path,
    date: str,
    number: int = 1,
    protocols: tuple[str, ...] = (TRAINING,),
    *,
    n_trials: int = 40,
    accuracy: float = 0.8,
    rig: Any = "v8",
    **options: Any,
) -> Path:
    """Write a session; the trials of its first task are `n_trials`, each later task has ten more."""
    path = subj_path / date / f"{number:03}"
    tasks: list[tuple[str, Mapping[str, NDArray[Any]] | None]] = [
        (
            protocol,
            habituation_trials(n_trials)
            if protocol == HABITUATION
            else None
            if "passive" in protocol
            else some_trials(n_trials + 10 * nth, seed=number, blocks=protocol == BIASED, accuracy=accuracy),
        )
        for nth, protocol in enumerate(protocols)
    ]
    start = datetime.fromisoformat(f"{date}T09:30")
    write_session(session_dir=path, tasks=tasks, start=start, rig=rig, **{"delay": 0, "ephys": False, **options})
    return path


def pipelines_table(subj_path: Path) -> pd.DataFrame:
    """What the main path gives for all sessions of the subject."""
    root, lab, subject = subj_path.parents[2], subj_path.parents[1].name, subj_path.name
    store = open_store(f"memory://{root.name}-{np.random.default_rng().random()}")
    tables = recompute_subject(TreeSource(root), lab, subject, store)
    frame: pd.DataFrame = pd.read_parquet(BytesIO(tables.training))
    return frame


def assert_same(one: pd.DataFrame | None, other: pd.DataFrame | None) -> None:
    assert one is not None
    assert other is not None
    pd.testing.assert_frame_equal(one, other)


def statuses(df: pd.DataFrame | None) -> dict[str, str]:
    assert df is not None
    return dict(zip(df["date"], df["training_status"], strict=True))


def test_the_names_and_signatures_are_the_documented_ones() -> None:
    wanted = dict(line.split("(", 1) for line in SIGNATURES.split("\n") if line)
    for name, arguments in wanted.items():
        parameters = inspect.signature(getattr(ts, name)).parameters.values()
        found = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        assert ", ".join(map(str, found)) + ")" == arguments, name
        assert "Parameters\n" in (getattr(ts, name).__doc__ or ""), name


# ---- trials


@pytest.mark.parametrize("kind", [str, Path])
def test_trials_by_key_and_by_attribute(subj_path: Path, kind: type) -> None:
    path = write(subj_path, "2025-03-03", n_trials=30)
    trials = ts.load_trials(kind(path), None)
    assert trials is not None
    assert set(trials.keys()) == set(TRIALS_ATTRIBUTES)
    for name, values in some_trials(30, seed=1).items():
        np.testing.assert_array_equal(trials[name], values)
        assert trials[name].shape == (30,)
        assert getattr(trials, name) is trials[name]
        assert trials[name].dtype == np.float64
    with pytest.raises(AttributeError, match="no attribute 'wheel'"):
        _ = trials.wheel
    trials.choice = -trials.choice
    np.testing.assert_array_equal(trials["choice"], -some_trials(30, seed=1)["choice"])


@pytest.mark.parametrize("collections", ["alf/task_01", ["alf/task_01"]])
def test_trials_of_one_collection(subj_path: Path, collections: Any) -> None:
    path = write(subj_path, "2025-03-03", protocols=(TRAINING, BIASED), n_trials=30)
    of_one, of_all = ts.load_trials(path, None, collections), ts.load_trials(path, None)
    assert of_one is not None
    assert of_all is not None
    assert len(of_one.choice) == 40
    assert len(of_all.choice) == 70


def test_no_trials_anywhere(subj_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(subj_path, "2025-03-03")
    shutil.rmtree(path / "alf")
    shutil.rmtree(path / "raw_task_data_00")
    with pytest.raises(TrialsNotFound, match=r"^no trials of .*001: folder: .*; ONE: no ONE was given; raw files: no"):
        ts.load_trials(path, None)
    assert not caplog.records
    assert ts.load_trials(path, None, None, True, "warn") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no ONE was given" in record.message
    assert ts.load_trials(path, None, force=False) is None
    assert ts.load_trials(path / "nowhere", None, mode="warn") is None
    with pytest.raises(ConfigurationError, match="'raise' or 'warn', not 'ignore'"):
        ts.load_trials(path, None, mode="ignore")  # type: ignore[arg-type]


def test_trials_without_blocks_are_not_found(subj_path: Path) -> None:
    path = write(subj_path, "2025-03-03", protocols=(HABITUATION,))
    shutil.rmtree(path / "raw_task_data_00")
    with pytest.raises(TrialsNotFound, match="folder: alf/task_00: trials without probabilityLeft"):
        ts.load_trials(path, None)


def test_folder_then_one_then_raw_files(subj_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(subj_path, "2025-03-03", n_trials=30)
    asked: list[tuple[str, Any]] = []

    def of_length(name: str, n_trials: int) -> Any:
        def find(*arguments: Any) -> Trials:
            asked.append((name, arguments))
            if not n_trials:
                raise TrialsNotFound(f"not in {name}")
            return Trials(**{key: values.astype(float) for key, values in some_trials(n_trials).items()})

        return find

    one = object()
    monkeypatch.setattr(upkeep, "load_one_trials", of_length("ONE", 20))
    monkeypatch.setattr(upkeep, "reextract_trials", of_length("raw", 10))
    trials = ts.load_trials(path, one)
    assert len(trials["choice"] if trials else ()) == 30
    assert not asked

    shutil.rmtree(path / "alf")
    assert ts.load_trials(path, one, force=False) is None
    assert not asked
    trials = ts.load_trials(path, one, ["alf/task_00"])
    assert len(trials["choice"] if trials else ()) == 20
    assert asked == [("ONE", (path, one, ["alf/task_00"]))]

    monkeypatch.setattr(upkeep, "load_one_trials", of_length("ONE", 0))
    trials = ts.load_trials(path, one, ["alf/task_00"])
    assert len(trials["choice"] if trials else ()) == 10
    assert asked[-1] == ("raw", (path, ["raw_task_data_00"]))
    ts.load_trials(path, one)
    assert asked[-1] == ("raw", (path, ["raw_task_data_00"]))
    ts.load_trials(path, one, ["alf"])
    assert asked[-1] == ("raw", (path, ["raw_behavior_data"]))


def test_trials_of_a_day_put_together(subj_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write(subj_path, "2025-03-03", number, n_trials=20 + number) for number in (1, 2)]
    combined, first = ts.load_combined_trials(paths, None), ts.load_trials(paths[0], None)
    assert combined is not None
    assert first is not None
    assert len(combined.choice) == 43
    np.testing.assert_array_equal(combined.contrastLeft[:21], first.contrastLeft)
    shutil.rmtree(paths[0])
    combined = ts.load_combined_trials([str(path) for path in paths], None, True)
    assert len(combined.choice if combined else ()) == 22
    assert "no trials of" in caplog.text
    assert ts.load_combined_trials(paths[:1], None, force=False) is None


# ---- a session


def test_data_collections(subj_path: Path) -> None:
    v7 = write(subj_path, "2025-03-03", protocols=(BIASED, "_iblrig_tasks_passiveChoiceWorld"), rig="v7")
    v8 = write(subj_path, "2025-03-04", protocols=(TRAINING, BIASED, "_iblrig_tasks_passiveChoiceWorld"))
    assert ts.get_data_collection(v7) == (["raw_behavior_data"], ["alf"])
    assert ts.get_data_collection(str(v8)) == (
        ["raw_task_data_00", "raw_task_data_01"],
        ["alf/task_00", "alf/task_01"],
    )
    assert ts.get_data_collection(subj_path / "2025-03-05" / "001") == ([], [])
    (v7 / "raw_behavior_data").rename(v7 / "raw_behaviour")
    assert ts.get_data_collection(v7) == (["raw_behaviour"], ["alf"])
    (v8 / "_ibl_experiment.description.yaml").write_text("tasks: {")
    with pytest.raises(SessionUnusable, match="description"):
        ts.get_data_collection(v8)


def test_duration_delay_and_location(subj_path: Path) -> None:
    # 40 trials of 5 s, and half a minute to the end: 3.9 minutes, which the peer truncates to 3.
    path = write(subj_path, "2025-03-03", delay=900, ephys=True, quirks=Quirks(end_time=True))
    found = ts.compute_session_duration_delay_location(path)
    assert found == (4, 900, "ephys_rig")
    assert [type(value) for value in found] == [int, int, str]
    assert ts.compute_session_duration_delay_location(str(path), ["raw_task_data_00"]) == found
    assert ts.compute_session_duration_delay_location(path, "raw_task_data_00", task_collection="x") == found
    chained = write(subj_path, "2025-03-04", protocols=(TRAINING, TRAINING))
    assert ts.compute_session_duration_delay_location(chained) == (3 + 4, 0, "training_rig")
    for missing in (subj_path, subj_path / "2025-03-05" / "001"):
        with pytest.raises(SessionUnusable, match="no task settings"):
            ts.compute_session_duration_delay_location(missing)


def test_the_dict_of_a_session(subj_path: Path) -> None:
    path = write(subj_path, "2025-03-03", n_trials=50)
    found = ts.get_sess_dict(path, None, "training")
    assert found is not None
    assert found.keys() == SESSION_KEYS
    trials = some_trials(50, seed=1)
    signed = np.nan_to_num(trials["contrastRight"]) - np.nan_to_num(trials["contrastLeft"])
    np.testing.assert_array_equal(found["contrasts"], np.unique(signed) * 100)
    assert found["performance"].shape == found["contrasts"].shape
    assert found["performance"][0] == np.mean(trials["choice"][signed == -1] == -1)
    assert found["performance_easy"] == np.mean(trials["feedbackType"][abs(signed) >= 0.5] == 1)
    assert (found["date"], found["session_path"], found["task_protocol"]) == ("2025-03-03", str(path), "training")
    assert (found["n_trials"], found["reaction_time"], found["training_status"]) == (50, 1, "not_computed")
    assert np.isfinite(found["bias_50"])
    assert np.isnan(found["bias_20"])
    assert len(pd.DataFrame(found)) == len(found["contrasts"])


def test_the_dict_of_habituation_is_all_nan(subj_path: Path) -> None:
    path = write(subj_path, "2025-03-03", protocols=(HABITUATION,))
    found = ts.get_sess_dict(str(path), None, "habituation")
    assert found is not None
    assert found.keys() == SESSION_KEYS
    told = ("date", "session_path", "task_protocol", "training_status")
    assert [found[name] for name in told] == ["2025-03-03", str(path), "habituation", "habituation"]
    assert all(np.all(np.isnan(found[name])) for name in found if name not in told)
    assert found["contrasts"].shape == (1,)


def test_no_dict_without_trials(subj_path: Path) -> None:
    path = write(subj_path, "2025-03-03")
    shutil.rmtree(path / "alf")
    assert ts.get_sess_dict(path, None, "training", None, None, False) is None
    (path / "raw_task_data_00" / "_iblrig_taskSettings.raw.json").unlink()
    shutil.move(path / "raw_task_data_00", path / "raw")
    assert ts.get_sess_dict(path, None, "training") is None


def test_trials_without_settings_have_no_facts(subj_path: Path) -> None:
    path = write(subj_path, "2025-03-03")
    shutil.rmtree(path / "raw_task_data_00")
    with pytest.raises(SessionUnusable, match="no task settings"):
        ts.get_sess_dict(path, None, "training")


def test_a_protocol_has_its_own_collections(subj_path: Path) -> None:
    path = write(subj_path, "2025-03-03", protocols=(TRAINING, BIASED), n_trials=30)
    biased = ts.get_sess_dict(path, None, "biased")
    named = ts.get_sess_dict(path, None, "biased", "alf/task_00", ["raw_task_data_00"])
    assert biased is not None
    assert named is not None
    assert (biased["n_trials"], named["n_trials"]) == (40, 30)
    assert np.isfinite(biased["bias_20"])


def test_the_information_of_a_day(subj_path: Path) -> None:
    paths = [write(subj_path, "2025-03-03", number, n_trials=30 * number, delay=10 * number) for number in (1, 2)]
    found = ts.get_training_info_for_session(paths, None)
    assert [set(of_session) for of_session in found] == [set(TRAINING_COLUMNS)] * 2
    assert [of_session["n_trials"] for of_session in found] == [30, 60]
    assert [of_session["combined_n_trials"] for of_session in found] == [90, 90]
    assert found[0]["combined_sess_duration"] == sum(of_session["sess_duration"] for of_session in found)
    assert found[0]["combined_n_delay"] == 20
    combined = ts.load_combined_trials(paths, None)
    assert combined is not None
    easy = np.fmax(combined.contrastLeft, combined.contrastRight) >= 0.5
    assert found[0]["combined_performance_easy"] == np.mean(combined.feedbackType[easy] == 1)
    alone = ts.get_training_info_for_session([str(paths[0])], None, True)
    assert alone[0]["combined_n_trials"] == 30
    assert ts.get_training_info_for_session([], None) == []


def test_chained_protocols_give_a_dict_each(subj_path: Path) -> None:
    path = write(subj_path, "2025-03-03", protocols=(TRAINING, BIASED), n_trials=30)
    found = ts.get_training_info_for_session([path], None)
    assert [(of_task["task_protocol"], of_task["n_trials"]) for of_task in found] == [("training", 30), ("biased", 40)]
    assert [of_task["combined_n_trials"] for of_task in found] == [30, 40]


def test_an_unusable_session_is_left_out_and_told(subj_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = write(subj_path, "2025-03-03"), write(subj_path, "2025-03-03", 2)
    shutil.rmtree(bad / "alf")
    found = ts.get_training_info_for_session([good, bad], None, force=False)
    assert [of_session["session_path"] for of_session in found] == [str(good)]
    assert "2025-03-03/002 left out: training: no trials" in caplog.text
    assert ts.get_training_info_for_session([subj_path / "2025-03-09" / "001"], None) == []


# ---- the table on disk


def a_table(subj_path: Path) -> pd.DataFrame:
    write(subj_path, "2025-03-03", protocols=(HABITUATION,))
    sess_path = write(subj_path, "2025-03-04")
    df = ts.get_latest_training_information(sess_path, None)
    assert df is not None
    return df


@pytest.mark.parametrize("kind", [str, Path])
def test_the_table_is_saved_and_loaded(subj_path: Path, tmp_path: Path, kind: type) -> None:
    df = a_table(subj_path)
    assert list(df.columns) == list(TRAINING_COLUMNS)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert ts.load_existing_dataframe(kind(folder)) is None
    assert ts.load_existing_dataframe(tmp_path / "nowhere") is None
    assert ts.save_dataframe(df, kind(folder)) is None  # type: ignore[func-returns-value]
    assert [path.name for path in folder.iterdir()] == ["training.pqt"]
    assert_same(ts.load_existing_dataframe(kind(folder)), df)
    assert_same(pd.read_parquet(folder / "training.pqt"), df)


def test_a_failed_save_leaves_the_old_table(subj_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    df = a_table(subj_path)

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        ts.save_dataframe(df[df["date"] == "2025-03-03"], subj_path)
    monkeypatch.undo()
    assert_same(ts.load_existing_dataframe(subj_path), df)
    assert [path.name for path in subj_path.iterdir() if path.is_file()] == ["training.pqt"]


def test_an_old_table_is_read(subj_path: Path) -> None:
    df = a_table(subj_path)
    (subj_path / "training.pqt").unlink()
    # The peer's order of columns is another, and its earlier versions have fewer.
    old = df[[*reversed(df.columns)]].drop(columns=["combined_n_delay", "lapsehigh_80"])
    old.to_csv(subj_path / "training.csv")
    found = ts.load_existing_dataframe(subj_path)
    assert found is not None
    assert list(found.columns) == list(TRAINING_COLUMNS)
    assert (found.dtypes == df.dtypes).all()
    assert found["combined_n_delay"].isna().all()
    same = [name for name in TRAINING_COLUMNS if name not in ("combined_n_delay", "lapsehigh_80")]
    pd.testing.assert_frame_equal(found[same], df[same], rtol=1e-12)
    ts.save_dataframe(df, subj_path)
    assert_same(ts.load_existing_dataframe(subj_path), df)  # the Parquet counts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("training.pqt", b"PAR1 but not really", "cannot be read"),
        ("training.csv", b"a,b\n1,2\n", "has no date, session_path, task_protocol, training_status"),
        ("training.csv", b"\xff\xfe", "cannot be read"),
        ("training.csv", b"date,session_path,task_protocol,training_status\nx,y,z,clever\n", "has 'clever' for"),
        (
            "training.csv",
            b"date,session_path,task_protocol,training_status,n_trials\nx,y,z,in training,many\n",
            "no training table",
        ),
    ],
)
def test_a_broken_table_is_told(subj_path: Path, name: str, content: bytes, said: str) -> None:
    (subj_path / name).write_bytes(content)
    with pytest.raises(CorruptTable, match=said) as error:
        ts.load_existing_dataframe(subj_path)
    assert "\n" not in str(error.value)


# ---- what is missing, and what is to compute


def test_sessions_that_the_table_lacks(subj_path: Path) -> None:
    df = a_table(subj_path)
    assert ts.check_up_to_date(subj_path, df).empty
    all_of_them = ts.check_up_to_date(str(subj_path), None)
    assert list(all_of_them.columns) == ["date", "session_path"]
    assert list(all_of_them["date"]) == ["2025-03-03", "2025-03-04"]
    paths = [write(subj_path, "2025-03-04", 2), write(subj_path, "2025-03-05")]
    for odd in ("notes/001", "2025-02-30/001", "2025-03-06/extra"):
        (subj_path / odd).mkdir(parents=True)
    missing = ts.check_up_to_date(subj_path, df)
    assert list(missing["session_path"]) == [str(path) for path in paths]
    assert list(missing["date"]) == ["2025-03-04", "2025-03-05"]
    theirs = {"2025-03-03": "D:\\data\\A_001\\2025-03-03\\001", "2025-03-04": "/mnt/A_001/2025-03-04/001"}
    elsewhere = df.assign(session_path=df["date"].map(theirs))
    assert list(ts.check_up_to_date(subj_path, elsewhere)["session_path"]) == [str(path) for path in paths]
    assert ts.check_up_to_date(subj_path / "nowhere", df).empty


def test_dates_to_compute() -> None:
    dates = ["2025-03-03", "2025-03-03", "2025-03-05", "2025-03-04", "2025-03-06"]
    df = pd.DataFrame({"date": dates, "training_status": ["in training"] * 5})
    assert ts.find_earliest_recompute_date(df) == []
    df.loc[3, "training_status"] = "not_computed"
    assert ts.find_earliest_recompute_date(df) == ["2025-03-04", "2025-03-05", "2025-03-06"]
    df["date"] = pd.to_datetime(df["date"])
    assert ts.find_earliest_recompute_date(df)[0] == "2025-03-04"


def test_a_mouse_does_not_go_back() -> None:
    assert ts.pass_through_training_hierachy("in training", "trained 1a") == "trained 1a"
    assert ts.pass_through_training_hierachy("ready4delay", "trained 1b") == "ready4delay"
    with pytest.raises(KeyError):
        ts.pass_through_training_hierachy("clever", "trained 1b")


# ---- the status of a day


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A subject's folder with two weeks of a simulated mouse, and no table; not to be changed."""
    root = tmp_path_factory.mktemp("simulated") / "tree"
    simulate(root, labs=1, subjects=1, days=14, seed=3)
    (path,) = root.glob("*/Subjects/*")
    return path


@pytest.fixture
def mouse(simulated: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    path = tmp_path / "copy" / simulated.relative_to(simulated.parents[2])
    shutil.copytree(simulated, path)
    return path


@pytest.mark.parametrize("kind", [str, datetime.fromisoformat, pd.Timestamp])
def test_the_status_of_a_day(mouse: Path, kind: Any) -> None:
    df = pipelines_table(mouse)
    wanted = df["training_status"].copy()
    date = df["date"].iloc[-1]
    df.loc[df["date"] == date, "training_status"] = "not_computed"
    assert ts.compute_training_status(df, kind(date), None) is df
    pd.testing.assert_series_equal(df["training_status"], wanted)


def test_statuses_day_by_day_from_dicts(mouse: Path) -> None:
    """As a script goes about it that makes its own table, a row a session."""
    paths = sorted(mouse.glob("*/*"))
    days = {date: [path for path in paths if path.parent.name == date] for date in {path.parent.name for path in paths}}
    found = [row for date in sorted(days) for row in ts.get_training_info_for_session(days[date], None)]
    df = pd.DataFrame(found)
    for date in ts.find_earliest_recompute_date(df):
        df = ts.compute_training_status(df, date, None, False)
    assert statuses(df) == statuses(pipelines_table(mouse))
    assert ts.find_earliest_recompute_date(df) == []


def test_habituation_stays_habituation(subj_path: Path) -> None:
    df = a_table(subj_path)
    assert statuses(df) == {"2025-03-03": "habituation", "2025-03-04": "in training"}
    shutil.rmtree(subj_path / "2025-03-03")  # it is not looked into
    df = ts.compute_training_status(df, "2025-03-03", None)
    assert statuses(ts.compute_training_status(df, "2025-03-04", None))["2025-03-03"] == "habituation"


def test_no_status_from_a_part_of_a_window(subj_path: Path) -> None:
    for day in (3, 4, 5, 6):
        write(subj_path, f"2025-03-0{day}")
    df = ts.get_latest_training_information(subj_path / "2025-03-06" / "001", None)
    assert df is not None
    shutil.rmtree(subj_path / "2025-03-04")
    with pytest.raises(TrialsNotFound, match=r"the status of 2025-03-06 cannot be computed: no trials of .*2025-03-04"):
        ts.compute_training_status(df, "2025-03-06", None)
    with pytest.raises(ConfigurationError, match="no session on 2025-03-07"):
        ts.compute_training_status(df, "2025-03-07", None)


def test_the_day_before_counts_below_a_failure(subj_path: Path) -> None:
    a_table(subj_path)
    write(subj_path, "2025-03-05")
    df = ts.get_latest_training_information(subj_path / "2025-03-05" / "001", None)
    assert df is not None
    for failure, below in (("untrainable", "in training"), ("unbiasable", "trained 1b"), ("trained 1a", "trained 1a")):
        df.loc[df["date"] == "2025-03-04", "training_status"] = failure
        assert statuses(ts.compute_training_status(df, "2025-03-05", None))["2025-03-05"] == below


def test_a_day_is_loaded_with_what_the_table_says_of_it(subj_path: Path) -> None:
    path = write(subj_path, "2025-03-03", protocols=(TRAINING, BIASED), n_trials=30, delay=900, ephys=True)
    df = ts.get_latest_training_information(path, None)
    assert df is not None
    chained = upkeep.load_day(df, "2025-03-03", one=None, force=False).sessions
    assert [(session.protocol, len(session.trials or ())) for session in chained] == [("training", 30), ("biased", 40)]
    assert [session.facts and (session.facts.delay, session.facts.location) for session in chained] == [
        (900, "ephys_rig"),
        (0, "ephys_rig"),
    ]
    df.loc[df["task_protocol"] == "training", "n_delay"] = np.nan
    first, _ = upkeep.load_day(df, "2025-03-03", one=None, force=False).sessions
    assert first.facts is not None
    assert first.facts.delay == 0
    shutil.rmtree(path / "raw_task_data_00")
    with pytest.raises(TrialsNotFound, match="ran several protocols, and its settings are not there"):
        ts.compute_training_status(df, "2025-03-03", None)


# ---- a subject


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("the store was opened")

    monkeypatch.setattr(ts, "_open_store", refuse)


@pytest.mark.usefixtures("no_store")
@pytest.mark.parametrize("one", [None, SimpleNamespace(mode="local")])
def test_the_latest_information_is_that_of_the_main_path(mouse: Path, one: Any) -> None:
    sess_path = next(path for path in mouse.glob("*/*") if path.is_dir())
    df = ts.get_latest_training_information(str(sess_path), one)
    assert_same(df, pipelines_table(mouse))
    assert_same(df, ts.load_existing_dataframe(mouse))
    assert_same(ts.get_latest_training_information(sess_path, one), df)


def test_days_that_arrive_late_give_the_same_table(mouse: Path, simulated: Path) -> None:
    dates = sorted(path.name for path in simulated.iterdir())
    for date in dates:
        shutil.rmtree(mouse / date)
    assert ts.get_latest_training_information(mouse / dates[0] / "001", None) is None
    assert not (mouse / "training.pqt").exists()
    for turn in (dates[5:7], dates[9:], dates[:2], dates[7:9], dates[2:5]):
        for date in turn:
            shutil.copytree(simulated / date, mouse / date)
        df = ts.get_latest_training_information(mouse / dates[-1] / "001", None)
        assert_same(df, pipelines_table(mouse))


def test_a_second_session_of_a_day_is_seen(subj_path: Path) -> None:
    a_table(subj_path)
    later, path = write(subj_path, "2025-03-05"), write(subj_path, "2025-03-04", 2, n_trials=50)
    df = ts.get_latest_training_information(path, None)
    assert_same(df, pipelines_table(subj_path))
    assert df is not None
    assert df.groupby("session_path")["combined_n_trials"].first()[str(path)] == 90
    assert str(later) in set(df["session_path"])


def test_a_late_habituation_day_moves_the_windows(subj_path: Path) -> None:
    for day, n_trials in ((4, 40), (6, 210), (7, 210)):
        write(subj_path, f"2025-03-0{day}", n_trials=n_trials, accuracy=1.0)
    path = subj_path / "2025-03-07" / "001"
    # The first day is too short for more, until another one puts it out of the last window.
    assert statuses(ts.get_latest_training_information(path, None))["2025-03-07"] == "in training"
    write(subj_path, "2025-03-05", protocols=(HABITUATION,))
    df = ts.get_latest_training_information(path, None)
    assert statuses(df)["2025-03-07"] == "trained 1a"
    assert_same(df, pipelines_table(subj_path))


def test_a_session_that_stays_unusable_changes_nothing(subj_path: Path) -> None:
    df = a_table(subj_path)
    shutil.rmtree(write(subj_path, "2025-03-04", 2) / "alf")
    df.loc[df["date"] == "2025-03-04", "training_status"] = "ready4delay"
    ts.save_dataframe(df, subj_path)
    assert_same(ts.get_latest_training_information(subj_path / "2025-03-04" / "002", None), df)


def test_days_whose_files_are_gone_are_kept(mouse: Path, simulated: Path, caplog: pytest.LogCaptureFixture) -> None:
    df = ts.get_latest_training_information(mouse / "any" / "001", None)
    assert df is not None
    whole = df.copy()
    dates = sorted(path.name for path in simulated.iterdir())
    ts.save_dataframe(df[df["date"] < dates[-1]], mouse)
    for date in dates[:-3]:
        shutil.rmtree(mouse / date)
    assert_same(ts.get_latest_training_information(mouse / dates[-1] / "001", None), whole)

    # Without the window there is no status yet; when its files are back, there is.
    ts.save_dataframe(df[df["date"] < dates[-1]], mouse)
    shutil.rmtree(mouse / dates[-3])
    df = ts.get_latest_training_information(mouse / dates[-1] / "001", None)
    assert statuses(df)[dates[-1]] == "not_computed"
    assert f"the status of {dates[-1]} is left as it is: no trials of" in caplog.text
    shutil.copytree(simulated / dates[-3], mouse / dates[-3])
    assert_same(ts.get_latest_training_information(mouse / dates[-1] / "001", None), whole)


def test_a_day_that_cannot_be_put_together_anew_is_kept(subj_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    df = a_table(subj_path)
    path = write(subj_path, "2025-03-04", 2)
    shutil.rmtree(subj_path / "2025-03-04" / "001")
    assert_same(ts.get_latest_training_information(path, None), df)
    assert "2025-03-04 is left as it is" in caplog.text


def test_a_table_from_another_machine(mouse: Path, simulated: Path) -> None:
    whole = ts.get_latest_training_information(mouse / "any" / "001", None)
    assert whole is not None
    dates = sorted(path.name for path in simulated.iterdir())
    theirs = whole.assign(session_path=["/far/away" + path for path in whole["session_path"]])
    ts.save_dataframe(theirs[theirs["date"] < dates[-2]], mouse)
    df = ts.get_latest_training_information(mouse / dates[-1] / "001", None)
    assert statuses(df) == statuses(whole)


def test_the_fortieth_session_in_training(subj_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.status.PATIENCE", 4)
    for day in range(1, 7):
        write(subj_path, f"2025-03-0{day}")
        df = ts.get_latest_training_information(subj_path / f"2025-03-0{day}" / "001", None)
    assert list(statuses(df).values()) == ["in training"] * 3 + ["untrainable"] + ["in training"] * 2
    write(subj_path, "2025-02-28")
    df = ts.get_latest_training_information(subj_path / "2025-02-28" / "001", None)
    assert_same(df, pipelines_table(subj_path))
    assert statuses(df)["2025-03-03"] == "untrainable"


def test_the_fortieth_biased_session(subj_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.status.PATIENCE", 3)
    for day in range(1, 6):
        write(subj_path, f"2025-03-0{day}", protocols=(BIASED,), n_trials=20)
        df = ts.get_latest_training_information(subj_path / f"2025-03-0{day}" / "001", None)
    assert_same(df, pipelines_table(subj_path))
    assert list(statuses(df).values()) == ["trained 1b"] * 2 + ["unbiasable"] + ["trained 1b"] * 2


# ---- the store


class Remote(SimpleNamespace):
    """A stand-in for a ONE with a server, which knows the lab of a subject and has no trials."""

    def __init__(self, *labs: str) -> None:
        super().__init__(mode="remote", asked=[])
        self.alyx = SimpleNamespace(rest=self._rest)
        self._labs = labs

    def _rest(self, *arguments: str, **filters: str) -> list[dict[str, str]]:
        self.asked.append((arguments, filters))
        return [{"nickname": filters["nickname"], "lab": lab} for lab in self._labs]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the environment names as the store."""
    for name in ("S3_ENDPOINT", "S3_PROFILE", "S3_REGION", "ROOT"):
        monkeypatch.delenv(f"TRAINING_STATUS_{name}", raising=False)
    folder = tmp_path / "store"
    folder.mkdir()
    monkeypatch.setenv("TRAINING_STATUS_STORE", str(folder))
    return folder


def test_the_stored_table(store: Path, subj_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ts.get_training_table_from_aws(LAB, SUBJECT) is None
    df = a_table(subj_path)
    monkeypatch.setenv("TRAINING_STATUS_ROOT", str(subj_path.parents[2]))
    assert ts.upload_training_table_to_aws(LAB, SUBJECT) is None  # type: ignore[func-returns-value]
    assert_same(ts.get_training_table_from_aws(LAB, SUBJECT), df)
    stored = store / "resources" / "training" / LAB / SUBJECT / "training.pqt"
    stored.write_bytes(b"broken")
    with pytest.raises(CorruptTable, match=f"resources/training/{LAB}/{SUBJECT}/training.pqt cannot be read"):
        ts.get_training_table_from_aws(LAB, SUBJECT)
    stored.unlink()
    df.to_csv(stored.with_suffix(".csv"), index=False)
    assert statuses(ts.get_training_table_from_aws(LAB, SUBJECT)) == statuses(df)
    with pytest.raises(ConfigurationError, match=r"no training.pqt in .*Subjects/B_001: there is nothing to upload"):
        ts.upload_training_table_to_aws(LAB, "B_001")
    monkeypatch.setenv("TRAINING_STATUS_ROOT", str(subj_path.parents[1]))  # a lab's own server
    ts.upload_training_table_to_aws(LAB, SUBJECT)
    assert stored.exists()


def test_no_credentials_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STORE", "S3_ENDPOINT", "S3_PROFILE", "S3_REGION"):
        monkeypatch.delenv(f"TRAINING_STATUS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(MissingCredentials, match=r"s3://ibl-brain-wide-map-private: .* no profile 'ibl_training'"):
        ts.get_training_table_from_aws(LAB, SUBJECT)
    (folder := tmp_path / LAB / "Subjects" / SUBJECT).mkdir(parents=True)
    a_table(folder)
    monkeypatch.setenv("TRAINING_STATUS_ROOT", str(tmp_path))
    with pytest.raises(MissingCredentials):
        ts.upload_training_table_to_aws(LAB, SUBJECT)


def test_the_table_is_pulled_and_pushed(store: Path, mouse: Path, simulated: Path) -> None:
    lab, subject = mouse.parents[1].name, mouse.name
    key = subject_keys(lab, subject).training
    one = Remote(lab)
    whole = ts.get_latest_training_information(mouse / "any" / "001", one)
    assert one.asked == [(("subjects", "list"), {"nickname": subject})]
    assert_same(whole, pipelines_table(mouse))
    assert_same(ts.get_training_table_from_aws(lab, subject), whole)
    assert_same(ts.load_existing_dataframe(mouse), whole)

    # The stored table has days that this machine has no files of.
    dates = sorted(path.name for path in simulated.iterdir())
    (mouse / "training.pqt").unlink()
    for date in dates[:4]:
        shutil.rmtree(mouse / date)
    before = (store / key).stat().st_mtime_ns
    assert_same(ts.get_latest_training_information(mouse / "any" / "001", one), whole)
    assert (store / key).stat().st_mtime_ns == before  # nothing had changed
    assert_same(ts.load_existing_dataframe(mouse), whole)


@pytest.mark.usefixtures("store")
def test_two_writers_do_not_lose_rows(subj_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one computes, another machine, which has another day, is through."""
    write(subj_path, "2025-03-03")
    other = subj_path.parents[2] / "other" / "Subjects" / SUBJECT
    write(other, "2025-03-04")
    met: list[bool] = []

    def slow(*arguments: Any) -> pd.DataFrame | None:
        found = upkeep.bring_up_to_date(*arguments)
        if not met:
            met.append(True)
            ts.get_latest_training_information(other / "2025-03-04" / "001", Remote(LAB))
        return found

    monkeypatch.setattr(ts, "bring_up_to_date", slow)
    df = ts.get_latest_training_information(subj_path / "2025-03-03" / "001", Remote(LAB))
    assert met
    assert set(statuses(df)) == {"2025-03-03", "2025-03-04"}
    assert_same(ts.get_training_table_from_aws(LAB, SUBJECT), df)


@pytest.mark.usefixtures("store")
def test_a_writer_that_always_comes_second_gives_up(subj_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(subj_path, "2025-03-03")

    def conflict(*_: Any, **__: Any) -> None:
        raise StoreConflict

    monkeypatch.setattr("core.storage.local.LocalStore.put", conflict)
    with pytest.raises(StoreConflict):
        ts.get_latest_training_information(subj_path / "2025-03-03" / "001", Remote(LAB))


def test_without_credentials_the_table_on_disk_is_used(
    subj_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(subj_path, "2025-03-03")

    def fail(error: Exception) -> Any:
        def open_store() -> None:
            raise error

        return open_store

    monkeypatch.setattr(ts, "_open_store", fail(MissingCredentials("no profile")))
    assert_same(ts.get_latest_training_information(path, Remote(LAB)), pipelines_table(subj_path))
    assert "neither pulled nor pushed: no profile" in caplog.text
    monkeypatch.setattr(ts, "_open_store", fail(AccessRefused("not yours")))
    with pytest.raises(AccessRefused):
        ts.get_latest_training_information(path, Remote(LAB))


@pytest.mark.usefixtures("store")
def test_the_lab_is_the_servers(subj_path: Path) -> None:
    path = write(subj_path, "2025-03-03")
    for labs in ((), ("blab", "clab")):
        with pytest.raises(ConfigurationError, match=f"Alyx has {SUBJECT} in .*: one lab is wanted"):
            ts.get_latest_training_information(path, Remote(*labs))
    df = ts.get_latest_training_information(path, Remote("blab", LAB))
    assert_same(ts.get_training_table_from_aws(LAB, SUBJECT), df)

    class Down(Remote):
        def _rest(self, *_: str, **__: str) -> list[dict[str, str]]:
            raise ConnectionError("no route")

    with pytest.raises(TransientError, match=f"the lab of {SUBJECT}: ConnectionError"):
        ts.get_latest_training_information(path, Down())


# ---- beside the peer


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_the_peers_callers_find_what_they_look_for(simulated: Path) -> None:
    peer = pytest.importorskip("ibllib.pipes.training_status", reason="needs ibllib with its dependencies")
    path = sorted(path for path in simulated.glob("*/*") if path.is_dir())[-1]
    assert ts.get_data_collection(path) == tuple(peer.get_data_collection(path))
    (duration, *theirs), (ours, *others) = (
        module.compute_session_duration_delay_location(path) for module in (peer, ts)
    )
    assert theirs == others
    assert ours - duration in (0, 1)  # rounded, not truncated
    trials, of_peer = ts.load_trials(path, None), peer.load_trials(path, None)
    assert trials is not None
    for name in TRIALS_ATTRIBUTES:
        np.testing.assert_array_equal(trials[name], of_peer[name])
    (found,), (wanted,) = (module.get_training_info_for_session([path], None) for module in (ts, peer))
    assert found.keys() == wanted.keys()
    fitted = {"bias", "thres", "lapselow", "lapsehigh"}
    for name in found:
        if "duration" not in name and not fitted & set(name.split("_")):
            assert np.all(found[name] == wanted[name]), name
    assert set(TRAINING_COLUMNS) == wanted.keys()
