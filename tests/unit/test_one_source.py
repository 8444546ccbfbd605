"""ONE as a source, against a server that answers as Alyx does, with its faults."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import one
import pandas as pd
import pyarrow.parquet as pq
import pytest
from one.alf.cache import make_parquet_db

from core.config import SourceSettings
from core.errors import AccessRefused, ConfigurationError, TransientError
from core.pipeline import recompute_subject
from core.simulation.tree import simulate
from core.sources import OneSource, Source, open_source
from core.sources.downloads import Downloads
from core.sources.one import connect
from core.storage.memory import MemoryStore
from tests.alyx import DATA_PASSWORD, DATA_USER, PASSWORD, TOKEN, USER, Alyx, Fault, alyx

LAB, SUBJECT = "simlab01", "SIM01_001"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one") / "tree"
    simulate(root, labs=1, subjects=1, days=14, seed=3)
    make_parquet_db(root, hash_files=True)
    return root


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def server(tree: Path) -> Iterator[Alyx]:
    with alyx(tree) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> SourceSettings:
    return SourceSettings(one_user=USER, one_password=PASSWORD, cache=str(tmp_path / "cache"))


def table(source: Source) -> pd.DataFrame:
    tables = recompute_subject(source, LAB, SUBJECT, MemoryStore("store"))
    return pq.read_table(io.BytesIO(tables.training)).to_pandas().drop(columns="session_path")


def loaded(source: Source) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Load everything; return the inputs by date, and the reasons of what was left out."""
    subject = source.subject(LAB, SUBJECT)
    found = subject.load(subject.sessions()[0])
    return {day.date: day.inputs for day in found if day.inputs}, [o.reason for day in found for o in day.left_out]


def test_a_tree_a_cache_and_a_server_give_one_table(tree: Path, server: Alyx, settings: SourceSettings) -> None:
    expected = table(open_source(str(tree), settings))
    assert len(expected)
    pd.testing.assert_frame_equal(table(open_source(f"one:local:{tree}", settings)), expected)
    source = open_source(f"one:{server.url}", settings)
    pd.testing.assert_frame_equal(table(source), expected)
    asked = [request for request in server.requests if "/data/" not in request]
    assert len(asked) < len(server.sessions), "no request a session"
    before = len(server.requests)
    pd.testing.assert_frame_equal(table(source), expected)
    assert not [request for request in server.requests[before:] if "/data/" in request], "downloads are kept"


def test_the_aggregate_names_sessions_by_their_identifiers(server: Alyx, settings: SourceSettings) -> None:
    tables = recompute_subject(OneSource(server.url, settings), LAB, SUBJECT, MemoryStore("store"))
    named = set(pq.read_table(io.BytesIO(tables.aggregate)).column("session").to_pylist())
    assert named
    assert named <= {session["id"] for session in server.sessions}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"one_user": USER, "one_password": "wrong"}, AccessRefused),
        ({"one_token": "expired"}, AccessRefused),
        ({}, ConfigurationError),
    ],
)
def test_wrong_credentials_are_one_line(
    server: Alyx, tmp_path: Path, given: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        OneSource(server.url, SourceSettings(cache=str(tmp_path / "c"), **given)).check()
    assert "\n" not in str(caught.value)
    assert "--one-" in str(caught.value)


def test_a_token_logs_in_and_is_not_written_down(server: Alyx, tmp_path: Path, home: Path) -> None:
    client = connect(server.url, SourceSettings(one_token=TOKEN, cache=str(tmp_path / "c")))
    assert client.get("/labs?limit=1")  # though nothing there tells whose token it is, as on Alyx 3.6.1
    assert not [path for path in home.rglob("*") if path.is_file() and TOKEN in path.read_text()]


def test_a_token_in_the_home_logs_in_and_stays_there(server: Alyx, tmp_path: Path) -> None:
    import one.params

    cache = str(tmp_path / "c")
    connect(server.url, SourceSettings(one_user=USER, one_password=PASSWORD, cache=cache))  # makes the home's settings
    known = (
        one.params.get(client=server.url, silent=True).set("ALYX_LOGIN", USER).set("TOKEN", {USER: {"token": TOKEN}})
    )
    one.params.save(known, server.url)
    assert OneSource(server.url, SourceSettings(cache=cache)).labs()[0] == [LAB]
    server.token = "another"
    for given in ({}, {"one_user": USER}):
        with pytest.raises(AccessRefused, match="expired or is wrong"):
            OneSource(server.url, SourceSettings(cache=cache, **given)).check()
    assert OneSource(server.url, SourceSettings(one_user=USER, one_password=PASSWORD, cache=cache)).labs()[0] == [LAB]
    assert one.params.get(client=server.url, silent=True).TOKEN == {USER: {"token": TOKEN}}


@pytest.mark.parametrize("given", [{"one_token": "wrong"}, {"one_token": "wrong", "one_user": USER}])
def test_a_wrong_token_is_told_when_logging_in(server: Alyx, tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(AccessRefused, match="--one-token"):
        connect(server.url, SourceSettings(cache=str(tmp_path / "c"), **given))


def test_an_expired_token_is_renewed_with_the_password(server: Alyx, settings: SourceSettings) -> None:
    source = OneSource(server.url, settings)
    assert source.labs()[0] == [LAB]
    server.token = "another"
    assert source.labs()[0] == [LAB]


def test_an_unknown_lab_is_refused_and_an_unknown_subject_absent(server: Alyx, settings: SourceSettings) -> None:
    source = OneSource(server.url, settings)
    with pytest.raises(ConfigurationError, match="no lab 'nolab'"):
        source.labs(["nolab"])
    assert source.subjects(LAB, ["nobody"]) == ([], [])
    assert source.absent([], [(LAB, "nobody"), (LAB, SUBJECT), ("nolab", "x")]) == [(LAB, "nobody")]


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(cut=True), Fault(status=429, retry_after="4000")])
def test_a_server_at_fault_is_tried_later(server: Alyx, settings: SourceSettings, fault: Fault) -> None:
    source = OneSource(server.url, settings)
    source.check()
    server.faults.append(fault)
    with pytest.raises(TransientError):
        loaded(source)
    server.faults.clear()
    assert not loaded(source)[1]


@pytest.mark.parametrize("path", ["/sessions", "/data/"])
def test_a_server_that_falls_silent_holds_nobody(
    server: Alyx, settings: SourceSettings, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    source = OneSource(server.url, settings)
    source.check()
    monkeypatch.setattr("core.sources.alyx.TIMEOUT", (5.0, 0.2))
    server.faults.append(Fault(path=path, wait=1.0))
    with pytest.raises(TransientError):
        loaded(source)


def test_a_server_that_falls_silent_at_the_login_holds_nobody(
    server: Alyx, settings: SourceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.sources.alyx.TIMEOUT", (5.0, 0.2))
    server.faults.append(Fault(path="/auth-token", wait=2.0))
    with pytest.raises(TransientError, match=r"cannot log in .*timed out"):
        connect(server.url, settings)


def test_a_busy_server_is_given_its_time(server: Alyx, settings: SourceSettings) -> None:
    server.faults += [Fault(path=p, status=429, retry_after="0", times=1) for p in ("/sessions", "/data/")]
    assert not loaded(OneSource(server.url, settings))[1]


def test_a_refusal_is_no_smaller_table(server: Alyx, settings: SourceSettings) -> None:
    server.faults.append(Fault(path="/datasets", status=403))
    with pytest.raises(AccessRefused):
        loaded(OneSource(server.url, settings))


def test_a_server_that_stops_in_the_middle_is_tried_later_and_then_whole(
    tree: Path, server: Alyx, settings: SourceSettings
) -> None:
    source = OneSource(server.url, settings)
    server.faults.append(Fault(path="/data/", cut=True, after=5))
    with pytest.raises(TransientError):
        table(source)
    server.faults.clear()
    pd.testing.assert_frame_equal(table(source), table(open_source(str(tree), settings)))


def test_missing_and_other_files_leave_their_sessions_out_until_they_are_there(
    server: Alyx, settings: SourceSettings
) -> None:
    whole, none = loaded(OneSource(server.url, settings))
    assert not none
    wanted = [d for d in server.datasets if "taskSettings" in d["name"]]
    first, second, third = wanted[0], wanted[1], wanted[2]
    kept = dict(server.files)
    server.forget(first)
    server.replace(second, b"x" * second["file_size"])
    for record in third["file_records"]:
        record["exists"] = False
    again = SourceSettings(one_user=USER, one_password=PASSWORD, cache=settings.cache + "-2")
    inputs, reasons = loaded(OneSource(server.url, again))
    assert len(reasons) == 3
    assert sum(map(len, inputs.values())) == sum(map(len, whole.values())) - 3
    assert any("MD5" in reason for reason in reasons)
    assert any("no file" in reason for reason in reasons)
    server.files.update(kept)
    for record in third["file_records"]:
        record["exists"] = True
    assert loaded(OneSource(server.url, again)) == (whole, [])


def test_a_changed_record_changes_the_fingerprint_and_is_read_anew(server: Alyx, settings: SourceSettings) -> None:
    before, _ = loaded(OneSource(server.url, settings))
    dataset = next(d for d in server.datasets if "taskSettings" in d["name"])
    server.datasets.remove(dataset)
    session = next(s for s in server.sessions if s["url"] == dataset["session"])
    server.add_dataset(session, f"{dataset['collection']}/{dataset['name']}", b"[]")
    after, reasons = loaded(OneSource(server.url, settings))
    assert before != after
    assert any("JSON" in reason for reason in reasons)


def test_every_session_of_many_is_found_though_pages_lose_rows(tmp_path: Path, settings: SourceSettings) -> None:
    with alyx() as server:
        server.add_subject("lab", "mouse")
        for day in range(1700):  # some sixty start at the same time of each of 28 days
            server.add_session("lab", "mouse", f"20{10 + day % 4}-01-{1 + day % 28:02}", day // 28 + 1)
        server.shuffled_ties = True
        by_pages = connect(server.url, settings).get("/sessions?limit=1000")
        assert len({row["id"] for row in by_pages}) < 1700, "the trap is there"
        source = OneSource(server.url, settings)
        days, odd = source.subject("lab", "mouse").sessions()
        assert sum(map(len, days.values())) == len({(s["start_time"], s["number"]) for s in server.sessions})
        assert sum(map(len, days.values())) + len(odd) == 1700
        server.wrong_count = 3
        with pytest.raises(TransientError, match="not whole"):
            source.subject("lab", "mouse").sessions()


def test_one_nickname_in_two_labs_and_names_that_look_like_numbers(settings: SourceSettings) -> None:
    with alyx() as server:
        for lab, nickname in (("a", "1234"), ("b", "1234"), ("a", "x+y")):
            server.add_subject(lab, nickname)
        server.add_session("a", "1234", "2020-01-01", 1)
        server.add_session("b", "1234", "2020-01-02", 1)
        server.add_session("a", "x+y", "2020-01-03", 1)
        source = OneSource(server.url, settings)
        assert source.subjects("a")[0] == ["1234", "x+y"]
        found = [list(source.subject(*who).sessions()[0]) for who in (("a", "1234"), ("b", "1234"), ("a", "x+y"))]
        assert found == [["2020-01-01"], ["2020-01-02"], ["2020-01-03"]]


def test_downloads_are_bounded_and_a_day_that_is_read_stays(server: Alyx, settings: SourceSettings) -> None:
    small = SourceSettings(one_user=USER, one_password=PASSWORD, cache=settings.cache, cache_size=1e-6)
    inputs, reasons = loaded(OneSource(server.url, small))
    assert inputs
    assert not reasons
    left = sum(p.stat().st_size for p in Path(str(settings.cache)).rglob("*") if p.is_file() and p.suffix != ".lock")
    assert left <= 1000


def test_a_day_that_another_process_reads_is_not_thrown_away(server: Alyx, settings: SourceSettings) -> None:
    loaded(OneSource(server.url, settings))
    cache = Path(str(settings.cache))
    read, *others = sorted(cache.glob("*/*/Subjects/*/*"))
    small = Downloads(cache, 1000)
    with Downloads(cache, 1 << 40).hold(read), small.hold(others[-1]):
        pass
    assert read.exists()
    assert not others[0].exists()


def test_datasets_beyond_a_page_are_all_found(settings: SourceSettings) -> None:
    with alyx() as server:
        server.add_subject("lab", "mouse")
        for day in range(600):
            session = server.add_session(
                "lab", "mouse", f"20{10 + day // 300}-{1 + day // 25 % 12:02}-{1 + day % 25:02}", 1
            )
            for name in ("_iblrig_taskSettings.raw.json", "_iblrig_taskData.raw.jsonable"):
                server.add_dataset(session, f"raw_behavior_data/{name}", b"{}")
        source = OneSource(server.url, settings).subject("lab", "mouse")
        inputs = source.inputs(source.sessions()[0])
        assert len(inputs) == 600
        assert len({fingerprint for day in inputs.values() for fingerprint in day.values()}) == 1, "all have two files"


def test_the_data_server_password_comes_from_one(server: Alyx, settings: SourceSettings, home: Path) -> None:
    server.basic_auth = True
    with pytest.raises(AccessRefused, match="HTTP_DATA_SERVER_LOGIN"):
        loaded(OneSource(server.url, settings))
    (file,) = [path for path in (home / ".one").iterdir() if "127.0.0.1" in path.name]
    written = json.loads(file.read_text())
    written |= {"HTTP_DATA_SERVER": f"{server.url}/data"}
    written |= {"HTTP_DATA_SERVER_LOGIN": DATA_USER, "HTTP_DATA_SERVER_PWD": DATA_PASSWORD}
    file.write_text(json.dumps(written))
    assert not loaded(OneSource(server.url, settings))[1]


def test_a_local_cache_says_what_is_missing_or_other(tree: Path, tmp_path: Path, settings: SourceSettings) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    first, second = sorted(copy.rglob("_iblrig_taskSettings*"))[:2]
    first.unlink()
    second.write_bytes(b"x")
    _, reasons = loaded(open_source(f"one:local:{copy}", settings))
    assert len(reasons) == 2
    assert all("ONE" in reason for reason in reasons)
    os.unlink(copy / "datasets.pqt")
    with pytest.raises(ConfigurationError, match=r"datasets\.pqt"):
        open_source(f"one:local:{copy}", settings).check()


def test_the_server_answers_in_the_shapes_that_one_api_recorded(server: Alyx) -> None:
    recorded = Path(one.__file__).parent / "tests/fixtures/rest_responses"
    schemas = json.loads((recorded / "openapiv3.json").read_text())["components"]["schemas"]
    answers = [json.loads(path.read_text()) for path in recorded.iterdir() if not path.suffix]
    pages = [answer[0]["results"][0] for answer in answers if isinstance(answer[0], dict) and "results" in answer[0]]
    dataset = next(row for row in pages if "file_records" in row)
    lab = next(row for row in pages if "institution" in row)
    assert server.datasets[0].keys() - {"qc", "json"} == dataset.keys()  # which Alyx 3.6.1 has beside
    assert server.datasets[0]["file_records"][1].keys() == dataset["file_records"][0].keys()
    assert next(iter(server.labs.values())).keys() == lab.keys()
    assert server.subjects[0].keys() == schemas["SubjectList"]["properties"].keys()
    assert server.sessions[0].keys() - {"url"} == schemas["SessionList"]["properties"].keys()
