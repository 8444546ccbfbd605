"""A model of many workers on one Redis, one bucket and one plan, by the costs of tasks that were measured.

What is shared serves one after the other: Redis by its processor time, S3 by the requests a second that it takes, and
the plan, each message of which sends the next one before its looks. The model knows nothing of networks and disks.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

from scheduler.plan import CHUNK_SUBJECTS
from workers.app import STAGES

PLAN, PIECE, STATUSES, TABLES = "recompute", "summarise_days", "compute_statuses", "write_tables"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What tasks cost, by measurement; seconds."""

    times: dict[str, list[float]]  # task -> time in the pool, of each one that ran
    between: float  # of a process, from one task's end to the next one's begin
    pieces: float  # messages of days, per subject
    redis: float  # processor time of Redis, per task
    plan: float  # from one message of the plan to the next
    requests: float  # to S3, per subject

    def of_subject(self) -> float:
        """Return what a subject costs a process, all of its tasks together."""
        often = {PLAN: 1 / CHUNK_SUBJECTS, PIECE: self.pieces, STATUSES: 1.0, TABLES: 1.0}
        return sum(count * (fmean(self.times[task]) + self.between) for task, count in often.items())

    def redis_of_subject(self) -> float:
        """Return the time of Redis that a subject costs."""
        return self.redis * (1 / CHUNK_SUBJECTS + self.pieces + 2)


@dataclass
class Shared:
    """What serves one after the other."""

    free: float = 0.0  # when it is done with all that was asked of it
    busy: float = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """Ask for `seconds` of it at `now`; return when they are over."""
        self.free = max(now, self.free) + seconds
        self.busy += seconds
        return self.free


@dataclass(kw_only=True)
class Simulation:
    """Processes that take the most urgent task that there is, as the workers do."""

    workers: int
    subjects: int
    costs: Costs
    s3_rate: float  # requests a second
    s3_latency: float  # seconds until a request is answered
    seed: int
    redis: Shared = field(default_factory=Shared)
    s3: Shared = field(default_factory=Shared)
    plan: Shared = field(default_factory=Shared)

    def run(self) -> float:
        """Return the seconds until the last table is written."""
        rng = random.Random(self.seed)
        count = iter(range(10**9))
        ready: list[tuple[int, int, str, int]] = [(0, next(count), PLAN, 0)]
        events: list[tuple[float, int, Callable[[], None]]] = []
        missing: dict[int, int] = {}
        idle, now = self.workers, 0.0

        def at(when: float, what: Callable[[], None]) -> None:
            heapq.heappush(events, (when, next(count), what))

        def send(task: str, subject: int) -> None:
            heapq.heappush(ready, (STAGES[f"training_status.{task}"], next(count), task, subject))

        def ended(task: str, subject: int) -> None:
            nonlocal idle
            idle += 1
            if task == PLAN:
                for each in range(subject, min(subject + CHUNK_SUBJECTS, self.subjects)):
                    whole = int(self.costs.pieces)
                    missing[each] = max(1, whole + (rng.random() < self.costs.pieces - whole))
                    for _ in range(missing[each]):
                        send(PIECE, each)
            elif task == PIECE:
                missing[subject] -= 1
                if not missing[subject]:
                    send(STATUSES, subject)
            elif task == STATUSES:
                send(TABLES, subject)

        while ready or events:
            while ready and idle:
                _, _, task, subject = heapq.heappop(ready)
                idle -= 1
                asked = {PLAN: CHUNK_SUBJECTS, TABLES: self.costs.requests - 1}.get(task, 0.0)
                held = max(
                    self.redis.serve(now, self.costs.redis) - self.costs.redis,
                    self.s3.serve(now, asked / self.s3_rate) - asked / self.s3_rate if asked else now,
                )
                if task == PLAN and subject + CHUNK_SUBJECTS < self.subjects:
                    following = subject + CHUNK_SUBJECTS
                    at(self.plan.serve(now, self.costs.plan), lambda following=following: send(PLAN, following))  # type: ignore[misc]
                took = rng.choice(self.costs.times[task]) + self.costs.between + asked * self.s3_latency
                at(held + took, lambda task=task, subject=subject: ended(task, subject))  # type: ignore[misc]
            if events:
                now, _, what = heapq.heappop(events)
                what()
        return now
