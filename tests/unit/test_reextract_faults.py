"""Extraction from raw files where it is asked for and cannot be had; with ibllib: tests/golden/test_reextract.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from core.errors import TrialsNotFound
from core.reextract import reextract_trials
from core.schema import TRIALS_ATTRIBUTES

MODULE = "ibllib.io.extractors.bpod_trials"


@pytest.fixture
def session(tmp_path: Path) -> Path:
    path = tmp_path / "A_001" / "2025-03-03" / "001"
    (path / "raw_behavior_data").mkdir(parents=True)
    return path


def stand_in(monkeypatch: pytest.MonkeyPatch, extract: Any) -> None:
    module = ModuleType(MODULE)
    module.get_bpod_extractor = lambda path, task_collection: SimpleNamespace(extract=extract)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)
    for parent in ("ibllib", "ibllib.io", "ibllib.io.extractors"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))


def without_ibllib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ibllib", MODULE):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_ibllib_it_says_what_to_install(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ibllib(monkeypatch)
    with pytest.raises(TrialsNotFound, match=r"needs ibllib .*: pip install 'training-status\[ibl\]'$") as error:
        reextract_trials(session, ["raw_behavior_data"])
    assert "\n" not in str(error.value)


def test_without_raw_files_ibllib_is_not_needed(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ibllib(monkeypatch)
    with pytest.raises(TrialsNotFound, match=r"^no raw files in the session$"):
        reextract_trials(session, [])
    with pytest.raises(TrialsNotFound, match=r"^no raw files in raw_task_data_00$"):
        reextract_trials(session, ["raw_task_data_00"])


def test_the_table_counts_and_the_rest_is_beside_it(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {name: np.array([0.2, 0.8]) for name in TRIALS_ATTRIBUTES if name != "choice"}
    extracted = {"table": pd.DataFrame(columns), "choice": np.array([1, -1]), "stimOn_times": np.zeros(3)}
    stand_in(monkeypatch, lambda save, task_collection: (extracted, None))
    trials = reextract_trials(session, ["raw_behavior_data"])
    assert trials.choice.tolist() == [1, -1]
    assert trials.stimOn_times.tolist() == [0.2, 0.8]
    assert trials.choice.dtype == np.float64


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (IndexError("index 199 is out of bounds\nand more"), "IndexError: index 199 is out of bounds$"),
        (None, "without"),
    ],
)
def test_what_cannot_be_extracted(session: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, said: str) -> None:
    def extract(save: bool, task_collection: str) -> tuple[dict[str, Any], None]:
        if fault:
            raise fault
        return {"choice": np.array([1])}, None

    stand_in(monkeypatch, extract)
    with pytest.raises(TrialsNotFound, match=f"cannot be extracted from raw_behavior_data: .*{said}"):
        reextract_trials(session, ["raw_behavior_data"])
