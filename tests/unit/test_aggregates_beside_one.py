"""The public aggregates with a ONE beside them, which tells the rig and the delay: as from the session tree."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.config import SourceSettings
from core.errors import AccessRefused, ConfigurationError, TransientError
from core.pipeline import recompute_subject
from core.records import DaySummary, LeftOut
from core.simulation.tree import simulate
from core.sources import Source, TreeSource, open_source, source_uri
from core.status import compute_statuses
from core.storage import Store, open_store
from core.summarise import summarise
from core.synchronise import look
from core.tables import read_provenance, read_table, subject_keys
from tests.aggregates import aggregate_tree
from tests.alyx import PASSWORD, USER, Alyx, Fault, alyx
from tests.trees import LAB, SUBJECT, edit_settings, session, trials

CLEVER = ((-100.0, 60, 1), (-25.0, 30, 3), (0.0, 30, 15), (25.0, 30, 27), (100.0, 60, 59))
KEYS = subject_keys(LAB, SUBJECT)


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A mouse with three biased sessions on an ephys rig, the last of which has two tasks of two protocols."""
    root = tmp_path / "tree"
    session(root, "2024-03-01", protocol="biased", trials=trials(CLEVER), ephys=True, delay=600)
    session(root, "2024-03-02", protocol="biased", trials=trials(CLEVER), delay=1000)
    tasks = [("training", trials(CLEVER)), ("biased", trials(CLEVER, block=0.2))]
    session(root, "2024-03-03", tasks=tasks, ephys=True)
    return root


@pytest.fixture
def server(tree: Path) -> Iterator[Alyx]:
    with alyx(tree) as state:
        yield state


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def opened(tmp_path: Path, one: str | None, *, password: str = PASSWORD) -> Source:
    """Open the aggregates of `tmp_path`, made from its tree where they are not there yet."""
    public = tmp_path / "public"
    if not public.is_dir():
        aggregate_tree(tmp_path / "tree", public)
    addresses = {"aggregates": str(public)} | ({"one": one} if one else {})
    settings = SourceSettings(one_user=USER, one_password=password, cache=str(tmp_path / "cache"))
    return open_source(source_uri(addresses), settings)


def summaries(source: Source, lab: str = LAB, subject: str = SUBJECT) -> list[DaySummary]:
    of_subject = source.subject(lab, subject)
    days, _ = of_subject.sessions()
    loaded = of_subject.load(days)
    assert {day.date: day.inputs for day in loaded if not day.left_out}.items() <= of_subject.inputs(days).items()
    return summarise(loaded)


def facts(days: list[DaySummary]) -> list[tuple[object, ...]]:
    """Return what is known of each session beside its trials."""
    return [
        (day.date, day.ephys, each.protocol, each.location, each.measures.duration, each.measures.delay)
        for day in days
        for each in day.sessions
        if each.measures
    ]


def test_simulated_mice_are_those_of_their_tree(tmp_path: Path) -> None:
    simulate(tmp_path / "tree", labs=1, subjects=1, days=70, seed=3)
    of_trees = TreeSource(tmp_path / "tree")
    seen = set()
    with alyx(tmp_path / "tree") as server:
        source = opened(tmp_path, server.url)
        assert source.missing == ()
        for subject in of_trees.subjects("simlab01")[0]:
            ours, of_tree = (summaries(each, "simlab01", subject) for each in (source, of_trees))
            assert facts(ours) == facts(of_tree)
            assert [day.left_out for day in ours] == [()] * len(ours)
            statuses = [[(day.date, day.status) for day in compute_statuses(days)] for days in (ours, of_tree)]
            assert statuses[0] == statuses[1]
            seen |= {status for _, status in statuses[0]}
    assert "ready4recording" in seen


def test_a_mouse_is_that_of_its_tree_and_costs_no_request_a_session(tree: Path, server: Alyx, tmp_path: Path) -> None:
    ours = summaries(opened(tmp_path, server.url))
    assert facts(ours) == facts(summaries(TreeSource(tree)))
    assert [(date, location) for date, _, _, location, *_ in facts(ours)] == [
        ("2024-03-01", "ephys_rig"),
        ("2024-03-02", "training_rig"),
        ("2024-03-03", "ephys_rig"),
        ("2024-03-03", "ephys_rig"),
    ]
    asked = [line.split()[1].split("?")[0] for line in server.requests]
    assert (asked.count("/sessions"), asked.count("/datasets")) == (1, 1)
    files = [path for path in asked if path.startswith("/data/")]
    # Descriptions and task settings alone: of three sessions, one of which has two tasks.
    assert len(files) == len({*files}) == 3 + 4
    assert all("taskSettings" in path or "description" in path for path in files)


def test_a_local_one_beside_has_identifiers_of_its_own(tree: Path, tmp_path: Path) -> None:
    from one.alf.cache import make_parquet_db

    make_parquet_db(tree, hash_files=True)
    assert facts(summaries(opened(tmp_path, f"local:{tree}"))) == facts(summaries(TreeSource(tree)))


def test_identifiers_go_before_date_and_number(tree: Path, server: Alyx, tmp_path: Path) -> None:
    twin = server.add_session(LAB, SUBJECT, "2024-03-01", 1)
    twin["id"] = str(uuid.UUID(int=7))
    server.sessions[1]["number"] = 9  # renumbered since the aggregate was made
    ours = summaries(opened(tmp_path, server.url))
    assert [location for _, _, _, location, *_ in facts(ours)][:2] == ["ephys_rig", "training_rig"]
    # Which of two is meant is not known where the identifier tells of neither.
    server.sessions[0]["id"] = str(uuid.UUID(int=8))
    first = summaries(opened(tmp_path, server.url))[0]
    assert first.left_out == (
        LeftOut(session="2024-03-01/001", reason="biased: rig and delay are not known: ONE has no such session"),
    )


def test_a_nickname_that_two_labs_have(tree: Path, server: Alyx, tmp_path: Path) -> None:
    server.add_subject("otherlab", SUBJECT)
    other = server.add_session("otherlab", SUBJECT, "2024-03-02", 1)
    server.add_dataset(
        other, "raw_task_data_00/_iblrig_taskSettings.raw.json", json.dumps({"RIG_NAME": "ephys"}).encode()
    )
    assert facts(summaries(opened(tmp_path, server.url))) == facts(summaries(TreeSource(tree)))


def test_what_one_does_not_have_is_missing_and_told(tree: Path, server: Alyx, tmp_path: Path, store: Store) -> None:
    server.datasets[:] = [each for each in server.datasets if each["session"] != server.sessions[1]["url"]]
    del server.sessions[1]
    recompute_subject(opened(tmp_path, server.url), LAB, SUBJECT, store)
    stored = store.get(KEYS.training)
    assert stored is not None
    provenance = read_provenance(stored.data, KEYS.training)
    assert [(each.what, each.reason) for each in provenance.missing] == [
        ("location", "not in the source of 1 of 4 sessions"),
        ("n_delay", "not in the source of 1 of 4 sessions"),
    ]
    assert provenance.left_out == (
        LeftOut(session="2024-03-02/001", reason="biased: rig and delay are not known: ONE has no such session"),
    )
    rows = read_table(stored.data, KEYS.training).select(["date", "location", "n_delay"]).to_pylist()
    assert {row["date"] for row in rows if row["location"] is None} == {"2024-03-02"}
    assert {row["date"] for row in rows if math.isnan(row["n_delay"])} == {"2024-03-02"}


def test_task_settings_that_cannot_be_read(tree: Path, server: Alyx, tmp_path: Path) -> None:
    for dataset in server.datasets:
        if dataset["collection"] == "raw_task_data_01" and "taskSettings" in dataset["name"]:
            server.replace(dataset, b"{")
            dataset.update(hash=None, file_size=1)
    day = summaries(opened(tmp_path, server.url))[-1]
    assert [(each.protocol, each.location) for each in day.sessions] == [("training", "ephys_rig"), ("biased", None)]
    (left,) = day.left_out
    assert left.session == "2024-03-03/001"
    assert left.reason.startswith("biased: rig and delay are not known: raw_task_data_01: _iblrig_taskSettings.raw")
    assert day.ephys is None


def test_refresh_adds_what_one_tells_and_what_it_tells_later(
    tree: Path, server: Alyx, tmp_path: Path, store: Store
) -> None:
    def dates(source: Source) -> tuple[bool, tuple[str, ...]]:
        seen = look(source.subject(LAB, SUBJECT), store, KEYS, everything=False)
        return seen.unchanged, seen.dates

    recompute_subject(opened(tmp_path, None), LAB, SUBJECT, store)
    assert dates(opened(tmp_path, None)) == (True, ())
    every = ("2024-03-01", "2024-03-02", "2024-03-03")
    assert dates(opened(tmp_path, server.url)) == (False, every)

    settings = next(each for each in server.datasets if "taskSettings" in each["name"])
    content = server.files[settings["file_records"][1]["data_url"].removeprefix(f"{server.url}/data")]
    server.forget(settings)
    recompute_subject(opened(tmp_path, server.url), LAB, SUBJECT, store)
    # The settings that could not be had are asked for again.
    assert dates(opened(tmp_path, server.url)) == (False, ("2024-03-01",))
    server.replace(settings, content.read_bytes() if isinstance(content, Path) else content)
    recompute_subject(opened(tmp_path, server.url), LAB, SUBJECT, store)
    assert dates(opened(tmp_path, server.url)) == (True, ())

    trial_files = [each for each in server.datasets if each["name"].startswith("_ibl_trials")]
    for each in trial_files:
        each["hash"] = "0" * 32  # of no account: trials come from the aggregate
    assert dates(opened(tmp_path, server.url)) == (True, ())
    edit_settings(tree / LAB / "Subjects" / SUBJECT / "2024-03-02" / "001", RIG_NAME="ephys")
    server.datasets[:] = [each for each in server.datasets if "2024-03-02" not in str(each["file_records"])]
    changed = next(each for each in server.sessions if each["start_time"].startswith("2024-03-02"))
    server._add_files(changed, tree / LAB / "Subjects" / SUBJECT / "2024-03-02" / "001")
    assert dates(opened(tmp_path, server.url)) == (False, ("2024-03-02",))


@pytest.mark.parametrize("path", ["/sessions", "/datasets", "/data/"])
def test_a_server_that_is_down_fails_the_task_for_now(server: Alyx, tmp_path: Path, path: str) -> None:
    source = opened(tmp_path, server.url)
    server.faults.append(Fault(path=path, status=500))
    with pytest.raises(TransientError, match="the server says 500"):
        summaries(source)
    server.faults.clear()
    assert len(summaries(source)) == 3


def test_a_server_that_does_not_let_us_in(tree: Path, server: Alyx, tmp_path: Path) -> None:
    opened(tmp_path, server.url).check()
    told = "without --one, rig and delay are missing"
    with pytest.raises(AccessRefused, match=told):
        opened(tmp_path, server.url, password="wrong").check()
    with pytest.raises(TransientError, match=told):
        opened(tmp_path, "http://127.0.0.1:9").check()
    with pytest.raises(ConfigurationError, match=told):
        opened(tmp_path, f"local:{tmp_path}").check()
    assert opened(tmp_path, None).missing != ()


def test_downloads_that_cannot_be_kept(server: Alyx, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises((ConfigurationError, TransientError), match="cache"):
        summaries(opened(tmp_path, server.url))


def test_names_of_sources() -> None:
    assert source_uri({"root": "/data"}) == "/data"
    assert source_uri({"one": "local:/one"}) == "one:local:/one"
    assert source_uri({"aggregates": "s3://b/p"}) == "aggregates:s3://b/p"
    assert source_uri({"aggregates": "/a", "one": "https://alyx"}) == "aggregates:/a, one:https://alyx"
    for wrong in (
        {"root": "/data", "one": "x"},
        {"root": "/data", "aggregates": "/a"},
        {"aggregates": "/, one:", "one": "x"},
    ):
        with pytest.raises(ConfigurationError, match=r"exclude each other|cannot lie"):
            source_uri(wrong)
