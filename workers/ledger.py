"""The ledger of runs, in Redis: what a run owes, what is under way, what is done, and why something is not.

Messages can be lost when processes are killed, whatever Celery's settings; the ledger is what a run is held to. Each
step is recorded before the message that goes on from it is sent, and sending again is harmless, so that whatever
dies in between, `owed` tells what to send once more.

    training-status:run:<id>             hash: the run's specification, state and counts
    training-status:run:<id>:owed        sorted set: subjects that are not ended, by the time something last happened
    training-status:run:<id>:subjects    hash: subject -> where it stands (waiting, summarising, computing, writing)
    training-status:run:<id>:outcomes    hash: subject -> its outcome, once it is ended
    training-status:run:<id>:left_out    hash: folder of no subject -> the reason
    training-status:run:<id>:steps       hash: subject and step -> how often it was begun and never left
    training-status:run:<id>:resent      hash: subject -> how often what it waits for was sent again
    training-status:run:<id>:work:<s>    hash: what a subject under way has produced so far
    training-status:run:<id>:skipped     list: due times of the schedule that came while the run had not ended
    training-status:task:<id>            string: the run, and the subject, that a task under way is on
    training-status:runs                 sorted set: run ids by the time they began
    training-status:open                 set: runs that have not ended
    training-status:begun                sorted set: what runs were asked to do, by the time up to which it is seen to
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal, cast

import orjson
import redis

from core.errors import PermanentError
from core.records import LeftOut
from workers import ledger_scripts
from workers.records import Outcome, Produced, Progress, RunSpec, Stage, Subject, Work

_PREFIX = "training-status:"
#: Seconds for which the ledger remembers a run after its end: a week.
REMEMBERED = 7 * 24 * 3600
#: Seconds for which it remembers what a task is on: longer than any task runs.
_TASK_REMEMBERED = 3600
#: Seconds that it waits at most before what was sent again is sent again.
_LONGEST_WAIT = 600
#: Seconds for which it remembers when something was last begun: more than lies between two due times of any job.
_BEGUN_REMEMBERED = 400 * 24 * 3600
#: Due times that a run keeps at most, of those that came while it had not ended.
_SKIPPED_KEPT = 100


class Ledger:
    """The ledger of one Redis.

    Parameters
    ----------
    client : redis.Redis
        Answers in bytes; every method may raise `redis.RedisError` where it is out of reach.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis: Any = client
        self._open = client.register_script(ledger_scripts.OPEN)
        self._deliver = client.register_script(ledger_scripts.DELIVER)
        self._hand_on = client.register_script(ledger_scripts.HAND_ON)
        self._end = client.register_script(ledger_scripts.END)
        self._register = client.register_script(ledger_scripts.REGISTER)
        self._set_stage = client.register_script(ledger_scripts.SET_STAGE)
        self._begin = client.register_script(ledger_scripts.BEGIN)
        self._set_statuses = client.register_script(ledger_scripts.SET_STATUSES)
        self._resent = client.register_script(ledger_scripts.RESENT)

    # ---- runs

    def open_run(self, spec: RunSpec) -> None:
        """Enter a new run that a person asks for; entering it twice changes nothing."""
        self._enter(spec, "")

    def open_due(self, spec: RunSpec, due: datetime) -> tuple[Literal["started", "done", "running"], str]:
        """Enter a run that the schedule asks for, unless what it is to do is seen to already; in one step.

        Parameters
        ----------
        spec : RunSpec
            The run.
        due : datetime
            When the schedule has it, with a time zone. A tick is `spec.same` and this time: it starts one run at
            most, however often and however late it comes.

        Returns
        -------
        state : {'started', 'done', 'running'}
            Whether the run was entered; or a run of the same was begun since it was due; or one from before
            has not ended, and this one is not to be.
        run_id : str
            The run that was entered or that has not ended; empty where it is done.
        """
        state, _, run_id = self._enter(spec, str(due.timestamp())).partition(" ")
        return cast(Any, state), spec.run_id if state == "started" else run_id

    def _enter(self, spec: RunSpec, due: str) -> str:
        keys = [_run(spec.run_id), *(f"{_PREFIX}{name}" for name in ("runs", "open", "begun"))]
        data = orjson.dumps(asdict(spec))
        entered = self._open(keys=keys, args=[spec.run_id, data, spec.same, time.time(), due, _run(""), _SKIPPED_KEPT])
        return cast(str, entered.decode())

    def knows(self, spec: RunSpec, due: datetime) -> bool:
        """Return whether what the schedule asked for at `due` was begun, or skipped, since."""
        begun = self._redis.zscore(f"{_PREFIX}begun", spec.same)
        return begun is not None and begun >= due.timestamp()

    def skipped(self, run_id: str) -> list[str]:
        """Return the due times (UTC, ISO 8601) at which the schedule did not start the same as this run again."""
        due = map(float, self._redis.lrange(f"{_run(run_id)}:skipped", 0, -1))
        return [datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds") for time in due]

    def spec(self, run_id: str) -> RunSpec:
        """Return what a run was asked to do.

        Raises
        ------
        PermanentError
            Where the ledger knows no such run.
        """
        data = self._redis.hget(_run(run_id), "spec")
        if data is None:
            raise PermanentError(f"no run {run_id!r} in the ledger")
        return RunSpec.parse(orjson.loads(data))

    def run_ids(self) -> list[str]:
        """Return the runs that the ledger remembers, the latest first."""
        names = [name.decode() for name in self._redis.zrevrange(f"{_PREFIX}runs", 0, -1)]
        with self._redis.pipeline() as pipe:
            for name in names:
                pipe.hexists(_run(name), "spec")  # a run outlives its entry here, or the other way round
            return [name for name, known in zip(names, pipe.execute(), strict=True) if known]

    def open_runs(self) -> list[str]:
        """Return the runs that have not ended."""
        return sorted(name.decode() for name in self._redis.smembers(f"{_PREFIX}open"))

    def is_ended(self, run_id: str) -> bool:
        """Return whether a run has ended; one that is not known has."""
        spec, record = self._redis.hmget(_run(run_id), "spec", "record")
        return spec is None or record is not None

    def stages(self, run_id: str) -> dict[Subject, Stage]:
        """Return where the subjects stand that have not ended, by lab and subject."""
        raw = self._redis.hgetall(f"{_run(run_id)}:subjects")
        return {Subject.parse(key.decode()): value.decode() for key, value in sorted(raw.items())}

    def progress(self, run_id: str) -> Progress:
        """Return where a run stands, from one request."""
        raw = {key.decode(): value for key, value in self._redis.hgetall(_run(run_id)).items()}
        labs: dict[str, dict[str, int]] = {}
        for key, value in raw.items():
            if key.startswith("lab:"):
                _, lab, what = key.split(":")
                labs.setdefault(lab, {})[what] = int(value)
        state = "ended" if "record" in raw else "working" if "planned" in raw else "planning"
        return Progress(
            state=state,
            subjects=int(raw.get("subjects", 0)),
            ended=int(raw.get("ended", 0)),
            failed=int(raw.get("failed", 0)),
            sessions=int(raw.get("sessions", 0)),
            labs=dict(sorted(labs.items())),
        )

    def advance(self, run_id: str, before: str, after: str) -> bool:
        """Move the plan on from the subject `before` to `after`; False where it was there or further already."""
        if self.cursor(run_id) != before:
            return False
        self._redis.hset(_run(run_id), mapping={"cursor": after, "touched": time.time()})
        return True

    def set_planned(self, run_id: str) -> bool:
        """Note that every subject is registered; return whether all of them have ended already."""
        self._redis.hset(_run(run_id), mapping={"planned": 1, "touched": time.time()})
        planned = self.progress(run_id)
        return planned.ended == planned.subjects

    def is_complete(self, run_id: str) -> bool:
        """Return whether a run is planned and all of its subjects have ended."""
        planned, subjects, ended = self._redis.hmget(_run(run_id), "planned", "subjects", "ended")
        return planned is not None and subjects == ended

    def stalled(self, run_id: str, before: float) -> Literal["planning", "finishing"] | None:
        """Return what a run waits for by itself, where nothing has happened to it since `before` (seconds, epoch)."""
        touched, planned, subjects, ended, record = self._redis.hmget(
            _run(run_id), "touched", "planned", "subjects", "ended", "record"
        )
        if record is not None or touched is None or float(touched) >= before:
            return None
        if planned is None:
            return "planning"
        return "finishing" if subjects == ended else None

    def cursor(self, run_id: str) -> str:
        """Return the subject (lab/subject) up to which a run is planned; empty at its start."""
        return (self._redis.hget(_run(run_id), "cursor") or b"").decode()

    def touch(self, run_id: str) -> None:
        """Note that something was done for a run as a whole; nothing, where the run is not known."""
        if self._redis.hexists(_run(run_id), "spec"):
            self._redis.hset(_run(run_id), "touched", time.time())

    def leave_out(self, run_id: str, left_out: Iterable[LeftOut]) -> None:
        """Note folders that are no subject's."""
        for left in left_out:
            self._redis.hset(f"{_run(run_id)}:left_out", left.session, left.reason)

    def left_out(self, run_id: str) -> list[LeftOut]:
        """Return the folders that are no subject's, sorted."""
        raw = self._redis.hgetall(f"{_run(run_id)}:left_out")
        return [LeftOut(session=key.decode(), reason=value.decode()) for key, value in sorted(raw.items())]

    def outcomes(self, run_id: str) -> dict[Subject, Outcome]:
        """Return the outcomes of the subjects that have ended, by lab and subject."""
        raw = self._redis.hgetall(f"{_run(run_id)}:outcomes")
        return {Subject.parse(key.decode()): Outcome.from_json(value) for key, value in sorted(raw.items())}

    def close_run(self, run_id: str, record: bytes) -> None:
        """Note a run's record, which ends it; the first record stays. The ledger forgets the run in a week."""
        unfinished = self._redis.hkeys(f"{_run(run_id)}:subjects")  # some, where the run ended with an error
        with self._redis.pipeline() as pipe:
            for name in unfinished:
                pipe.expire(f"{_run(run_id)}:work:{name.decode()}", REMEMBERED)
            pipe.hsetnx(_run(run_id), "record", record)
            pipe.srem(f"{_PREFIX}open", run_id)
            for part in ("", ":outcomes", ":left_out", ":subjects", ":owed", ":steps", ":resent", ":skipped"):
                pipe.expire(_run(run_id) + part, REMEMBERED)
            pipe.zremrangebyscore(f"{_PREFIX}runs", 0, time.time() - REMEMBERED)
            pipe.zremrangebyscore(f"{_PREFIX}begun", 0, time.time() - _BEGUN_REMEMBERED)
            pipe.execute()

    def record(self, run_id: str) -> dict[str, Any] | None:
        """Return the record of a run that has ended, else None."""
        data = self._redis.hget(_run(run_id), "record")
        return None if data is None else cast(dict[str, Any], orjson.loads(data))

    # ---- subjects

    def register(self, run_id: str, subjects: Sequence[Subject]) -> None:
        """Enter subjects into a run as owed; those that are there already stay as they are."""
        for subject in subjects:
            run, outcomes, _, owed, stages = self._keys(run_id, subject)
            self._register(keys=[run, outcomes, stages, owed], args=[str(subject), subject.lab, time.time()])

    def stage(self, run_id: str, subject: Subject) -> Stage | None:
        """Return where a subject stands; None where it has ended, or is not of the run."""
        stage = self._redis.hget(f"{_run(run_id)}:subjects", str(subject))
        return None if stage is None else cast(Stage, stage.decode())

    def begin(self, run_id: str, subject: Subject, work: Work, kept: bytes, settled: bytes = b"[]") -> None:
        """Note what a subject has to do, and what it starts from, as JSON; earlier work is dropped.

        Parameters
        ----------
        run_id, subject : str, Subject
            Whose work it is.
        work : Work
            What is to do.
        kept, settled : bytes
            Day summaries from the store, and statuses of the first days.
        """
        fields: dict[str, bytes | str | int] = {
            "work": orjson.dumps(work),
            "kept": kept,
            "settled": settled,
            "pieces": len(work.pieces),
            "delivered": 0,
            "attempt": work.attempt,
            "look": secrets.token_hex(8),
            **{f"dates:{piece}": orjson.dumps(dates) for piece, dates in enumerate(work.pieces)},
        }
        pairs = [item for pair in fields.items() for item in pair]
        self._begin(keys=self._moved(run_id, subject), args=[str(subject), time.time(), *pairs])

    def work(self, run_id: str, subject: Subject) -> Work | None:
        """Return what a subject has to do; None where it has not begun, or has ended."""
        data = self._redis.hget(_work(run_id, subject), "work")
        return None if data is None else Work.from_json(data)

    def deliver(
        self,
        run_id: str,
        subject: Subject,
        *,
        attempt: int,
        piece: int,
        dates: Sequence[str],
        days: bytes,
        sessions: int,
    ) -> bool:
        """Enter the day summaries of a piece; return whether the subject has all of its pieces now.

        A piece that comes twice counts once, and tells again that all are there: whoever should have sent the next
        message may have died before. A piece of an earlier look is dropped, known by its attempt and its dates.
        """
        run, _, work, owed, _ = self._keys(run_id, subject)
        missing = self._deliver(
            keys=[run, work, owed],
            args=[str(subject), piece, days, sessions, time.time(), subject.lab, attempt, orjson.dumps(dates)],
        )
        return int(missing) == 0

    def has_piece(self, run_id: str, subject: Subject, piece: int) -> bool:
        """Return whether a piece of a subject under way was delivered already."""
        return bool(self._redis.hexists(_work(run_id, subject), f"piece:{piece}"))

    def hand_on(
        self,
        run_id: str,
        subject: Subject,
        *,
        attempt: int,
        piece: int,
        dates: Sequence[str],
        days: bytes | None = None,
    ) -> bool:
        """Note that a piece is for the extraction queue; False where that was noted, or the piece is not wanted.

        With `days`, the summaries that were made of it so far as JSON, it is noted in any case, and goes on from them.
        """
        _, _, work, owed, _ = self._keys(run_id, subject)
        args: list[Any] = [str(subject), piece, attempt, orjson.dumps(dates), time.time(), days or b""]
        return bool(self._hand_on(keys=[work, owed], args=args))

    def extracted(self, run_id: str, subject: Subject, piece: int) -> bytes:
        """Return the day summaries that were made so far of a piece in the extraction queue, as JSON."""
        return cast(bytes, self._redis.hget(_work(run_id, subject), f"extracting:{piece}") or b"[]")

    def is_handed_on(self, run_id: str, subject: Subject, piece: int) -> bool:
        """Return whether a piece of a subject under way is for the extraction queue."""
        return bool(self._redis.hexists(_work(run_id, subject), f"extracting:{piece}"))

    def any_waiting(self, lists: Sequence[str]) -> bool:
        """Return whether there is a message in any of these lists."""
        return bool(self._redis.exists(*lists))

    def pieces_missing(self, run_id: str, subject: Subject) -> list[int]:
        """Return the pieces of a subject that were not delivered yet."""
        work = self.work(run_id, subject)
        if work is None:
            return []
        there = self._redis.hkeys(_work(run_id, subject))
        return [piece for piece in range(len(work.pieces)) if f"piece:{piece}".encode() not in there]

    def produced(self, run_id: str, subject: Subject) -> Produced | None:
        """Return what a subject has produced; None where pieces are missing, or it has ended."""
        raw = self._redis.hgetall(_work(run_id, subject))
        if b"kept" not in raw or raw[b"pieces"] != raw[b"delivered"]:
            return None
        pieces = (value for key, value in sorted(raw.items()) if key.startswith(b"piece:"))
        return Produced(
            look=raw[b"look"].decode(),
            work=Work.from_json(raw[b"work"]),
            kept=raw[b"kept"],
            days=tuple(pieces),
            settled=raw.get(b"settled", b"[]"),
            statuses=raw.get(b"statuses"),
        )

    def set_statuses(self, run_id: str, subject: Subject, look: str, statuses: bytes) -> None:
        """Enter a subject's statuses, unless it has ended or has begun again since the look they come from."""
        self._set_statuses(keys=self._moved(run_id, subject), args=[str(subject), time.time(), look, statuses])

    def set_stage(self, run_id: str, subject: Subject, stage: Stage) -> None:
        """Note where a subject under way stands; nothing, where it has ended."""
        self._set_stage(keys=self._moved(run_id, subject)[:3], args=[str(subject), stage, time.time()])

    def entered(self, run_id: str, subject: Subject, step: str, task_id: str) -> int:
        """Note that a task begins a step; return how often the step was begun and never left: its process died."""
        with self._redis.pipeline() as pipe:
            pipe.hincrby(f"{_run(run_id)}:steps", f"{subject} {step}", 1)
            pipe.set(_task(task_id), f"{run_id} {subject}", ex=_TASK_REMEMBERED)
            return int(pipe.execute()[0])

    def left(self, run_id: str, subject: Subject, step: str, task_id: str) -> None:
        """Note that a task left a step in good order, whatever came of it."""
        with self._redis.pipeline() as pipe:
            pipe.hdel(f"{_run(run_id)}:steps", f"{subject} {step}")
            pipe.delete(_task(task_id))
            pipe.execute()

    def planning(self, run_id: str, task_id: str) -> None:
        """Note that a task plans for a run."""
        self._redis.set(_task(task_id), f"{run_id} ", ex=_TASK_REMEMBERED)

    def keep(self, task_ids: Sequence[str]) -> None:
        """Note that these tasks are under way: what they are on is not lost, however long they take."""
        held = self._redis.mget([_task(task_id) for task_id in task_ids]) if task_ids else []
        for run_id, _, name in (value.decode().partition(" ") for value in held if value):
            if name:
                self._redis.zadd(f"{_run(run_id)}:owed", {name: time.time()}, xx=True)
            else:
                self.touch(run_id)

    def sent_again(self, run_id: str, subject: Subject, patience: float) -> None:
        """Note that what a subject waits for was sent again: the next time comes after twice the wait."""
        run = _run(run_id)
        keys = [f"{run}:resent", f"{run}:owed"]
        self._resent(keys=keys, args=[str(subject), time.time(), patience, _LONGEST_WAIT])

    def end(self, run_id: str, subject: Subject, outcome: Outcome) -> bool:
        """Enter a subject's outcome; return whether the whole run is planned and all of its subjects have ended."""
        run, outcomes, work, owed, stages = self._keys(run_id, subject)
        ended = self._end(
            keys=[run, outcomes, work, owed, stages],
            args=[str(subject), outcome.to_json(), outcome.state, subject.lab, time.time()],
        )
        return bool(ended)

    def owed(self, run_id: str, before: float) -> Iterator[tuple[Subject, Stage]]:
        """Yield subjects that are owed and to which nothing has happened since `before` (seconds, epoch)."""
        for name in self._redis.zrangebyscore(f"{_run(run_id)}:owed", "-inf", before):
            stage = self._redis.hget(f"{_run(run_id)}:subjects", name)
            if stage is not None:
                yield Subject.parse(name.decode()), stage.decode()

    @staticmethod
    def _moved(run_id: str, subject: Subject) -> tuple[str, str, str, str]:
        """Return the keys of scripts that move a subject on."""
        run = _run(run_id)
        return f"{run}:outcomes", f"{run}:subjects", f"{run}:owed", _work(run_id, subject)

    @staticmethod
    def _keys(run_id: str, subject: Subject) -> tuple[str, str, str, str, str]:
        run = _run(run_id)
        return run, f"{run}:outcomes", _work(run_id, subject), f"{run}:owed", f"{run}:subjects"


def _run(run_id: str) -> str:
    return f"{_PREFIX}run:{run_id}"


def _task(task_id: str) -> str:
    return f"{_PREFIX}task:{task_id}"


def _work(run_id: str, subject: Subject) -> str:
    return f"{_run(run_id)}:work:{subject}"
