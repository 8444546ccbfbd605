"""The training status written back to Alyx: what is sent, what is kept, and what is told where it cannot be."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.alyx_update import FIELD, Update, known_subjects, update_subjects
from core.config import SourceSettings
from core.errors import ConfigurationError, MissingCredentials
from core.pipeline import recompute_subject
from core.sources import TreeSource
from core.sources.one import connect
from core.storage import Store, open_store, update
from core.tables import COHORT_KEY, merge_cohort, read_table, subject_keys
from scheduler.cli.main import run
from tests.alyx import PASSWORD, TOKEN, USER, Alyx, Fault, alyx
from tests.processes import training_status

pytestmark = pytest.mark.usefixtures("home")

LAB, OTHER = "simlab01", "simlab02"


@pytest.fixture(scope="module")
def tables(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of two labs with two mice each; only read."""
    folder = tmp_path_factory.mktemp("tables")
    store, source = open_store(str(folder)), TreeSource(mice)
    for lab in (LAB, OTHER):
        for subject in source.subjects(lab)[0]:
            rows = recompute_subject(source, lab, subject, store)
            assert rows is not None
            done = rows.cohort
            update(store, COHORT_KEY, lambda data, done=done: merge_cohort(data, done))
    return folder


@pytest.fixture
def store(tables: Path) -> Store:
    return open_store(str(tables))


@pytest.fixture
def server(server: Alyx) -> Alyx:
    """The server, with JSON fields that somebody has filled."""
    for subject in server.subjects:
        subject["json"] = {"kept": [1, {"deep": None}], FIELD: {"old": ["2001-01-01", "x"]}}
    return server


def send(server: Alyx, store: Store, *, dry_run: bool = False, **settings: Any) -> list[Update]:
    settings = {"one_user": USER, "one_password": PASSWORD, **settings}
    subjects = known_subjects(store)
    return list(
        update_subjects(
            store, lambda: connect(server.url, SourceSettings(**settings)), subjects, dry_run=dry_run, pause=0.01
        )
    )


def first_reached(store: Store, server: Alyx, lab: str, subject: str) -> dict[str, list[str]]:
    """What the field should hold, from the aggregate table and the server's records."""
    key = subject_keys(lab, subject).aggregate
    stored = store.get(key)
    assert stored is not None
    eids = {
        (session["lab"], session["subject"], session["start_time"][:10], session["number"]): session["id"]
        for session in server.sessions
    }
    return {
        row["training_status"].replace(" ", "_"): [
            row["date"],
            eids[lab, subject, row["date"], int(row["session"].rsplit("/", 1)[1])],
        ]
        for row in read_table(stored.data, key).to_pylist()
    }


def sent(server: Alyx) -> list[str]:
    return [request for request in server.requests if request.startswith("PATCH")]


def test_each_status_goes_to_alyx_with_its_first_date_and_eid_and_other_keys_stay(store: Store, server: Alyx) -> None:
    updates = send(server, store)
    assert [(each.lab, each.subject, each.state) for each in updates] == [
        (lab, subject, "sent") for lab, subject in known_subjects(store)
    ]
    assert len(updates) == 4
    for subject in server.subjects:
        expected = first_reached(store, server, subject["lab"], subject["nickname"])
        assert subject["json"] == {"kept": [1, {"deep": None}], FIELD: expected}
        assert all(" " not in status for status in expected)
    reached = {status for subject in server.subjects for status in subject["json"][FIELD]}
    assert {"habituation", "in_training", "trained_1a"} & reached


def test_what_is_there_already_is_not_sent_again(store: Store, server: Alyx) -> None:
    send(server, store)
    before = len(sent(server))
    assert before == 4
    assert {each.state for each in send(server, store)} == {"unchanged"}
    assert len(sent(server)) == before


def test_a_dry_run_tells_what_would_be_sent_and_sends_nothing(store: Store, server: Alyx) -> None:
    updates = send(server, store, dry_run=True)
    assert {each.state for each in updates} == {"would be sent"}
    assert sent(server) == []
    for each in updates:
        assert each.criteria == first_reached(store, server, each.lab, each.subject)


@pytest.mark.parametrize("value", [None, {}])
def test_an_empty_field_is_filled(store: Store, server: Alyx, value: Any) -> None:
    server.subjects[0]["json"] = value
    send(server, store)
    assert [*server.subjects[0]["json"]] == [FIELD]


def test_a_field_that_is_no_object_is_left_alone_and_told(store: Store, server: Alyx) -> None:
    server.subjects[0]["json"] = ["a", "list"]
    updates = send(server, store)
    assert [each.state for each in updates] == ["failed", "sent", "sent", "sent"]
    assert "holds a list" in str(updates[0].reason)
    assert server.subjects[0]["json"] == ["a", "list"]


def test_eids_of_a_subject_cost_one_request(store: Store, server: Alyx) -> None:
    send(server, store, dry_run=True)
    assert len([request for request in server.requests if "/sessions?" in request]) == 4


def test_eids_that_the_table_has_are_sent_as_they_are(server: Alyx, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    name, eid = server.subjects[0]["nickname"], "4b7fbad4-f6de-43b4-9b15-c7c7ef44db4b"
    row = {"training_status": "trained 1a", "session": eid, "date": "2020-01-20"}
    buffer = BytesIO()
    pq.write_table(pa.Table.from_pylist([row]), buffer)
    store.put(subject_keys(LAB, name).aggregate, buffer.getvalue(), replaces=None)
    settings = SourceSettings(one_user=USER, one_password=PASSWORD)
    (done,) = update_subjects(store, lambda: connect(server.url, settings), [(LAB, name)], dry_run=False)
    assert (done.state, done.criteria) == ("sent", {"trained_1a": ["2020-01-20", eid]})
    assert server.subjects[0]["json"][FIELD] == done.criteria
    assert not [request for request in server.requests if "/sessions?" in request]


def test_of_two_labs_with_the_same_nickname_neither_is_written_where_the_server_cannot_tell_them(
    store: Store, server: Alyx
) -> None:
    name = server.subjects[0]["nickname"]
    twin = server.add_subject("anotherlab", name, {"whose": "another lab"})
    assert [each.state for each in send(server, store, dry_run=True)] == ["failed", *["would be sent"] * 3]
    updates = send(server, store)
    assert [each.state for each in updates] == ["failed", "sent", "sent", "sent"]
    assert f"{name!r} is a subject of several labs" in str(updates[0].reason)
    assert twin["json"] == {"whose": "another lab"}


class ById:
    """Stands in for a server that takes a subject's id in its address; records are those of a real answer."""

    def __init__(self, real: Any, records: list[dict[str, Any]]) -> None:
        self.real, self.records = real, records

    def rest(self, endpoint: str, action: str, **query: Any) -> Any:
        if action == "list":
            return self.real.rest(endpoint, action, **query)
        (record,) = [record for record in self.records if record["id"] == query["id"]]
        if action == "partial_update":
            record.update(json.loads(json.dumps(query["data"])))
        return record


def test_of_two_labs_with_the_same_nickname_the_right_one_is_written_by_its_id(store: Store, server: Alyx) -> None:
    name = server.subjects[0]["nickname"]
    twin = server.add_subject("anotherlab", name, {"whose": "another lab"})
    server.subjects.insert(0, server.subjects.pop())
    session = next(each for each in server.sessions if each["subject"] == name)
    server.add_session("anotherlab", name, session["start_time"][:10], session["number"])
    real = connect(server.url, SourceSettings(one_user=USER, one_password=PASSWORD))
    (done,) = update_subjects(store, lambda: ById(real, server.subjects), [(LAB, name)], dry_run=False)
    assert done.state == "sent"
    assert server.subjects[1]["json"][FIELD] == first_reached(store, server, LAB, name)
    assert twin["json"] == {"whose": "another lab"}


def test_a_subject_and_a_session_that_alyx_does_not_have_are_told(store: Store, server: Alyx) -> None:
    gone = server.subjects.pop(0)["nickname"]
    name = server.subjects[0]["nickname"]
    server.sessions[:] = [session for session in server.sessions if session["subject"] != name]
    updates = send(server, store)
    assert [each.state for each in updates] == ["failed", "failed", "sent", "sent"]
    assert updates[0].reason == f"Alyx has no subject {gone!r} of {LAB!r}"
    assert f"Alyx has no session {LAB}/{name}/" in str(updates[1].reason)
    assert len(sent(server)) == 2


@pytest.mark.parametrize(
    "settings", [{"one_password": "wrong-password"}, {"one_password": None, "one_token": "wrong-token"}]
)
def test_a_wrong_login_is_told_of_every_subject_without_the_secret(
    store: Store, server: Alyx, settings: dict[str, Any]
) -> None:
    updates = send(server, store, **settings)
    assert [each.state for each in updates] == ["failed"] * 4
    for each in updates:
        assert "--one-token" in str(each.reason)
        assert "wrong-" not in str(each.reason)
    assert sent(server) == []


def test_a_token_is_enough(store: Store, server: Alyx) -> None:
    assert {each.state for each in send(server, store, one_password=None, one_token=TOKEN)} == {"sent"}


def test_without_credentials_nothing_is_tried(store: Store, server: Alyx) -> None:
    with pytest.raises(MissingCredentials, match="--one-user"):
        send(server, store, one_user=None, one_password=None)


def test_a_refused_write_is_told_of_its_subject_alone(store: Store, server: Alyx) -> None:
    name = server.subjects[1]["nickname"]
    body = b'{"detail": "You do not have permission to perform this action."}'
    server.faults.append(Fault(status=403, path=f"/subjects/{name}", body=body))
    updates = send(server, store)
    assert [each.state for each in updates] == ["sent", "failed", "sent", "sent"]
    assert "403" in str(updates[1].reason)
    assert server.subjects[1]["json"]["kept"] == [1, {"deep": None}]


def test_a_server_that_fails_for_a_while_is_asked_again(store: Store, server: Alyx) -> None:
    server.faults.append(Fault(status=500, path="/subjects", times=2))
    server.faults.append(Fault(cut=True, path="/sessions", times=1))
    assert {each.state for each in send(server, store)} == {"sent"}


def test_a_write_whose_answer_is_lost_counts_as_sent(store: Store, server: Alyx) -> None:
    name = server.subjects[0]["nickname"]
    # one look at the record by its nickname comes before the write, whose answer is cut
    server.faults.append(Fault(cut=True, path=f"/subjects/{name}$", after=1, times=1))
    assert [each.state for each in send(server, store)] == ["sent"] * 4
    assert server.subjects[0]["json"][FIELD] == first_reached(store, server, LAB, name)


@pytest.mark.filterwarnings("ignore:remote results for /sessions endpoint changed:RuntimeWarning")
def test_a_list_whose_count_shrinks_between_its_pages_is_asked_for_again(store: Store, server: Alyx) -> None:
    """one-api cuts what it has to the new count, and then looks behind its end."""
    name = server.subjects[0]["nickname"]
    wanted = first_reached(store, server, LAB, name)
    date = max(date for date, _ in wanted.values())
    for number in range(100, 1100):
        server.add_session(LAB, name, date, number)
    body = json.dumps({"count": 1, "next": None, "previous": None, "results": []}).encode()
    shrinks = Fault(status=200, path="^/sessions.*offset=1000", body=body)
    server.faults.append(shrinks)
    updates = send(server, store)
    assert [each.state for each in updates] == ["failed", "sent", "sent", "sent"]
    assert f"cannot list the sessions of {LAB}/{name}: its count changed meanwhile" in str(updates[0].reason)
    shrinks.times = 1
    assert [each.state for each in send(server, store)] == ["sent", *["unchanged"] * 3]
    assert shrinks.times == 0
    assert server.subjects[0]["json"][FIELD] == wanted


def test_a_server_that_is_gone_is_told_of_every_subject(store: Store, mice: Path) -> None:
    with alyx(mice) as running:
        pass
    updates = send(running, store)
    assert [each.state for each in updates] == ["failed"] * 4
    assert all("cannot log in" in str(each.reason) for each in updates)


def test_a_server_that_falls_silent_is_given_up_after_some_subjects(store: Store, server: Alyx) -> None:
    server.faults.append(Fault(status=500, path="/subjects"))
    updates = send(server, store)
    assert [each.state for each in updates] == ["failed"] * 4
    assert str(updates[3].reason).startswith("not tried: ")
    assert not str(updates[2].reason).startswith("not tried: ")


class Meddling:
    """A real client, and somebody else who adds a key to the JSON field right after the first write."""

    def __init__(self, real: Any, server: Alyx) -> None:
        self.real, self.server, self.met = real, server, False

    def rest(self, endpoint: str, action: str, **query: Any) -> Any:
        answer = self.real.rest(endpoint, action, **query)
        if action == "partial_update" and not self.met:
            self.met = True
            self.server.subjects[0]["json"] = {"theirs": True}
        return answer


def test_who_writes_at_the_same_time_loses_nothing(store: Store, server: Alyx) -> None:
    name = server.subjects[0]["nickname"]
    real = connect(server.url, SourceSettings(one_user=USER, one_password=PASSWORD))
    (done,) = update_subjects(store, lambda: Meddling(real, server), [(LAB, name)], dry_run=False, pause=0.01)
    assert done.state == "sent"
    assert server.subjects[0]["json"] == {"theirs": True, FIELD: first_reached(store, server, LAB, name)}


def test_only_what_is_in_the_cohort_table_can_be_named(store: Store, tmp_path: Path) -> None:
    assert known_subjects(store, [OTHER]) == [each for each in known_subjects(store) if each[0] == OTHER]
    for wanted in (["nolab"], []), ([], ["nobody"]):
        with pytest.raises(ConfigurationError, match="in the cohort table"):
            known_subjects(store, *wanted)
    empty = open_store(str(tmp_path))
    with pytest.raises(ConfigurationError, match="no cohort table"):
        known_subjects(empty)


class TestCommand:
    """`training-status alyx-update`, and the option of a run."""

    @pytest.fixture
    def login(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRAINING_STATUS_ONE_USER", USER)
        monkeypatch.setenv("TRAINING_STATUS_ONE_PASSWORD", PASSWORD)

    def test_one_lab_is_sent(self, tables: Path, server: Alyx, login: None, capsys: pytest.CaptureFixture[str]) -> None:
        given = ["alyx-update", "--store", str(tables), "--alyx", server.url, "--lab", OTHER]
        assert run([*given, "--dry-run"]) == 0
        assert capsys.readouterr().out.count("alyx would be sent: simlab02/") == 2
        assert sent(server) == []
        assert run([*given, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [(each["lab"], each["state"]) for each in told] == [(OTHER, "sent")] * 2
        assert len(sent(server)) == 2

    def test_what_fails_is_listed_and_the_exit_code_says_so(
        self, tables: Path, server: Alyx, login: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        gone = server.subjects.pop(0)["nickname"]
        assert run(["alyx-update", "--store", str(tables), "--alyx", server.url]) == 1
        shown = capsys.readouterr()
        assert f"alyx failed: {LAB}/{gone}: Alyx has no subject" in shown.err
        assert shown.out.splitlines()[-1] == f"alyx {server.url}: 4 subjects: 1 failed, 3 sent"

    def test_wrong_use_is_refused(
        self, tables: Path, mice: Path, server: Alyx, login: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["alyx-update", "--store", str(tables), "--alyx", "not-an-address"]) == 2
        assert "--alyx (TRAINING_STATUS_ALYX): 'not-an-address' is no address" in capsys.readouterr().err
        given = ["refresh", "--root", str(mice), "--store", str(tables), "--alyx-update"]
        assert run(given) == 2
        assert "--alyx-update needs --alyx" in capsys.readouterr().err
        assert run([*given, "--alyx", server.url, "--no-wait", "--broker", "redis://127.0.0.1:1/0"]) == 2
        assert "--no-wait and --alyx-update exclude each other" in capsys.readouterr().err

    def test_a_run_sends_its_own_subjects_and_its_tables_do_not_depend_on_it(
        self, mice: Path, server: Alyx, tmp_path: Path
    ) -> None:
        env = {"TRAINING_STATUS_ONE_USER": USER, "TRAINING_STATUS_ONE_PASSWORD": PASSWORD}
        gone, sent_one = server.subjects.pop(0)["nickname"], server.subjects[0]["nickname"]
        given = ["--root", mice, "--store", tmp_path / "t", "--lab", LAB, "--workers", "2"]
        done = training_status("recompute", *given, "--alyx-update", "--alyx", server.url, "--json", env=env)
        assert done.returncode == 1, done.stderr
        record = json.loads(done.stdout)
        assert [(each["subject"], each["state"]) for each in record["alyx"]] == [(gone, "failed"), (sent_one, "sent")]
        assert len(sent(server)) == 1
        assert (record["counts"]["done"], record["counts"]["failed"]) == (2, 0)
        assert known_subjects(open_store(str(tmp_path / "t"))) == [(LAB, gone), (LAB, sent_one)]
