"""One and two worker processes, measured; and by the costs of their tasks, a simulation of 4 to 64.

    python -m bench.scaling --subjects 24 --repeats 3

Measured with a folder as the store, because an S3 server on the same processors would be measured with it; one more
run, through a proxy before a real S3 server, counts the requests. Redis, S3 and the plan serve one after the other; the
simulation (`bench/queueing.py`) tells which of them is busy first. More workers than processors are other machines,
each as fast as this one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from bench.measure import Bar, machine, median, say, table, write
from bench.mice import mice_of, sessions_of, write_mice
from bench.queueing import PIECE, PLAN, STATUSES, TABLES, Costs, Simulation
from bench.runs import Services, counted_bucket, redis_service, worker_on
from core.config import StoreSettings, WorkerSettings
from scheduler import runs
from scheduler.plan import CHUNK_SUBJECTS
from scheduler.tasks import register_next
from workers import context
from workers.app import app
from workers.broker import connect
from workers.ledger import Ledger

BUCKET = "bench"
MEASURED = (1, 2)
SIMULATED = (1, 2, 4, 8, 16, 32, 64)
#: The simulation of what was measured may be off by this much; it is no better than that elsewhere.
TRUSTED = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where the simulation is far from what was measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", type=int, default=32, help="mice (default: %(default)s)")
    parser.add_argument("--days", type=int, default=60, help="of each mouse's life (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default: %(default)s)")
    parser.add_argument("--simulated", type=int, default=2000, help="mice of a simulation (default: %(default)s)")
    parser.add_argument(
        "--s3-rate",
        type=float,
        default=3500,
        help="requests a second that S3 takes; AWS documents 3,500 writes for a prefix (default: %(default)s)",
    )
    parser.add_argument(
        "--s3-latency", type=float, default=0.02, help="seconds until S3 has answered, assumed (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the mice and the simulation (default: %(default)s)")
    options = parser.parse_args(arguments)
    here = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder, root = Path(name), Path(name) / "mice"
        say("writing mice")
        write_mice(root, options.subjects, options.days, options.seed)
        _, proxy = stack.enter_context(counted_bucket(folder, BUCKET))
        broker, redis = stack.enter_context(redis_service(folder / "redis"))
        turns: dict[int, list[dict[str, Any]]] = defaultdict(list)
        plans = []
        for turn in range(options.repeats):
            for workers in MEASURED:
                say(f"turn {turn + 1} of {options.repeats}: {workers} of {max(MEASURED)} processes")
                with worker_on(broker, redis, folder / f"worker{turn}{workers}", workers) as running:
                    for store in ("warm", "tables"):
                        (folder / f"{store}{turn}{workers}").mkdir()
                    running.run("recompute", root, str(folder / f"warm{turn}{workers}"))
                    turns[workers].append(measure(running, root, str(folder / f"tables{turn}{workers}")))
            plans.append(time_of_plan(broker, root, str(folder / "tables")))
        say("requests to S3")
        env = {"TRAINING_STATUS_S3_ENDPOINT": proxy.endpoint}
        with worker_on(broker, redis, folder / "s3worker", max(MEASURED), env) as running:
            running.run("recompute", root, f"s3://{BUCKET}/tables")
        requests = len(proxy.requests) / options.subjects
        sessions = sum(len(sessions_of(root, mouse)) for mouse in mice_of(root))
    return 0 if report(turns, median(plans), requests, sessions / options.subjects, options, here) else 1


def measure(running: Services, root: Path, store: str) -> dict[str, Any]:
    """Recompute; return what it took and what each task did."""
    with task_times() as times:
        run = running.run("recompute", root, store)
        time.sleep(1)  # the last events
    subjects = len(mice_of(root))
    tasks = sum(map(len, times.values()))
    return {
        "wall": run.spent.wall,
        "cpu of": dict(run.spent.cpu_of),
        "times": dict(times),
        "redis, s a task": run.spent.cpu_of["redis"] / tasks,
        "redis commands a task": run.redis_commands / tasks,
        "pieces": len(times[PIECE]) / subjects,
        "sessions": run.record["counts"]["sessions"],
    }


@contextmanager
def task_times() -> Iterator[dict[str, list[float]]]:
    """Collect the seconds that each task is in the pool, by the events for Flower."""
    times: dict[str, list[float]] = defaultdict(list)
    names: dict[str, str] = {}
    ready = threading.Event()

    def received(event: dict[str, Any]) -> None:
        names[event["uuid"]] = event["name"].rpartition(".")[2]

    def succeeded(event: dict[str, Any]) -> None:
        if event["uuid"] in names:
            times[names[event["uuid"]]].append(event["runtime"])

    def listen() -> None:
        with app.connection_for_read() as connection:
            handlers = {"task-received": received, "task-succeeded": succeeded}
            receiver = app.events.Receiver(connection, handlers=handlers)
            with receiver.consumer_context(wakeup=False) as (listening, _, _):
                ready.set()
                while not ended.is_set():
                    try:
                        listening.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    ended = threading.Event()
    thread = threading.Thread(target=listen)
    thread.start()
    ready.wait(10)
    try:
        yield times
    finally:
        ended.set()
        thread.join()


def time_of_plan(broker: str, root: Path, store: str) -> float:
    """Return the seconds from one message of a plan to the next, where nothing else is to do: nobody can hurry it.

    No worker may run; what is sent is dropped.
    """
    mice = [f"{lab}/{subject}" for lab, subject in mice_of(root)]
    took = []
    with closing(connect(broker)) as client:
        context.use(WorkerSettings(broker=broker, store=StoreSettings()))
        spec = runs.new_run("recompute", source=str(root), store=store)
        Ledger(client).open_run(spec)
        for cursor in ["", *mice[CHUNK_SUBJECTS - 1 :: CHUNK_SUBJECTS]]:
            began = time.perf_counter()
            register_next(spec, cursor)
            took.append(time.perf_counter() - began)
        client.flushall()
    return median(took)


def report(
    turns: dict[int, list[dict[str, Any]]],
    plan: float,
    requests: float,
    sessions: float,
    options: argparse.Namespace,
    here: dict[str, Any],
) -> bool:
    """Simulate, write the results, and return whether the simulation agrees with what was measured."""
    one = turns[min(MEASURED)]
    walls = {workers: median([turn["wall"] for turn in of_workers]) for workers, of_workers in turns.items()}
    times = {
        task: [second for turn in one for second in turn["times"][task]] for task in (PLAN, PIECE, STATUSES, TABLES)
    }
    tasks = mean([sum(map(len, turn["times"].values())) for turn in one])
    in_pool = mean([sum(map(sum, turn["times"].values())) for turn in one])
    costs = Costs(
        times=times,
        between=max(0.0, (walls[min(MEASURED)] - in_pool) / tasks),
        pieces=mean([turn["pieces"] for turn in one]),
        redis=median([turn["redis, s a task"] for turn in one]),
        plan=plan,
        requests=requests,
    )
    measured_rows, off = [], []
    for workers, wall in walls.items():
        told = _simulate(workers, options.subjects, costs, options, latency=0.0)["wall"] / wall
        off.append(abs(told - 1))
        measured_rows.append([workers, wall, 1e3 * wall / options.subjects / sessions, walls[1] / wall, told])
    simulated = {
        workers: _simulate(workers, options.simulated, costs, options, latency=options.s3_latency)
        for workers in SIMULATED
    }
    rows = [
        [
            workers,
            f"{options.simulated * sessions / found['wall']:,.0f}",
            f"{simulated[1]['wall'] / found['wall']:.1f}",
            *(f"{found[what]:.0%}" for what in ("redis", "s3", "plan")),
        ]
        for workers, found in simulated.items()
    ]
    of_subject = costs.of_subject() + requests * options.s3_latency
    limits = {
        "Redis": of_subject / costs.redis_of_subject(),
        f"S3 at {options.s3_rate:,.0f} requests/s": of_subject / (costs.requests / options.s3_rate),
        "the plan (scheduler)": of_subject / (costs.plan / CHUNK_SUBJECTS),
    }
    shared = [
        [what, f"{1e3 * of_subject / count / sessions:.3g}", f"{count:,.0f}"]
        for what, count in sorted(limits.items(), key=lambda item: item[1])
    ]
    tables = [
        f"{options.subjects} mice with {sessions:.0f} sessions each; tasks cost a process "
        f"{1e3 * costs.of_subject() / sessions:.3g} ms a session, and {requests:.3g} requests to S3 a subject.",
        table(["processes", "s", "wall, ms a session", "times one", "simulated / measured"], measured_rows),
        f"Simulated, {options.simulated} mice, with {1e3 * options.s3_latency:.0f} ms for each request to S3:",
        table(["processes", "sessions/s", "times one", "Redis busy", "S3 busy", "plan busy"], rows),
        "What is shared, and how many processes keep it busy all of the time:",
        table(["", "ms a session", "processes"], shared),
    ]
    measured = {"turns": dict(turns), "plan, s": plan, "simulated": simulated, "limits": limits}
    bars = [Bar(what="simulation of what was measured, off by", value=max(off), limit=TRUSTED)]
    return write("scaling", vars(options), measured, tables, bars, here)


def _simulate(
    workers: int, subjects: int, costs: Costs, options: argparse.Namespace, *, latency: float
) -> dict[str, float]:
    model = Simulation(
        workers=workers,
        subjects=subjects,
        costs=costs,
        s3_rate=options.s3_rate,
        s3_latency=latency,
        seed=options.seed,
    )
    wall = model.run()
    return {"wall": wall, "redis": model.redis.busy / wall, "s3": model.s3.busy / wall, "plan": model.plan.busy / wall}


if __name__ == "__main__":
    sys.exit(main())
