"""ONE as a source: the same tables as from the session tree, whatever Alyx, its data server and the cache do.

A small server of ours stands in for Alyx, see `tests/alyx.py`: a real one needs a database server of its own.
It is held against the answers that one-api has recorded.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import shutil
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest

from core.config import SourceSettings
from core.errors import AccessRefused, ConfigurationError, MissingCredentials, TrainingStatusError, TransientError
from core.pipeline import recompute_subject
from core.records import LoadedDay
from core.sources import Source, TreeSource, open_source
from core.storage import open_store
from core.tables import SubjectTables
from tests.alyx import DATA_PASSWORD, DATA_USER, PASSWORD, TOKEN, USER, Alyx, Fault, Record, alyx

LAB, OTHER = "simlab01", "simlab02"
MOUSE = "SIM01_001"


@pytest.fixture
def server(mice: Path) -> Iterator[Alyx]:
    with alyx(mice) as running:
        yield running


@pytest.fixture
def empty() -> Iterator[Alyx]:
    with alyx() as running:
        yield running


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """one-api writes into the home."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))


def opened(server: Alyx | str, cache: Path, **settings: Any) -> Source:
    url = server if isinstance(server, str) else server.url
    given = {"one_user": USER, "one_password": PASSWORD, "cache": str(cache / "cache"), **settings}
    return open_source(f"one:{url}", SourceSettings(**given))


def look(source: Source, lab: str = LAB, subject: str = MOUSE) -> dict[str, dict[str, str]]:
    """What a refresh compares: the fingerprints of all sessions."""
    of_subject = source.subject(lab, subject)
    return of_subject.inputs(of_subject.sessions()[0])


def load(source: Source, dates: Sequence[str] | None = None, lab: str = LAB, subject: str = MOUSE) -> list[LoadedDay]:
    of_subject = source.subject(lab, subject)
    return of_subject.load(of_subject.sessions(dates)[0])


def count(inputs: dict[str, dict[str, str]]) -> int:
    return sum(map(len, inputs.values()))


def tables(source: Source, folder: Path, lab: str = LAB, subject: str = MOUSE) -> SubjectTables:
    store = open_store(str(folder))
    store.check()
    return recompute_subject(source, lab, subject, store)


def frame(data: bytes, *without: str) -> pd.DataFrame:
    return pd.read_parquet(BytesIO(data)).drop(columns=list(without))


def assert_same(found: SubjectTables, expected: SubjectTables, eids: dict[str, str] | None = None) -> None:
    """All but where the sessions lie is equal; the aggregate names them by eid."""
    pd.testing.assert_frame_equal(frame(found.training, "session_path"), frame(expected.training, "session_path"))
    pd.testing.assert_frame_equal(frame(found.criteria), frame(expected.criteria))
    in_one, in_tree = frame(found.aggregate), frame(expected.aggregate)
    assert list(in_one["training_status"]) == list(in_tree["training_status"])
    assert len(in_one) > 0
    if eids is not None:
        assert list(in_one["session"]) == [eids["/".join(Path(path).parts[-3:])] for path in in_tree["session"]]


def files(folder: Path) -> list[Path]:
    """The downloads below a folder; locks are none."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def trials_of(server: Alyx, at: int = -1, subject: str = MOUSE) -> tuple[Record, Record]:
    """A session of a subject, and the dataset of its trials or of one attribute of them; the first is habituation."""
    session = [s for s in server.sessions if s["subject"] == subject][at]
    return session, next(
        d for d in server.datasets if d["session"] == session["url"] and d["name"].startswith("_ibl_trials.")
    )


def day_of(session: Record) -> str:
    return str(session["start_time"])[:10]


def one_line_without_secrets(error: TrainingStatusError) -> bool:
    told = str(error)
    return bool(told) and "\n" not in told and not any(secret in told for secret in (PASSWORD, TOKEN, DATA_PASSWORD))


# The same tables


def test_tables_from_alyx_are_those_from_the_tree(server: Alyx, mice: Path, tmp_path: Path) -> None:
    source, tree = opened(server, tmp_path), TreeSource(mice)
    assert source.labs() == tree.labs()
    eids = {f"{s['subject']}/{day_of(s)}/{s['number']:03}": s["id"] for s in server.sessions}
    for lab in source.labs()[0]:
        assert source.subjects(lab) == tree.subjects(lab)
        for subject in source.subjects(lab)[0]:
            found = tables(source, tmp_path / "one", lab, subject)
            assert_same(found, tables(tree, tmp_path / "tree", lab, subject), eids)


def test_subjects_without_sessions_are_none(server: Alyx, tmp_path: Path) -> None:
    server.add_subject(LAB, "breeder")
    assert "breeder" not in opened(server, tmp_path).subjects(LAB)[0]


# Pages and counts


def crowd(server: Alyx, dates: Sequence[str], each: int) -> int:
    """Many sessions of one subject, all of a date at one time."""
    server.add_subject(LAB, "crowd")
    for date in dates:
        for number in range(1, each + 1):
            server.add_session(LAB, "crowd", date, number)
    server.shuffled_ties = True
    return each * len(dates)


def test_pages_that_lose_ties_do_not_lose_sessions(empty: Alyx, tmp_path: Path) -> None:
    dates = [f"2021-{month:02}-{day:02}" for month in (1, 2) for day in range(1, 23)]
    many = crowd(empty, dates, 37)
    assert many > 1000
    days, odd = opened(empty, tmp_path).subject(LAB, "crowd").sessions()
    assert (sum(map(len, days.values())), odd) == (many, [])
    assert len([r for r in empty.requests if r.startswith("GET /sessions")]) > 2  # pages did lose some


def test_ties_of_one_day_that_pages_lose_are_told(empty: Alyx, tmp_path: Path) -> None:
    """No slice is shorter than a day, so what is not whole is not given."""
    crowd(empty, ["2021-01-01"], 1300)
    empty.sessions.sort(key=lambda session: session["id"], reverse=True)  # no page agrees with the one before
    with pytest.raises(TransientError, match="1300 sessions"):
        opened(empty, tmp_path).subject(LAB, "crowd").sessions()


def test_a_count_that_pages_do_not_add_up_to_is_told(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    whole = look(source)
    server.wrong_count = 1
    with pytest.raises(TransientError, match="not whole"):
        look(source)
    server.wrong_count = -1  # more than is counted came, and all of it counts
    assert look(source) == whole


# Names


def test_a_nickname_in_two_labs_is_two_mice(server: Alyx, tmp_path: Path) -> None:
    before = look(opened(server, tmp_path))
    server.add_subject(OTHER, MOUSE)
    server.add_session(OTHER, MOUSE, "2019-01-01", 1)
    source = opened(server, tmp_path)
    assert look(source, LAB) == before
    assert list(look(source, OTHER)) == ["2019-01-01"]
    assert MOUSE in source.subjects(OTHER)[0]


@pytest.mark.parametrize("name", ["4581", "0042", "1.5", "true", "NR_0001-b"])
def test_a_nickname_is_text_whatever_it_looks_like(empty: Alyx, tmp_path: Path, name: str) -> None:
    empty.add_subject(LAB, name)
    empty.add_session(LAB, name, "2021-01-01", 1)
    source = opened(empty, tmp_path)
    assert source.subjects(LAB) == ([name], [])
    assert list(look(source, LAB, name)) == ["2021-01-01"]


def test_an_unknown_lab_is_refused(server: Alyx, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no lab 'nolab' in .*: it has simlab01, simlab02"):
        opened(server, tmp_path).labs(["nolab"])


def test_a_server_without_labs_is_refused(empty: Alyx, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no lab in"):
        opened(empty, tmp_path).labs()


def test_absent_subjects_are_those_without_sessions_in_a_lab_that_is_there(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    assert source.absent((), [(LAB, MOUSE), (LAB, "gone"), ("nolab", "mouse")]) == [(LAB, "gone")]
    server.faults.append(Fault(status=500))
    assert source.absent((), [(LAB, "gone")]) == []


def test_two_sessions_of_one_date_and_number_are_told(server: Alyx, tmp_path: Path) -> None:
    session, _ = trials_of(server)
    twin = server.add_session(LAB, MOUSE, day_of(session), session["number"])
    twin["id"] = "ffffffff-ffff-ffff-ffff-ffffffffffff"
    days, odd = opened(server, tmp_path).subject(LAB, MOUSE).sessions()
    assert len(days[day_of(session)]) == 1
    assert [(left.session, "ffffffff" in left.reason) for left in odd] == [
        (f"{day_of(session)}/{session['number']:03}", True)
    ]


def test_sessions_without_a_start_or_a_number_are_told(server: Alyx, tmp_path: Path) -> None:
    for number in (97, 98):
        server.add_session(LAB, MOUSE, "2021-05-05", number)
    server.sessions[-2]["start_time"] = None
    server.sessions[-1]["number"] = None
    days, odd = opened(server, tmp_path).subject(LAB, MOUSE).sessions()
    assert "2021-05-05" not in days
    assert [left.session for left in odd] == ["2021-05-05/None", "None/097"]
    for left, session in zip(odd, reversed(server.sessions[-2:]), strict=True):
        assert session["id"] in left.reason


# What a server says and does


def test_429_with_retry_after_goes_on(server: Alyx, tmp_path: Path) -> None:
    expected = look(opened(server, tmp_path))
    server.faults.append(Fault(status=429, path="^/sessions", times=1, retry_after="0"))
    server.faults.append(Fault(status=429, path="^/data/", times=1, retry_after="0"))
    source = opened(server, tmp_path)
    assert look(source) == expected
    assert not [left for day in load(source) for left in day.left_out]
    assert [fault.times for fault in server.faults] == [0, 0]


@pytest.mark.parametrize("path", ["^/sessions", "^/data/"])
def test_429_that_asks_for_an_hour_is_for_another_try(server: Alyx, tmp_path: Path, path: str) -> None:
    server.faults.append(Fault(status=429, path=path, retry_after="3600"))
    with pytest.raises(TransientError, match="429"):
        load(opened(server, tmp_path))


@pytest.mark.parametrize("path", ["^/labs", "^/subjects", "^/sessions", "^/datasets", "^/data/"])
def test_500_is_transient_and_then_all_is_whole(server: Alyx, mice: Path, tmp_path: Path, path: str) -> None:
    def everything(store: str) -> SubjectTables:
        source.labs(), source.subjects(LAB)
        return tables(source, tmp_path / store)

    source = opened(server, tmp_path)
    server.faults.append(Fault(status=500, path=path, times=1))
    with pytest.raises(TransientError) as caught:
        everything("first")
    assert one_line_without_secrets(caught.value)
    assert_same(everything("second"), tables(TreeSource(mice), tmp_path / "tree"))


@pytest.mark.parametrize("path", ["^/sessions", "^/datasets"])
def test_a_list_that_is_cut_off_is_transient(server: Alyx, tmp_path: Path, path: str) -> None:
    source = opened(server, tmp_path)
    whole = look(source)
    server.faults.append(Fault(path=path, times=1, cut=True))
    with pytest.raises(TransientError):
        look(source)
    assert look(source) == whole


def test_a_page_that_is_no_alyx_is_told(server: Alyx, tmp_path: Path) -> None:
    server.faults.append(Fault(status=200, path="^/labs", body=b'{"hello": "world"}'))
    with pytest.raises(ConfigurationError, match="is it an Alyx server"):
        opened(server, tmp_path).labs()


@pytest.mark.parametrize("path", ["^/sessions", "^/data/"])
def test_a_server_that_falls_silent_is_transient(
    server: Alyx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    import core.sources.alyx

    monkeypatch.setattr(core.sources.alyx, "TIMEOUT", (5.0, 0.3))
    source = opened(server, tmp_path)
    source.check()
    server.faults.append(Fault(path=path, times=1, wait=1.5))
    with pytest.raises(TransientError):
        load(source)
    monkeypatch.setattr(core.sources.alyx, "TIMEOUT", (5.0, 60.0))
    assert not [left for day in load(source) for left in day.left_out]


def test_a_server_that_is_gone_is_transient_and_whole_when_it_is_back(mice: Path, tmp_path: Path) -> None:
    with alyx(mice) as running:
        source = opened(running, tmp_path)
        look(source)
    with pytest.raises(TransientError) as caught:
        tables(source, tmp_path / "one")
    assert one_line_without_secrets(caught.value)
    assert source.absent((), [(LAB, MOUSE)]) == []  # nobody is gone because nobody answers
    with alyx(mice, port=urlsplit(running.url).port or 0):
        assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))


# Who asks


def test_a_wrong_password_is_refused(server: Alyx, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--one-password") as caught:
        opened(server, tmp_path, one_password="wrong-" + PASSWORD).check()
    assert isinstance(caught.value, AccessRefused)
    assert one_line_without_secrets(caught.value)


def test_403_is_refused(server: Alyx, tmp_path: Path) -> None:
    server.faults.append(Fault(status=403, path="^/sessions"))
    with pytest.raises(AccessRefused) as caught:
        look(opened(server, tmp_path))
    assert one_line_without_secrets(caught.value)


def test_a_token_is_enough(server: Alyx, tmp_path: Path) -> None:
    assert look(opened(server, tmp_path, one_user=None, one_password=None, one_token=TOKEN))


def test_an_expired_token_is_refused(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path, one_user=None, one_password=None, one_token=TOKEN)
    assert look(source)
    server.token = "another"
    with pytest.raises(AccessRefused, match="--one-token") as caught:
        look(source)
    assert one_line_without_secrets(caught.value)
    with pytest.raises(AccessRefused):
        opened(server, tmp_path, one_user=None, one_password=None, one_token=TOKEN).check()


def test_a_token_that_expires_is_asked_for_again_where_there_is_a_password(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    before = look(source)
    server.token = "another"
    assert look(source) == before


def test_no_credentials_are_told_and_nothing_prompts(server: Alyx, tmp_path: Path) -> None:
    with pytest.raises(MissingCredentials, match="--one-user"):
        opened(server, tmp_path, one_user=None, one_password=None).check()


def test_a_data_server_that_wants_a_password_is_told(server: Alyx, tmp_path: Path) -> None:
    server.basic_auth = True
    with pytest.raises(AccessRefused, match="HTTP_DATA_SERVER_LOGIN") as caught:
        load(opened(server, tmp_path))
    assert one_line_without_secrets(caught.value)


def test_the_data_server_of_the_home_gets_its_password(server: Alyx, tmp_path: Path) -> None:
    import one.params

    opened(server, tmp_path).check()  # makes the settings of this server
    known = one.params.get(client=server.url, silent=True)
    changed = known.set("HTTP_DATA_SERVER", f"{server.url}/data").set("HTTP_DATA_SERVER_LOGIN", DATA_USER)
    one.params.save(changed.set("HTTP_DATA_SERVER_PWD", DATA_PASSWORD), server.url)
    server.basic_auth = True
    assert not [left for day in load(opened(server, tmp_path)) for left in day.left_out]


@pytest.mark.parametrize("address", ["alyx.example.org", "https://", "ftp://alyx.example.org"])
def test_an_address_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no address of an Alyx server"):
        opened(address, tmp_path).check()


# Records and files


def left_out(source: Source, session: Record) -> str:
    """Why a session is left out; it is no input, and the others are there."""
    days = load(source)
    number = f"{session['number']:03}"
    told = [left for day in days for left in day.left_out]
    assert [left.session for left in told] == [f"{day_of(session)}/{number}"]
    inputs = {day.date: day.inputs for day in days}
    assert number not in inputs[day_of(session)]
    assert count(inputs) == count(look(source)) - 1
    return told[0].reason


def test_a_record_that_says_that_no_file_exists_leaves_the_session_out(server: Alyx, tmp_path: Path) -> None:
    session, dataset = trials_of(server)
    for record in dataset["file_records"]:
        record["exists"] = False
    reason = left_out(opened(server, tmp_path), session)
    assert dataset["name"] in reason
    assert "no file" in reason


def test_a_record_whose_file_the_data_server_does_not_have_leaves_the_session_out(
    server: Alyx, mice: Path, tmp_path: Path
) -> None:
    session, dataset = trials_of(server)
    kept = dict(server.files)
    server.forget(dataset)
    source = opened(server, tmp_path)
    reason = left_out(source, session)
    assert dataset["name"] in reason
    assert "the data server no file" in reason
    server.files.update(kept)  # it comes late
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))


@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_of_other_content_than_its_record_leaves_the_session_out(
    server: Alyx, tmp_path: Path, same_size: bool
) -> None:
    session, dataset = trials_of(server)
    server.replace(dataset, b"x" * (dataset["file_size"] + (not same_size)))
    reason = left_out(opened(server, tmp_path), session)
    assert dataset["name"] in reason
    assert ("MD5" if same_size else "bytes") in reason
    assert not [path for path in files(tmp_path / "cache") if b"xxxxxxxx" in path.read_bytes()[:8]]


def test_a_file_of_the_cache_that_was_changed_is_downloaded_again(server: Alyx, mice: Path, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    load(source)
    for path in files(tmp_path / "cache"):
        if path.name.startswith("_ibl_trials."):
            path.write_bytes(path.read_bytes()[:-1])
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))


def test_a_revision_that_is_no_default_is_not_read(server: Alyx, mice: Path, tmp_path: Path) -> None:
    session, dataset = trials_of(server)
    before = look(opened(server, tmp_path))
    relative = f"{dataset['collection']}/#2099-01-01#/{dataset['name']}"
    server.add_dataset(session, relative, b"not trials", default=False)
    source = opened(server, tmp_path)
    assert look(source) == before
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))


def test_a_revision_that_becomes_the_default_is_a_change_and_is_read(server: Alyx, mice: Path, tmp_path: Path) -> None:
    session, dataset = trials_of(server)
    source = opened(server, tmp_path)
    before = look(source)
    path = next(path for name, path in server.files.items() if dataset["url"][-36:] in name)
    relative = f"{dataset['collection']}/#2099-01-01#/{dataset['name']}"
    server.add_dataset(session, relative, path)
    dataset["default_dataset"] = False
    server.replace(dataset, b"not trials")
    dataset["hash"] = "0" * 32
    after = look(source)
    assert [date for date in before if before[date] != after[date]] in ([], [day_of(session)])
    assert any("#2099-01-01#" in url for url in map(str, server.files))
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))
    assert [p for p in files(tmp_path / "cache") if "#2099-01-01#" in p.parts]


# No answer of before


def test_a_change_between_two_looks_is_seen(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    before = look(source)
    session, dataset = trials_of(server)
    dataset["hash"] = "0" * 32
    after = look(source)
    assert [date for date in before if before[date] != after[date]] == [day_of(session)]
    server.add_session(LAB, MOUSE, "2030-01-01", 1)
    assert list(look(source)) == [*before, "2030-01-01"]
    assert look(opened(server, tmp_path)) == look(source)


def test_a_look_costs_two_requests_however_many_sessions(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    source.check()
    server.requests.clear()
    assert count(look(source)) > 5
    assert [request.split("?")[0] for request in server.requests] == ["GET /sessions", "GET /datasets"]


def test_what_is_there_is_not_downloaded_again_and_nothing_twice(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    load(source)
    got = [request for request in server.requests if request.startswith("GET /data/")]
    assert len(got) == len(set(got)) == len(files(tmp_path / "cache"))
    server.requests.clear()
    load(opened(server, tmp_path))
    assert server.requests
    assert not [request for request in server.requests if request.startswith("GET /data/")]


# Downloads on disk


def test_downloads_stay_below_the_limit(server: Alyx, mice: Path, tmp_path: Path) -> None:
    load(opened(server, tmp_path / "all"))
    sizes = [path.stat().st_size for path in files(tmp_path / "all")]
    limit = sum(sizes) // 3
    source = opened(server, tmp_path / "some", cache_size=limit / 1e9)
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))
    kept = sum(path.stat().st_size for path in files(tmp_path / "some"))
    assert 0 < kept <= limit * 1.01


def test_a_download_that_is_cut_off_leaves_nothing(server: Alyx, mice: Path, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    server.faults.append(Fault(path="^/data/.*_ibl_trials", times=1, cut=True))
    with pytest.raises(TransientError) as caught:
        load(source)
    assert one_line_without_secrets(caught.value)
    whole = {path.stat().st_size for path in files(mice)}
    assert not [path for path in files(tmp_path / "cache") if path.name.startswith(".part-")]
    assert {path.stat().st_size for path in files(tmp_path / "cache")} <= whole
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))


def test_a_cache_that_cannot_be_written_is_told(server: Alyx, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(TrainingStatusError) as caught:
        load(opened(server, tmp_path))
    assert one_line_without_secrets(caught.value)


# The tables of a local cache


def write_tables(folder: Path) -> None:
    """Write the tables as one-api does; it takes a buffer of 256 MB a file for hashes, so those are put in here."""
    from iblutil.io import parquet
    from one.alf.cache import make_parquet_db

    make_parquet_db(folder)
    table, made = parquet.load(folder / "datasets.pqt")
    paths = [folder / str(eid_path) for eid_path in _paths(folder, table)]
    table["hash"] = [hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in paths]
    parquet.save(folder / "datasets.pqt", table, made)


def _paths(folder: Path, datasets: pd.DataFrame) -> list[Path]:
    sessions = pd.read_parquet(folder / "sessions.pqt")
    of = {
        str(row.Index): Path(row.lab, "Subjects", row.subject, str(row.date), f"{int(row.number):03}")
        for row in sessions.itertuples()
    }
    eids = map(str, datasets.index.get_level_values(0))
    return [of[eid] / path for eid, path in zip(eids, datasets["rel_path"], strict=True)]


@pytest.fixture
def cache(mice: Path, tmp_path: Path) -> Path:
    """A ONE cache, with tables as one-api writes them, over a copy of the tree."""
    folder = tmp_path / "one"
    shutil.copytree(mice, folder)
    write_tables(folder)
    return folder


def local(folder: Path) -> Source:
    return open_source(f"one:local:{folder}", SourceSettings())


def test_tables_from_a_local_cache_are_those_from_the_tree(cache: Path, mice: Path, tmp_path: Path) -> None:
    source, tree = local(cache), TreeSource(mice)
    source.check()
    assert source.labs() == tree.labs()
    known = pd.read_parquet(cache / "sessions.pqt").reset_index()
    eids = {f"{s.subject}/{s.date}/{int(s.number):03}": str(s.id) for s in known.itertuples()}
    for lab in source.labs()[0]:
        assert source.subjects(lab) == tree.subjects(lab)
        for subject in source.subjects(lab)[0]:
            expected = tables(tree, tmp_path / "tree", lab, subject)
            assert_same(tables(source, tmp_path / "tables", lab, subject), expected, eids)


def test_tables_that_one_keeps_from_a_server_are_read(cache: Path) -> None:
    """What `ONE.save_cache` writes after remote searches: no name of the sessions' index, fewer columns of datasets."""
    from iblutil.io import parquet

    expected = look(local(cache))
    sessions, made = parquet.load(cache / "sessions.pqt")
    parquet.save(cache / "sessions.pqt", sessions.rename_axis(index=None), made)
    datasets, made = parquet.load(cache / "datasets.pqt")
    parquet.save(cache / "datasets.pqt", datasets.drop(columns="default_revision", errors="ignore"), made)
    assert look(local(cache)) == expected


def test_a_record_of_a_local_cache_whose_file_is_gone_is_told(cache: Path) -> None:
    gone = sorted((cache / LAB / "Subjects" / MOUSE).rglob("_ibl_trials.*"))[-1]
    session = gone.relative_to(cache / LAB / "Subjects" / MOUSE).parts[:2]
    gone.unlink()
    days = load(local(cache))
    told = [left for day in days for left in day.left_out]
    assert [left.session for left in told] == ["/".join(session)]
    assert gone.name in told[0].reason
    assert "no file" in told[0].reason
    assert not any(session[1] in day.inputs for day in days if day.date == session[0])


def test_a_file_of_a_local_cache_that_is_not_as_its_record_says_is_told(cache: Path) -> None:
    other = sorted((cache / LAB / "Subjects" / MOUSE).rglob("_ibl_trials.*"))[-1]
    other.write_bytes(b"x" * other.stat().st_size)
    told = [left for day in load(local(cache)) for left in day.left_out]
    assert len(told) == 1
    assert other.name in told[0].reason
    assert "MD5" in told[0].reason


def test_a_table_that_one_passes_over_is_refused(cache: Path) -> None:
    pd.read_parquet(cache / "datasets.pqt").to_parquet(cache / "datasets.pqt")  # without the date that ONE looks for
    with pytest.raises(ConfigurationError, match=r"datasets\.pqt has .* rows, and ONE reads 0"):
        local(cache).check()


def test_tables_of_a_local_cache_that_are_written_again_are_read_again(cache: Path) -> None:
    source = local(cache)
    before = look(source)
    last = max(before)
    shutil.rmtree(cache / LAB / "Subjects" / MOUSE / last)
    write_tables(cache)
    assert list(look(source)) == [date for date in before if date != last]


@pytest.mark.parametrize("broken", ["missing", "garbled"])
def test_a_folder_without_tables_that_can_be_read_is_refused(cache: Path, broken: str) -> None:
    table = cache / "datasets.pqt"
    if broken == "missing":
        table.unlink()
    else:
        table.write_bytes(b"no table")
    with pytest.raises(ConfigurationError, match=r"datasets\.pqt|cannot be read") as caught:
        local(cache).check()
    assert one_line_without_secrets(caught.value)


# The stand-in answers as Alyx did


def recorded() -> list[Any]:
    """The answers that one-api has recorded, without the time until which they are kept."""
    folder = importlib.resources.files("one") / "tests" / "fixtures" / "rest_responses"
    answers = [json.loads(path.read_text()) for path in folder.iterdir() if not path.name.endswith(".json")]
    return [answer[0] for answer in answers]


def first_rows(pages: list[Any], *keys: str) -> list[Record]:
    """The first row of each recorded list whose rows have `keys`."""
    rows = [page["results"][0] if "results" in page else page for page in pages]
    return [row for row in rows if all(key in row for key in keys)]


def test_the_stand_in_has_the_datasets_that_alyx_has(server: Alyx) -> None:
    there = first_rows(recorded(), "file_records", "default_dataset")
    assert there
    for row in there:
        assert set(row) == set(server.datasets[0]) - {"qc", "json"}  # which Alyx 3.6.1 has beside
        assert set(row["file_records"][0]) == set(server.datasets[0]["file_records"][0])


def test_the_stand_in_has_the_labs_and_the_pages_that_alyx_has(server: Alyx, tmp_path: Path) -> None:
    import requests

    there = first_rows(recorded(), "institution", "reference_weight_pct")
    assert there
    answer = requests.get(f"{server.url}/labs", headers={"Authorization": f"Token {TOKEN}"}, timeout=10).json()
    assert set(answer) == set(next(page for page in recorded() if "results" in page))
    assert all(set(row) == set(answer["results"][0]) for row in there)


def test_the_stand_in_has_the_sessions_that_alyx_has(server: Alyx) -> None:
    """No list of sessions is recorded; what an insertion tells of its session has the same names."""
    there = first_rows(recorded(), "session_info")
    assert there
    assert set(there[0]["session_info"]) <= {*server.sessions[0], "task_protocol"}


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="TRAINING_STATUS_ONE_PASSWORD") as caught:
        open_source("one:https://someone:a-secret@alyx.example.org", SourceSettings())
    assert "a-secret" not in str(caught.value)
