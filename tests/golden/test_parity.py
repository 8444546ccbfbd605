"""Our results beside those of the peer, ibllib, run on the same trees: equal, or different on purpose.

Each difference has a test of its own, by its number in docs/differences.md. The peer's value in it comes from running
the peer, so that a test fails when the peer changes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date as Date
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what ibllib imports
    pytest.importorskip("ibllib.pipes.training_status", reason="ibllib, the peer, is not installed")

from bench.parity import (
    ALL,
    NONE,
    RULES,
    Outcome,
    PeerCrashed,
    Replay,
    cells,
    compare,
    compare_fits,
    compare_mouse,
    fit_as_peer,
    fits,
    quiet,
    report,
    run_ours,
    run_peer,
    score,
    write_lives,
    write_mouse,
    write_odd_mice,
)
from core.discover import find_files
from core.errors import AccessRefused, MissingCredentials
from core.load import load_session
from core.pipeline import recompute_subject
from core.records import Session
from core.simulation.formats import Quirks, Rig, write_session
from core.simulation.mouse import Skill, draw_habituation, draw_trials
from core.simulation.real_mouse import write_real_mouse
from core.sources import TreeSource
from core.storage import open_store
from core.storage.memory import MemoryStore
from core.summarise import count, signed_contrasts
from core.synchronise import look
from core.tables import subject_keys
from tests.servers import create_bucket, required, seaweedfs

pytestmark = pytest.mark.peer

TrialsDict = dict[str, NDArray[Any]]

GOOD = Skill(
    contrasts=(1.0, 0.25, 0.125, 0.0625, 0.0),
    threshold=12.0,
    lapse=0.02,
    bias=0.0,
    shift=7.0,
    reaction_time=0.6,
    no_response=0.0,
    n_trials=450,
)
ENOUGH = 450  # trials, for every status
FEW = 150  # trials, for none but "in training"
MONDAY, TUESDAY, WEDNESDAY, THURSDAY = "2025-03-03", "2025-03-04", "2025-03-05", "2025-03-06"


def trials_of(protocol: str, n_trials: int, seed: int = 0) -> TrialsDict:
    rng = np.random.default_rng(seed)
    if protocol == "habituation":
        return draw_habituation(n_trials, rng)
    return draw_trials(replace(GOOD, n_trials=n_trials), rng, blocks=protocol != "training")


def write(
    mouse: Path,
    date: str,
    protocol: str,
    n_trials: int = ENOUGH,
    *,
    number: int = 1,
    then: Sequence[tuple[str, int]] = (),
    probability_left: float | None = None,
    rig: Rig = "v8",
    **options: Any,
) -> Path:
    """Write a session of one task, or of some chained, and return its folder."""
    seed = Date.fromisoformat(date).toordinal() * 10 + number
    tasks = []
    for position, (name, n) in enumerate([(protocol, n_trials), *then]):
        trials = None if name == "passive" else trials_of(name, n, seed + 1000 * position)
        if trials is not None and probability_left is not None:
            trials["probabilityLeft"] = np.full(n, probability_left)
        tasks.append((f"_iblrig_tasks_{name}ChoiceWorld", trials))
    session = mouse / date / f"{number:03d}"
    start = datetime.combine(Date.fromisoformat(date), time(6 + 3 * number))
    write_session(session, tasks=tasks, start=start, rig=rig, **options)
    return session


def change_settings(session: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    (path,) = session.glob("raw*/_iblrig_taskSettings.raw*.json")
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def statuses(frame: pd.DataFrame) -> dict[str, str]:
    """The status of each session, by date/number."""
    return {"/".join(Path(path).parts[-2:]): of["training_status"][0] for path, of in cells(frame).items()}


def value(frame: pd.DataFrame, session: Path, column: str) -> Any:
    """The one value of a session in a column."""
    (only,) = frame.loc[frame["session_path"] == str(session), column].unique()
    return only


def rules_of(outcome: Outcome, column: str) -> set[tuple[int, ...]]:
    return {difference.rules for difference in outcome.differences if difference.column == column}


@pytest.fixture
def mouse(tmp_path: Path) -> Path:
    """The folder of a mouse that has no sessions yet."""
    return tmp_path / "tree" / "alab" / "Subjects" / "A_001"


# --- all that can be compared -----------------------------------------------------------------------------------------


def test_real_mouse(tmp_path: Path) -> None:
    write_real_mouse(tmp_path)
    folder = tmp_path / "mrsicflogellab" / "Subjects" / "SWC_054"
    ours, peers = run_ours(folder), [run_peer(folder, seed) for seed in range(3)]
    wanted = {
        **dict.fromkeys(("2020-08-21/001", "2020-08-24/001", "2020-08-25/001"), "in training"),
        "2020-08-26/001": "trained 1a",
        **dict.fromkeys(("2020-08-27/001", "2020-08-28/001", "2020-08-31/001"), "trained 1b"),
        **{f"2020-09-0{day}/001": "ready4delay" for day in range(1, 5)},
    }
    assert statuses(ours) == wanted
    assert [statuses(peer) for peer in peers] == [wanted] * 3
    outcome = compare(folder, ours, peers)
    assert outcome.passed, report(outcome)
    assert outcome.sessions == outcome.equal == 11
    assert rules_of(outcome, "sess_duration") <= {(7,)}
    assert {difference.column for difference in outcome.differences} <= {"sess_duration", "combined_sess_duration"}
    assert sum(not math.isnan(fit.ours) for fit in outcome.fits) == 5 + 3 * 6


@pytest.mark.parametrize(
    ("first", "seen"),
    [
        (10, {"in training", "trained 1a"}),
        (16, {"trained 1b"}),
        (22, {"ready4ephysrig"}),
        (28, {"ready4delay", "ready4recording"}),
    ],
)
def test_simulated_mouse(tmp_path: Path, first: int, seen: set[str]) -> None:
    """Six days of a mouse's life, from a later one on each time."""
    outcome = compare_mouse(write_mouse(tmp_path, 0, 0, first=first, days=6), seeds=2)
    assert outcome.passed, report(outcome)
    assert set(outcome.statuses) == seen
    assert not outcome.crashes


def test_awkward_sessions(mouse: Path) -> None:
    """What real sessions have in store for a reader, all in one mouse."""
    write(mouse, "2025-02-26", "habituation", rig="v7")
    write(mouse, "2025-02-27", "training", layout="npy", quirks=Quirks(uuid_names=True))
    write(mouse, "2025-02-28", "training", rig="v7", quirks=Quirks(leftover_npy=True, corrupt_trailing=2))
    write(mouse, MONDAY, "training", 300, quirks=Quirks(end_time=True))
    write(mouse, MONDAY, "training", 200, number=2)
    write(mouse, TUESDAY, "training", 300, then=[("biased", 420)])
    write(mouse, WEDNESDAY, "biased", quirks=Quirks(revisions=("2025-04-01", "2025-05-01")))
    write(mouse, THURSDAY, "biased", then=[("biased", 300), ("passive", 0)], ephys=True, delay=950)
    write(mouse, "2025-03-07", "ephys", rig="v7", then=[("passive", 0)], ephys=True, delay=950)
    outcome = compare_mouse(mouse, seeds=2)
    assert outcome.passed, report(outcome)
    assert outcome.sessions == 9
    assert {rule for difference in outcome.differences for rule in difference.rules} >= {3, 7, 8}
    assert {fit.fit for fit in outcome.fits} >= {"50", "20", "80", "combined_50"}


def test_odd_mice(tmp_path: Path) -> None:
    """Sessions of any kind in any order; the peer crashes on some of these mice, and on some of its own fits."""
    outcome = Outcome()
    for folder in write_odd_mice(tmp_path, 3):
        outcome.add(compare_mouse(folder, seeds=1))
    assert outcome.passed, report(outcome)
    assert outcome.equal < sum(outcome.statuses.values())


def test_fits_with_many_seeds(mouse: Path) -> None:
    """Few trials make rugged likelihoods, where the peer's fits go astray."""
    for day, n_trials in enumerate((80, 150, 200), start=3):
        write(mouse, f"2025-03-{day:02d}", "biased", n_trials)
    outcome = Outcome(fits=compare_fits([mouse], wanted=9, seeds=10))
    assert outcome.passed, report(outcome)
    assert [fit.fit for fit in outcome.fits] == ["50", "20", "80"] * 3
    assert [math.isnan(fit.peer) for fit in outcome.fits] == [False, True, True] + [False] * 6


# --- the comparison itself --------------------------------------------------------------------------------------------


def test_the_comparison_sees_what_is_wrong(mouse: Path) -> None:
    session = write(mouse, MONDAY, "training", FEW)
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert compare(mouse, ours, [peer]).passed
    cases: dict[str, Any] = {"training_status": "trained 1a", "n_trials": 151.0, "performance": 0.5}
    for column, wrong in cases.items():
        (found,) = compare(mouse, ours.assign(**{column: wrong}), [peer]).unexplained
        assert (found.subject, found.session, found.column) == ("A_001", f"{MONDAY}/001", column)
    (beaten,) = compare(mouse, ours.assign(bias_50=ours["bias_50"] + 1), [peer]).worse
    assert beaten.fit == "50"
    assert beaten.ours < beaten.peer
    assert len(compare(mouse, ours.assign(bias_50=np.nan), [peer]).worse) == 1
    gone = compare(mouse, ours.iloc[:0], [peer])
    assert len(gone.unexplained) == len(gone.differences) > 10
    other = compare(mouse, ours, [peer, peer.assign(training_status="trained 1b")])
    assert [difference.column for difference in other.undecided] == ["training_status"]
    assert session.is_dir()


def test_without_the_peers_rules_a_replay_is_what_we_ship(mouse: Path) -> None:
    write(mouse, MONDAY, "training", FEW, then=[("biased", FEW)])
    write(mouse, TUESDAY, "habituation")
    write(mouse, WEDNESDAY, "biased", FEW)
    write(mouse, WEDNESDAY, "biased", FEW, number=2, quirks=Quirks(revisions=("2025-04-01",)))
    replay = Replay(mouse, run_peer(mouse, 0))
    ours = run_ours(mouse)
    assert replay.run(NONE).cells == cells(ours)
    np.testing.assert_equal(replay.run(NONE).fits, fits(ours))
    assert replay.run(ALL).cells != cells(ours)


def test_a_replay_finds_the_mice_that_failed(tmp_path: Path) -> None:
    found = set()
    for folder in write_lives(tmp_path, 3):
        ours = run_ours(folder)
        assert Replay(folder, ours).run(NONE).cells == cells(ours)
        found |= set(ours["training_status"])
    assert found >= {"untrainable", "unbiasable"}


# --- differences on purpose -------------------------------------------------------------------------------------------


def test_1_window_of_days(mouse: Path) -> None:
    write(mouse, MONDAY, "training", FEW)
    for number in (1, 2):
        write(mouse, TUESDAY, "training", number=number)
    last = f"{write(mouse, WEDNESDAY, 'training').parent.name}/001"
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert statuses(ours)[last] == "in training"  # Monday's trials are too few
    assert statuses(peer)[last] == "trained 1b"  # Tuesday stands twice, and Monday is out
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert rules_of(outcome, "training_status") == {(1,)}


def test_2_unbiasable_means_that_nothing_was_reached(mouse: Path) -> None:
    first = Date(2025, 1, 6)
    days = [str(first + timedelta(days=day)) for day in range(40)]
    for day in days:  # no block is one that is fitted: it goes straight to ready4delay, and quickly
        write(mouse, day, "biased", ephys=True, probability_left=0.4)
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert set(statuses(ours).values()) == {"ready4delay"}
    assert statuses(peer) == statuses(ours) | {f"{days[-1]}/001": "unbiasable"}
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert rules_of(outcome, "training_status") == {(2,)}


def test_3_chained_protocols(mouse: Path) -> None:
    session = write(mouse, MONDAY, "training", 150, then=[("biased", 200)])
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    rows = ours.drop_duplicates("task_protocol")
    assert rows[["task_protocol", "n_trials"]].to_numpy().tolist() == [["training", 150], ["biased", 200]]
    assert value(peer, session, "task_protocol") == "training"
    assert value(peer, session, "n_trials") == 350
    assert statuses(ours) == {f"{MONDAY}/001": "trained 1b"}  # the biased protocol, where nothing is passed
    assert statuses(peer) == {f"{MONDAY}/001": "trained 1a"}  # 350 trials, said to be of the training protocol
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert rules_of(outcome, "n_trials") == rules_of(outcome, "training_status") == {(3,)}


def test_3_a_day_puts_one_protocol_together(mouse: Path) -> None:
    write(mouse, MONDAY, "training", 300, ephys=True)
    write(mouse, MONDAY, "biased", 300, number=2, ephys=True)
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert set(statuses(ours).values()) == {"trained 1b"}  # 300 biased trials
    assert set(statuses(peer).values()) == {"ready4delay"}  # 600 trials
    assert rules_of(compare(mouse, ours, [peer]), "training_status") == {(3,)}


def test_4_a_new_session_of_an_old_day(mouse: Path) -> None:
    store, keys = MemoryStore(uuid.uuid4().hex), subject_keys("alab", "A_001")
    root = mouse.parents[2]
    write(mouse, MONDAY, "training", FEW)
    run_peer(mouse, 0, save=True)
    recompute_subject(TreeSource(root), "alab", "A_001", store)
    assert look(TreeSource(root).subject("alab", "A_001"), store, keys, everything=False).unchanged
    write(mouse, MONDAY, "training", FEW, number=2)
    assert list(statuses(run_peer(mouse, 0, save=True))) == [f"{MONDAY}/001"]
    assert look(TreeSource(root).subject("alab", "A_001"), store, keys, everything=False).dates == (MONDAY,)
    assert list(statuses(run_ours(mouse))) == [f"{MONDAY}/001", f"{MONDAY}/002"]


def test_5_fits_of_two_training_sessions(mouse: Path) -> None:
    sessions = [write(mouse, MONDAY, "training", 200, number=n, probability_left=p) for n, p in ((1, 0.5), (2, 0.8))]
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    loaded = [load_session(find_files(path))[0][0] for path in sessions]
    protocol = "training"
    mine = fits(ours)[str(sessions[0]), protocol, "combined_50"]
    theirs = fits(peer)[str(sessions[0]), protocol, "combined_50"]
    every, block = counts_of(loaded), counts_of(loaded[:1])
    assert score(every, mine) > score(every, theirs) + 1e-3  # ours is the fit to both sessions
    assert score(block, theirs) > score(block, mine) + 1e-3  # the peer's to the one with even chances
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert [fit.session for fit in outcome.fits if fit.fit == "combined_50"] == [f"{MONDAY}/001"]


def counts_of(sessions: Sequence[Session]) -> Any:
    trials = [session.trials for session in sessions if session.trials is not None]
    return count(
        np.concatenate([signed_contrasts(each) for each in trials]), np.concatenate([each.choice for each in trials])
    )


def test_5_fits_are_the_same_every_time(mouse: Path) -> None:
    session = write(mouse, MONDAY, "biased", 120)
    (loaded,), _ = load_session(find_files(session))
    assert loaded.trials is not None
    assert len(set(fit_as_peer(loaded.trials, 0.2, seeds=5))) > 1
    pd.testing.assert_frame_equal(run_ours(mouse), run_ours(mouse), check_exact=True)


@pytest.fixture
def s3(aws: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """A server with the peer's bucket; gives its address, for a profile whose secret key is the one that is given."""
    configuration = tmp_path / "aws"
    with required(seaweedfs(tmp_path / "seaweedfs")) as endpoint:
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, str(configuration))
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        create_bucket(endpoint, "ibl-brain-wide-map-private")

        def profile(secret: str) -> str:
            keys = f"aws_access_key_id = test\naws_secret_access_key = {secret}\n"
            configuration.write_text(f"[ibl_training]\n{keys}[profile ibl_training]\nregion = us-east-1\n{keys}")
            return endpoint

        yield profile


def test_6_no_credentials_no_object_and_no_access(s3: Callable[[str], str]) -> None:
    bucket, key = "s3://ibl-brain-wide-map-private", "resources/training/alab/A_001/training.csv"
    with pytest.raises(MissingCredentials, match="profile"):
        open_store(bucket, profile="ibl_training")
    assert peers_table_from_aws() is None
    endpoint = s3("test")
    assert open_store(bucket, endpoint=endpoint, profile="ibl_training").get(key) is None
    assert peers_table_from_aws() is None
    s3("wrong")
    with pytest.raises(AccessRefused):
        open_store(bucket, endpoint=endpoint, profile="ibl_training").get(key)
    assert peers_table_from_aws() is None


def peers_table_from_aws() -> object:
    with quiet():
        from ibllib.pipes.training_status import get_training_table_from_aws

        return get_training_table_from_aws("alab", "A_001")


def test_7_durations_are_rounded(mouse: Path) -> None:
    session = write(mouse, MONDAY, "training", FEW)
    change_settings(session, lambda settings: settings.update(SESSION_END_TIME=f"{MONDAY}T09:30:40"))
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert value(ours, session, "sess_duration") == 31
    assert value(peer, session, "sess_duration") == 30
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert rules_of(outcome, "sess_duration") == rules_of(outcome, "combined_sess_duration") == {(7,)}


def test_8_the_last_revision_counts(mouse: Path) -> None:
    session = write(mouse, MONDAY, "training", FEW, quirks=Quirks(revisions=("2025-04-01",)))
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    late = value(peer, session, "reaction_time")
    assert value(ours, session, "reaction_time") == pytest.approx(late - 0.5)  # the stimulus came 0.5 s later
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert rules_of(outcome, "reaction_time") == {(8,)}


def test_8_revisions_are_not_added_together(mouse: Path) -> None:
    session = write(mouse, MONDAY, "training", 250, quirks=Quirks(revisions=("2025-04-01",)))
    marker = session / "alf" / "task_00" / "_ibl_trials.goCueTrigger_times.npy"
    shutil.copy(marker, marker.parent / "#2025-04-01#")
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert statuses(ours) == {f"{MONDAY}/001": "trained 1a"}  # 250 trials
    assert statuses(peer) == {f"{MONDAY}/001": "trained 1b"}  # the same trials twice are above 400
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert rules_of(outcome, "training_status") == {(8,)}


def test_9_habituation_stays_habituation(mouse: Path) -> None:
    write(mouse, MONDAY, "training")
    write(mouse, TUESDAY, "habituation")
    write(mouse, WEDNESDAY, "habituation")
    write(mouse, THURSDAY, "training", FEW)
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert list(statuses(ours).values()) == ["trained 1b", "habituation", "habituation", "trained 1b"]
    # After two rows of habituation it has forgotten what the mouse had reached.
    assert list(statuses(peer).values()) == ["trained 1b", "trained 1b", "trained 1b", "in training"]
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert rules_of(outcome, "training_status") == {(9,)}


def test_10_sessions_of_a_day_are_in_order(mouse: Path) -> None:
    write(mouse, MONDAY, "training", FEW)
    write(mouse, TUESDAY, "training", FEW)
    write(mouse, TUESDAY, "biased", FEW, number=2)
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    tuesday = [f"{TUESDAY}/001", f"{TUESDAY}/002"]
    assert list(statuses(ours))[1:] == tuesday
    assert list(statuses(peer))[1:] == tuesday[::-1]
    assert {statuses(ours)[session] for session in tuesday} == {"trained 1b"}  # a biased day after a training day
    assert {statuses(peer)[session] for session in tuesday} == {"in training"}  # two training days
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert rules_of(outcome, "training_status") == {(10,)}


def test_11_a_session_whose_end_cannot_be_told(mouse: Path) -> None:
    session = write(mouse, MONDAY, "biased", FEW, delay=1000)
    change_settings(session, lambda settings: settings.update(SESSION_END_TIME="soon"))
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert value(ours, session, "n_delay") == 1000
    assert value(ours, session, "sess_duration") > 0
    assert value(peer, session, "n_delay") == value(peer, session, "sess_duration") == 0
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert rules_of(outcome, "n_delay") == rules_of(outcome, "sess_duration") == {(11,)}


def without_trials(session: Path) -> None:
    (table,) = session.glob("alf/*/*.pqt")
    pq.write_table(pq.read_table(table).slice(0, 0), table)


def without_an_attribute(session: Path) -> None:
    (table,) = session.glob("alf/*/*.pqt")
    pq.write_table(pq.read_table(table).drop_columns(["stimOn_times"]), table)


def with_a_cut_table(session: Path) -> None:
    (table,) = session.glob("alf/*/*.pqt")
    os.truncate(table, 300)


def with_a_cut_line(session: Path) -> None:
    (lines,) = session.glob("raw*/*.jsonable")
    os.truncate(lines, lines.stat().st_size - 200)


def without_a_rig(session: Path) -> None:
    change_settings(session, lambda settings: settings.pop("RIG_NAME"))


@pytest.mark.parametrize(
    ("spoil", "raised", "used"),
    [
        (without_trials, "ValueError: If using all scalar values", True),
        (without_an_attribute, "KeyError: 'stimOn_times'", False),
        (with_a_cut_table, "ArrowInvalid", False),
        (with_a_cut_line, "JSONDecodeError", True),
        (without_a_rig, "KeyError: 'RIG_NAME'", True),
    ],
)
def test_12_one_bad_session_does_not_stop_a_mouse(
    mouse: Path, spoil: Callable[[Path], None], raised: str, used: bool
) -> None:
    write(mouse, MONDAY, "training", FEW)
    spoil(write(mouse, TUESDAY, "training", FEW))
    with pytest.raises(PeerCrashed, match=raised):
        run_peer(mouse, 0)
    assert list(statuses(run_ours(mouse))) == [f"{MONDAY}/001", *([f"{TUESDAY}/001"] if used else [])]
    outcome = compare_mouse(mouse, seeds=1)
    ((subject, _, what),) = outcome.crashes
    assert subject == "A_001"
    assert raised in what


def test_12_three_habituation_days_after_training_began(mouse: Path) -> None:
    write(mouse, MONDAY, "training", FEW)
    for day in (TUESDAY, WEDNESDAY, THURSDAY):
        write(mouse, day, "habituation")
    with pytest.raises(PeerCrashed, match="ValueError: need at least one array to concatenate"):
        run_peer(mouse, 0)
    assert list(statuses(run_ours(mouse)).values()) == ["in training", *["habituation"] * 3]


def test_13_the_first_training_day_began_with_habituation(mouse: Path) -> None:
    write(mouse, MONDAY, "habituation")
    write(mouse, MONDAY, "training", FEW, number=2)
    write(mouse, TUESDAY, "training", FEW)
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert list(statuses(ours).values()) == ["in training"] * 3
    assert list(statuses(peer).values()) == ["habituation", "not_computed", "in training"]
    outcome = compare(mouse, ours, [peer])
    assert outcome.passed
    assert rules_of(outcome, "training_status") == {(13,)}


def test_14_every_time_stamp_is_corrupt(mouse: Path) -> None:
    session = write(mouse, MONDAY, "training", FEW, quirks=Quirks(corrupt_trailing=FEW))
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert value(ours, session, "sess_duration") == 0
    assert value(peer, session, "sess_duration") == 71_582  # minutes: a counter of milliseconds that ran over


def test_15_impossible_contrasts(mouse: Path) -> None:
    write(mouse, MONDAY, "training", FEW)
    session = write(mouse, TUESDAY, "training", FEW, layout="npy")
    for path in session.glob("alf/*/_ibl_trials.contrast*.npy"):
        np.save(path, np.load(path) * 100)  # percent
    ours, peer = run_ours(mouse), run_peer(mouse, 0)
    assert list(statuses(ours)) == [f"{MONDAY}/001"]
    assert peer.loc[peer["session_path"] == str(session), "contrasts"].max() == 10_000


def test_every_rule_has_a_test() -> None:
    tested = {name.split("_")[1] for name in globals() if name.startswith("test_")}
    assert {str(rule) for rule in RULES} <= tested
