"""Compare this software, value by value, with the peer that runs today: ibllib's training status.

    python -m bench.parity --mice 100 --days 14 --seeds 3 --json parity.json

Both compute the same mice from the same session trees. Where a value differs, the mouse is decided again by our code
with the peer's rules put in (`RULES`, the numbers of docs/differences.md), first all of them, which must give just
what the peer gave, and then as few as will do: these are what the difference is put down to. Whatever the peer's rules
do not reproduce is unexplained, and a failure. Fits are compared by their log-likelihood on the same trials.

Needs ibllib (`pip install 'training-status[ibl]'`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import multiprocessing
import sys
import tempfile
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from datetime import time as clock
from functools import cached_property, partial
from itertools import chain, combinations
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final

import numpy as np
import orjson
import pandas as pd

from core import psychometrics, schema
from core.discover import find_files, find_sessions
from core.errors import SessionUnusable
from core.load import load_session, load_trials, protocol_of, raw_collections, read_settings, session_facts
from core.pipeline import recompute_subject
from core.records import Counts, DayStatus, DaySummary, Facts, Fit, LoadedDay, Session, SessionFiles, Trials
from core.simulation.formats import Quirks, write_session
from core.simulation.mouse import (
    FIRST_DAY,
    HURRIED,
    NEVER_BIASED,
    NEVER_LEARNS,
    TEMPERAMENTS,
    Mouse,
    Skill,
    draw_habituation,
    draw_trials,
)
from core.sources import TreeSource
from core.status import PATIENCE, WINDOW_DAYS, WindowKind, compute_statuses, fold, pass_through_hierarchy
from core.storage.memory import MemoryStore
from core.summarise import count, put_together, signed_contrasts, summarise
from core.tables import build_tables, read_table

WINDOW, UNBIASABLE, CHAINED, TRAINING_DAY, DURATION = 1, 2, 3, 5, 7
REVISIONS, HABITUATION, ORDER, LOST, FIRST_ROW = 8, 9, 10, 11, 13

#: The peer's rules that a session tree can show, by their number in docs/differences.md.
RULES: Final[Mapping[int, str]] = MappingProxyType(
    {
        WINDOW: "a window of session rows, not of days",
        UNBIASABLE: "unbiasable without the very word ready4ephysrig",
        CHAINED: "protocols of one session, or of one day, put together",
        TRAINING_DAY: "two training sessions of a day fitted in the 0.5 block only",
        DURATION: "durations cut to whole minutes",
        REVISIONS: "revisions passed over, or added together",
        HABITUATION: "habituation after training began takes the window's status",
        ORDER: "sessions of a day in the order of an unstable sort",
        LOST: "neither duration nor delay where a session's end cannot be told",
        FIRST_ROW: "no status before the first day whose first row is not habituation",
    }
)
Rules = frozenset[int]
NONE: Final[Rules] = frozenset()
ALL: Final[Rules] = frozenset(RULES)

FIT_COLUMNS: Final = frozenset(
    f"{prefix}{parameter}_{block}"
    for prefix in ("", "combined_")
    for parameter in schema.FIT_PREFIXES
    for block, _ in schema.BLOCKS
)
#: Compared to the last bit.
COLUMNS: Final = tuple(c for c in schema.TRAINING_COLUMNS if c not in FIT_COLUMNS and c != "session_path")
#: The same for all protocols of a session, so that they stand once.
OF_DAY: Final = frozenset({"date", "training_status"})
VECTORS: Final = MappingProxyType({"performance": "contrasts", "combined_performance": "combined_contrasts"})
KINDS: Final = ("habituation", "training", "biased", "ephys")
#: What an odd mouse can do on most days: enough for every status.
ABLE: Final = Skill(
    contrasts=(1.0, 0.25, 0.125, 0.0625, 0.0),
    threshold=12.0,
    lapse=0.02,
    bias=0.0,
    shift=7.0,
    reaction_time=0.6,
    no_response=0.0,
    n_trials=450,
)
#: Temperaments of mice that may be found untrainable or unbiasable.
FAILING: Final = (NEVER_LEARNS, NEVER_BIASED, HURRIED)
#: How far below the peer's best a log-likelihood may be: rounding.
TOLERANCE: Final = 1e-6
#: Seeds for a mouse whose status the peer seems to contradict: it may contradict itself.
MORE_SEEDS: Final = 20

Cell = tuple[Any, ...]  # of one session and column: a value for each of its protocols; None stands for NaN
FitKey = tuple[str, str, str]  # session path, protocol, "50" or "combined_50"


class PeerCrashed(Exception):
    """The peer raised something in place of a table."""


# --- both sides -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the peer prints, logs and warns of to itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def run_peer(subject_dir: Path, seed: int, *, save: bool = False) -> pd.DataFrame:
    """Return the peer's training table of a subject.

    Parameters
    ----------
    subject_dir : Path
        ``<root>/<lab>/Subjects/<subject>``.
    seed : int
        Of NumPy's global generator, from which the peer's fits take their random starts.
    save : bool
        Whether it leaves its table, ``training.csv``, in the subject's folder, as it does in use.

    Raises
    ------
    PeerCrashed
        With the type and the first line of what the peer raised.
    """
    last = max(subject_dir.glob("????-??-??/*"))
    with quiet():
        from ibllib.pipes.training_status import get_latest_training_information

        np.random.seed(seed)
        try:
            frame: pd.DataFrame = get_latest_training_information(last, SimpleNamespace(mode="local"), save=save)
        except Exception as error:  # whatever it is, it is the peer's, and it is reported
            raise PeerCrashed(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
    return frame


def run_ours(subject_dir: Path) -> pd.DataFrame:
    """Return our training table of a subject, by the main path of the package."""
    lab, subject = _names(subject_dir)
    tables = recompute_subject(TreeSource(_root(subject_dir)), lab, subject, MemoryStore(f"parity-{uuid.uuid4().hex}"))
    return _frame(tables.training)


def _frame(table: bytes) -> pd.DataFrame:
    frame: pd.DataFrame = read_table(table, "training").to_pandas()
    return frame


def _root(subject_dir: Path) -> Path:
    return subject_dir.parents[2]


def _names(subject_dir: Path) -> tuple[str, str]:
    return subject_dir.parents[1].name, subject_dir.name


# --- our code with the peer's rules put in ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A mouse as our code decides it under some of the peer's rules."""

    frame: pd.DataFrame
    problems: Mapping[FitKey, Counts]  # what each fit of the table was fitted to

    @cached_property
    def cells(self) -> dict[str, dict[str, Cell]]:
        """The values of each session and column."""
        return cells(self.frame)

    @cached_property
    def fits(self) -> dict[FitKey, Fit]:
        """The parameters of each fit of the table."""
        return fits(self.frame)


class Replay:
    """Decides one mouse again, under any of the peer's rules.

    Parameters
    ----------
    subject_dir : Path
        ``<root>/<lab>/Subjects/<subject>``.
    peer : DataFrame
        The peer's table, for the order in which it has the sessions of a day; nothing else is taken from it.
    """

    def __init__(self, subject_dir: Path, peer: pd.DataFrame) -> None:
        self._lab, self._subject = _names(subject_dir)
        self._sessions, _ = find_sessions(_root(subject_dir), self._lab, self._subject)
        self._rank = {path: rank for rank, path in enumerate(peer["session_path"].drop_duplicates())}
        self._done: dict[Rules, Replayed] = {}

    def run(self, rules: Rules) -> Replayed:
        """Return the mouse under `rules`; the same rules are worked out once."""
        if rules not in self._done:
            self._done[rules] = self._run(rules)
        return self._done[rules]

    def causes(self, session: str, column: str, ours: Cell, peer: Cell) -> Rules | None:
        """Return the fewest of the peer's rules that turn our value into the peer's.

        None where all of them together do not, or where ours is not what our code gives without them.
        """

        def found(rules: Rules) -> Cell:
            return self.run(rules).cells.get(session, {}).get(column, ())

        if found(NONE) != ours or found(ALL) != peer:
            return None
        alone = (rule for rule in RULES if found(frozenset({rule})) == peer)
        if (rule := next(alone, None)) is not None:
            return frozenset({rule})
        together = chain.from_iterable(combinations(self._bearing, size) for size in range(2, len(self._bearing) + 1))
        return next((frozenset(rules) for rules in together if found(frozenset(rules)) == peer), ALL)

    @cached_property
    def _bearing(self) -> list[int]:
        """The rules that change anything at all for this mouse, alone or taken from all of them."""
        plain, full = self.run(NONE).cells, self.run(ALL).cells
        return [
            rule for rule in RULES if self.run(frozenset({rule})).cells != plain or self.run(ALL - {rule}).cells != full
        ]

    def _run(self, rules: Rules) -> Replayed:
        found = {
            date: [load_as(path, rules) for path in self._in_order(paths, rules)]
            for date, paths in self._sessions.items()
        }
        days = summarise_as(found, rules)
        statuses = statuses_as(days, rules)
        used = [day for day in days if day.protocol is not None]
        frame = _frame(build_tables(self._lab, self._subject, used, statuses).training)
        frame["training_status"] = frame["date"].map({status.date: status.status for status in statuses})
        uncomputed = (frame["training_status"] == "not_computed") & (frame["task_protocol"] == "habituation")
        frame.loc[uncomputed, "training_status"] = "habituation"
        for path, status in failed_as(frame, rules).items():
            frame.loc[frame["session_path"] == path, "training_status"] = status
        return Replayed(frame=frame, problems=dict(_problems(found, rules)))

    def _in_order(self, paths: Sequence[Path], rules: Rules) -> list[Path]:
        if ORDER not in rules:
            return list(paths)
        return sorted(paths, key=lambda path: self._rank.get(str(path), len(self._rank)))


@dataclass(frozen=True, kw_only=True)
class Found:
    """One session folder, loaded under some rules."""

    sessions: tuple[Session, ...]  # one a protocol
    pools: tuple[Trials | None, ...]  # of each session, what the peer puts together with others; None for habituation


def load_as(path: Path, rules: Rules) -> Found:
    """Load a session folder under `rules`."""
    files = find_files(path)
    if REVISIONS in rules:
        files = replace(files, trials=_by_folder(path))
    first = replace(files, trials={name: of for name, of in files.trials.items() if "#" not in name})
    sessions, _ = load_session(first)
    if CHAINED in rules and len(sessions) > 1:
        sessions = [_as_one(first, sessions)]
    sessions = [replace(session, facts=_facts(files, session, rules)) for session in sessions]
    pools = [session.trials for session in sessions]
    if len(pools) == 1 and pools[0] is not None:
        pools = [load_trials(files)]
    return Found(sessions=tuple(sessions), pools=tuple(pools))


def _by_folder(session: Path) -> dict[str, dict[str, Path]]:
    """Return the trials files of each folder below ``alf``, a revision being a folder like any other."""
    folders: dict[str, dict[str, Path]] = {}
    for file in sorted(session.glob("alf/**/_ibl_trials.*")):
        folder = file.parent.relative_to(session).as_posix()
        folders.setdefault(folder, {})[file.name.split(".")[1]] = file
    return folders


def _as_one(files: SessionFiles, sessions: Sequence[Session]) -> Session:
    """Return a session of several protocols as the peer has it: that of the last by name, with all trials."""
    last = max(sessions, key=lambda session: session.protocol)
    trials = None if last.protocol == "habituation" else load_trials(files)
    return replace(last, trials=trials, facts=None)


def _facts(files: SessionFiles, session: Session, rules: Rules) -> Facts | None:
    """Return a session's facts with the peer's minutes, and without what it loses where it cannot tell the end."""
    if session.trials is None:
        return None
    tasks = [(name, settings) for name, settings, protocol in _tasks(files) if _is_of(session, protocol)]
    told = []
    for task in tasks:
        facts, minutes = session_facts(files, [task]), _minutes(files.task_data.get(task[0]), task[1])
        if minutes is None and LOST in rules:
            facts = replace(facts, duration=0.0, delay=0.0)
        elif minutes is not None and DURATION in rules:
            facts = replace(facts, duration=float(minutes))
        told.append(facts)
    return Facts(
        duration=sum(facts.duration for facts in told),
        delay=sum(facts.delay for facts in told),
        location=told[-1].location,
    )


def _is_of(session: Session, protocol: str) -> bool:
    return session.facts is None or session.protocol == protocol  # without facts: all tasks as one


def _tasks(files: SessionFiles) -> Iterator[tuple[str, dict[str, Any], str]]:
    for collection in raw_collections(files):
        with contextlib.suppress(SessionUnusable):
            settings = read_settings(files, collection)
            yield collection, settings, protocol_of(settings)


def _minutes(task_data: Path | None, settings: Mapping[str, Any]) -> int | None:
    """Return the minutes of a task, cut off as the peer does; None where it cannot tell."""
    try:
        start = datetime.fromisoformat(settings.get("SESSION_START_TIME") or settings["SESSION_DATETIME"])
        if end := settings.get("SESSION_END_TIME"):
            return int((datetime.fromisoformat(end) - start).total_seconds() / 60)
    except (KeyError, ValueError):
        return None
    lines = task_data.read_bytes().replace(b"NaN", b"null").splitlines() if task_data else []
    seconds = None
    for behaviour in (orjson.loads(line)["behavior_data"] for line in reversed(lines)):
        seconds = behaviour["Trial end timestamp"] - behaviour["Bpod start timestamp"]
        if seconds < 6 * 3600:
            break
    return None if seconds is None else int(seconds / 60)


def summarise_as(found: Mapping[str, Sequence[Found]], rules: Rules) -> list[DaySummary]:
    """Summarise days under `rules`: their rows first, then what windows and combined columns are made of."""
    loaded = [LoadedDay(date=date, inputs={}, sessions=_sessions(of_day)) for date, of_day in found.items()]
    days = summarise(loaded)
    if not rules & {CHAINED, TRAINING_DAY, REVISIONS}:
        return days
    wholes = {day.date: whole for day in days if (whole := _pooled(day, found[day.date], rules))}
    pooled = summarise([LoadedDay(date=date, inputs={}, sessions=(whole,)) for date, whole in wholes.items()])
    by_date = {whole.date: whole for whole in pooled}
    return [_merged(day, by_date[day.date], rules) if day.date in by_date else day for day in days]


def _sessions(of_day: Sequence[Found]) -> tuple[Session, ...]:
    return tuple(session for found in of_day for session in found.sessions)


def _pooled(day: DaySummary, of_day: Sequence[Found], rules: Rules) -> Session | None:
    """Return all that the peer puts together for a day as one session; None for habituation."""
    if day.protocol in (None, "habituation"):
        return None
    found = ((session, pool) for each in of_day for session, pool in zip(each.sessions, each.pools, strict=True))
    parts = [
        pool for session, pool in found if pool is not None and (CHAINED in rules or session.protocol == day.protocol)
    ]
    protocol = "biased" if TRAINING_DAY in rules else str(day.protocol)  # which blocks are fitted hangs on it
    return Session(path="", number="", protocol=protocol, trials=put_together(parts), facts=None)


def _merged(day: DaySummary, whole: DaySummary, rules: Rules) -> DaySummary:
    """Return the rows of `day` with the trials of `whole` for combined columns and windows."""
    combined = day.combined
    if combined is not None and whole.sessions[0].measures is not None:
        combined = replace(whole.sessions[0].measures, duration=combined.duration, delay=combined.delay)
    if not rules & {CHAINED, REVISIONS}:
        return replace(day, combined=combined)
    last = combined or day.sessions[-1].measures  # the last row's, where protocols differ
    return replace(
        whole,
        sessions=day.sessions,
        protocol=day.protocol,
        combined=combined,
        ephys=day.ephys,
        delay=last.delay if last is not None and CHAINED in rules else day.delay,
    )


def statuses_as(days: Sequence[DaySummary], rules: Rules) -> list[DayStatus]:
    """Return the status of each day with sessions under `rules`, before a mouse is found to have failed."""
    kind: WindowKind = "sessions" if WINDOW in rules else "days"
    used = [day for day in days if day.protocol is not None]
    statuses = compute_statuses(used, window=kind)
    if FIRST_ROW in rules:
        begin = next((at for at, day in enumerate(used) if day.sessions[0].protocol != "habituation"), len(used))
        statuses = _not_computed(statuses, begin)
    return _without_habituation(used, statuses, kind) if HABITUATION in rules else statuses


def _not_computed(statuses: Sequence[DayStatus], begin: int) -> list[DayStatus]:
    """Leave the days before `begin` without a status, those of habituation with theirs."""
    early = [
        status
        if status.status == "habituation"
        else replace(status, status="not_computed", window_status="not_computed")
        for status in statuses[:begin]
    ]
    found = fold([status.window_status for status in (*early, *statuses[begin:])])
    return [replace(each, status=status) for each, status in zip((*early, *statuses[begin:]), found, strict=True)]


def _without_habituation(
    days: Sequence[DaySummary], statuses: Sequence[DayStatus], kind: WindowKind
) -> list[DayStatus]:
    """Give habituation days after training began the status of the rows before them, as the peer does.

    Its hierarchy looks no further back than the window, and on a habituation day at the first of two rows.
    """
    held: dict[str, str] = {}  # statuses of days that are no habituation
    result: list[DayStatus] = []
    for position, (day, status) in enumerate(zip(days, statuses, strict=True)):
        before = [d for d in _rows_before(days, position, kind) if d.protocol != "habituation"]
        if day.protocol != "habituation":
            old = held[before[-1].date] if before else status.window_status
            held[day.date] = pass_through_hierarchy(status.window_status, old)
            result.append(replace(status, status=held[day.date]))
        elif before and set(held.values()) != {"not_computed"}:
            distinct = list({d.date: d for d in before}.values())
            alone = compute_statuses(distinct)[-1].window_status
            result.append(replace(status, status=pass_through_hierarchy(alone, held[before[0].date])))
        else:
            result.append(status)
    return result


def _rows_before(days: Sequence[DaySummary], position: int, kind: WindowKind) -> list[DaySummary]:
    before = days[max(0, position - WINDOW_DAYS + 1) : position]
    rows = [day for day in before for _ in day.sessions] if kind == "sessions" else list(before)
    return rows[-(WINDOW_DAYS - 1) :]


def failed_as(frame: pd.DataFrame, rules: Rules) -> dict[str, str]:
    """Return the session that is untrainable, and the one that is unbiasable, under `rules`."""
    sessions = frame.drop_duplicates("session_path")
    failed = {}
    in_training = _by_date(sessions[sessions["training_status"] == "in training"], rules)
    if len(in_training) >= PATIENCE:
        failed[in_training["session_path"].iloc[PATIENCE - 1]] = "untrainable"
    biased = frame[frame["task_protocol"] == "biased"].drop_duplicates("session_path")
    biased = _by_date(biased, rules).iloc[:PATIENCE]
    enough = schema.LADDER["ready4ephysrig"]
    reached = {"ready4ephysrig"} if UNBIASABLE in rules else {s for s, rank in schema.LADDER.items() if rank >= enough}
    if len(biased) == PATIENCE and not reached & set(biased["training_status"]):
        failed[biased["session_path"].iloc[-1]] = "unbiasable"
    return failed


def _by_date(sessions: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    return sessions.sort_values("date", kind="quicksort" if ORDER in rules else "stable")


def _problems(found: Mapping[str, Sequence[Found]], rules: Rules) -> Iterator[tuple[FitKey, Counts]]:
    """Yield the counts of every fit of the table, those of a day once, under its first session."""
    for of_day in found.values():
        sessions = _sessions(of_day)
        for session in sessions:
            yield from _blocks(session, session.protocol, session.trials, "")
        protocols = {session.protocol for session in sessions}
        if len(sessions) > 1 and len(protocols) == 1 and protocols != {"habituation"}:
            trials = put_together([pool for each in of_day for pool in each.pools if pool is not None])
            yield from _blocks(sessions[0], "biased" if TRAINING_DAY in rules else protocols.pop(), trials, "combined_")


def _blocks(session: Session, fitted_as: str, trials: Trials | None, prefix: str) -> Iterator[tuple[FitKey, Counts]]:
    if trials is None:
        return
    contrasts = signed_contrasts(trials)
    for block, probability in schema.BLOCKS:
        in_block = trials.probabilityLeft == probability
        if fitted_as == "training":
            in_block = np.full(len(trials), block == "50")
        yield (session.path, session.protocol, prefix + block), count(contrasts[in_block], trials.choice[in_block])


# --- comparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A value that differs, and why."""

    subject: str
    session: str  # date/number
    column: str
    ours: Any
    peer: Any
    rules: tuple[int, ...]  # the peer's rules that make the difference; none: unexplained


@dataclass(frozen=True, kw_only=True)
class FitScore:
    """Two fits to the same trials."""

    subject: str
    session: str
    fit: str  # "50", "combined_20"
    ours: float  # log-likelihood; NaN where there is no trial
    peer: float  # the best of its seeds


@dataclass(kw_only=True)
class Outcome:
    """What the comparison of some mice found."""

    mice: int = 0
    sessions: int = 0
    values: int = 0  # cells compared, statuses among them
    statuses: Counter[str] = field(default_factory=Counter)  # of sessions compared, as the peer has them
    equal: int = 0  # statuses that are the same
    differences: list[Difference] = field(default_factory=list)
    undecided: list[Difference] = field(default_factory=list)  # statuses on which the peer contradicts itself
    fits: list[FitScore] = field(default_factory=list)
    crashes: list[tuple[str, int, str]] = field(default_factory=list)  # subject, sessions that we have, what it raised

    def add(self, other: Outcome) -> None:
        """Take in another outcome."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def unexplained(self) -> list[Difference]:
        """Differences that the peer's rules do not reproduce."""
        return [difference for difference in self.differences if not difference.rules]

    @property
    def worse(self) -> list[FitScore]:
        """Fits of ours that the peer's beat."""
        return [fit for fit in self.fits if not _is_as_good(fit)]

    @property
    def passed(self) -> bool:
        """Whether everything was equal or explained, and no fit beaten."""
        return not self.unexplained and not self.worse


def cells(frame: pd.DataFrame) -> dict[str, dict[str, Cell]]:
    """Return the values of each session and column: one for each of the session's protocols.

    The rows of a session come in any order from the peer; here they are in that of their contrasts.
    """
    found: dict[str, dict[str, Cell]] = {}
    for (path, _), rows in frame.groupby(["session_path", "task_protocol"], sort=False):
        of_session = found.setdefault(str(path), dict.fromkeys(COLUMNS, ()))
        for column, value in _values(rows).items():
            known = of_session[column]
            of_session[column] = known if column in OF_DAY and value in known else (*known, value)
    return found


def _values(rows: pd.DataFrame) -> dict[str, Any]:
    values = {column: _plain(rows[column].iloc[0]) for column in COLUMNS}
    for vector, contrasts in VECTORS.items():
        order = np.argsort(rows[contrasts].to_numpy(float), kind="stable")  # NaN last
        for column in (vector, contrasts):
            values[column] = tuple(_plain(value) for value in rows[column].to_numpy(float)[order])
    return values


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return str(value) if isinstance(value, str) else float(value)


def fits(frame: pd.DataFrame) -> dict[FitKey, Fit]:
    """Return the parameters of every fit of a table."""
    found: dict[FitKey, Fit] = {}
    first = frame.drop_duplicates(["session_path", "task_protocol"])
    for row in first.to_dict("records"):
        for prefix in ("", "combined_"):
            for block, _ in schema.BLOCKS:
                key = (str(row["session_path"]), str(row["task_protocol"]), prefix + block)
                bias, threshold, low, high = (float(row[f"{prefix}{name}_{block}"]) for name in schema.FIT_PREFIXES)
                found[key] = bias, threshold, low, high
    return found


def compare(subject_dir: Path, ours: pd.DataFrame, peers: Sequence[pd.DataFrame]) -> Outcome:
    """Compare our table of a subject with those of the peer, one a seed.

    Parameters
    ----------
    subject_dir : Path
        Where the sessions lie, to decide them again under the peer's rules where a value differs.
    ours : DataFrame
        As `run_ours` gives it.
    peers : sequence of DataFrame
        As `run_peer` gives them, at least one.
    """
    replay = Replay(subject_dir, peers[0])
    by_seed = [cells(frame) for frame in peers]
    mine = cells(ours)
    outcome = Outcome(mice=1, sessions=len(mine.keys() | by_seed[0].keys()))
    for session in sorted(mine.keys() | by_seed[0].keys()):
        _compare_session(outcome, replay, session, mine.get(session, {}), [of.get(session, {}) for of in by_seed])
    outcome.fits = list(_score_fits(replay, fits(ours), [fits(frame) for frame in peers]))
    return outcome


def _compare_session(
    outcome: Outcome, replay: Replay, session: str, ours: Mapping[str, Cell], peers: Sequence[Mapping[str, Cell]]
) -> None:
    path = Path(session)
    for column in COLUMNS:
        told = {of.get(column, ()) for of in peers}
        peer = peers[0].get(column, ())
        note = partial(
            Difference,
            subject=path.parents[1].name,
            session=f"{path.parent.name}/{path.name}",
            column=column,
            ours=ours.get(column, ()),
        )
        if len(told) > 1:
            outcome.undecided.append(note(peer=sorted(told), rules=()))
            continue
        outcome.values += 1
        same = ours.get(column, ()) == peer
        if column == "training_status":
            outcome.statuses[str(peer[0]) if peer else "no row"] += 1
            outcome.equal += same
        if not same:
            causes = replay.causes(session, column, ours.get(column, ()), peer)
            outcome.differences.append(note(peer=peer, rules=tuple(sorted(causes or ()))))


def _score_fits(
    replay: Replay, ours: Mapping[FitKey, Fit], peers: Sequence[Mapping[FitKey, Fit]]
) -> Iterator[FitScore]:
    """Yield each fit of the peer beside ours to the same trials.

    Where the peer's rules give a fit other trials, ours is made for these.
    """
    plain, full = replay.run(NONE), replay.run(ALL)
    for key, counts in full.problems.items():
        told = [of[key] for of in peers if key in of]
        if not told:
            continue
        mine = ours[key] if plain.problems.get(key) == counts and key in ours else full.fits[key]
        path = Path(key[0])
        yield FitScore(
            subject=path.parents[1].name,
            session=f"{path.parent.name}/{path.name}",
            fit=key[2],
            ours=score(counts, mine),
            peer=_best(score(counts, each) for each in told),
        )


def _best(scores: Iterable[float]) -> float:
    return max((each for each in scores if not math.isnan(each)), default=math.nan)


def score(counts: Counts, fit: Fit) -> float:
    """Return the log-likelihood of `fit`; NaN for a fit that was not made."""
    if math.isnan(fit[0]):
        return math.nan
    return float(psychometrics.log_likelihood(fit, counts.contrasts, counts.n, counts.k))


def _is_as_good(fit: FitScore) -> bool:
    if math.isnan(fit.ours) or math.isnan(fit.peer):
        return math.isnan(fit.ours) and math.isnan(fit.peer)
    return fit.ours >= fit.peer - TOLERANCE


def compare_mouse(subject_dir: Path, seeds: int) -> Outcome:
    """Run both sides on one subject and compare them.

    A status that nothing explains is asked of the peer again with more seeds: it may be one of those on which the
    peer seldom contradicts itself.
    """
    ours = run_ours(subject_dir)
    try:
        peers = [run_peer(subject_dir, seed) for seed in range(seeds)]
        outcome = compare(subject_dir, ours, peers)
        if any(difference.column == "training_status" for difference in outcome.unexplained):
            peers += [run_peer(subject_dir, seed) for seed in range(seeds, MORE_SEEDS)]
            outcome = compare(subject_dir, ours, peers)
    except PeerCrashed as crash:
        return Outcome(mice=1, crashes=[(subject_dir.name, ours["session_path"].nunique(), str(crash))])
    return outcome


# --- the large run ----------------------------------------------------------------------------------------------------


def write_mice(directory: Path, mice: int, days: int, *, seed: int = 0) -> list[Path]:
    """Write `mice` simulated mice, each for `days` days of its life, and return their folders.

    The mice of a lab have every temperament; of four labs, one begins with the first day of each mouse, the next
    `days` later, and so on, so that every status comes up in a short time.
    """
    kinds = len(TEMPERAMENTS)
    folders = [
        write_mouse(directory, at // kinds, at % kinds, first=days * (at // kinds % 4), days=days, seed=seed)
        for at in range(mice)
    ]
    return [folder for folder in folders if folder.is_dir()]  # in a few days there may be no session


def write_mouse(directory: Path, lab: int, subject: int, *, first: int = 0, days: int, seed: int = 0) -> Path:
    """Write one simulated mouse, from day `first` of its life on, and return its folder."""
    folder = directory / f"simlab{lab + 1:02d}" / "Subjects" / f"SIM{lab + 1:02d}_{subject + 1:03d}"
    life = Mouse(lab_index=lab, subject_index=subject, seed=seed)
    earlier = sum(1 for _ in life.sessions(first)) if first else 0
    for position, session in enumerate(life.sessions(first + days)):
        if position >= earlier:
            write_session(
                folder / f"{session.start:%Y-%m-%d}" / f"{session.number:03d}",
                tasks=session.tasks,
                start=session.start,
                rig=session.rig,
                delay=session.delay,
                ephys=session.ephys,
                layout=session.layout,
                quirks=session.quirks,
            )
    return folder


def write_lives(directory: Path, mice: int, *, seed: int = 0) -> list[Path]:
    """Write mice that are long in training or in the biased protocol, for 60 days, and return their folders."""
    every = ((lab, subject) for lab in range(90, 100) for subject in range(len(TEMPERAMENTS)))
    slow = [at for at in every if Mouse(lab_index=at[0], subject_index=at[1]).temperament in FAILING]
    return [write_mouse(directory, lab, subject, days=60, seed=seed) for lab, subject in slow[:mice]]


def write_odd_mice(directory: Path, mice: int, *, seed: int = 0) -> list[Path]:
    """Write mice whose sessions are of any kind in any order, and return their folders.

    What no lab would do puts every difference, and every mixture of them, on the table within a few days.
    """
    folders = [directory / "oddlab" / "Subjects" / f"ODD_{at:03d}" for at in range(mice)]
    for at, folder in enumerate(folders):
        _write_odd_mouse(folder, np.random.default_rng([seed, at]))
    return folders


def _write_odd_mouse(folder: Path, rng: np.random.Generator) -> None:
    likely = rng.choice([[0.1, 0.35, 0.4, 0.15], [0.03, 0.07, 0.6, 0.3]])
    day = FIRST_DAY
    for _ in range(rng.integers(3, 9)):
        day += timedelta(days=int(rng.integers(1, 3)))
        usual = str(rng.choice(KINDS, p=likely))
        for number in range(1, 1 + int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))):
            kind = usual if rng.random() < 0.7 else str(rng.choice(KINDS, p=likely))
            chained = rng.random() < 0.5 and kind != "habituation"
            kinds = [kind, *rng.choice([kind, "training", "biased"], int(chained) * int(rng.integers(3)))]
            write_session(
                folder / f"{day}" / f"{number:03d}",
                tasks=[(f"_iblrig_tasks_{each}ChoiceWorld", _odd_trials(each, rng)) for each in kinds],
                start=datetime.combine(day, clock(5 * number)),
                rig="v8" if len(kinds) > 1 or rng.random() < 0.7 else "v7",
                delay=int(rng.choice([0, 0, 899, 900])),
                ephys=bool(rng.random() < 0.5),
                layout="table" if rng.random() < 0.7 else "npy",
                quirks=Quirks(
                    uuid_names=bool(rng.random() < 0.2),
                    revisions=("2025-06-01",) if rng.random() < 0.2 else (),
                    leftover_npy=bool(rng.random() < 0.2),
                    end_time=bool(rng.random() < 0.3),
                    corrupt_trailing=int(rng.random() < 0.2),
                ),
            )


def _odd_trials(kind: str, rng: np.random.Generator) -> dict[str, Any]:
    n_trials = int(rng.choice([1, 60, 150, 260, 450, 520]))
    if kind == "habituation":
        return draw_habituation(n_trials, rng)
    skill = replace(ABLE, n_trials=n_trials, lapse=0.15 if rng.random() < 0.3 else 0.02)
    trials = draw_trials(skill, rng, blocks=kind != "training")
    if rng.random() < 0.5:
        trials["probabilityLeft"] = np.full(n_trials, rng.choice([0.4, 0.5, 0.8]))
    return trials


def compare_fits(subject_dirs: Sequence[Path], wanted: int, seeds: int) -> list[FitScore]:
    """Fit some of the mice's sessions by the peer's function, with many seeds each, and by ours."""
    paths = [path for folder in subject_dirs for path in sorted(folder.glob("????-??-??/*"))]
    loaded = [session for path in paths for session in load_as(path, NONE).sessions if session.trials is not None]
    blocks = [
        (session, block, probability)
        for session in loaded
        for block, probability in (schema.BLOCKS if session.protocol != "training" else [("50", None)])
    ]
    chosen = [blocks[at] for at in np.linspace(0, len(blocks) - 1, min(wanted, len(blocks))).astype(int)]
    return [_compare_fit(session, block, probability, seeds) for session, block, probability in chosen]


def _compare_fit(session: Session, block: str, probability: float | None, seeds: int) -> FitScore:
    assert session.trials is not None
    counts = dict(_blocks(session, session.protocol, session.trials, ""))[session.path, session.protocol, block]
    (ours,) = psychometrics.fit([(counts.contrasts, counts.n, counts.k)]).tolist()
    path = Path(session.path)
    return FitScore(
        subject=path.parents[1].name,
        session=f"{path.parent.name}/{path.name}",
        fit=block,
        ours=score(counts, ours),
        peer=_best(score(counts, fit) for fit in fit_as_peer(session.trials, probability, seeds)),
    )


def fit_as_peer(trials: Trials, probability: float | None, seeds: int) -> list[Fit]:
    """Return the peer's fits to the trials of a block (to all where None), one a seed."""
    found = []
    with quiet():
        from brainbox.behavior.training import compute_psychometric
        from one.alf.io import AlfBunch

        for seed in range(seeds):
            np.random.seed(seed)
            bias, threshold, low, high = compute_psychometric(AlfBunch(vars(trials)), block=probability)
            found.append((float(bias), float(threshold), float(low), float(high)))
    return found


def compare_mice(subject_dirs: Sequence[Path], seeds: int, processes: int) -> Iterator[Outcome]:
    """Yield the outcome of each mouse, in their order."""
    work = partial(compare_mouse, seeds=seeds)
    if processes == 1:
        yield from map(work, subject_dirs)
        return
    # Forked processes would share the state of what the parent has imported.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, subject_dirs)


def report(outcome: Outcome) -> dict[str, Any]:
    """Return what was found, as plain numbers and lists."""
    statuses = [difference for difference in outcome.differences if difference.column == "training_status"]
    return {
        "mice": outcome.mice,
        "sessions": outcome.sessions,
        "values compared": outcome.values,
        "statuses compared": sum(outcome.statuses.values()),
        "of them equal": outcome.equal,
        "peer's statuses": dict(sorted(outcome.statuses.items(), key=lambda item: schema.LADDER.get(item[0], 9))),
        "statuses that differ, by rule": _by_rules(statuses),
        "values that differ, by rule": _by_rules(outcome.differences),
        "unexplained": len(outcome.unexplained),
        "peer contradicts itself": len(outcome.undecided),
        "peer crashed": [f"{subject} ({sessions} sessions): {what}" for subject, sessions, what in outcome.crashes],
        "fits": report_fits(outcome.fits),
    }


def report_fits(scores: Sequence[FitScore]) -> dict[str, Any]:
    """Return how fits compare, in natural logarithms of the likelihood."""
    both = [fit for fit in scores if not math.isnan(fit.peer) and not math.isnan(fit.ours)]
    return {
        "compared": len(both),
        "ours better": sum(fit.ours > fit.peer + TOLERANCE for fit in both),
        "ours better by 1 or more": sum(fit.ours >= fit.peer + 1 for fit in both),
        "ours worse": sum(not _is_as_good(fit) for fit in scores),
        "our worst shortfall": max((max(0.0, fit.peer - fit.ours) for fit in both), default=0.0),
    }


def _by_rules(differences: Iterable[Difference]) -> dict[str, int]:
    counted = Counter(difference.rules for difference in differences)
    return {"+".join(map(str, rules)) or "unexplained": number for rules, number in sorted(counted.items())}


def _details(outcome: Outcome) -> dict[str, Any]:
    kept = [d for d in outcome.differences if d.column == "training_status" or not d.rules]
    return {
        "status_differences": [asdict(difference) for difference in kept],
        "undecided": [asdict(difference) for difference in outcome.undecided],
        "worse_fits": [asdict(fit) for fit in outcome.worse],
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.parity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mice", type=int, default=100, help="simulated mice (default: %(default)s)")
    parser.add_argument("--days", type=int, default=14, help="days of each mouse's life (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of the peer on each mouse (default: %(default)s)")
    parser.add_argument("--lives", type=int, default=0, help="more mice, of those that fail, for 60 days")
    parser.add_argument("--odd", type=int, default=0, help="more mice, with sessions of any kind in any order")
    parser.add_argument("--fits", type=int, default=0, help="fits to compare with --fit-seeds runs of the peer's")
    parser.add_argument("--fit-seeds", type=int, default=20, help="runs of the peer's fit (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated mice (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the report to")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 1 where something is unexplained or a fit of ours is beaten."""
    options = _options(arguments)
    began = time.monotonic()
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="parity-") as name:
        folders = write_mice(Path(name), options.mice, options.days, seed=options.seed)
        folders += write_lives(Path(name), options.lives, seed=options.seed)
        folders += write_odd_mice(Path(name), options.odd, seed=options.seed)
        for folder, found in zip(folders, compare_mice(folders, options.seeds, options.processes), strict=True):
            outcome.add(found)
            print(_line(folder.name, outcome, time.monotonic() - began), file=sys.stderr, flush=True)
        many = compare_fits(folders, options.fits, options.fit_seeds) if options.fits else []
    passed = outcome.passed and all(map(_is_as_good, many))
    results = {"tables": report(outcome), "fits with many seeds": report_fits(many)}
    print(json.dumps(results, indent=1))
    if options.json:
        everything = {"options": vars(options), **results, "details": _details(outcome)}
        options.json.write_text(json.dumps(everything, indent=1, default=str) + "\n", encoding="utf-8")
    print("passed" if passed else "FAILED", f"after {time.monotonic() - began:.0f} s")
    return 0 if passed else 1


def _line(name: str, outcome: Outcome, seconds: float) -> str:
    return (
        f"{seconds:6.0f} s  {outcome.mice:4d}  {name}: {outcome.sessions} sessions, {outcome.equal} of "
        f"{sum(outcome.statuses.values())} statuses equal, {len(outcome.unexplained)} unexplained, "
        f"{len(outcome.worse)} fits beaten, {len(outcome.crashes)} crashes of the peer"
    )


if __name__ == "__main__":
    sys.exit(main())
