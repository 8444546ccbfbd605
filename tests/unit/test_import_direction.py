"""Which package may import which: scheduler workers, workers core, and never the other way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "core": {"workers", "scheduler", "celery", "redis", "kombu", "matplotlib"},
    "workers": {"scheduler", "matplotlib"},
}
#: What only some stores, or only the queue, need: the main path must not pay for loading it.
HEAVY = ("celery", "redis", "kombu", "matplotlib", "boto3", "botocore", "one", "ibllib", "workers", "scheduler")


def imported(source: str) -> Iterator[str]:
    """Yield the modules that a source imports, anywhere in it, by any form that names them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__", "find_spec"):
                yield str(node.args[0].value)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_nothing_is_imported_against_the_direction(package: str) -> None:
    wrong = [
        (path.relative_to(ROOT).as_posix(), name)
        for path in sources(package)
        for name in imported(path.read_text(encoding="utf-8"))
        if name.partition(".")[0] in FORBIDDEN[package]
    ]
    assert wrong == []


def test_the_search_sees_every_form_and_every_file() -> None:
    text = """
import celery.app, os
from redis import Redis
from . import sibling
def later():
    import kombu as k
    importlib.import_module("matplotlib.pyplot")
    __import__("scheduler")
if TYPE_CHECKING:
    from workers.tasks import fail
"""
    found = {"celery.app", "os", "redis", "kombu", "matplotlib.pyplot", "scheduler", "workers.tasks"}
    assert set(imported(text)) == found
    assert {"pipeline.py", "status.py", "base.py", "mouse.py"} <= {path.name for path in sources("core")}
    assert sources("workers")


def test_the_main_path_loads_nothing_that_it_does_not_need() -> None:
    code = f"import core.pipeline, sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
