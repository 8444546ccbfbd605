"""The systemd units: good in systemd's eyes, and their ExecStart lines, as processes, compute the tables of a tree."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scheduler.embedded import find_server
from tests.deploy.compose import PROJECT, dotenv
from tests.processes import answers, process, wait_for
from tests.servers import free_ports

UNITS = PROJECT / "deploy" / "systemd"
PASSWORD = "redis-password-1b7e"
PROGRAM = "/opt/training-status/bin/training-status"
REDIS = "/usr/bin/redis-server"


def settings(unit: str) -> dict[str, list[str]]:
    """Return what a unit's [Service] section sets, each as often as it is set."""
    lines = (UNITS / unit).read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        name, is_set, value = line.partition("=")
        if is_set and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


class Server:
    """A server's files below a temporary folder, and its units as processes."""

    def __init__(self, folder: Path, mice: Path, **env: str) -> None:
        self.folder = folder
        (self.redis_port, self.flower_port) = free_ports(2)
        self.broker = f"redis://:{PASSWORD}@127.0.0.1:{self.redis_port}/0"
        etc = folder / "etc"
        (folder / "bin").mkdir(parents=True)
        etc.mkdir()
        program = folder / "bin" / "training-status"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m scheduler.cli.main "$@"\n')
        program.chmod(0o755)
        config = (UNITS / "redis.conf").read_text().replace("port 6379", f"port {self.redis_port}")
        (etc / "redis.conf").write_text(self.mapped(config))
        (etc / "redis-password.conf").write_text(f"requirepass {PASSWORD}\n")
        must = {
            "TRAINING_STATUS_BROKER": self.broker,
            "TRAINING_STATUS_ROOT": str(mice),
            "TRAINING_STATUS_STORE": str(folder / "tables"),
            "TRAINING_STATUS_FLOWER_PASSWORD": "flower-password-90ac",
            "TRAINING_STATUS_FLOWER_PORT": str(self.flower_port),
            "TRAINING_STATUS_CONCURRENCY": "2",
        }
        filled = {**dotenv(UNITS / "environment.example"), **must, **env}
        (etc / "environment").write_text("".join(f"{name}={value}\n" for name, value in filled.items()))
        (folder / "tables").mkdir()

    def mapped(self, text: str) -> str:
        for there, here in (
            (PROGRAM, self.folder / "bin" / "training-status"),
            (REDIS, find_server()),
            ("/etc/training-status", self.folder / "etc"),
            ("/var/lib/training-status", self.folder / "state"),
            ("%i", "1"),
            ("%H", "host"),
        ):
            text = text.replace(there, str(here))
        return text

    def command(self, unit: str) -> list[str]:
        """Return a unit's command, its folders made as systemd would."""
        for name in settings(unit).get("StateDirectory", []):
            (self.folder / "state" / Path(name).relative_to("training-status")).mkdir(parents=True, exist_ok=True)
        (line,) = settings(unit)["ExecStart"]
        return shlex.split(self.mapped(line))

    def environment(self, unit: str) -> dict[str, str]:
        """Return a unit's environment; nothing else is in it but what finds programs and our code."""
        found = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(PROJECT)}
        for file in settings(unit).get("EnvironmentFile", []):
            found |= dotenv(Path(self.mapped(file)))
        for line in settings(unit).get("Environment", []):
            name, _, value = line.partition("=")
            found[name] = self.mapped(value)
        return found

    def start(self, stack: ExitStack, unit: str) -> subprocess.Popen[bytes]:
        """Start a unit in a clean environment."""
        # env -i, so that nothing of the test's own environment helps.
        assignments = [f"{name}={value}" for name, value in self.environment(unit).items()]
        return stack.enter_context(process(["env", "-i", *assignments, *self.command(unit)], self.log(unit)))

    def log(self, unit: str) -> Path:
        return self.folder / f"{unit}.log"


Running = tuple[Server, dict[str, subprocess.Popen[bytes]]]


@pytest.fixture(scope="module")
def server(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    made = Server(tmp_path_factory.mktemp("systemd"), mice)
    with ExitStack() as stack:
        running = {"redis": made.start(stack, "training-status-redis.service")}
        wait_for(lambda: answers(made.broker), "Redis to answer")
        for name in ("worker@", "beat", "flower"):
            running[name] = made.start(stack, f"training-status-{name}.service")
        yield made, running


@pytest.mark.parametrize("broken", [False, True])
def test_systemd_finds_nothing_wrong_with_the_units(broken: bool, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed: Debian's package systemd")
    # The programs that the units name need not be on this machine.
    for path in UNITS.glob("*.[st]*"):
        text = path.read_text().replace(PROGRAM, "/bin/true").replace(REDIS, "/bin/true")
        (tmp_path / path.name).write_text(text.replace("KillMode=mixed", "KillMode=mixd") if broken else text)
    units = [tmp_path / path.name.replace("@", "@1") for path in UNITS.glob("*.[st]*")]
    assert len(units) == 5
    verified = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, timeout=60, check=False)
    assert ("Failed to parse kill mode" in verified.stderr) == broken
    assert broken or (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.slow
def test_a_recompute_through_the_units_fills_the_store(server: Running) -> None:
    made, running = server
    unit = "training-status-worker@.service"
    done = subprocess.run(
        [made.command(unit)[0], "recompute", "--json"],
        env=made.environment(unit),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["done"] == 4
    assert len(list((made.folder / "tables").rglob("training.pqt"))) == 4
    assert [name for name, each in running.items() if each.poll() is not None] == []
    wait_for(lambda: (made.folder / "state" / "beat" / "beat.pid").exists(), "beat to run")
    assert list((made.folder / "state" / "redis" / "appendonlydir").iterdir())


def test_a_redis_without_its_password_does_not_start(mice: Path, tmp_path: Path) -> None:
    made = Server(tmp_path / "other", mice)
    (made.folder / "etc" / "redis-password.conf").unlink()
    command = made.command("training-status-redis.service")
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 1
    assert "redis-password.conf" in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    ("unit", "setting", "value"),
    [
        ("worker@", "TRAINING_STATUS_BROKER", ""),
        ("flower", "TRAINING_STATUS_FLOWER_PASSWORD", ""),
        pytest.param("beat", "TRAINING_STATUS_ROOT", "", marks=pytest.mark.slow),
        pytest.param("beat", "TRAINING_STATUS_STORE", "", marks=pytest.mark.slow),
        pytest.param("beat", "TRAINING_STATUS_REFRESH_AT", "every night", marks=pytest.mark.slow),
    ],
)
def test_a_broken_setting_is_refused_in_one_line_that_names_it(
    unit: str, setting: str, value: str, mice: Path, tmp_path: Path
) -> None:
    made = Server(tmp_path / "other", mice, **{setting: value})
    name = f"training-status-{unit}.service"
    refused = subprocess.run(
        made.command(name), env=made.environment(name), capture_output=True, text=True, timeout=60, check=False
    )
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert setting in refused.stderr


def test_the_example_says_what_must_be_set_and_nothing_that_is_no_option() -> None:
    from scheduler.cli.main import cli

    example = dotenv(UNITS / "environment.example")
    known = {
        parameter.envvar
        for name in ("worker", "beat", "flower")
        if (command := cli.get_command(None, name))  # type: ignore[arg-type]
        for parameter in command.params
    }
    ours = {name for name in example if name.startswith("TRAINING_STATUS_")}
    assert ours - known == set()
    empty = (UNITS / "environment.example").read_text().partition("---- The store")[0]
    assert re.findall(r"^(\w+)=$", empty, re.MULTILINE) == [
        "TRAINING_STATUS_BROKER",
        "TRAINING_STATUS_ROOT",
        "TRAINING_STATUS_STORE",
        "TRAINING_STATUS_FLOWER_PASSWORD",
    ]
