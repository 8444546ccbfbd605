"""The model of many workers: what it must give where the answer is known without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.queueing import PIECE, PLAN, STATUSES, TABLES, Costs, Simulation
from scheduler.plan import CHUNK_SUBJECTS

COSTS = Costs(
    times={PLAN: [0.08], PIECE: [0.2], STATUSES: [0.1], TABLES: [0.05]},
    between=0.0,
    pieces=1.0,
    redis=0.0,
    plan=0.0,
    requests=6.0,
)
SUBJECTS = 10 * CHUNK_SUBJECTS


def simulation(workers: int, costs: Costs = COSTS, **options: Any) -> Simulation:
    asked = {"s3_rate": 1e9, "s3_latency": 0.0, "subjects": SUBJECTS, "seed": 0, **options}
    return Simulation(workers=workers, costs=costs, **asked)


def test_one_process_takes_the_sum_of_all_tasks() -> None:
    assert simulation(1).run() == pytest.approx(SUBJECTS * COSTS.of_subject())


def test_processes_share_the_work_where_nothing_else_is_shared() -> None:
    one = simulation(1).run()
    for workers in (2, 4, 8):
        assert one / workers <= simulation(workers).run() <= 1.1 * one / workers + 1


@pytest.mark.parametrize(
    ("costs", "options", "least"),
    [
        (replace(COSTS, redis=0.1), {}, SUBJECTS * replace(COSTS, redis=0.1).redis_of_subject()),
        (COSTS, {"s3_rate": 10}, SUBJECTS * (COSTS.requests - 1 + 1) / 10),
        (replace(COSTS, plan=2.0), {}, 9 * 2.0),
    ],
    ids=["redis", "s3", "plan"],
)
def test_what_is_shared_holds_any_number_of_processes_up(costs: Costs, options: dict[str, Any], least: float) -> None:
    took = simulation(1000, costs, **options)
    wall = took.run()
    assert wall >= 0.95 * least
    assert wall <= 1.2 * least + 2
    assert max(shared.busy for shared in (took.redis, took.s3, took.plan)) >= 0.8 * wall
