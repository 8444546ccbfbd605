"""Nights of refreshes by a worker: sessions that come late, move and go, with and without --prune."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import pytest
import redis

from core.discover import find_labs, find_subjects
from core.pipeline import recompute_subject
from core.sources import TreeSource
from core.storage import open_store
from core.tables import COHORT_KEY, merge_cohort
from scheduler import runs
from tests.integration.test_command import tables
from tests.processes import training_status, wait_for, worker
from tests.trees import rows
from workers.app import configure
from workers.ledger import Ledger

LAB, OTHER = "simlab01", "simlab02"


class Site:
    """A tree, a store that is kept in step with it, and the worker that both are seen by."""

    def __init__(self, root: Path, folder: Path, ledger: Ledger) -> None:
        self.root, self.folder, self.ledger = root, folder, ledger
        self.store = folder / "tables"
        self.store.mkdir()

    def run(self, kind: Literal["recompute", "refresh"], **options: Any) -> dict[str, Any]:
        """Run to the end, without the command; return the record."""
        spec = runs.new_run(kind, source=str(self.root), store=str(self.store), **options)
        runs.start(self.ledger, spec)
        wait_for(lambda: self.ledger.is_ended(spec.run_id), "the run to end", 120)
        record = self.ledger.record(spec.run_id)
        assert record is not None
        assert (record["error"], record["failed"]) == (None, [])
        return record

    def recomputed(self) -> dict[str, bytes]:
        """The tables of a recompute into an empty store, by the plain pipeline."""
        folder = Path(mkdtemp(dir=self.folder))
        store, cohort = open_store(str(folder)), []
        for lab in find_labs(self.root)[0]:
            for subject in find_subjects(self.root, lab)[0]:
                cohort += recompute_subject(TreeSource(self.root), lab, subject, store).cohort
        return {**tables(folder), COHORT_KEY: merge_cohort(None, cohort)}

    def sessions(self, subject: str) -> list[Path]:
        """The session folders of a subject, lab/subject."""
        lab, name = subject.split("/")
        return sorted((self.root / lab / "Subjects" / name).glob("*/*"))


@pytest.fixture
def site(mice: Path, broker: str, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Site]:
    root = tmp_path / "tree"
    shutil.copytree(mice, root)
    configure(broker)
    with worker(broker, tmp_path / "worker.log"):
        yield Site(root, tmp_path, Ledger(redis_client))


def told(record: dict[str, Any]) -> dict[str, str]:
    """What a record says of sessions and of folders, by subject and session, or folder."""
    sessions = {f"{left['lab']}/{left['subject']} {left['session']}": left["reason"] for left in record["left_out"]}
    return sessions | {left["folder"]: left["reason"] for left in record["folders_left_out"]}


def test_nights_of_refreshes(site: Site, broker: str, tmp_path: Path) -> None:
    one, two = f"{LAB}/SIM01_001", f"{OTHER}/SIM02_001"
    late, day = site.sessions(one)[1], site.sessions(one)[-1]
    shutil.move(late, tmp_path / "late")
    shutil.move(day, tmp_path / "day")
    site.run("refresh")

    # The last day, and one that is weeks late; another is moved to its right number.
    shutil.move(tmp_path / "day", day)
    shutil.move(tmp_path / "late", late)
    moved = site.sessions(two)[2]
    shutil.move(moved, moved.with_name("009"))
    record = site.run("refresh")
    assert told(record) == {}
    assert record["counts"]["sessions"] == 3
    assert tables(site.store) == site.recomputed()

    # One goes, and another comes on its day: what was there is kept, what is new is added.
    shutil.move(day, tmp_path / "day")
    shutil.copytree(late, day.with_name("008"))
    record = site.run("refresh")
    assert record["counts"]["sessions"] == 1
    (reason,) = told(record).values()
    assert "session 001 is no longer on disk" in reason
    assert "session 008 is new" in reason
    paths = {row["session_path"] for row in rows(tables(site.store)[f"resources/training/{one}/training.pqt"])}
    assert {str(day), str(day.with_name("008"))} <= paths
    assert site.run("refresh")["counts"]["unchanged"] == 4

    # With --prune the table is what is on disk, as a recompute makes it.
    place = ("--root", site.root, "--store", site.store, "--broker", broker, "--json")
    record = json.loads(training_status("refresh", *place, "--prune").stdout)
    assert (record["prune"], told(record)) == (True, {})
    assert record["counts"] | {"done": 1, "unchanged": 3} == record["counts"]
    assert tables(site.store) == site.recomputed()
    assert site.run("refresh", prune=True)["counts"]["unchanged"] == 4


def test_subjects_that_are_gone(site: Site, tmp_path: Path) -> None:
    away, emptied = f"{LAB}/SIM01_002", f"{OTHER}/SIM02_002"
    site.run("refresh")
    before = tables(site.store)
    shutil.move(site.root / LAB / "Subjects/SIM01_002", tmp_path / "away")
    days = {path.parent.name for path in site.sessions(emptied)}
    shutil.rmtree(site.root / OTHER / "Subjects/SIM02_002")
    (site.root / OTHER / "Subjects/SIM02_002").mkdir()

    record = site.run("refresh")
    assert told(record).keys() == {away, *(f"{emptied} {date}" for date in days)}
    assert told(record)[away].startswith("no longer on disk: its tables are kept")
    assert record["counts"]["unchanged"] == 3
    assert tables(site.store) == before
    assert told(site.run("refresh", labs=(OTHER,))).keys() == {f"{emptied} {date}" for date in days}

    record = site.run("refresh", prune=True)
    reason = "no longer on disk: taken out of the cohort table; its own tables stay in the store"
    assert told(record) == {away: reason, f"{emptied} {emptied}": reason}
    after = tables(site.store)
    cohort = after[COHORT_KEY]
    assert {row["subject"] for row in rows(cohort)} == {"SIM01_001", "SIM02_001"}
    assert cohort == site.recomputed()[COHORT_KEY]
    assert after == {**before, COHORT_KEY: cohort}

    # It stays so, and what comes back is taken up.
    site.run("refresh")
    assert tables(site.store) == after
    shutil.move(tmp_path / "away", site.root / LAB / "Subjects/SIM01_002")
    assert site.run("refresh")["counts"]["unchanged"] == 4
    assert {row["subject"] for row in rows(tables(site.store)[COHORT_KEY])} == {"SIM01_001", "SIM01_002", "SIM02_001"}


def test_files_known_by_content(site: Site) -> None:
    site.run("recompute", fingerprint="content")
    for path in site.root.rglob("*"):
        path.touch()
    assert site.run("refresh", fingerprint="content")["counts"]["unchanged"] == 4
    other = site.run("refresh")
    assert (other["fingerprint"], other["counts"]["done"]) == ("stat", 4)
    assert tables(site.store) == site.recomputed()


def test_a_retry_is_of_the_kind_of_its_run(broker: str, redis_client: redis.Redis, tmp_path: Path) -> None:
    ledger = Ledger(redis_client)
    spec = runs.new_run("refresh", source=str(tmp_path), store=str(tmp_path), prune=True, fingerprint="content")
    ledger.open_run(spec)
    assert ledger.spec(spec.run_id) == spec
    ledger.close_run(spec.run_id, json.dumps({"error": None, "failed": [{"lab": LAB, "subject": "M1"}]}).encode())
    done = training_status("retry", spec.run_id, "--broker", broker, "--no-wait", "--json")
    assert done.returncode == 0, done.stderr
    again = ledger.spec(json.loads(done.stdout)["run_id"])
    assert (again.kind, again.only, again.prune, again.fingerprint) == ("refresh", (f"{LAB}/M1",), True, "content")


def test_a_wrong_fingerprint_is_told_in_one_line(tmp_path: Path) -> None:
    done = training_status("refresh", "--root", tmp_path, "--store", tmp_path, "--fingerprint", "size")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--fingerprint" in done.stderr
    done = training_status(
        "refresh", "--root", tmp_path, "--store", tmp_path, env={"TRAINING_STATUS_FINGERPRINT": "size"}
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "FINGERPRINT" in done.stderr.upper()
