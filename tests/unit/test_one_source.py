"""ONE as a source: the same tables as from the session tree, by few requests, and each file once.

A small server of ours stands in for Alyx, see `tests/alyx.py`: a real one cannot be had. It is held against the answers
that one-api has recorded. What goes wrong with lists, names, files and servers: `test_one_traps.py`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from core.config import SourceSettings
from core.errors import AccessRefused, ConfigurationError, MissingCredentials, TrainingStatusError, TransientError
from core.sources import Source, TreeSource, open_source
from core.sources.one import connect
from tests.alyx import DATA_PASSWORD, DATA_USER, PASSWORD, TOKEN, USER, Alyx, Fault, Record
from tests.one import (
    LAB,
    MOUSE,
    SETTINGS,
    TRIALS,
    assert_same,
    changed,
    count,
    dataset_of,
    day_of,
    files,
    load,
    look,
    one_line_without_secrets,
    opened,
    settings,
    tables,
    told,
)

pytestmark = pytest.mark.usefixtures("home")


# The same tables, by few requests


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


def test_a_look_costs_two_requests_however_many_sessions(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    source.check()
    server.requests.clear()
    assert count(look(source)) > 5
    assert [request.split("?")[0] for request in server.requests] == ["GET /sessions", "GET /datasets"]


def test_a_recompute_costs_no_request_a_session_beside_its_files(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    tables(source, tmp_path / "one")
    asked = [request for request in server.requests if "/data/" not in request]
    assert len(asked) < count(look(source))


def test_sessions_are_downloaded_side_by_side_by_few_connections(server: Alyx, mice: Path, tmp_path: Path) -> None:
    server.faults.append(Fault(path="^/data/", wait=0.02))
    assert_same(tables(opened(server, tmp_path), tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))
    assert 1 < server.busiest <= 8


# Who asks


def test_a_wrong_password_is_refused(server: Alyx, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--one-password") as caught:
        opened(server, tmp_path, one_password="wrong-" + PASSWORD).check()
    assert isinstance(caught.value, AccessRefused)
    assert one_line_without_secrets(caught.value)


def test_a_token_is_enough_and_is_not_written_down(server: Alyx, tmp_path: Path, home: Path) -> None:
    given = {"one_user": None, "one_password": None, "one_token": TOKEN}
    assert look(opened(server, tmp_path, **given))
    # Nothing there tells whose token it is, as on Alyx 3.6.1.
    assert connect(server.url, settings(tmp_path, **given)).get("/labs?limit=1")
    written = [path for path in home.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if TOKEN in path.read_text()]


def test_a_token_in_the_home_logs_in_and_stays_there(server: Alyx, tmp_path: Path) -> None:
    import one.params

    connect(server.url, settings(tmp_path))  # makes the home's settings
    known = one.params.get(client=server.url, silent=True)
    known = known.set("ALYX_LOGIN", USER).set("TOKEN", {USER: {"token": TOKEN}})
    one.params.save(known, server.url)
    nothing = {"one_user": None, "one_password": None}
    assert LAB in opened(server, tmp_path, **nothing).labs()[0]
    server.token = "another"
    for user in (None, USER):
        with pytest.raises(AccessRefused, match="expired or is wrong"):
            opened(server, tmp_path, one_user=user, one_password=None).check()
    assert LAB in opened(server, tmp_path).labs()[0]
    assert one.params.get(client=server.url, silent=True).TOKEN == {USER: {"token": TOKEN}}


@pytest.mark.parametrize("user", [None, USER])
def test_a_wrong_token_is_told_when_logging_in(server: Alyx, tmp_path: Path, user: str | None) -> None:
    with pytest.raises(AccessRefused, match="--one-token"):
        connect(server.url, settings(tmp_path, one_user=user, one_password=None, one_token="wrong"))


def test_an_expired_token_is_refused(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path, one_user=None, one_password=None, one_token=TOKEN)
    assert look(source)
    server.token = "another"
    with pytest.raises(AccessRefused, match="--one-token") as caught:
        look(source)
    assert one_line_without_secrets(caught.value)
    with pytest.raises(AccessRefused, match="--one-token") as caught:
        opened(server, tmp_path, one_user=None, one_password=None, one_token=TOKEN).check()
    assert one_line_without_secrets(caught.value)


def test_a_token_that_expires_is_asked_for_again_where_there_is_a_password(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    labs, before = source.labs(), look(source)
    server.token = "another"
    assert source.labs() == labs
    server.token = "a third"
    assert look(source) == before


def test_no_credentials_are_told_and_nothing_prompts(server: Alyx, tmp_path: Path) -> None:
    with pytest.raises(MissingCredentials, match="--one-user") as caught:
        opened(server, tmp_path, one_user=None, one_password=None).check()
    assert isinstance(caught.value, ConfigurationError)
    assert one_line_without_secrets(caught.value)


def test_a_data_server_that_wants_a_password_is_told(server: Alyx, tmp_path: Path) -> None:
    server.basic_auth = True
    with pytest.raises(AccessRefused, match="HTTP_DATA_SERVER_LOGIN") as caught:
        load(opened(server, tmp_path))
    assert one_line_without_secrets(caught.value)


def test_the_data_server_of_the_home_gets_its_password(server: Alyx, tmp_path: Path) -> None:
    import one.params

    opened(server, tmp_path).check()  # makes the settings of this server
    known = one.params.get(client=server.url, silent=True)
    new = known.set("HTTP_DATA_SERVER", f"{server.url}/data").set("HTTP_DATA_SERVER_LOGIN", DATA_USER)
    one.params.save(new.set("HTTP_DATA_SERVER_PWD", DATA_PASSWORD), server.url)
    server.basic_auth = True
    assert not told(load(opened(server, tmp_path)))


@pytest.mark.parametrize("address", ["alyx.example.org", "https://", "ftp://alyx.example.org"])
def test_an_address_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no address of an Alyx server"):
        opened(address, tmp_path).check()


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="TRAINING_STATUS_ONE_PASSWORD") as caught:
        open_source("one:https://someone:a-secret@alyx.example.org", SourceSettings())
    assert "a-secret" not in str(caught.value)


# What has changed


def test_a_dataset_that_is_replaced_is_a_change_and_is_read_anew(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    assert not told(load(source))
    before = look(source)
    session, dataset = dataset_of(server, SETTINGS)
    server.datasets.remove(dataset)
    server.add_dataset(session, f"{dataset['collection']}/{dataset['name']}", b"[]")
    assert changed(before, look(source)) == [day_of(session)]
    (left,) = told(load(source))
    assert "JSON" in left.reason


def test_a_revision_that_is_no_default_is_not_read(server: Alyx, mice: Path, tmp_path: Path) -> None:
    session, dataset = dataset_of(server)
    before = look(opened(server, tmp_path))
    relative = f"{dataset['collection']}/#2099-01-01#/{dataset['name']}"
    server.add_dataset(session, relative, b"not trials", default=False)
    source = opened(server, tmp_path)
    assert look(source) == before
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))


def test_a_revision_that_becomes_the_default_is_a_change_and_is_read(server: Alyx, mice: Path, tmp_path: Path) -> None:
    session, dataset = dataset_of(server)
    source = opened(server, tmp_path)
    before = look(source)
    path = next(path for name, path in server.files.items() if dataset["url"][-36:] in name)
    relative = f"{dataset['collection']}/#2099-01-01#/{dataset['name']}"
    server.add_dataset(session, relative, path)
    dataset["default_dataset"] = False
    server.replace(dataset, b"not trials")
    dataset["hash"] = "0" * 32
    assert changed(before, look(source)) in ([], [day_of(session)])
    assert any("#2099-01-01#" in url for url in map(str, server.files))
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))
    assert [p for p in files(tmp_path / "cache") if "#2099-01-01#" in p.parts]


# Downloads on disk


def test_what_is_there_is_not_downloaded_again_and_nothing_twice(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    load(source)
    got = [request for request in server.requests if request.startswith("GET /data/")]
    assert len(got) == len(set(got)) == len(files(tmp_path / "cache"))
    for again in (source, opened(server, tmp_path)):
        server.requests.clear()
        load(again)
        assert server.requests
        assert not [request for request in server.requests if request.startswith("GET /data/")]


def test_a_file_of_the_cache_that_was_changed_is_downloaded_again(server: Alyx, mice: Path, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    load(source)
    for path in files(tmp_path / "cache"):
        if path.name.startswith(TRIALS):
            path.write_bytes(path.read_bytes()[:-1])
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))


def test_downloads_stay_below_the_limit(server: Alyx, mice: Path, tmp_path: Path) -> None:
    load(opened(server, tmp_path / "all"))
    sizes = [path.stat().st_size for path in files(tmp_path / "all")]
    limit = sum(sizes) // 3
    source = opened(server, tmp_path / "some", cache_size=limit / 1e9)
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))
    kept = sum(path.stat().st_size for path in files(tmp_path / "some"))
    assert 0 < kept <= limit * 1.01


def test_a_day_that_is_larger_than_the_limit_is_read_and_then_thrown_away(server: Alyx, tmp_path: Path) -> None:
    days = load(opened(server, tmp_path, cache_size=1e-6))
    assert any(day.inputs for day in days)
    assert not told(days)
    assert sum(path.stat().st_size for path in files(tmp_path / "cache")) <= 1000


@pytest.mark.parametrize(
    "fault",
    [Fault(path=f"^/data/.*{TRIALS}", times=1, cut=True), Fault(path="^/data/", after=5, cut=True)],
    ids=["once", "from the sixth file on"],
)
def test_a_download_that_is_cut_off_leaves_nothing(server: Alyx, mice: Path, tmp_path: Path, fault: Fault) -> None:
    source = opened(server, tmp_path)
    server.faults.append(replace(fault))
    with pytest.raises(TransientError) as caught:
        load(source)
    assert one_line_without_secrets(caught.value)
    whole = {path.stat().st_size for path in files(mice)}
    assert not [path for path in files(tmp_path / "cache") if path.name.startswith(".part-")]
    assert {path.stat().st_size for path in files(tmp_path / "cache")} <= whole
    server.faults.clear()
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


@pytest.mark.parametrize("name", [TRIALS, SETTINGS])
def test_a_record_of_a_local_cache_whose_file_is_gone_is_told(cache: Path, name: str) -> None:
    gone = sorted((cache / LAB / "Subjects" / MOUSE).rglob(f"{name}*"))[-1]
    session = gone.relative_to(cache / LAB / "Subjects" / MOUSE).parts[:2]
    gone.unlink()
    days = load(local(cache))
    assert [left.session for left in told(days)] == ["/".join(session)]
    (reason,) = [left.reason for left in told(days)]
    assert gone.name in reason
    assert "ONE has a record, and no file" in reason
    assert not any(session[1] in day.inputs for day in days if day.date == session[0])


@pytest.mark.parametrize(("name", "same_size"), [(TRIALS, True), (SETTINGS, False)])
def test_a_file_of_a_local_cache_that_is_not_as_its_record_says_is_told(
    cache: Path, name: str, same_size: bool
) -> None:
    other = sorted((cache / LAB / "Subjects" / MOUSE).rglob(f"{name}*"))[-1]
    other.write_bytes(b"x" * (other.stat().st_size if same_size else 1))
    (left,) = told(load(local(cache)))
    assert other.name in left.reason
    assert "in ONE" in left.reason
    assert ("MD5" if same_size else "bytes") in left.reason


def test_tables_that_one_gathered_from_a_server_are_read(cache: Path) -> None:
    from iblutil.io import parquet

    whole = look(local(cache))
    # As one-api 3.6.1 saves what it has asked for: the index of sessions has no name, datasets say no default revision.
    sessions, made = parquet.load(cache / "sessions.pqt")
    parquet.save(cache / "sessions.pqt", sessions.rename_axis(index=None), made)
    datasets, made = parquet.load(cache / "datasets.pqt")
    parquet.save(cache / "datasets.pqt", datasets.drop(columns="default_revision", errors="ignore"), made)
    assert pd.read_parquet(cache / "sessions.pqt").index.names == [None]
    assert look(local(cache)) == whole
    assert count(whole) > 5


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

RECORDED = importlib.resources.files("one") / "tests" / "fixtures" / "rest_responses"


def recorded() -> list[Any]:
    """The answers that one-api has recorded, without the time until which they are kept."""
    answers = [json.loads(path.read_text()) for path in RECORDED.iterdir() if not path.name.endswith(".json")]
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
        for record in server.datasets[0]["file_records"]:
            assert set(row["file_records"][0]) == set(record)


def test_the_stand_in_has_the_labs_and_the_pages_that_alyx_has(server: Alyx, tmp_path: Path) -> None:
    import requests

    there = first_rows(recorded(), "institution", "reference_weight_pct")
    assert there
    answer = requests.get(f"{server.url}/labs", headers={"Authorization": f"Token {TOKEN}"}, timeout=10).json()
    assert set(answer) == set(next(page for page in recorded() if "results" in page))
    assert all(set(row) == set(answer["results"][0]) for row in there)


def test_the_stand_in_has_the_subjects_and_sessions_that_alyx_has(server: Alyx) -> None:
    """No list of them is recorded; the description of Alyx has their names, as has what an insertion tells."""
    schemas = json.loads((RECORDED / "openapiv3.json").read_text())["components"]["schemas"]
    assert set(server.subjects[0]) == set(schemas["SubjectList"]["properties"])
    assert set(server.sessions[0]) - {"url"} == set(schemas["SessionList"]["properties"])
    there = first_rows(recorded(), "session_info")
    assert there
    assert set(there[0]["session_info"]) <= {*server.sessions[0], "task_protocol"}
