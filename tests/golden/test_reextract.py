"""Raw sessions, as they lie in ibllib's own wheel, through ibllib's extractors."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from core import training_status as ts
from core.config import SourceSettings
from core.errors import TrialsNotFound
from core.reextract import reextract_trials
from core.schema import TRIALS_ATTRIBUTES
from core.sources import open_source
from tests.alyx import alyx
from tests.one import opened
from tests.processes import training_status

# ibllib's own code warns of much, and of other things from version to version.
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

#: Session of the wheel -> number of trials, and the protocol.
SESSIONS = {
    "session_training_ge5": (12, "training"),
    "session_training_lt5": (4, "training"),
    "session_biased_ge5": (8, "biased"),
}
#: Sessions that ibllib itself cannot extract: times are missing.
BROKEN = ("session_biased_lt5", "session_ephys")


@pytest.fixture
def peer() -> Any:
    return pytest.importorskip("ibllib.pipes.training_status", reason="needs ibllib with its dependencies")


def copy(name: str, tmp_path: Path, number: int = 1, subject: str = "A_001") -> Path:
    """Copy a session of the wheel to where sessions lie."""
    spec = find_spec("ibllib")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0], "tests", "extractors", "data", name)
    path = tmp_path / "alab" / "Subjects" / subject / "2025-03-03" / f"{number:03}"
    shutil.copytree(source, path)
    return path


@pytest.mark.parametrize("name", SESSIONS)
def test_trials_are_those_that_the_peer_extracts(peer: Any, tmp_path: Path, name: str) -> None:
    path = copy(name, tmp_path)
    before = sorted(path.rglob("*"))
    trials = ts.load_trials(str(path), None)
    assert trials is not None
    wanted = peer.load_trials(path, None)
    assert len(trials.choice) == SESSIONS[name][0]
    for attribute in TRIALS_ATTRIBUTES:
        np.testing.assert_array_equal(trials[attribute], np.asarray(wanted[attribute], float))
        assert trials[attribute].shape == (SESSIONS[name][0],)
    assert sorted(path.rglob("*")) == before  # nothing is written
    assert ts.load_trials(path, None, force=False) is None


@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_extracted_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    path = copy(name, tmp_path)
    with pytest.raises(TrialsNotFound, match="raw files: trials cannot be extracted from raw_behavior_data: ") as error:
        ts.load_trials(path, None)
    assert "\n" not in str(error.value)
    assert ts.load_trials(path, None, mode="warn") is None


@pytest.mark.usefixtures("peer")
def test_a_raw_session_that_a_server_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy("session_training_ge5", tmp_path / "tree")
    monkeypatch.setenv("HOME", str(tmp_path))
    with alyx(tmp_path / "tree") as server:
        found = []
        for source in (opened(server, tmp_path), open_source(str(tmp_path / "tree"), SourceSettings())):
            subject = source.subject("alab", "A_001")
            (day,) = subject.load(subject.sessions()[0], "here")
            found.append(day.sessions[0])
    of_server, of_tree = found
    assert of_server.trials is not None
    assert len(of_server.trials) == SESSIONS["session_training_ge5"][0]
    for attribute in TRIALS_ATTRIBUTES:
        np.testing.assert_array_equal(getattr(of_server.trials, attribute), getattr(of_tree.trials, attribute))
    assert of_server.facts == of_tree.facts


def test_measures_of_raw_sessions(peer: Any, tmp_path: Path) -> None:
    paths = [copy(name, tmp_path, number) for number, name in enumerate(SESSIONS, start=1)]
    for path, (n_trials, protocol) in zip(paths, SESSIONS.values(), strict=True):
        found, wanted = (module.get_sess_dict(path, None, protocol) for module in (ts, peer))
        assert found is not None
        assert found["n_trials"] == wanted["n_trials"] == n_trials
        for name in ("performance", "contrasts", "performance_easy", "reaction_time"):
            np.testing.assert_array_equal(found[name], wanted[name])
    together = ts.load_combined_trials(paths[:2], None)
    assert len(together.choice if together else ()) == 12 + 4


@pytest.mark.usefixtures("peer")
def test_a_table_from_raw_sessions(tmp_path: Path) -> None:
    paths = [copy(name, tmp_path, number) for number, name in enumerate(("session_training_ge5", BROKEN[0]), start=1)]
    df = ts.get_latest_training_information(paths[0], None)
    assert df is not None
    assert set(df["session_path"]) == {str(paths[0])}
    assert set(df["training_status"]) == {"in training"}


def test_collections_are_put_together(peer: Any, tmp_path: Path) -> None:
    path = copy("session_training_ge5", tmp_path)
    (path / "raw_behavior_data").rename(path / "raw_task_data_00")
    shutil.copytree(path / "raw_task_data_00", path / "raw_task_data_01")
    twice = reextract_trials(path, ["raw_task_data_00", "raw_task_data_01"])
    assert len(twice) == 24
    np.testing.assert_array_equal(twice.choice, peer.load_trials(path, None)["choice"])
    # The peer extracts all collections, whichever it is asked for.
    of_one = ts.load_trials(path, None, collections=["alf/task_01"])
    assert of_one is not None
    np.testing.assert_array_equal(of_one.choice, twice.choice[12:])
    with pytest.raises(TrialsNotFound, match="no raw files in raw_task_data_00, raw_task_data_02"):
        reextract_trials(path, ["raw_task_data_00", "raw_task_data_02"])


def test_a_run_takes_each_raw_session_to_a_status_or_a_reason(peer: Any, tmp_path: Path) -> None:
    """A subject a session of the wheel, through Celery and the extraction queue."""
    root, store = tmp_path / "tree", tmp_path / "tables"
    names = (*SESSIONS, *BROKEN)
    paths = {name: copy(name, root, subject=name) for name in names}
    done = training_status("recompute", "--root", root, "--store", store, "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["counts"] == {"subjects": 5, "done": 5, "unchanged": 0, "failed": 0, "sessions": 5, "left_out": 2}
    assert {left["subject"] for left in record["left_out"]} == set(BROKEN)
    assert all("trials cannot be extracted from raw_behavior_data: " in left["reason"] for left in record["left_out"])
    statuses = {"training": "in training", "biased": "trained 1b"}
    for name, (n_trials, protocol) in SESSIONS.items():
        table = pd.read_parquet(store / "resources" / "training" / "alab" / name / "training.pqt")
        wanted = peer.get_sess_dict(paths[name], None, protocol)
        assert set(table["training_status"]) == {statuses[protocol]}
        assert set(table["n_trials"]) == {n_trials}
        for column in ("performance", "contrasts", "performance_easy", "reaction_time"):
            np.testing.assert_array_equal(table[column], wanted[column])
