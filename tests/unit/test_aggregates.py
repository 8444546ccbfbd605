"""The public aggregates as a source, in a folder: the same mice as from their session tree."""

from __future__ import annotations

import math
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from core.config import SourceSettings
from core.errors import ConfigurationError, CorruptTable, InvalidName
from core.explain import explain_day, find_criteria
from core.join import join_days
from core.pipeline import recompute_subject
from core.records import DaySummary, days_from_json, days_to_json
from core.schema import LADDER
from core.simulation.real_mouse import SUBJECT as REAL_MOUSE
from core.simulation.real_mouse import write_real_mouse
from core.simulation.tree import simulate
from core.sources import TreeSource, open_source
from core.sources.aggregates import MISSING, AggregatesSource
from core.status import compute_statuses
from core.storage import open_store
from core.summarise import summarise
from core.synchronise import look
from core.tables import read_provenance, read_table, subject_keys
from tests.aggregates import NAME, aggregate, aggregate_tree, eid_of, frame
from tests.trees import LAB, SUBJECT, join, session, trials

CLEVER = ((-100.0, 150, 2), (-25.0, 60, 5), (0.0, 60, 30), (25.0, 60, 55), (100.0, 150, 148))


def opened(folder: Path, cache: Path | None = None, **settings: Any) -> AggregatesSource:
    source = open_source(
        f"aggregates:{folder}", SourceSettings(cache=str(cache or folder / "cache")), settings.get("by", "stat")
    )
    assert isinstance(source, AggregatesSource)
    return source


def put(folder: Path, table: pd.DataFrame | bytes, subject: str = SUBJECT, name: str = NAME) -> Path:
    path = folder / "aggregates" / "Subjects" / LAB / subject / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        table.to_parquet(path, index=False)
    return path


def summaries(source: AggregatesSource | TreeSource, lab: str = LAB, subject: str = SUBJECT) -> list[DaySummary]:
    of_subject = source.subject(lab, subject)
    return summarise(of_subject.load(of_subject.sessions()[0]))


@pytest.fixture
def one_mouse(tmp_path: Path) -> pd.DataFrame:
    """The aggregate of a mouse with four sessions, one of which has two tasks."""
    root = tmp_path / "tree"
    session(root, "2024-03-01", 1, trials=trials(CLEVER))
    session(root, "2024-03-01", 2, trials=trials(CLEVER))
    session(root, "2024-03-04", 1, protocol="habituation")
    tasks = [("training", trials(CLEVER)), ("biased", trials(CLEVER, block=0.2))]
    session(root, "2024-03-05", 1, tasks=tasks)
    return frame(root, LAB, SUBJECT)


def assert_same(ours: list[DaySummary], of_tree: list[DaySummary], end_times: bool = False) -> None:
    """See that days are equal to the bit in all that an aggregate holds."""
    assert [day.date for day in ours] == [day.date for day in of_tree]
    for day, tree in zip(ours, of_tree, strict=True):
        for name in ("protocol", "all_counts", "left_counts", "right_counts", "zero_contrast_times", "n_trials"):
            assert getattr(day, name) == getattr(tree, name), (day.date, name)
        assert repr(day.performance_easy) == repr(tree.performance_easy)
        pairs = [(day.combined, tree.combined)]
        for found, wanted in zip(day.sessions, tree.sessions, strict=True):
            assert (found.number, found.protocol) == (wanted.number, wanted.protocol)
            pairs.append((found.measures, wanted.measures))
        for measures, expected in pairs:
            assert (measures is None) == (expected is None)
            if measures and expected:
                for name in ("counts", "n_trials", "performance_easy", "reaction_time", "fits"):
                    assert repr(getattr(measures, name)) == repr(getattr(expected, name)), (day.date, name)
                assert end_times or measures.duration == expected.duration
                assert math.isnan(measures.delay)


def assert_same_statuses(ours: list[DaySummary], of_tree: list[DaySummary], highest: str) -> set[str]:
    """See that statuses are those of the tree, up to `highest`; return those that were seen."""
    pairs = list(zip(compute_statuses(ours), compute_statuses(of_tree), strict=True))
    seen = set()
    for found, expected in pairs:
        if LADDER[expected.status] <= LADDER[highest]:
            assert found.status == expected.status, found.date
            seen.add(found.status)
        else:
            assert found.status in ("trained 1b", "ready4ephysrig")
    return seen


def test_simulated_mice_are_those_of_their_tree_to_the_bit(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    simulate(root, labs=1, subjects=1, days=70, seed=3)
    source, tree = opened(aggregate_tree(root, tmp_path / "public")), TreeSource(root)
    seen: set[str] = set()
    assert source.labs() == tree.labs()
    assert source.subjects("simlab01") == tree.subjects("simlab01")
    for subject in tree.subjects("simlab01")[0]:
        ours, of_tree = summaries(source, "simlab01", subject), summaries(tree, "simlab01", subject)
        # Some simulated rigs tell when the session ended, half a minute after its last trial.
        assert_same(ours, of_tree, end_times=True)
        seen |= assert_same_statuses(ours, of_tree, "ready4ephysrig")
        assert days_from_json(days_to_json(ours))[-1].ephys is None
        assert repr(days_from_json(days_to_json(ours))) == repr(ours)
    assert {"in training", "trained 1a", "trained 1b", "ready4ephysrig"} <= seen


def test_a_real_mouse_is_that_of_its_tree(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    try:
        write_real_mouse(root)
    except ConfigurationError as error:
        pytest.skip(str(error))
    lab = "mrsicflogellab"
    aggregate(root, tmp_path / "public", lab, REAL_MOUSE)
    ours = summaries(opened(tmp_path / "public"), lab, REAL_MOUSE)
    of_tree = summaries(TreeSource(root), lab, REAL_MOUSE)
    assert_same(ours, of_tree)
    assert len(ours) == 11
    assert "trained 1b" in assert_same_statuses(ours, of_tree, "ready4ephysrig")


def test_sessions_tasks_and_durations(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    put(tmp_path, one_mouse)
    subject = opened(tmp_path).subject(LAB, SUBJECT)
    days, odd = subject.sessions()
    assert odd == []
    folder = Path(LAB, "Subjects", SUBJECT)
    assert days == {
        "2024-03-01": [folder / "2024-03-01" / "001", folder / "2024-03-01" / "002"],
        "2024-03-04": [folder / "2024-03-04" / "001"],
        "2024-03-05": [folder / "2024-03-05" / "001"],
    }
    loaded = subject.load(days)
    assert [[session.protocol for session in day.sessions] for day in loaded] == [
        ["training", "training"],
        ["habituation"],
        ["training", "biased"],
    ]
    assert {day.date: day.inputs for day in loaded} == subject.inputs(days)
    facts = loaded[0].sessions[0].facts
    assert facts is not None
    # 480 trials, one every ten seconds, and the last one ends 2.5 s after its stimulus
    assert (facts.duration, facts.location) == (80.0, None)
    assert math.isnan(facts.delay)
    assert loaded[1].sessions[0].trials is None
    assert subject.sessions(["2024-03-04", "2024-03-09"])[0] == {"2024-03-04": days["2024-03-04"]}


@pytest.mark.parametrize(
    ("ends", "minutes"),
    [
        ([60.0, 120.0, 7 * 3600.0], 2.0),  # beyond six hours: corrupt, passed over
        ([60.0, 120.0, np.nan], 5.0),  # the response, at 300 s, where no end is told
        ([np.nan, np.nan, 210.0], 4.0),  # 3.5 minutes are rounded up
    ],
)
def test_the_duration_is_that_of_the_last_trial(
    one_mouse: pd.DataFrame, tmp_path: Path, ends: list[float], minutes: float
) -> None:
    table = one_mouse[:3].assign(intervals_1=ends, response_times=[10.0, 20.0, 300.0])
    put(tmp_path, table)
    (day,) = summaries(opened(tmp_path))
    assert day.sessions[0].measures is not None
    assert day.sessions[0].measures.duration == minutes


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.assign(session_start_time=table["session_start_time"].dt.strftime("%Y-%m-%dT%H:%M:%S.%f")),
        lambda table: table.assign(session_start_time=table["session_start_time"].astype("datetime64[s]")),
        lambda table: table.assign(session_number=table["session_number"].map("{:03}".format)),
        lambda table: table.assign(session_number=table["session_number"].astype(float)),
        lambda table: table.assign(**{name: table[name].astype("category") for name in ("session", "task_protocol")}),
        lambda table: table.sample(frac=1, random_state=1).sort_values(["response_times"], kind="stable"),
        lambda table: table.drop(columns="intervals_0").assign(more="unknown"),
        lambda table: table.set_index("session").reset_index(),
    ],
)
def test_columns_of_other_types_and_in_another_order_are_the_same(
    one_mouse: pd.DataFrame, tmp_path: Path, change: Any
) -> None:
    put(tmp_path / "a", one_mouse)
    put(tmp_path / "b", change(one_mouse))
    ours, others = summaries(opened(tmp_path / "a")), summaries(opened(tmp_path / "b"))
    assert [day.all_counts for day in ours] == [day.all_counts for day in others]
    protocols = [[[session.protocol for session in day.sessions] for day in days] for days in (ours, others)]
    assert protocols[0] == protocols[1]


def test_names_of_chained_protocols_that_alyx_joins(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    last = one_mouse["session_start_time"] >= "2024-03-05"
    joined = one_mouse.assign(
        task_protocol=one_mouse["task_protocol"].mask(last, "_iblrig_trainingChoiceWorld/_iblrig_biasedChoiceWorld")
    )
    put(tmp_path, joined)
    assert [session.protocol for session in summaries(opened(tmp_path))[-1].sessions] == ["training", "biased"]


def test_a_look_at_an_unchanged_subject_reads_no_file(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    path = put(tmp_path, one_mouse)
    first = opened(tmp_path).subject(LAB, SUBJECT)
    days, _ = first.sessions()
    inputs = first.inputs(days)
    stat = path.stat()
    path.write_bytes(b"?" * stat.st_size)  # whoever reads it now cannot go on
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = opened(tmp_path).subject(LAB, SUBJECT)
    assert again.sessions() == (days, [])
    assert again.inputs(days) == inputs
    by_content = opened(tmp_path, by="content").subject(LAB, SUBJECT)
    with pytest.raises(CorruptTable, match=r"subjectTrials\.table\.pqt cannot be read"):
        by_content.sessions()


def test_only_what_changed_has_another_fingerprint(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    path = put(tmp_path, one_mouse)
    before = opened(tmp_path).subject(LAB, SUBJECT)
    old = before.inputs(before.sessions()[0])
    assert len({digest for sessions in old.values() for digest in sessions.values()}) == 4
    one_mouse.loc[(one_mouse["session_number"] == 2).idxmax(), "choice"] *= -1
    put(tmp_path, one_mouse)
    os.utime(path, (1, 1))
    after = opened(tmp_path).subject(LAB, SUBJECT)
    new = after.inputs(after.sessions()[0])
    assert new["2024-03-01"].pop("002") != old["2024-03-01"].pop("002")
    assert new == old


def test_refresh_computes_the_new_session_alone(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    until = one_mouse["session_start_time"] < "2024-03-05"
    path = put(tmp_path, one_mouse[until])
    store, keys = open_store(f"memory://{uuid.uuid4().hex}"), subject_keys(LAB, SUBJECT)
    recompute_subject(opened(tmp_path), LAB, SUBJECT, store)
    assert look(opened(tmp_path).subject(LAB, SUBJECT), store, keys, everything=False).unchanged
    put(tmp_path, one_mouse)
    os.utime(path, (1, 1))
    seen = look(opened(tmp_path).subject(LAB, SUBJECT), store, keys, everything=False)
    assert (seen.unchanged, seen.dates) == (False, ("2024-03-05",))
    assert [day.date for day in seen.kept] == ["2024-03-01", "2024-03-04"]


def test_the_table_says_what_is_missing(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    put(tmp_path, one_mouse)
    store, keys = open_store(f"memory://{uuid.uuid4().hex}"), subject_keys(LAB, SUBJECT)
    recompute_subject(opened(tmp_path), LAB, SUBJECT, store)
    stored = store.get(keys.training)
    assert stored is not None
    told = read_provenance(stored.data, keys.training).missing
    assert [(each.what, each.reason) for each in told] == [
        ("location", "not in the source of 4 of 4 sessions"),
        ("n_delay", "not in the source of 4 of 4 sessions"),
    ]
    table = read_table(stored.data, keys.training)
    assert set(table.column("location").to_pylist()) == {None}
    assert all(map(math.isnan, table.column("n_delay").to_pylist() + table.column("combined_n_delay").to_pylist()))
    assert table.column("session_path").to_pylist()[0] == f"{LAB}/Subjects/{SUBJECT}/2024-03-01/001"


def test_explain_says_what_is_not_known(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    left = trials(((-100.0, 100, 1), (-12.5, 30, 4), (0.0, 60, 12), (12.5, 30, 20), (100.0, 100, 99)), block=0.8)
    right = trials(((-100.0, 100, 1), (-12.5, 30, 10), (0.0, 60, 48), (12.5, 30, 26), (100.0, 100, 99)), block=0.2)
    for day in (1, 2, 3):
        session(root, f"2024-03-0{day}", protocol="biased", trials=join(left, right), ephys=True, delay=1000)
    aggregate(root, tmp_path / "public", LAB, SUBJECT)
    store = open_store(f"memory://{uuid.uuid4().hex}")
    recompute_subject(opened(tmp_path / "public"), LAB, SUBJECT, store)
    lab, rows = find_criteria(store, SUBJECT, None)
    found = explain_day(lab, SUBJECT, rows, None)
    assert (found.status, found.next_status) == ("ready4ephysrig", "ready4delay")
    assert found.missing == (
        "For ready4delay is missing: "
        "ephys_days is not known: the rig of a day in this window is missing in its source; "
        "n_trials_ephys could not be measured in this window; "
        "performance_easy_ephys could not be measured in this window."
    )
    recompute_subject(TreeSource(root), LAB, SUBJECT, store)
    assert find_criteria(store, SUBJECT, None)[1][-1]["status"] == "ready4recording"


def test_a_day_from_a_tree_and_from_the_aggregates(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    put(tmp_path, one_mouse)
    source = opened(tmp_path).subject(LAB, SUBJECT)
    days, _ = source.sessions(["2024-03-01"])
    first, second = (summarise(source.load({"2024-03-01": [path]})) for path in days["2024-03-01"])
    (joined,) = join_days(first, second)
    assert joined.ephys is None
    assert math.isnan(joined.delay)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns=["choice", "session"]), "no column choice, session"),
        (lambda table: table.assign(choice="left"), "column choice has the type"),
        (lambda table: table.assign(stimOn_times=[[1.0]] * len(table)), "column stimOn_times has the type"),
    ],
)
def test_a_file_that_is_no_table_of_trials_fails_its_subject(
    one_mouse: pd.DataFrame, tmp_path: Path, change: Any, message: str
) -> None:
    put(tmp_path, change(one_mouse))
    with pytest.raises(CorruptTable, match=f"{SUBJECT}/_ibl_subjectTrials.table.pqt: {message}"):
        opened(tmp_path).subject(LAB, SUBJECT).sessions()


@pytest.mark.parametrize("cut", [0, 3, 2000, -1])
def test_a_broken_file_fails_its_subject(one_mouse: pd.DataFrame, tmp_path: Path, cut: int) -> None:
    path = put(tmp_path, one_mouse)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptTable, match="cannot be read"):
        opened(tmp_path).subject(LAB, SUBJECT).sessions()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"session": None}, ("session None", "trials left out: 480 trials without session")),
        ({"session_start_time": pd.NaT}, ("session {eid}", "trials left out: session_start_time is no time: None")),
        ({"session_number": 1000}, ("session {eid}", "trials left out: '1000' is not a session number")),
        ({"session_number": 1.5}, ("session {eid}", "trials left out: session_number is no whole number: 1.5")),
    ],
)
def test_trials_that_belong_to_no_session_are_reported(
    one_mouse: pd.DataFrame, tmp_path: Path, change: dict[str, Any], told: tuple[str, str]
) -> None:
    second = (one_mouse["session_number"] == 2).to_numpy()
    for name, value in change.items():
        one_mouse[name] = one_mouse[name].astype(object).where(~second, value)
        if name == "session_start_time":
            one_mouse[name] = pd.to_datetime(one_mouse[name])
        elif name == "session_number":
            one_mouse[name] = one_mouse[name].astype(float)
    put(tmp_path, one_mouse)
    days, (left,) = opened(tmp_path).subject(LAB, SUBJECT).sessions()
    assert [path.name for path in days["2024-03-01"]] == ["001"]
    assert left.session == told[0].format(eid=eid_of(LAB, SUBJECT, "2024-03-01", "002"))
    assert left.reason.startswith(told[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task_protocol": "_iblrig_tasks_passive"}, "task 0: unknown protocol '_iblrig_tasks_passive'"),
        ({"task_protocol": None}, "task 0: trials without task_protocol"),
        ({"probabilityLeft": np.nan}, "training: task 0: trials without probabilityLeft"),
        ({"contrastLeft": 12.5}, "training: task 0: contrastLeft is outside 0..1"),
    ],
)
def test_a_session_that_cannot_be_used_is_left_out_with_its_reason(
    one_mouse: pd.DataFrame, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    second = one_mouse["session_number"] == 2
    for name, value in change.items():
        one_mouse[name] = one_mouse[name].where(~second, value)
    put(tmp_path, one_mouse)
    day = summaries(opened(tmp_path))[0]
    assert [session.number for session in day.sessions] == ["001"]
    assert [(left.session, left.reason) for left in day.left_out] == [("2024-03-01/002", reason)]
    assert set(day.inputs) == {"001", "002"}


def test_two_sessions_in_one_place_and_one_in_two_are_reported(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    put(tmp_path, one_mouse.assign(session_number=1))
    day = summaries(opened(tmp_path))[0]
    assert day.sessions == ()
    assert "several sessions have this date and number" in day.left_out[0].reason

    first = eid_of(LAB, SUBJECT, "2024-03-01", "001")
    put(tmp_path, one_mouse.assign(session=first), subject="torn")
    days, odd = opened(tmp_path).subject(LAB, "torn").sessions()
    assert days == {}
    assert odd[0].session == f"session {first}"
    assert "several dates or numbers: 2024-03-01/001, 2024-03-01/002" in odd[0].reason


def test_a_subject_without_rows_is_reported(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    put(tmp_path, one_mouse[:0])
    days, odd = opened(tmp_path).subject(LAB, SUBJECT).sessions()
    assert days == {}
    assert odd[0].session == f"{LAB}/{SUBJECT}"
    assert odd[0].reason.startswith("no trials in ")


def test_of_two_files_the_newest_counts_and_the_other_is_told(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    name = f"_ibl_subjectTrials.table.{uuid.UUID(int=1)}.pqt"
    newest = put(tmp_path, one_mouse, name=name)
    other = put(tmp_path, one_mouse[:10])
    os.utime(other, (1, 1))
    days, (left,) = opened(tmp_path).subject(LAB, SUBJECT).sessions()
    assert len(days) == 3
    assert (left.session, left.reason) == (f"{LAB}/{SUBJECT}", f"{NAME} not used: {newest.name} is newer")
    os.utime(newest, (1, 1))  # then the last by name
    assert opened(tmp_path).subject(LAB, SUBJECT).sessions()[1][0].reason == f"{name} not used: {NAME} is newer"


def test_of_revisions_the_last_counts(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    revised = put(tmp_path, one_mouse, name=f"#2024-05-05#/{NAME}")
    put(tmp_path, one_mouse[:10])
    os.utime(revised, (1, 1))
    days, odd = opened(tmp_path).subject(LAB, SUBJECT).sessions()
    assert (len(days), odd) == (3, [])


def test_labs_and_subjects_that_are_none(one_mouse: pd.DataFrame, tmp_path: Path) -> None:
    put(tmp_path, one_mouse)
    put(tmp_path, b"a training table", subject="untrained", name="_ibl_subjectTraining.table.pqt")
    put(tmp_path, one_mouse, subject="a mouse")
    (tmp_path / "aggregates" / "Subjects" / "a lab").mkdir()
    source = opened(tmp_path)
    labs, odd = source.labs()
    assert (labs, [left.session for left in odd]) == ([LAB], ["a lab"])
    good, left_out = source.subjects(LAB)
    assert good == [SUBJECT]
    assert [left.session for left in left_out] == [f"{LAB}/a mouse", f"{LAB}/untrained"]
    assert "holds no _ibl_subjectTrials.table" in left_out[1].reason
    assert source.subjects(LAB, ["nobody"]) == ([], [])
    assert source.absent([], [(LAB, SUBJECT), (LAB, "gone"), ("elsewhere", "gone")]) == [(LAB, "gone")]
    assert source.newest([], [], 3) == [(LAB, SUBJECT)]
    assert source.missing == MISSING
    days, (left,) = source.subject(LAB, "untrained").sessions()
    assert days == {}
    assert left.reason.startswith("no _ibl_subjectTrials.table*.pqt in ")
    with pytest.raises(ConfigurationError, match="no lab 'nolab'"):
        source.labs(["nolab"])
    with pytest.raises(InvalidName):
        source.subject("..", SUBJECT)


def test_a_lab_that_cannot_be_listed_is_told_and_none_of_its_mice_is_taken_for_gone(
    one_mouse: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, one_mouse)
    source = opened(tmp_path)
    walk = os.walk

    def closed(folder: Path, **options: Any) -> Any:  # a user with every right, as in a container, is never refused
        if folder.name == LAB:
            options["onerror"](PermissionError(13, "Permission denied", str(folder)))
        return walk(folder, **options)

    monkeypatch.setattr(os, "walk", closed)
    good, (left,) = source.subjects(LAB)
    assert (good, left.session) == ([], LAB)
    assert left.reason.endswith(f"{LAB} cannot be listed: Permission denied")
    assert source.absent([], [(LAB, SUBJECT)]) == []
    assert source.newest([], [], 3) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nowhere", "is not a folder"),
        ("empty", "no aggregates/Subjects/<lab> in"),
        ("https://host/aggregates", "cannot be at 'https'"),
        ("s3://user:word@bucket", "cannot be a bucket"),
    ],
)
def test_what_holds_no_aggregates_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=message):
        opened(Path(uri) if "://" not in uri else uri, tmp_path / "cache").check()  # type: ignore[arg-type]
