"""`training-status up`: broker, workers, beat and Flower as real processes, and what is left when they end."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.processes import COMMAND, environment, training_status, wait_for
from tests.standin import SLOW, SLOWER, StandIn, assert_complete, complete_tables, write_tree
from workers.broker import connect
from workers.ledger import Ledger


class Up:
    """A running `up`."""

    def __init__(self, running: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = psutil.Process(running.pid)
        self.state = folder / "state"
        self._running = running
        self._folder = folder

    @property
    def said(self) -> str:
        return (self._folder / "up.out").read_text()

    @property
    def logged(self) -> str:
        return (self._folder / "up.err").read_text()

    @property
    def broker(self) -> str:
        return (self.state / "broker").read_text().strip()

    def child(self, name: str) -> psutil.Process | None:
        """The process of a part as it runs now: redis, worker, beat or flower."""
        for child in self.process.children():
            with suppress(psutil.Error):
                if name in child.cmdline() or (name == "redis" and "server" in child.name()):
                    return child
        return None

    def end(self, how: signal.Signals) -> int:
        """Signal the command, wait for it and for all of its processes, and return its exit code."""
        family = self.process.children(recursive=True)
        self._running.send_signal(how)
        code = self._running.wait(60)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []
        return code


@contextmanager
def up(folder: Path, mice: Path, *options: str) -> Iterator[Up]:
    """Run `up` on a state folder until the block ends, from when it has said where everything is."""
    folder.mkdir(exist_ok=True)
    arguments = ("--root", mice, "--store", folder / "tables", "--state", folder / "state", "--workers", "2")
    with (folder / "up.out").open("wb") as out, (folder / "up.err").open("ab") as err:
        running = subprocess.Popen(
            [*COMMAND, "up", *map(str, arguments), "--flower-port", "0", *options],
            env=environment({"TRAINING_STATUS_PATIENCE": "2"}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    made = Up(running, folder)
    family: list[psutil.Process] = []
    try:
        wait_for(lambda: "broker: " in made.said or running.poll() is not None, "up to be up")
        assert running.poll() is None, made.said + made.logged
        yield made
    finally:
        with suppress(psutil.Error):
            family = made.process.children(recursive=True)
        running.terminate()
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()


def refreshed(made: Up, mice: Path, folder: Path) -> dict[str, int]:
    done = training_status("refresh", "--root", mice, "--store", folder / "tables", "--broker", made.broker, "--json")
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)["counts"]
    return counts


def test_up_runs_everything_until_told_to_stop_and_leaves_no_process(mice: Path, tmp_path: Path) -> None:
    folder = tmp_path / "up"
    with up(folder, mice, "--log-format", "json") as made:
        address, password = re.findall(r"Flower: (\S+) user admin, password (\S+)\n", made.said)[0]
        kept = made.state / "flower-password"
        assert (kept.read_text().strip(), stat.S_IMODE(kept.stat().st_mode)) == (password, 0o600)
        assert "next refresh of all labs: " in made.said

        again = training_status("up", "--root", mice, "--store", folder / "tables", "--state", made.state)
        assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
        assert "another `up` runs on" in again.stderr

        assert refreshed(made, mice, folder)["done"] == 4
        assert len(list((folder / "tables").rglob("training.pqt"))) == 4
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address, timeout=10)
        refused.value.close()
        login = base64.b64encode(f"admin:{password}".encode()).decode()
        with urllib.request.urlopen(
            urllib.request.Request(address, headers={"Authorization": f"Basic {login}"})
        ) as page:
            assert page.status == 200

        names = ("redis", "worker", "beat", "flower")
        assert [name for name in names if made.child(name) is None] == []
        assert made.end(signal.SIGINT) == 0
        assert not (made.state / "broker").exists()
        records = [json.loads(line) for line in made.logged.splitlines()]
        assert {record["service"] for record in records} >= {"worker", "beat"}
        assert password not in made.logged


@pytest.mark.slow
@pytest.mark.parametrize("name", ["redis", "worker", "beat", "flower"])
def test_a_part_that_is_killed_is_started_again_and_work_goes_on(name: str, mice: Path, tmp_path: Path) -> None:
    folder = tmp_path / "up"
    with up(folder, mice) as made:
        child = made.child(name)
        assert child is not None
        child.kill()
        wait_for(lambda: (new := made.child(name)) is not None and new.pid != child.pid, f"another {name}")
        assert refreshed(made, mice, folder)["done"] == 4
        assert f"{name} ended (SIGKILL) and is started again" in made.logged
        assert made.end(signal.SIGTERM) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_start_goes_on_with_what_is_owed(how: signal.Signals, mice: Path, tmp_path: Path) -> None:
    folder = tmp_path / "up"
    with up(folder, mice) as made:
        worker = made.child("worker")
        assert worker is not None
        worker.suspend()  # so that nothing of the run is done yet
        options = ("--root", mice, "--store", folder / "tables", "--broker", made.broker)
        started = training_status("recompute", *options, "--no-wait", "--json")
        run_id = json.loads(started.stdout)["run_id"]
        time.sleep(1.5)  # the append-only file is written to the disk every second
        if how == signal.SIGTERM:
            worker.kill()
        family = made.process.children(recursive=True)
        made.process.send_signal(how)
        worker.resume()
        assert psutil.wait_procs([made.process, *family], timeout=60)[1] == []
    with up(folder, mice) as made:
        assert "the password in" in made.said
        client = connect(made.broker)
        ledger = Ledger(client)
        wait_for(lambda: ledger.record(run_id) is not None, "the run to end", 90)
        record = ledger.record(run_id)
        client.close()
        assert record is not None
        assert record["counts"]["done"] == 4


@pytest.mark.slow
def test_the_schedule_starts_runs(mice: Path, tmp_path: Path) -> None:
    folder = tmp_path / "up"
    with up(folder, mice, "--refresh-at", "* * * * *", "--timezone", "Europe/London"):
        wait_for(lambda: len(list((folder / "tables").rglob("training.pqt"))) == 4, "a refresh by the schedule", 150)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--refresh-at", "at night"), "TRAINING_STATUS_REFRESH_AT"),
        (("--flower-user", "a:b"), "--flower-user"),
        pytest.param(("--root", "/no/such/tree"), "TRAINING_STATUS_ROOT", marks=pytest.mark.slow),
        pytest.param(("--store", "https://bucket/prefix"), "TRAINING_STATUS_STORE", marks=pytest.mark.slow),
        pytest.param(("--timezone", "Europe/Camelot"), "TRAINING_STATUS_TIMEZONE", marks=pytest.mark.slow),
        pytest.param(("--state", "/proc/up"), "TRAINING_STATUS_STATE", marks=pytest.mark.slow),
        pytest.param(("--flower-port", "taken"), "TRAINING_STATUS_FLOWER_PORT", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_before_anything_starts(
    options: tuple[str, str], named: str, mice: Path, tmp_path: Path, taken_port: int
) -> None:
    given = {"--root": str(mice), "--store": str(tmp_path / "tables"), "--state": str(tmp_path / "state")}
    option, value = options
    given |= {"--flower-port": "0", option: str(taken_port) if value == "taken" else value}
    refused = training_status("up", *(part for pair in given.items() for part in pair))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert named in refused.stderr
    assert refused.stdout == ""


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.slow
def test_where_ibllib_is_it_extracts_and_other_commands_find_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin = StandIn(tmp_path / "standin")
    monkeypatch.setenv("PYTHONPATH", standin.env["PYTHONPATH"])
    root = write_tree(tmp_path / "tree")
    with up(tmp_path / "up", root, "--refresh-at", "never") as running:
        wait_for(lambda: "extraction@" in running.logged, "the extraction worker")
        counts = refreshed(running, root, tmp_path / "up")
        assert (counts["done"], counts["left_out"]) == (3, 0)
        assert running.end(signal.SIGTERM) == 0
    assert (standin.begun(SLOW), standin.begun(SLOWER)) == (1, 1)
    assert_complete(tmp_path / "up" / "tables", complete_tables(tmp_path / "complete"))
