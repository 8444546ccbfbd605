"""Properties that hold for every history: the fold, order, JSON, and any way of bringing a subject up to date."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.criteria import pool
from core.records import (
    Counts,
    DaySummary,
    Fit,
    LeftOut,
    Measures,
    SessionSummary,
    days_from_json,
    days_to_json,
)
from core.schema import LADDER
from core.status import compute_statuses, fold, pass_through_hierarchy
from core.storage import Store, open_store
from tests.trees import clumsy, join, move, objects, refresh, session, trials
from tests.trees import statuses as statuses_in

# Time limits would measure how busy the machine is.
plain = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
fitted = settings(plain, max_examples=30)
slow = settings(plain, max_examples=15)

REACHABLE = [name for name in LADDER if LADDER[name] >= LADDER["habituation"]]
PROTOCOLS = ("habituation", "training", "biased", "ephys")
CONTRASTS = (-100.0, -50.0, -25.0, -12.5, -6.25, 0.0, 6.25, 12.5, 25.0, 50.0, 100.0)

statuses = st.sampled_from(REACHABLE)
#: What a measure can be: any number but infinity, which no trial has (see `core.load`), or NaN.
measured = st.floats(allow_infinity=False)


@st.composite
def counts(draw: st.DrawFn) -> Counts:
    contrasts = draw(st.lists(st.sampled_from(CONTRASTS), unique=True, max_size=5))
    n = [draw(st.integers(1, 60)) for _ in contrasts]
    k = [draw(st.integers(0, most)) for most in n]
    return Counts(contrasts=tuple(sorted(contrasts)), n=tuple(n), k=tuple(k))


fits: st.SearchStrategy[Fit] = st.tuples(measured, measured, measured, measured)
measures = st.builds(
    Measures,
    counts=counts(),
    n_trials=st.integers(0, 2000).map(float),
    performance_easy=measured,
    reaction_time=measured,
    duration=measured,
    delay=measured,
    fits=st.tuples(fits, fits, fits),
)


@st.composite
def days(draw: st.DrawFn, date: str) -> DaySummary:
    """A day, as it may come out of any sessions whatever."""
    protocols = draw(st.lists(st.sampled_from(PROTOCOLS), max_size=3))
    rows = tuple(
        SessionSummary(
            path=f"/t/{date}/{number:03d}",
            number=f"{number:03d}",
            protocol=protocol,
            location=draw(st.sampled_from(["ephys_rig", "training_rig", None])),
            measures=draw(st.none() | measures),
        )
        for number, protocol in enumerate(protocols, start=1)
    )
    return DaySummary(
        date=date,
        inputs=draw(st.dictionaries(st.sampled_from(["001", "002"]), st.text("0123456789abcdef", max_size=4))),
        protocol=protocols[-1] if protocols else None,
        sessions=rows,
        combined=draw(st.none() | measures),
        all_counts=draw(counts()),
        left_counts=draw(counts()),
        right_counts=draw(counts()),
        zero_contrast_times=tuple(draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4))),
        n_trials=draw(st.sampled_from([0, 201, 401, 900])),
        performance_easy=draw(st.sampled_from([float("nan"), 0.5, 0.85, 0.95])),
        ephys=draw(st.booleans()),
        delay=draw(st.sampled_from([0.0, 899.5, 900.0])),
        left_out=tuple(LeftOut(session=date, reason=draw(st.text(max_size=9))) for _ in range(draw(st.integers(0, 2)))),
    )


def histories(least: int = 0, most: int = 8) -> st.SearchStrategy[list[DaySummary]]:
    dates = [f"2020-01-{day:02d}" for day in range(1, most + 1)]
    return st.integers(least, most).flatmap(lambda n: st.tuples(*(days(date) for date in dates[:n])).map(list))


# --- the fold ---------------------------------------------------------------------------------------------


@plain
@given(st.lists(statuses, max_size=60))
def test_the_fold_never_goes_back_and_habituation_stays(alone: list[str]) -> None:
    held = fold(alone)
    assert [status == "habituation" for status in held] == [status == "habituation" for status in alone]
    ranks = [LADDER[status] for status in held if status != "habituation"]
    assert ranks == sorted(ranks)
    best: list[int] = []
    for status in alone:
        if status != "habituation":
            best.append(max([LADDER[status], *best]))
    assert ranks == best


@plain
@given(st.lists(statuses, max_size=30))
def test_the_fold_of_a_fold_is_the_fold(alone: list[str]) -> None:
    assert fold(fold(alone)) == fold(alone)


@plain
@given(st.lists(statuses, max_size=30), st.integers(0, 30))
def test_the_fold_of_the_first_days_is_the_first_days_of_the_fold(alone: list[str], at: int) -> None:
    assert fold(alone[:at]) == fold(alone)[:at]


@plain
@given(st.sampled_from(list(LADDER)), st.sampled_from(list(LADDER)), st.sampled_from(list(LADDER)))
def test_passing_through_the_hierarchy(new: str, old: str, higher: str) -> None:
    result = pass_through_hierarchy(new, old)
    assert result in (new, old)
    assert LADDER[result] == max(LADDER[new], LADDER[old])
    assert pass_through_hierarchy(result, old) == result  # idempotent
    assert pass_through_hierarchy(new, result) == result
    if LADDER[higher] >= LADDER[new]:
        assert LADDER[pass_through_hierarchy(higher, old)] >= LADDER[result]  # monotone
    assert pass_through_hierarchy(pass_through_hierarchy(higher, new), old) == pass_through_hierarchy(higher, result)


# --- statuses ---------------------------------------------------------------------------------------------


@fitted
@given(histories(), st.randoms(use_true_random=False), st.sampled_from(["days", "sessions"]))
def test_statuses_do_not_depend_on_the_order_in_which_days_are_given(history: Any, random: Any, kind: Any) -> None:
    shuffled = list(history)
    random.shuffle(shuffled)
    expected = compute_statuses(history, window=kind)
    assert repr(compute_statuses(shuffled, window=kind)) == repr(expected)
    assert [day.date for day in expected] == [day.date for day in history if day.protocol is not None]


@fitted
@given(histories(least=1), st.integers(1, 8))
def test_later_days_do_not_change_earlier_statuses(history: list[DaySummary], at: int) -> None:
    early = compute_statuses(history[:at])
    assert repr(compute_statuses(history)[: len(early)]) == repr(early)


@fitted
@given(histories())
def test_statuses_are_what_a_way_through_json_gives(history: list[DaySummary]) -> None:
    assert repr(compute_statuses(days_from_json(days_to_json(history)))) == repr(compute_statuses(history))


@plain
@given(histories())
def test_days_come_back_from_json_to_the_last_bit(history: list[DaySummary]) -> None:
    back = days_from_json(days_to_json(history))
    assert repr(back) == repr(history)  # repr tells every bit of a float, and NaN from NaN it need not tell
    assert days_to_json(back) == days_to_json(history)


@plain
@given(counts(), counts(), counts())
def test_pooling_is_commutative_and_associative(one: Counts, two: Counts, three: Counts) -> None:
    assert pool([one, two]) == pool([two, one])
    assert pool([pool([one, two]), three]) == pool([one, pool([two, three])]) == pool([three, one, two])
    assert pool([one, Counts()]) == one
    assert pool([one, two]).total == one.total + two.total


# --- any way of bringing a subject up to date -------------------------------------------------------------

#: Sessions of one mouse: two on one day, chained protocols, habituation, and one that cannot be used.
HISTORY: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("2020-01-02", 1, {"protocol": "habituation", "rig": "v7"}),
    ("2020-01-03", 1, {"trials": trials([(-100.0, 60, 3), (0.0, 20, 9), (25.0, 50, 44), (100.0, 80, 78)])}),
    ("2020-01-03", 2, {"layout": "npy", "uuid_names": True}),
    ("2020-01-05", 1, {"tasks": [("training", clumsy()), ("biased", clumsy())]}),
    ("2020-01-06", 1, {"protocol": "unknown_task"}),
    (
        "2020-01-08",
        1,
        {
            "protocol": "biased",
            "trials": join(trials([(-25.0, 9, 1), (0.0, 9, 6)], block=0.2), trials([(12.5, 9, 5)], block=0.8)),
            "ephys": True,
            "delay": 900,
        },
    ),
)
EVERY = frozenset(range(len(HISTORY)))
VERSIONS = (0, 1)
CHANGED = trials([(-100.0, 30, 1), (0.0, 10, 5), (100.0, 30, 28)])


#: The session that cannot be used.
UNUSABLE = 4

#: Sessions by their place in `HISTORY`, with the version of their files that is on disk.
State = frozenset[tuple[int, int]]


def state(sessions: Iterable[int]) -> State:
    """Return sessions as they are in `HISTORY`."""
    return frozenset((at, 0) for at in sessions)


class Tree:
    """A tree whose sessions can be put there, changed and taken away, each a rename."""

    def __init__(self, folder: Path) -> None:
        self.root, self.aside = folder / "tree", folder / "aside"
        self.places: list[Path] = []
        for at, (date, number, more) in enumerate(HISTORY):
            for version in VERSIONS:
                trials = {} if version == 0 or "tasks" in more or at == 0 else {"trials": CHANGED}
                place = session(self.root, date, number, **{**more, **trials})
                move(place, self.aside / f"{at}-{version}")
            self.places.append(place)
        self.present: State = frozenset()

    def show(self, wanted: State) -> None:
        """Leave exactly the wanted sessions in the tree."""
        for at, version in self.present - wanted:
            shutil.move(self.places[at], self.aside / f"{at}-{version}")
        for at, version in wanted - self.present:
            shutil.move(self.aside / f"{at}-{version}", self.places[at])
        self.present = wanted


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    with tempfile.TemporaryDirectory() as folder:
        yield Tree(Path(folder))


def empty_store() -> Store:
    return open_store(f"memory://{uuid4().hex}")


@pytest.fixture(scope="module")
def recomputed(tree: Tree) -> Callable[[State], dict[str, bytes | None]]:
    """The objects of a full recompute over some of the sessions."""
    known: dict[State, dict[str, bytes | None]] = {}

    def compute(wanted: State) -> dict[str, bytes | None]:
        if wanted not in known:
            tree.show(wanted)
            store = empty_store()
            refresh(tree.root, store, everything=True)
            known[wanted] = objects(store)
        return known[wanted]

    return compute


arrivals = st.permutations(range(len(HISTORY))).flatmap(
    lambda order: st.sets(st.integers(1, len(order) - 1)).map(lambda cuts: (order, sorted(cuts)))
)


@slow
@given(arrivals)
def test_refreshes_in_any_order_and_split_give_the_bytes_of_a_full_recompute(
    tree: Tree,
    recomputed: Callable[[State], dict[str, bytes | None]],
    arrival: tuple[Sequence[int], Sequence[int]],
) -> None:
    order, cuts = arrival
    store = empty_store()
    for end in (*cuts, len(order)):
        arrived = state(order[:end])
        expected = recomputed(arrived)
        tree.show(arrived)
        refresh(tree.root, store)
        assert objects(store) == expected
        assert not refresh(tree.root, store), "a second run changes nothing"
        assert objects(store) == expected
    assert not refresh(tree.root, store, everything=True), "nor does a full one"
    assert objects(store) == expected


@slow
@given(st.lists(st.frozensets(st.sampled_from(sorted(EVERY))), max_size=4))
def test_whatever_came_and_went_all_sessions_give_the_bytes_of_a_full_recompute(
    tree: Tree, recomputed: Callable[[State], dict[str, bytes | None]], steps: list[frozenset[int]]
) -> None:
    expected = recomputed(state(EVERY))
    store = empty_store()
    for wanted in steps:
        tree.show(state(wanted))
        refresh(tree.root, store)
    tree.show(state(EVERY))
    refresh(tree.root, store)
    assert objects(store) == expected


@slow
@given(st.frozensets(st.sampled_from(sorted(EVERY)), min_size=1), st.booleans())
def test_taking_sessions_away_and_putting_them_back_restores_the_bytes(
    tree: Tree, recomputed: Callable[[State], dict[str, bytes | None]], gone: frozenset[int], prune: bool
) -> None:
    expected = recomputed(state(EVERY))
    store = empty_store()
    tree.show(state(EVERY))
    assert refresh(tree.root, store)
    tree.show(state(EVERY - gone))
    assert not refresh(tree.root, store), "what is gone is kept"
    refresh(tree.root, store, everything=not prune, prune=prune)
    if EVERY - gone - {UNUSABLE}:
        assert objects(store) == recomputed(state(EVERY - gone))
    tree.show(state(EVERY))
    refresh(tree.root, store)
    assert objects(store) == expected


steps = st.tuples(
    st.dictionaries(st.sampled_from(sorted(EVERY)), st.sampled_from(VERSIONS)).map(lambda on: frozenset(on.items())),
    st.booleans(),
)


@slow
@given(st.lists(steps, min_size=2, max_size=5))
def test_whatever_comes_changes_and_goes_nothing_good_is_lost_unless_it_is_pruned(
    tree: Tree, recomputed: Callable[[State], dict[str, bytes | None]], sequence: list[tuple[State, bool]]
) -> None:
    store = empty_store()
    stored: set[int] = set()  # sessions that the store knows
    for on_disk, prune in sequence:
        tree.show(on_disk)
        before = objects(store)
        refresh(tree.root, store, prune=prune)
        present = {at for at, _ in on_disk}
        usable = present - {UNUSABLE}
        if not (usable or (stored - {UNUSABLE} and not prune)):
            assert objects(store) == before, "nothing that was good is overwritten by nothing"
            continue
        stored = present if prune else stored | present
        if stored == present:
            assert objects(store) == recomputed(on_disk)
            tree.show(on_disk)
        expected = {"/".join(tree.places[at].parts[-2:]) for at in stored - {UNUSABLE}}
        assert set(statuses_in(store)) == expected
        after = objects(store)
        assert not refresh(tree.root, store, prune=prune), "a second run changes nothing"
        assert objects(store) == after


def test_a_history_is_not_all_the_same(recomputed: Callable[[State], dict[str, bytes | None]]) -> None:
    whole, part = recomputed(state(EVERY)), recomputed(state(EVERY - {2}))
    assert all(whole.values())
    assert all(whole[key] != part[key] for key in whole)
