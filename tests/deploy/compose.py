"""docker-compose.yml without Docker: the file as compose reads it, and each service as a process of this machine.

What is a container's becomes a process's: its paths lie below a temporary folder, its ports are free ports of the
loopback address, other services' names are that address. The environment is the service's and nothing of ours.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from scheduler.embedded import find_server
from tests.deploy.dockerfile import stages
from tests.processes import wait_for
from tests.servers import _weed, free_ports

PROJECT = Path(__file__).parents[2]
FILE = PROJECT / "docker-compose.yml"
EXAMPLE = PROJECT / ".env.example"

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<what>[^}]*))?\}|(?P<bare>\w+))")


class ValueMissing(Exception):
    """A variable without which compose refuses to start."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"required variable {name} is missing a value: {message}")
        self.name = name


def dotenv(path: Path) -> dict[str, str]:
    """Return the variables of a .env file without quotes, as .env.example asks for."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """Put in the variables of a text, as the compose specification says."""

    def value(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        name = found["name"] or found["bare"]
        known = env.get(name, "")
        if found["how"] and not known:
            if found["how"] == ":?":
                raise ValueMissing(name, found["what"])
            return found["what"]
        return known

    return _VARIABLE.sub(value, text)


def resolve(env: Mapping[str, str], path: Path = FILE) -> dict[str, Any]:
    """Return the compose file with its variables put in.

    Raises
    ------
    ValueMissing
        Where one that must be set is empty.
    """

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: resolved(value) for key, value in node.items()}
        if isinstance(node, list):
            return [resolved(value) for value in node]
        return interpolate(node, env) if isinstance(node, str) else node

    found: dict[str, Any] = resolved(yaml.safe_load(path.read_text()))
    return found


def required(path: Path = FILE) -> set[str]:
    """Return the variables that the file requires."""
    return {found["name"] for found in _VARIABLE.finditer(path.read_text()) if found["how"] == ":?"}


def used(path: Path = FILE) -> set[str]:
    """Return all variables of the file."""
    return {found["name"] for found in _VARIABLE.finditer(path.read_text()) if found["name"]}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A service's process that has ended."""

    code: int
    output: str


class Deployment:
    """The services of the compose file as processes, ended with the block.

    Parameters
    ----------
    folder : Path
        For everything that they write.
    env : mapping of str to str
        What is in .env.
    profiles : tuple of str
        Profiles that are switched on.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], profiles: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.services: dict[str, Any] = {
            name: service
            for name, service in resolve(env)["services"].items()
            if not service.get("profiles") or set(profiles) & set(service["profiles"])
        }
        self._stack = ExitStack()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._bin = folder / "bin"
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._bin.mkdir(parents=True)
        (self._bin / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (self._bin / "training-status").write_text('#!/bin/sh\nexec python -m scheduler.cli.main "$@"\n')
        # A stand-in: no package carries valkey-cli where these tests run. It asks the same of the same server.
        (self._bin / "valkey-cli").write_text(
            "#!/usr/bin/env python\nimport os, redis\n"
            f"client = redis.Redis(port={self.port(6379)}, password=os.environ['REDISCLI_AUTH'])\n"
            "print('PONG' if client.ping() else '')\n"
        )
        for script in self._bin.iterdir():
            script.chmod(0o755)
        (self._bin / "valkey-server").symlink_to(find_server())
        if "s3" in self.services:
            (self._bin / "weed").symlink_to(_weed())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def port(self, container_port: int) -> int:
        """Return the loopback port that stands for a container's."""
        if str(container_port) not in self._ports:
            (self._ports[str(container_port)],) = free_ports(1)
        return self._ports[str(container_port)]

    def start(self, *names: str) -> None:
        """Start services, each after those that it depends on, and wait until they are healthy, or done."""
        for name in names:
            if needed := [each for each in self._needs(name) if each not in self._running]:
                self.start(*needed)
            self._running[name] = self._stack.enter_context(self._process(name))
        for name in names:
            if "healthcheck" in self.services[name]:
                wait_for(lambda name=name: self.is_healthy(name) or self.has_ended(name), f"{name} to be healthy")  # type: ignore[misc]
            else:
                wait_for(lambda name=name: self.has_ended(name), f"{name} to be done")  # type: ignore[misc]
            assert not self.has_ended(name) or self._running[name].poll() == 0, self.log(name)

    def _needs(self, name: str) -> list[str]:
        return [needed for needed in self.services[name].get("depends_on", {}) if needed in self.services]

    def run(self, name: str, *command: str, **env: str) -> Ended:
        """Run a command in a service's environment to its end, as ``docker compose run --rm`` does."""
        ended = subprocess.run(
            [*self._entrypoint(self.services[name]), *(command or self._command(name))],
            env={**self.environment(name), **env},
            cwd=self._home(name),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ended(code=ended.returncode, output=ended.stdout + ended.stderr)

    def is_healthy(self, name: str) -> bool:
        """Whether the service's health check says so."""
        kind, *test = self.services[name]["healthcheck"]["test"]
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        checked = subprocess.run(
            [self.mapped(name, part) for part in command],
            env=self.environment(name),
            cwd=self._home(name),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return checked.returncode == 0

    def has_ended(self, name: str) -> bool:
        """Whether the service's process has ended."""
        return self._running[name].poll() is not None

    def stop(self, name: str) -> int:
        """Tell a service to stop, as ``docker compose stop`` does, and return its exit code."""
        self._running[name].terminate()
        return self._running[name].wait(60)

    def log(self, name: str) -> str:
        """Return what a service has written."""
        return (self.folder / f"{name}.log").read_text()

    def environment(self, name: str) -> dict[str, str]:
        """Return a service's environment: its own, and what finds programs and our code."""
        given = {key: self.mapped(name, str(value)) for key, value in self.services[name]["environment"].items()}
        path = f"{self._bin}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self._home(name)), "PYTHONPATH": str(PROJECT), **given}

    def mapped(self, name: str, text: str) -> str:
        """Put this machine's paths, ports and address in place of a container's."""
        paths = dict(self._paths(name))
        hosts = "|".join(self.services)
        ports = {port for service in self.services.values() for port in _container_ports(service)}
        pattern = "|".join(
            [
                rf"(?P<path>(?<![\w./])(?:{'|'.join(map(re.escape, paths))})(?![\w-]))",
                rf"(?<=[/@=])(?P<host>{hosts})(?=:\d|$)",
                rf"(?<![\d.])(?P<port>{'|'.join(ports)})(?![\d.])",
                r"(?P<any>0\.0\.0\.0)",
            ]
        )

        def here(found: re.Match[str]) -> str:
            if found["path"]:
                return str(paths[found["path"]])
            return str(self.port(int(found["port"]))) if found["port"] else "127.0.0.1"

        return re.sub(pattern, here, text)

    def _paths(self, name: str) -> Iterator[tuple[str, Path]]:
        for volume in self.services[name].get("volumes", []):
            if isinstance(volume, dict):
                yield volume["target"], Path(volume["source"])
            else:
                source, target = volume.split(":")[:2]
                path = self.folder / "volumes" / source
                path.mkdir(parents=True, exist_ok=True)
                yield target, path
        yield "/tmp", self._home(name)

    def _home(self, name: str) -> Path:
        home = self.folder / "tmp" / name
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _entrypoint(self, service: Mapping[str, Any]) -> list[str]:
        if "entrypoint" in service:
            return list(service["entrypoint"])
        return list(json.loads(stages(PROJECT / "Dockerfile")[-1].last("ENTRYPOINT"))) if "build" in service else []

    def _command(self, name: str) -> list[str]:
        command = [self.mapped(name, part) for part in self.services[name]["command"]]
        if name == "s3":
            # Within its container it may have its usual ports; here they are anybody's. The last of two options counts.
            parts = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port")
            parts += ("filer.port.grpc", "s3.port.grpc")
            command += [f"-{part}={port}" for part, port in zip(parts, free_ports(len(parts)), strict=True)]
            command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
            command += [f"-{part}.localSocket={self.folder}/{part}.sock" for part in ("filer", "s3")]
        return command

    def _process(self, name: str) -> Any:
        return _running(
            [*self._entrypoint(self.services[name]), *self._command(name)],
            self.folder / f"{name}.log",
            self.environment(name),
            self._home(name),
            kill=name == "s3",
        )


def _container_ports(service: Mapping[str, Any]) -> list[str]:
    return [port.rsplit(":", 1)[1] for port in service.get("ports", [])]


class _running:
    """A process with an environment of its own, ended with the block."""

    def __init__(self, arguments: list[str], log: Path, env: Mapping[str, str], cwd: Path, *, kill: bool) -> None:
        self._arguments = arguments
        self._log = log
        self._env = env
        self._cwd = cwd
        self._kill = kill

    def __enter__(self) -> subprocess.Popen[bytes]:
        program = shutil.which(self._arguments[0], path=self._env["PATH"])
        assert program, f"{self._arguments[0]} is not installed"
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [program, *self._arguments[1:]],
                env=dict(self._env),
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return self._process

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None and not self._kill:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        if self._process.poll() is None:
            self._process.kill()  # nothing of it is kept; SeaweedFS takes half a minute to end gracefully
        self._process.wait()
