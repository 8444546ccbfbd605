"""The command with an Alyx server as its source; a small server of ours stands in, see `tests/alyx.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from tests.aggregates import aggregate_tree
from tests.alyx import PASSWORD, USER, alyx
from tests.processes import training_status


def test_recompute_and_refresh_from_alyx(mice: Path, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "TRAINING_STATUS_ONE_USER": USER, "TRAINING_STATUS_CACHE": str(tmp_path / "cache")}
    store = ["--store", str(tmp_path / "tables"), "--embedded", "--workers", "2", "--json"]
    with alyx(mice) as server:
        wrong = training_status(
            "recompute", "--one", server.url, *store, env={**env, "TRAINING_STATUS_ONE_PASSWORD": "wrong"}
        )
        assert (wrong.returncode, len(wrong.stderr.splitlines()), wrong.stdout) == (2, 1, ""), wrong.stderr
        env["TRAINING_STATUS_ONE_PASSWORD"] = PASSWORD
        done = training_status("recompute", "--one", server.url, *store, env=env)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["counts"]["done"] == 4
        again = training_status("refresh", "--one", server.url, *store, env=env)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["counts"]["unchanged"] == 4
        assert PASSWORD not in wrong.stderr + done.stdout + done.stderr + again.stdout + again.stderr


def test_aggregates_with_alyx_beside_them_give_what_the_tree_gives(mice: Path, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "TRAINING_STATUS_ONE_USER": USER, "TRAINING_STATUS_CACHE": str(tmp_path / "cache")}
    public = str(aggregate_tree(mice, tmp_path / "public"))
    rest = ["--embedded", "--workers", "2", "--json", "--store"]
    of_tree = training_status("recompute", "--root", str(mice), *rest, str(tmp_path / "of_tree"), env=env)
    assert of_tree.returncode == 0, of_tree.stderr
    with alyx(mice) as server:
        both = ["--aggregates", public, "--one", server.url]
        wrong = training_status(
            "recompute", *both, *rest, str(tmp_path / "ours"), env={**env, "TRAINING_STATUS_ONE_PASSWORD": "wrong"}
        )
        assert (wrong.returncode, len(wrong.stderr.splitlines()), wrong.stdout) == (2, 1, ""), wrong.stderr
        assert "without --one, rig and delay are missing" in wrong.stderr
        env["TRAINING_STATUS_ONE_PASSWORD"] = PASSWORD
        ours = training_status("recompute", *both, *rest, str(tmp_path / "ours"), "--alyx-dry-run", env=env)
        assert ours.returncode == 0, ours.stderr
        doctor = training_status("doctor", *both, env=env)
        assert "OK       login --one: " in doctor.stdout
        assert f"OK       source: aggregates:{public}, one:{server.url} is reached" in doctor.stdout
        again = training_status("refresh", *both, *rest, str(tmp_path / "ours"), env=env)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["counts"]["unchanged"] == 4
    record = json.loads(ours.stdout)
    assert (record["counts"]["done"], record["counts"]["left_out"], record["missing"]) == (4, 0, [])
    assert {update["state"] for update in record["alyx"]} == {"would be sent"}
    columns = ["lab", "subject", "status", "date"]
    tables = [
        pq.read_table(next((tmp_path / name).rglob("cohort.pqt")), columns=columns).to_pylist()
        for name in ("of_tree", "ours")
    ]
    assert tables[0] == tables[1]
