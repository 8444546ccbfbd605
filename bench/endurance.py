"""A bulk recompute that is disturbed from its beginning to its end, again and again; nothing may be lost.

    python -m bench.endurance --subjects 600 --days 100

Each scenario is one run over all subjects with two workers of two processes, at the patience that is the default.
While it lasts, processes are killed, servers fail, memory and disks are full. What the run could not do is tried again
with `retry` once all is well. Then every object in the store is compared, byte for byte, with what the plain pipeline
gives, and the record's counts with what is there. Sessions are short, and mice of one kind share their files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import redis

from core.pipeline import recompute_subject
from core.sources import TreeSource
from core.storage import Store, open_store
from core.tables import COHORT_KEY, merge_cohort, subject_keys
from tests.faults.herd import write_mouse
from tests.faults.kills import Kill
from tests.faults.proxy import S3Proxy, Wrong, s3_proxy
from tests.faults.services import Arena, Command, Herd, Service, differences, objects
from tests.faults.test_messages import QUEUE, message
from tests.faults.test_store_faults import put_version
from tests.servers import aws_environment, create_bucket, seaweedfs
from workers.app import VISIBILITY_TIMEOUT
from workers.records import Subject

KINDS = 5  # of mice, by what `write_mouse` makes of a name
SUBJECTS_A_LAB = 100
BUCKET = "endurance"
_TICK = 0.25  # seconds
_RECOVERS_WITHIN = VISIBILITY_TIMEOUT + 30.0
_RETRIES = 5

#: What disturbs a run: yields the seconds until it is to go on.
Disturbance = Iterator[float]


@dataclass(kw_only=True)
class Measured:
    """What was seen of one scenario."""

    scenario: str
    done: int = 0
    failed_at_first: int = 0  # subjects that the run could not do; each was listed with its reason
    retries: int = 0
    different: int = -1  # objects that are not those of an undisturbed computation
    sessions: int = 0
    seconds: float = 0.0
    disturbances: dict[str, int] = field(default_factory=dict)
    longest_recovery: float = 0.0  # s, from a kill until all that was under way had ended
    first_table: float = 0.0  # s
    last_subject_found: float = 0.0  # s
    command_mb: tuple[float, float] = (0.0, 0.0)  # resident memory, its peak in the first and the second half
    worker_mb: float = 0.0  # the largest process
    redis_mb: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, and all stayed within its limits."""
        within = max(self.command_mb) < 200 and self.redis_mb < 256 and self.longest_recovery <= _RECOVERS_WITHIN
        return self.different == 0 and within


@dataclass(kw_only=True)
class Stage:
    """What a scenario plays on."""

    arena: Arena
    herd: Herd
    store: Store
    uri: str
    workers: list[Service]
    measured: Measured
    rng: random.Random
    proxy: S3Proxy | None = None
    run_id: str = ""

    def note(self, what: str) -> None:
        self.measured.disturbances[what] = self.measured.disturbances.get(what, 0) + 1


# ---- scenarios


def undisturbed(stage: Stage) -> Disturbance:
    """Nothing happens: what memory and Redis need."""
    yield 3600.0


def killed(stage: Stage) -> Disturbance:
    """Every way to kill, by chance, every few seconds; foreign messages, and the run's own first message again."""
    while True:
        yield stage.rng.uniform(4, 12)
        if stage.rng.random() < 0.2:
            foreign = stage.rng.choice(["this is no JSON", message("somebody.else", [])])
            again = message("training_status.recompute", [stage.run_id, ""])
            stage.arena.client.lpush(QUEUE, stage.rng.choice([foreign, again]))
            stage.note("foreign or repeated message")
            continue
        kill = stage.rng.choice(list(Kill))
        with suppress(psutil.NoSuchProcess, IndexError):  # it is just being started again
            kill(stage.rng.choice(stage.workers).process, stage.arena.redis.process)
            stage.note(kill.name.lower())


def s3_fails(stage: Stage) -> Disturbance:
    """Errors 500 and 503, slow answers, connections that break off on either side; corrupt tables from before."""
    assert stage.proxy is not None
    kinds = [Wrong.ERROR_500, Wrong.ERROR_503, Wrong.DROPPED, Wrong.ANSWER_LOST, Wrong.ANSWER_CUT, Wrong.SLOW]
    for lab, subject in stage.herd.subjects[::10]:
        stage.store.put(subject_keys(lab, subject).training, b"PAR1 not a table", replaces=None)
        stage.note("corrupt table")
    while True:
        yield stage.rng.uniform(1, 3)
        wrong = stage.rng.choice(kinds)
        stage.proxy.add(wrong, times=stage.rng.randint(1, 4) if wrong is Wrong.SLOW else stage.rng.randint(1, 20))
        stage.note(wrong.name.lower())
        yield stage.rng.uniform(1, 3)
        stage.proxy.heal()  # of what it has not met yet


def starved(stage: Stage) -> Disturbance:
    """Redis out of memory, and disks that are full, for seconds at a time."""
    while True:
        yield stage.rng.uniform(6, 15)
        if stage.rng.random() < 0.5:
            stage.arena.client.config_set("maxmemory", "1mb")
            stage.note("redis out of memory")
            yield stage.rng.uniform(2, 6)
            stage.arena.client.config_set("maxmemory", "0")
            continue
        limit_files(stage.workers, 1000)
        stage.note("disk full")
        yield stage.rng.uniform(2, 6)
        limit_files(stage.workers, resource.RLIM_INFINITY)


def limit_files(workers: Sequence[Service], size: int) -> None:
    """Limit the size of files that workers can write: what a full disk is to them."""
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            for process in (worker.process, *worker.process.children(recursive=True)):
                process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def refused(stage: Stage) -> Disturbance:
    """Credentials that are refused for some seconds, a bucket that is gone for some, tables of a later version."""
    assert stage.proxy is not None
    newer = stage.herd.subjects[7::100]
    yield 1.0
    while True:
        yield stage.rng.uniform(5, 15)
        wrong = stage.rng.choice([Wrong.REFUSED, Wrong.NO_BUCKET])
        stage.proxy.add(wrong, times=stage.rng.randint(1, 20), path="/lab")
        stage.note(wrong.name.lower())
        yield stage.rng.uniform(1, 3)
        stage.proxy.heal()
        for lab, subject in newer:
            key = subject_keys(lab, subject).training
            stored = stage.store.get(key)
            if stored is not None and stored.data == stage.herd.objects[key]:
                put_version(stage.store, key, 10**6)
                stage.note("table of a later version")


def hanging(stage: Stage) -> Disturbance:
    """Sessions on a disk that does not answer: their tasks run into the time limit."""
    yield 3600.0


SCENARIOS: dict[str, Callable[[Stage], Disturbance]] = {
    each.__name__: each for each in (undisturbed, killed, s3_fails, starved, refused, hanging)
}
_ON_S3 = {"s3_fails", "refused"}


# ---- the herd


def write_large_herd(root: Path, subjects: int, days: int) -> Herd:
    """Write a tree of short sessions; mice of one kind are hard links to the first of it, each in its own folders."""
    names = [(f"lab{at // SUBJECTS_A_LAB}", f"M{at:04}") for at in range(subjects)]
    firsts: dict[int, Path] = {}
    for lab, subject in names:
        kind = sum(map(ord, subject)) % KINDS
        folder = root / lab / "Subjects" / subject
        if kind not in firsts:
            write_mouse(root, lab, subject, days)
            firsts[kind] = folder
        else:
            link_tree(firsts[kind], folder)
    with multiprocessing.Pool() as pool:
        parts = pool.starmap(of_mouse, [(root, lab, subject) for lab, subject in names], chunksize=8)
    rows = [row for _, of_subject in parts for row in of_subject]
    tables = {key: data for of_subject, _ in parts for key, data in of_subject.items()}
    return Herd(
        root=root,
        subjects=names,
        sessions=subjects * days,
        objects={**tables, COHORT_KEY: merge_cohort(None, rows)},
    )


def link_tree(source: Path, target: Path) -> None:
    """Make `target` a tree of the same files."""
    for folder, _, files in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(parents=True)
        for name in files:
            os.link(Path(folder) / name, place / name)


def of_mouse(root: Path, lab: str, subject: str) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return a mouse's objects, and its rows of the cohort table, from the plain pipeline."""
    tables = recompute_subject(TreeSource(root), lab, subject, open_store("memory://endurance"))
    keys = subject_keys(lab, subject)
    return {key: getattr(tables, name) for name, key in vars(keys).items()}, list(tables.cohort)


# ---- one scenario


def play(name: str, herd: Herd, folder: Path, endpoint: str | None, seed: int) -> Measured:
    """Run one scenario to its end, with its retries, and compare."""
    measured = Measured(scenario=name, sessions=herd.sessions)
    with ExitStack() as stack:
        proxy = stack.enter_context(s3_proxy(endpoint)) if endpoint else None
        env = {"TRAINING_STATUS_PATIENCE": "60", "TRAINING_STATUS_TIME_LIMIT": "30" if name == "hanging" else "600"}
        if proxy:
            env["TRAINING_STATUS_S3_ENDPOINT"] = proxy.endpoint
        arena = stack.enter_context(Arena(folder / name, env))
        uri = f"s3://{BUCKET}/{name}" if proxy else str(folder / name / "tables")
        store = open_store(uri, endpoint=endpoint)
        store.check()
        hung = hang(herd) if name == "hanging" else []
        stage = Stage(
            arena=arena,
            herd=herd,
            store=store,
            uri=uri,
            proxy=proxy,
            workers=[arena.worker(f"worker{at}") for at in range(2)],
            measured=measured,
            rng=random.Random(seed),
        )
        began = time.monotonic()
        record = follow(stage, partial(arena.run, herd.root, uri), SCENARIOS[name](stage))
        measured.seconds = time.monotonic() - began
        measured.failed_at_first = record["counts"]["failed"]
        for reason, count in Counter(failed["reason"] for failed in record["failed"]).most_common(5):
            print(f"  {count} failed: {reason}", file=sys.stderr)
        heal(stage, hung)
        while record["error"] or record["counts"]["failed"]:
            assert measured.retries < _RETRIES, record["failed"][:3]
            measured.retries += 1
            retry = partial(arena.command, "retry", record["run_id"], "--json")
            again = partial(arena.run, herd.root, uri) if record["error"] else retry
            record = follow(stage, again, undisturbed(stage))
        measured.done = record["counts"]["done"] if not measured.retries else len(herd.subjects)
        measured.different = len(differences(objects(store, herd.subjects), herd.objects))
        if not measured.retries:
            assert record["counts"]["done"] == len(herd.subjects), record["counts"]
            assert record["counts"]["sessions"] == herd.sessions, record["counts"]
    return measured


def hang(herd: Herd) -> list[Path]:
    """Have the last settings file of some mice hang whoever opens it; they keep their content beside them."""
    hung = []
    for lab, subject in herd.subjects[3::200]:
        path = sorted((herd.root / lab / "Subjects" / subject).rglob("_iblrig_taskSettings.raw.json"))[-1]
        path.rename(path.with_suffix(".aside"))
        os.mkfifo(path)
        hung.append(path)
    return hung


def heal(stage: Stage, hung: Sequence[Path]) -> None:
    """Undo what was done to servers, disks and tables."""
    if stage.proxy:
        stage.proxy.heal()
    stage.arena.client.config_set("maxmemory", "0")
    limit_files(stage.workers, resource.RLIM_INFINITY)
    for path in hung:
        path.unlink()
        path.with_suffix(".aside").rename(path)
    for lab, subject in (
        stage.herd.subjects[7::100] if stage.measured.disturbances.get("table of a later version") else ()
    ):
        key = subject_keys(lab, subject).training
        stored = stage.store.get(key)
        if stored is not None and stored.data != stage.herd.objects[key]:
            stage.store.put(key, stage.herd.objects[key], replaces=stored.etag)


def follow(stage: Stage, start: Callable[[], Command], disturbance: Disturbance) -> dict[str, Any]:
    """Start a run and watch it to its end, disturbing it; return its record."""
    arena, measured = stage.arena, stage.measured
    known = {*arena.ledger.run_ids()}
    stage.run_id = ""
    running = start()
    began = time.monotonic()
    due = began
    under_way: set[Subject] = set()
    killed_at = 0.0
    memory: list[float] = []
    told = 0.0
    while not running.has_ended:
        time.sleep(_TICK)
        now = time.monotonic()
        arena.redis.keep_alive()
        arena.keep_alive()
        with suppress(redis.RedisError, psutil.NoSuchProcess):
            if not stage.run_id:
                stage.run_id = next((run for run in arena.ledger.run_ids() if run not in known), "")
                continue
            memory.append(running.process.memory_info().rss / 2**20)
            measured.worker_mb = max(measured.worker_mb, *map(_largest, stage.workers))
            measured.redis_mb = max(measured.redis_mb, arena.client.info("memory")["used_memory_peak"] / 2**20)
            progress = arena.ledger.progress(stage.run_id)
            if progress.ended and not measured.first_table:
                measured.first_table = now - began
            if progress.state != "planning" and not measured.last_subject_found:
                measured.last_subject_found = now - began
            if now - told > 10:
                told = now
                print(f"  {now - began:5.0f} s: {progress.ended} of {progress.subjects}", file=sys.stderr, flush=True)
            if under_way:
                under_way &= set(arena.ledger.stages(stage.run_id))
                measured.longest_recovery = max(measured.longest_recovery, now - killed_at)
            if now >= due:
                if not under_way:
                    stages = arena.ledger.stages(stage.run_id)
                    under_way, killed_at = {s for s, at in stages.items() if at != "waiting"}, now
                due = now + next(disturbance)
    if memory:
        half = len(memory) // 2
        first, second = max(memory[: half + 1]), max(memory[half:])
        measured.command_mb = (max(first, measured.command_mb[0]), max(second, measured.command_mb[1]))
    if running.code == 2 and not stage.proxy:
        raise RuntimeError(running.told)
    record = arena.ledger.record(stage.run_id)
    assert record is not None, running.told
    return record


def _largest(worker: Service) -> float:
    with suppress(psutil.NoSuchProcess):
        processes = (worker.process, *worker.process.children(recursive=True))
        return max(float(process.memory_info().rss) for process in processes) / 2**20
    return 0.0


# ---- the command


def table(results: Sequence[Measured]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| scenario | disturbances | failed at first | retries | objects that differ | longest recovery, s | "
        "command, MB (1st, 2nd half) | worker, MB | Redis, MB | run, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        told = ", ".join(f"{count} {what}" for what, count in sorted(r.disturbances.items())) or "none"
        lines.append(
            f"| {r.scenario} | {told} | {r.failed_at_first} | {r.retries} | {r.different} | {r.longest_recovery:.0f} | "
            f"{r.command_mb[0]:.0f}, {r.command_mb[1]:.0f} | {r.worker_mb:.0f} | {r.redis_mb:.1f} | {r.seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=600)
    parser.add_argument("--days", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="just this one; several times")
    parser.add_argument("--folder", type=Path, help="for all files; a temporary one, removed, where not given")
    parser.add_argument("--json", type=Path, help="write the results there")
    given = parser.parse_args()
    results: list[Measured] = []
    with ExitStack() as stack:
        made = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="endurance-")))
        made.mkdir(parents=True, exist_ok=True)
        for name, value in aws_environment(made).items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        print(f"writing and computing {given.subjects} mice of {given.days} days", file=sys.stderr)
        herd = write_large_herd(made / "tree", given.subjects, given.days)
        wanted = given.scenario or list(SCENARIOS)
        endpoint = None
        if _ON_S3 & set(wanted):
            endpoint = stack.enter_context(seaweedfs(made / "s3"))
            create_bucket(endpoint, BUCKET)
        for name in wanted:
            print(f"{name}: {(SCENARIOS[name].__doc__ or '').splitlines()[0]}", file=sys.stderr)
            results.append(play(name, herd, made, endpoint if name in _ON_S3 else None, given.seed))
            print(table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
            if given.json:
                given.json.write_text(json.dumps([asdict(result) for result in results], indent=2))
    print(table(results))
    return 0 if all(result.is_good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
