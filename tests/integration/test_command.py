"""The shipped command as a process, with its private Redis and worker processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import duckdb
import pandas as pd
import psutil
import pytest

from core.discover import find_labs, find_subjects
from core.pipeline import recompute_subject
from core.schema import SCHEMA_VERSION
from core.sources import TreeSource
from core.storage import open_store
from tests.processes import COMMAND, environment, interruptible, training_status, wait_for


def tables(folder: Path) -> dict[str, bytes]:
    """Every table below a folder store, by key; run records name the time and are left out."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.pqt"))}


def plain_tables(root: Path, folder: Path) -> dict[str, bytes]:
    """What the plain pipeline, without a queue, makes of a tree: the subjects' tables."""
    store = open_store(str(folder))
    store.check()
    for lab in find_labs(root)[0]:
        for subject in find_subjects(root, lab)[0]:
            recompute_subject(TreeSource(root), lab, subject, store)
    return tables(folder)


@pytest.fixture(scope="module")
def computed(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("computed") / "tables"
    done = training_status("recompute", "--root", mice, "--store", folder, "--embedded", "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_recompute_gives_the_tables_of_the_plain_pipeline(mice: Path, computed: tuple, tmp_path: Path) -> None:
    folder, record = computed
    expected = plain_tables(mice, tmp_path / "plain")
    found = tables(folder)
    cohort = found.pop("resources/training/cohort.pqt")
    assert found == expected
    assert len(found) == 4 * 4
    assert cohort
    assert record["counts"] == {"subjects": 4, "done": 4, "unchanged": 0, "failed": 0} | {
        "sessions": sum(1 for _ in mice.glob("*/Subjects/*/*/*")),
        "left_out": 0,
    }


def test_the_run_record_in_the_store_is_what_was_printed(computed: tuple) -> None:
    folder, record = computed
    stored = folder / "resources" / "training" / "runs" / f"{record['run_id']}.json"
    assert json.loads(stored.read_bytes()) == record
    assert record["versions"]["schema"] == SCHEMA_VERSION


def test_tables_are_read_by_pandas_and_duckdb_alike(computed: tuple) -> None:
    folder, _ = computed
    path = next(folder.glob("resources/training/*/*/training.pqt"))
    by_pandas = pd.read_parquet(path)
    query = f"select count(*) from read_parquet('{path}') where training_status is not null"
    assert duckdb.sql(query).fetchall() == [(len(by_pandas),)]
    assert len(by_pandas) > 0


def test_refresh_of_what_has_not_changed_writes_nothing(mice: Path, computed: tuple) -> None:
    folder, _ = computed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pqt")}
    done = training_status("refresh", "--root", mice, "--store", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["unchanged"] == 4
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.pqt")} == before


def test_refreshes_add_up_to_a_recompute(mice: Path, computed: tuple, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(mice, root)
    sessions = sorted(root.glob("*/Subjects/*/*/*"))
    late = sessions[2::5]
    aside = [shutil.move(path, tmp_path / f"aside{at}") for at, path in enumerate(late)]
    store = tmp_path / "tables"
    assert training_status("refresh", "--root", root, "--store", store).returncode == 0
    for path, kept in zip(late, aside, strict=True):
        shutil.move(kept, path)
    refreshed = training_status("refresh", "--root", root, "--store", store, "--json")
    assert refreshed.returncode == 0
    assert 0 < json.loads(refreshed.stdout)["counts"]["sessions"] < len(sessions)
    again = tmp_path / "again"
    assert training_status("recompute", "--root", root, "--store", again).returncode == 0
    assert tables(store) == tables(again)


def test_only_the_labs_and_subjects_that_are_named(mice: Path, tmp_path: Path) -> None:
    lab = find_labs(mice)[0][0]
    subject = find_subjects(mice, lab)[0][1]
    done = training_status(
        "recompute", "--root", mice, "--store", tmp_path / "t", "--lab", lab, "--subject", subject, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert {key.split("/")[2:4][-1] for key in tables(tmp_path / "t") if "/training.pqt" in key} == {subject}


def test_broken_sessions_are_left_out_with_a_reason_and_the_rest_is_computed(mice: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(mice, root)
    broken = sorted(root.glob("*/Subjects/*/*/*/alf/**/_ibl_trials.table*.pqt"))[-1]
    broken.write_bytes(broken.read_bytes()[:500])
    odd = next(root.glob("*/Subjects/*/*")) / "first try"
    odd.mkdir()
    (next(root.glob("*/Subjects")) / "empty_mouse").mkdir()
    (next(root.glob("*/Subjects")) / "m\u043euse").mkdir()  # a Cyrillic letter that looks like an o
    done = training_status("recompute", "--root", root, "--store", tmp_path / "t", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    reasons = {left["session"]: left["reason"] for left in record["left_out"]}
    session = "/".join(broken.relative_to(root).parts[3:5])
    assert "_ibl_trials.table" in reasons[session]
    assert "cannot be read" in reasons[session]
    assert any("first try" in name and "three digits" in reason for name, reason in reasons.items())
    assert any("no session folder" in reason for reason in reasons.values())
    assert "look" not in record["folders_left_out"][0]["folder"]
    assert "ASCII" in record["folders_left_out"][0]["reason"]
    assert record["counts"]["failed"] == 0
    assert record["counts"]["done"] == 5
    plain = training_status("recompute", "--root", root, "--store", tmp_path / "t")
    assert "left out: " in plain.stderr
    assert session in plain.stderr


def test_a_lab_server_without_lab_folders_is_told_its_lab(mice: Path, tmp_path: Path) -> None:
    lab = find_labs(mice)[0][0]
    flat = mice / lab
    refused = training_status("recompute", "--root", flat, "--store", tmp_path / "t")
    assert refused.returncode == 2
    assert "--lab" in refused.stderr
    done = training_status("recompute", "--root", flat, "--store", tmp_path / "t", "--lab", "mylab")
    assert done.returncode == 0, done.stderr
    assert {key.split("/")[2] for key in tables(tmp_path / "t") if "/training.pqt" in key} == {"mylab"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--root", "{tmp}/nowhere", "--store", "{tmp}/t"], "is not a folder"),
        (["--root", "{tmp}", "--store", "{tmp}/t"], "no <lab>/Subjects folder"),
        (["--root", "{mice}", "--store", "{tmp}/no/such/place"], "{tmp}/no/such"),
        (["--root", "{mice}", "--store", "ftp://host/x"], "store"),
        (["--root", "{mice}", "--store", "{tmp}/t", "--broker", "redis://127.0.0.1:1/0"], "does not answer"),
        (["--root", "{mice}", "--store", "{tmp}/t", "--broker", "amqp://127.0.0.1"], "broker"),
        (["--root", "{mice}", "--store", "{tmp}/t", "--lab", "nolab"], "no lab 'nolab'"),
        (["--root", "{mice}", "--store", "{tmp}/t", "--lab", "../etc"], "cannot be the name of a lab"),
        (["--root", "{mice}", "--store", "{tmp}/t", "--subject", "nobody"], "no subject 'nobody'"),
        (["--root", "{mice}"], "--store"),
        (["--root", "{mice}", "--store", "{tmp}/t", "--worker", "2"], "--worker"),
        (["--root", "{mice}", "--store", "{tmp}/t", "--workers", "none"], "none"),
        (["--root", "{mice}", "--store", "{tmp}/t", "--no-wait"], "--no-wait"),
        (["--root", "{mice}", "--store", "{tmp}/t", "--embedded", "--broker", "redis://127.0.0.1"], "exclude"),
    ],
)
def test_wrong_use_is_told_in_one_line_and_nothing_is_written(
    options: list[str], told: str, mice: Path, tmp_path: Path
) -> None:
    def fill(text: str) -> str:
        return text.format(tmp=tmp_path, mice=mice)

    done = training_status("recompute", *map(fill, options))
    assert done.returncode == 2
    assert fill(told) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert tables(tmp_path) == {}


def test_options_come_from_the_environment_too(mice: Path, tmp_path: Path) -> None:
    settings = {"TRAINING_STATUS_ROOT": str(mice), "TRAINING_STATUS_STORE": str(tmp_path / "t")}
    lab = find_labs(mice)[0][0]
    done = training_status("recompute", env={**settings, "TRAINING_STATUS_LAB": lab, "TRAINING_STATUS_JSON": "1"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labs"] == [lab]
    wrong = training_status("recompute", env={**settings, "TRAINING_STATUS_WORKERS": "many"})
    assert wrong.returncode == 2
    assert "many" in wrong.stderr


def test_status_and_explain_read_the_tables(computed: tuple) -> None:
    folder, _ = computed
    rows = json.loads(training_status("status", "--store", folder, "--json").stdout)
    assert len(rows) == 4
    one = rows[0]
    shown = training_status("status", "--store", folder, "--lab", one["lab"], "--subject", one["subject"])
    assert one["status"] in shown.stdout
    told = training_status("explain", one["subject"], "--lab", one["lab"], "--store", folder, "--json")
    assert told.returncode == 0, told.stderr
    explanation = json.loads(told.stdout)
    assert explanation["status"] == one["status"]
    assert {verdict["target"] for verdict in explanation["verdicts"]} >= {explanation["next_status"]}
    plain = training_status("explain", one["subject"], "--store", folder)
    assert explanation["missing"] in plain.stdout
    nobody = training_status("explain", "nobody", "--store", folder)
    assert (nobody.returncode, len(nobody.stderr.splitlines())) == (2, 1)


def test_ctrl_c_ends_everything_that_the_command_started(mice: Path, tmp_path: Path) -> None:
    arguments = ["recompute", "--root", str(mice), "--store", str(tmp_path / "t")]
    with interruptible(arguments, stdout=subprocess.PIPE) as running:
        parent = psutil.Process(running.pid)
        wait_for(lambda: len(parent.children(recursive=True)) >= 3, "Redis and the workers to run")
        children = parent.children(recursive=True)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert running.returncode == 130, told
    assert "interrupted" in told
    assert "Traceback" not in told
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_killed_command_leaves_no_process_behind(mice: Path, tmp_path: Path) -> None:
    running = subprocess.Popen(
        [*COMMAND, "recompute", "--root", str(mice), "--store", str(tmp_path / "t")],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parent = psutil.Process(running.pid)
    wait_for(lambda: len(parent.children(recursive=True)) >= 3, "Redis and the workers to run")
    children = parent.children(recursive=True)
    running.kill()
    running.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_help_costs_no_heavy_import() -> None:
    code = "import sys; from scheduler.cli.main import run; run(['--help']); print(sorted(sys.modules))"
    shown = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, check=True, timeout=60)
    for module in ("numpy", "pandas", "pyarrow", "celery", "boto3", "scipy"):
        assert f"'{module}'" not in shown.stdout


def test_simulate_refuses_a_folder_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("good")
    done = training_status("simulate", tmp_path, "--labs", "1", "--subjects", "1", "--days", "2")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_simulated_tree_is_written_and_counted(tmp_path: Path) -> None:
    done = training_status("simulate", tmp_path / "mice", "--labs", "1", "--subjects", "1", "--days", "2")
    assert done.returncode == 0, done.stderr
    count = sum(1 for _ in (tmp_path / "mice").glob("*/Subjects/*/*/*"))
    assert done.stdout.startswith(f"{count} sessions of 1 simulated mice")
