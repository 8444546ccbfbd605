"""The traps of ONE and of Alyx, one by one: none gives a smaller or another table without a word.

A small server of ours stands in for Alyx, see `tests/alyx.py`: a real one needs a database server of its own. What the
source does where all is well: `test_one_source.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from core.errors import AccessRefused, ConfigurationError, TransientError
from core.sources import Source, TreeSource
from core.sources.one import connect
from core.tables import SubjectTables
from tests.alyx import Alyx, Fault, Record, alyx
from tests.one import (
    LAB,
    MOUSE,
    OTHER,
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


# Pages lose rows, and counts are wrong


def crowd(server: Alyx, dates: Sequence[str], each: int) -> int:
    """Many sessions of one subject, all of a date at one time."""
    server.add_subject(LAB, "crowd")
    for date in dates:
        for number in range(1, each + 1):
            server.add_session(LAB, "crowd", date, number)
    server.shuffled_ties = True
    return each * len(dates)


@pytest.mark.parametrize("undated", [0, 2])
def test_pages_that_lose_ties_do_not_lose_sessions(empty: Alyx, tmp_path: Path, undated: int) -> None:
    dates = [f"2021-{month:02}-{day:02}" for month in (1, 2) for day in range(1, 23)]
    many = crowd(empty, dates, 37)
    assert many > 1000
    by_pages = connect(empty.url, settings(tmp_path)).get("/sessions?limit=1000")
    assert len({row["id"] for row in by_pages}) < many, "the trap is there"
    for number in range(undated):  # they lie between no two dates
        empty.add_session(LAB, "crowd", dates[0], 90 + number)["start_time"] = None
    empty.requests.clear()
    source = opened(empty, tmp_path)
    days, odd = source.subject(LAB, "crowd").sessions()
    assert (sum(map(len, days.values())), len(odd)) == (many, undated)
    assert len([r for r in empty.requests if r.startswith("GET /sessions")]) > 2  # pages did lose some
    empty.wrong_count = 3
    with pytest.raises(TransientError, match="not whole"):
        source.subject(LAB, "crowd").sessions()


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


def test_datasets_beyond_a_page_are_all_found(empty: Alyx, tmp_path: Path) -> None:
    empty.add_subject(LAB, MOUSE)
    for day in range(600):
        date = f"20{10 + day // 300}-{1 + day // 25 % 12:02}-{1 + day % 25:02}"
        session = empty.add_session(LAB, MOUSE, date, 1)
        for name in ("_iblrig_taskSettings.raw.json", "_iblrig_taskData.raw.jsonable"):
            empty.add_dataset(session, f"raw_behavior_data/{name}", b"{}")
    inputs = look(opened(empty, tmp_path))
    assert len(inputs) == 600
    assert len({fingerprint for day in inputs.values() for fingerprint in day.values()}) == 1, "all have two files"


# Lists that match nothing


def test_an_unknown_lab_is_refused(server: Alyx, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no lab 'nolab' in .*: it has simlab01, simlab02"):
        opened(server, tmp_path).labs(["nolab"])


def test_a_server_without_labs_is_refused(empty: Alyx, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no lab in"):
        opened(empty, tmp_path).labs()


def test_absent_subjects_are_those_without_sessions_in_a_lab_that_is_there(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    assert source.subjects(LAB, ["gone"]) == ([], [])
    assert source.absent((), [(LAB, MOUSE), (LAB, "gone"), ("nolab", "mouse")]) == [(LAB, "gone")]
    server.faults.append(Fault(status=500))
    assert source.absent((), [(LAB, "gone")]) == []


# Names


@pytest.mark.parametrize("name", [MOUSE, "1234"])
def test_a_nickname_in_two_labs_is_two_mice(server: Alyx, tmp_path: Path, name: str) -> None:
    if name != MOUSE:
        server.add_subject(LAB, name)
        server.add_session(LAB, name, "2019-01-02", 1)
    before = look(opened(server, tmp_path), LAB, name)
    assert before
    server.add_subject(OTHER, name)
    server.add_session(OTHER, name, "2019-01-01", 1)
    source = opened(server, tmp_path)
    assert look(source, LAB, name) == before
    assert list(look(source, OTHER, name)) == ["2019-01-01"]
    assert name in source.subjects(OTHER)[0]


@pytest.mark.parametrize("name", ["4581", "0042", "1.5", "true", "NR_0001-b", "x+y"])
def test_a_nickname_is_text_whatever_it_looks_like(empty: Alyx, tmp_path: Path, name: str) -> None:
    empty.add_subject(LAB, name)
    empty.add_session(LAB, name, "2021-01-01", 1)
    source = opened(empty, tmp_path)
    assert source.subjects(LAB) == ([name], [])
    assert list(look(source, LAB, name)) == ["2021-01-01"]


def test_two_sessions_of_one_date_and_number_are_told(server: Alyx, tmp_path: Path) -> None:
    session, _ = dataset_of(server)
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


# Records without files, and files that are not as their records say

either = pytest.mark.parametrize("name", [TRIALS, SETTINGS])


def left_out(source: Source, session: Record) -> str:
    """Why a session is left out; it is no input, and the others are there."""
    days = load(source)
    number = f"{session['number']:03}"
    assert [left.session for left in told(days)] == [f"{day_of(session)}/{number}"]
    inputs = {day.date: day.inputs for day in days}
    assert number not in inputs[day_of(session)]
    assert count(inputs) == count(look(source)) - 1
    return told(days)[0].reason


@either
def test_a_record_that_says_that_no_file_exists_leaves_the_session_out(
    server: Alyx, mice: Path, tmp_path: Path, name: str
) -> None:
    session, dataset = dataset_of(server, name)
    for record in dataset["file_records"]:
        record["exists"] = False
    source = opened(server, tmp_path)
    reason = left_out(source, session)
    assert dataset["name"] in reason
    assert "ONE has a record, and no file" in reason
    for record in dataset["file_records"]:  # it comes late
        record["exists"] = True
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))


@either
def test_a_record_whose_file_the_data_server_does_not_have_leaves_the_session_out(
    server: Alyx, mice: Path, tmp_path: Path, name: str
) -> None:
    session, dataset = dataset_of(server, name)
    kept = dict(server.files)
    server.forget(dataset)
    source = opened(server, tmp_path)
    reason = left_out(source, session)
    assert dataset["name"] in reason
    assert "the data server no file" in reason
    server.files.update(kept)  # it comes late
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))


@either
@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_of_other_content_than_its_record_leaves_the_session_out(
    server: Alyx, mice: Path, tmp_path: Path, name: str, same_size: bool
) -> None:
    session, dataset = dataset_of(server, name)
    kept = dict(server.files)
    server.replace(dataset, b"x" * (dataset["file_size"] + (not same_size)))
    source = opened(server, tmp_path)
    reason = left_out(source, session)
    assert dataset["name"] in reason
    assert ("MD5" if same_size else "bytes") in reason
    assert not [path for path in files(tmp_path / "cache") if b"xxxxxxxx" in path.read_bytes()[:8]]
    server.files.update(kept)
    assert_same(tables(source, tmp_path / "one"), tables(TreeSource(mice), tmp_path / "tree"))


# No answer of before


def test_a_change_between_two_looks_is_seen(server: Alyx, tmp_path: Path) -> None:
    source = opened(server, tmp_path)
    before = look(source)
    session, dataset = dataset_of(server)
    dataset["hash"] = "0" * 32
    assert changed(before, look(source)) == [day_of(session)]
    server.add_session(LAB, MOUSE, "2030-01-01", 1)
    assert list(look(source)) == [*before, "2030-01-01"]
    assert look(opened(server, tmp_path)) == look(source)


# A server that is too busy


def test_429_with_retry_after_goes_on(server: Alyx, tmp_path: Path) -> None:
    expected = look(opened(server, tmp_path))
    server.faults.append(Fault(status=429, path="^/sessions", times=1, retry_after="0"))
    server.faults.append(Fault(status=429, path="^/data/", times=1, retry_after="0"))
    source = opened(server, tmp_path)
    assert look(source) == expected
    assert not told(load(source))
    assert [fault.times for fault in server.faults] == [0, 0]


@pytest.mark.parametrize("path", ["^/sessions", "^/data/"])
def test_429_that_asks_for_an_hour_is_for_another_try(server: Alyx, tmp_path: Path, path: str) -> None:
    source = opened(server, tmp_path)
    server.faults.append(Fault(status=429, path=path, retry_after="3600"))
    with pytest.raises(TransientError, match="429"):
        load(source)
    server.faults.clear()
    assert not told(load(source))


# A server that fails, refuses, falls silent or is none


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


@pytest.mark.parametrize("path", ["^/sessions", "^/datasets"])
def test_403_is_refused(server: Alyx, tmp_path: Path, path: str) -> None:
    server.faults.append(Fault(status=403, path=path))
    with pytest.raises(AccessRefused) as caught:
        load(opened(server, tmp_path))
    assert one_line_without_secrets(caught.value)


def test_a_page_that_is_no_alyx_is_told(server: Alyx, tmp_path: Path) -> None:
    server.faults.append(Fault(status=200, path="^/labs", body=b'{"hello": "world"}'))
    with pytest.raises(ConfigurationError, match="is it an Alyx server"):
        opened(server, tmp_path).labs()


def test_a_server_that_falls_silent_at_the_login_is_transient(
    server: Alyx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import core.sources.alyx

    monkeypatch.setattr(core.sources.alyx, "TIMEOUT", (5.0, 0.2))
    server.faults.append(Fault(path="/auth-token", wait=1.5))
    with pytest.raises(TransientError, match=r"cannot log in .*timed out"):
        opened(server, tmp_path).check()


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
    assert not told(load(source))


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
