"""A refresh with nothing new, with one new session, and with a late one at the start of a history, on a real S3 server.

    python -m bench.refresh --sessions 6000 --repeats 3

All requests go through a proxy that counts them, which costs some milliseconds each and is in the times. Mice are
simulated once and then multiplied by hard links; each is listed, planned and asked for like any other.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.measure import Bar, machine, median, say, spread, table, write
from bench.mice import Mouse, mice_of, multiply, sessions_of, write_mice
from bench.runs import Services, counted_bucket, services
from core.storage import Store, open_store
from core.tables import subject_keys
from tests.faults.proxy import S3Proxy

BUCKET = "bench"
STORE = f"s3://{BUCKET}/ibl"
WORKERS = 2
NOTHING, NEW, LATE = "nothing new", "one new session", "one late session, the first of its mouse"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a bar is not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.refresh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sessions", type=int, default=6000, help="at least, of all mice (default: %(default)s)")
    parser.add_argument("--subjects", type=int, default=12, help="mice to multiply (default: %(default)s)")
    parser.add_argument("--days", type=int, default=60, help="of each mouse's life (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns, a mouse each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mice (default: %(default)s)")
    options = parser.parse_args(arguments)
    here = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder, root = Path(name), Path(name) / "mice"
        say("simulating")
        made = write_mice(folder / "few", options.subjects, options.days, options.seed)
        sessions = multiply(folder / "few", root, -(-options.sessions // made))
        server, proxy = stack.enter_context(counted_bucket(folder, BUCKET))
        env = {"TRAINING_STATUS_S3_ENDPOINT": proxy.endpoint}
        running = stack.enter_context(services(folder / "services", WORKERS, env))
        found = measure(running, proxy, open_store(STORE, endpoint=server), root, folder, options.repeats)
    return 0 if report(found, sessions, options, here) else 1


def measure(
    running: Services, proxy: S3Proxy, store: Store, root: Path, folder: Path, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Recompute all but two sessions of some mice, then refresh with nothing new, and with each of the two."""
    mice = mice_of(root)[-repeats:]  # planned last: the worst place for what is new
    paths = {mouse: sessions_of(root, mouse) for mouse in mice}
    withheld = [path for mouse in mice for path in (paths[mouse][0], paths[mouse][-1])]
    aside = {path: folder / "aside" / str(number) for number, path in enumerate(withheld)}
    (folder / "aside").mkdir()
    for path in withheld:
        shutil.move(path, aside[path])
    say("recompute")
    running.run("recompute", root, STORE)
    found: dict[str, list[dict[str, Any]]] = {NOTHING: [], NEW: [], LATE: []}
    for turn, mouse in enumerate(mice):
        say(f"turn {turn + 1} of {repeats}")
        found[NOTHING].append(refresh(running, proxy, store, root, None))
        for kind, path in ((NEW, paths[mouse][-1]), (LATE, paths[mouse][0])):
            shutil.move(aside[path], path)
            found[kind].append(refresh(running, proxy, store, root, mouse))
    return found


def refresh(running: Services, proxy: S3Proxy, store: Store, root: Path, mouse: Mouse | None) -> dict[str, Any]:
    """Refresh; return what it took, its requests, and after how many seconds the table of `mouse` was another."""
    proxy.requests.clear()
    seen: list[float] = []
    thread = None
    began = time.perf_counter()
    if mouse is not None:
        key = subject_keys(*mouse).training
        before = store.get(key)
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.01):
                now = store.get(key)
                if now is not None and (before is None or now.etag != before.etag):
                    seen.append(time.perf_counter() - began)
                    return

        thread = threading.Thread(target=look)
        thread.start()
        began = time.perf_counter()
    run = running.run("refresh", root, STORE)
    if thread is not None:
        thread.join(5)
        ended.set()
        thread.join()
        if not seen:
            raise AssertionError(f"the table of {mouse} did not change")
    asked = [path for _, path in proxy.requests if "/ibl/" in path]
    subjects = {f"/{subject}/" for _, subject in mice_of(root)}
    return {
        "wall": run.spent.wall,
        "cpu": run.spent.cpu,
        "redis commands": run.redis_commands,
        "requests": len(proxy.requests),
        "of subjects": sum(any(subject in path for subject in subjects) for path in asked),
        "subjects": len(subjects),
        "table after": seen[0] if seen else None,
        "counts": dict(run.record["counts"]),
    }


def report(
    found: dict[str, list[dict[str, Any]]], sessions: int, options: argparse.Namespace, here: dict[str, Any]
) -> bool:
    """Write the results; return whether every bar is met."""
    (subjects,) = {turn["subjects"] for turns in found.values() for turn in turns}
    rows = [
        [
            kind,
            median([turn["wall"] for turn in turns]),
            1e3 * median([turn["wall"] for turn in turns]) / sessions,
            1e3 * median([turn["cpu"] for turn in turns]) / sessions,
            median([turn["requests"] for turn in turns]),
            median([turn["of subjects"] for turn in turns]) / subjects,
            "" if turns[0]["table after"] is None else f"{median([turn['table after'] for turn in turns]):.2f}",
            f"{spread([turn['wall'] for turn in turns]):.2f}",
        ]
        for kind, turns in found.items()
    ]
    nothing = found[NOTHING]
    bars = [
        Bar(
            what="nothing new: wall time, ms a session",
            value=1e3 * median([turn["wall"] for turn in nothing]) / sessions,
            limit=1.5,
        ),
        Bar(
            what="nothing new: requests a subject",
            value=max(turn["of subjects"] for turn in nothing) / subjects,
            limit=1,
        ),
        Bar(
            what="one new session: its table in the bucket, s after the plan begins",
            value=median([turn["table after"] for turn in found[NEW]]),
            limit=2,
        ),
    ]
    head = ["refresh", "s", "wall, ms a session", "CPU, ms a session", "requests", "of them for a subject"]
    head += ["table after, s", "largest / smallest turn"]
    tables = [f"{sessions} sessions of {subjects} mice.", table(head, rows)]
    return write("refresh", vars(options), {"sessions": sessions, **found}, tables, bars, here)


if __name__ == "__main__":
    sys.exit(main())
