"""What Prometheus asks the ledger at each scrape: gauges of the runs it remembers. `docs/monitor.md` has the table.

Gauges only: the ledger forgets a run a week after its end, and a counter that is added up from it would go back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any

import redis
from prometheus_client.core import GaugeMetricFamily

from core.errors import PermanentError
from workers.ledger import Ledger
from workers.records import RunSpec

log = logging.getLogger(__name__)

#: Labs that get a label of their own, the first by name: a strange tree must not flood Prometheus.
MAX_LABS = 100
#: The others together; no lab can have this name.
OTHER_LABS = "(other labs)"
#: What a run of another version may raise; it must not take the metrics of all others along.
_ODD = (KeyError, TypeError, ValueError)
_LAST_RUN = {
    "subjects": "Subjects of the lab in",
    "sessions": "Sessions of the lab summarised in",
    "left_out_sessions": "Sessions of the lab left out in",
    "duration_seconds": "How long it took, all of its labs, to do",
    "end_timestamp_seconds": "When it ended:",
}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What is kept of a run that has ended; its record does not change any more."""

    spec: RunSpec
    outcome: str  # done, failed_subjects, error
    ended: float  # s, epoch
    duration: float  # s
    subjects: Mapping[str, int]  # by lab, as the next two
    sessions: Mapping[str, int]
    left_out: Mapping[str, int]
    failed: frozenset[tuple[str, str]]  # lab, subject

    @property
    def is_whole(self) -> bool:
        """Whether all subjects of its labs were to be computed."""
        return not (self.spec.subjects or self.spec.only)

    def of_lab(self, lab: str) -> dict[str, float]:
        """Return the values of `_LAST_RUN` for a lab."""
        return {
            "subjects": self.subjects[lab],
            "sessions": self.sessions[lab],
            "left_out_sessions": self.left_out.get(lab, 0),
            "duration_seconds": self.duration,
            "end_timestamp_seconds": self.ended,
        }

    def covers(self, lab: str, subject: str) -> bool:
        """Whether a subject was to be computed."""
        if self.spec.only:
            return f"{lab}/{subject}" in self.spec.only
        return lab in (self.spec.labs or (lab,)) and subject in (self.spec.subjects or (subject,))


class LedgerCollector:
    """Gauges of the ledger's runs for a registry of `prometheus_client`; a run that has ended is read once.

    Parameters
    ----------
    ledger : Ledger
        Where it is out of reach, `training_status_ledger_up` is 0 and there are no other gauges.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._ended: dict[str, Ended] = {}

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return nothing: this is asked at registration, which should not read the ledger."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges as they stand now."""
        meaning = "Whether the Redis with the ledger answers: 1 or 0."
        try:
            gauges = [*self._open_runs(), *_ended_runs(self._read_ended())]
        except redis.RedisError as error:
            log.warning("the ledger does not answer a scrape: %s", type(error).__name__)
            yield _gauge("ledger_up", meaning, (), {(): 0})
            return
        yield _gauge("ledger_up", meaning, (), {(): 1})
        yield from gauges

    def _open_runs(self) -> Iterator[GaugeMetricFamily]:
        runs = Counter({"recompute": 0, "refresh": 0})
        owed: Counter[str] = Counter()
        ended: Counter[str] = Counter()
        sessions: Counter[str] = Counter()
        failed, began = 0, []
        for run_id in self._ledger.open_runs():
            spec = self._spec(run_id)
            if spec is None:
                continue
            progress = self._ledger.progress(run_id)
            runs[spec.kind] += 1
            failed += progress.failed
            began += [_epoch(spec.started)] if spec.started else []
            for lab, counts in progress.labs.items():
                owed[lab] += counts.get("subjects", 0) - counts.get("ended", 0)
                ended[lab] += counts.get("ended", 0)
                sessions[lab] += counts.get("sessions", 0)
        yield _gauge("open_runs", "Runs under way.", ("kind",), _single(runs))
        yield _gauge(
            "open_runs_oldest_start_timestamp_seconds",
            "When the oldest run under way began; no value where there is none.",
            (),
            {(): min(began)} if began else {},
        )
        yield _gauge(
            "open_runs_subjects",
            "Subjects of the runs under way, as far as they are found: owed or ended.",
            ("lab", "state"),
            {(lab, state): n for state, by in (("owed", owed), ("ended", ended)) for lab, n in _bounded(by).items()},
        )
        yield _gauge("open_runs_failed_subjects", "Of those, subjects that failed.", (), {(): failed})
        yield _gauge("open_runs_sessions", "Sessions that they have summarised.", ("lab",), _single(_bounded(sessions)))

    def _read_ended(self) -> list[Ended]:
        """Return what is kept of the ended runs that the ledger remembers, in the order in which they ended."""
        found: dict[str, Ended] = {}
        for run_id in self._ledger.run_ids():
            ended = self._ended.get(run_id) or self._read(run_id)
            if ended is not None:
                found[run_id] = ended
        self._ended = found
        return sorted(found.values(), key=lambda run: (run.ended, run.spec.run_id))

    def _read(self, run_id: str) -> Ended | None:
        spec, record = self._spec(run_id), self._ledger.record(run_id)
        if spec is None or record is None:
            return None
        labs = self._ledger.progress(run_id).labs
        try:
            failed = frozenset((item["lab"], item["subject"]) for item in record["failed"])
            return Ended(
                spec=spec,
                outcome="error" if record["error"] else "failed_subjects" if failed else "done",
                ended=_epoch(record["ended"]),
                duration=_epoch(record["ended"]) - _epoch(spec.started),
                subjects={lab: counts.get("subjects", 0) for lab, counts in labs.items()},
                sessions={lab: counts.get("sessions", 0) for lab, counts in labs.items()},
                left_out=Counter(item["lab"] for item in record["left_out"]),
                failed=failed,
            )
        except _ODD as error:
            log.warning("run %s is left out of the metrics: its record is odd: %r", run_id, error)
            return None

    def _spec(self, run_id: str) -> RunSpec | None:
        """Return a run's specification; None where it is forgotten, though its id is listed, or is no one of ours."""
        try:
            return self._ledger.spec(run_id)
        except (PermanentError, *_ODD):
            return None


def _ended_runs(runs: list[Ended]) -> Iterator[GaugeMetricFamily]:
    outcomes = Counter((run.spec.kind, run.outcome) for run in runs)
    yield _gauge("remembered_runs", "Runs that ended within the last week.", ("kind", "outcome"), outcomes)
    failed: set[tuple[str, str]] = set()
    last: dict[tuple[str, str], Ended] = {}
    by_lab: Counter[str] = Counter()
    for run in runs:
        if run.outcome != "error":  # it may have ended before it came to a subject
            failed = {subject for subject in failed if not run.covers(*subject)}
            last |= {(lab, run.spec.kind): run for lab in run.subjects if run.is_whole}
        failed |= run.failed
        by_lab.update(dict.fromkeys(run.subjects, 0))
    by_lab.update(lab for lab, _ in failed)
    yield _gauge("failed_subjects", "Subjects that failed when last computed.", ("lab",), _single(_bounded(by_lab)))
    shown = set(sorted({lab for lab, _ in last})[:MAX_LABS])
    told = {key: run.of_lab(key[0]) for key, run in sorted(last.items(), key=itemgetter(0)) if key[0] in shown}
    for name, meaning in _LAST_RUN.items():
        values = {key: values[name] for key, values in told.items()}
        yield _gauge(f"last_run_{name}", f"{meaning} the last run over the whole lab.", ("lab", "kind"), values)


def _gauge(name: str, meaning: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> GaugeMetricFamily:
    """Return a gauge; `values` are by tuples of label values."""
    family = GaugeMetricFamily(f"training_status_{name}", meaning, labels=labels)
    for of_labels, value in values.items():
        family.add_metric(of_labels, value)
    return family


def _single(values: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    return {(label,): value for label, value in values.items()}


def _bounded(by_lab: Mapping[str, int]) -> dict[str, int]:
    """Return the values of `MAX_LABS` labs, and the sum of the others."""
    labs = sorted(by_lab)
    values = {lab: by_lab[lab] for lab in labs[:MAX_LABS]}
    if labs[MAX_LABS:]:
        values[OTHER_LABS] = sum(by_lab[lab] for lab in labs[MAX_LABS:])
    return values


def _epoch(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()
