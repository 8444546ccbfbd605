"""The command with an Alyx server as its source; a small server of ours stands in, see `tests/alyx.py`."""

from __future__ import annotations

import json
from pathlib import Path

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
