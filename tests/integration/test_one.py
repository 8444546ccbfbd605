"""A whole run over a server that answers as Alyx does, with real worker processes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from core.simulation.tree import simulate
from tests.alyx import PASSWORD, USER, alyx
from tests.processes import training_status


def training(folder: Path) -> dict[str, pd.DataFrame]:
    """The training tables below a folder store, without what tells where sessions lie."""
    return {
        str(path.relative_to(folder)): pd.read_parquet(path).drop(columns="session_path")
        for path in folder.rglob("training.pqt")
    }


@pytest.mark.slow
def test_a_run_over_a_server_gives_the_tables_of_the_tree(tmp_path: Path) -> None:
    simulate(tmp_path / "tree", labs=2, subjects=1, days=10)
    (tmp_path / "home").mkdir()
    env = {
        "HOME": str(tmp_path / "home"),
        "TRAINING_STATUS_ONE_PASSWORD": PASSWORD,
        "TRAINING_STATUS_CACHE": str(tmp_path / "cache"),
    }
    run = ["recompute", "--embedded", "--workers", "2", "--json"]
    plain = training_status(*run, "--root", tmp_path / "tree", "--store", tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    with alyx(tmp_path / "tree") as server:
        options = ["--one", server.url, "--one-user", USER]
        done = training_status(*run, *options, "--store", tmp_path / "one", env=env)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["counts"]["done"] == 2
        refused = training_status(
            *run, *options, "--store", tmp_path / "none", env={**env, "TRAINING_STATUS_ONE_PASSWORD": "wrong"}
        )
    assert refused.returncode == 2
    assert "password" in refused.stderr
    expected, found = training(tmp_path / "plain"), training(tmp_path / "one")
    assert expected.keys() == found.keys()
    for key, table in expected.items():
        pd.testing.assert_frame_equal(found[key], table)
