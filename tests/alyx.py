"""A small server that answers the few requests of Alyx that the project sends, from a session tree.

It is no Alyx: it has what the tests need, in the shapes that Alyx 3.6.1 answers, and faults that a test switches on.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import socket
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

USER, PASSWORD, TOKEN = "tester", "test-password", "0123456789abcdef"
DATA_USER, DATA_PASSWORD = "data", "data-password"

_UUID = re.compile(r"\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?=\.)")
_PAGE, _LONGEST_PAGE = 250, 1000
#: What there is below the address, as of Alyx 3.6.1; no ``/me`` for one.
_PATHS = ("auth-token", "api", "labs", "subjects", "sessions", "datasets")
_NOT_FOUND = b'<!doctype html>\n<html lang="en"><body><h1>Not Found</h1></body></html>\n'

Record = dict[str, Any]


@dataclass
class Fault:
    """What goes wrong with the requests whose path matches."""

    status: int = 0  # the answer's status; 0 where it is as ever
    path: str = ""  # regular expression that the path and query match somewhere
    times: int = -1  # how often; without end where negative
    after: int = 0  # how many such requests go well before
    retry_after: str | None = None
    wait: float = 0.0  # s before the answer
    cut: bool = False  # the connection ends in the middle of the answer
    body: bytes = b'{"detail": "a fault of the test"}'


@dataclass
class Alyx:
    """The server's records and faults; a test changes them while it runs."""

    url: str = ""
    tree: Path = Path()
    labs: dict[str, Record] = field(default_factory=dict)
    subjects: list[Record] = field(default_factory=list)
    sessions: list[Record] = field(default_factory=list)
    datasets: list[Record] = field(default_factory=list)
    files: dict[str, Path | bytes] = field(default_factory=dict)  # path of the data server -> what it sends
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)  # method, path and query of each
    token: str = TOKEN
    basic_auth: bool = False  # the data server asks for a password
    under_way: int = 0  # requests that are being answered
    busiest: int = 0  # the most that were at a time
    shuffled_ties: bool = False  # sessions that start at one time come in another order on each page
    wrong_count: int = 0  # added to the count of each list of sessions

    def add_subject(self, lab: str, nickname: str, json_field: Any = None) -> Record:
        """Add a subject, and its lab where it is new."""
        self.labs.setdefault(lab, _lab(lab))
        subject = {
            "nickname": nickname,
            "url": f"{self.url}/subjects/{nickname}",
            "id": _id("subject", lab, nickname),
            "responsible_user": USER,
            "birth_date": "2020-01-01",
            "age_weeks": 52,
            "death_date": None,
            "species": "Laboratory mouse",
            "sex": "F",
            "litter": None,
            "strain": "C57BL/6J",
            "source": None,
            "line": None,
            "projects": [],
            "session_projects": [],
            "lab": lab,
            "genotype": [],
            "description": "",
            "alive": True,
            "reference_weight": 0.0,
            "last_water_restriction": None,
            "expected_water": 0.0,
            "remaining_water": 0.0,
            "json": json_field,
        }
        self.subjects.append(subject)
        return subject

    def add_session(self, lab: str, subject: str, date: str, number: int, start: str = "10:00:00") -> Record:
        """Add a session of a subject that is there."""
        eid = _id("session", lab, subject, date, number)
        session = {
            "id": eid,
            "subject": subject,
            "start_time": f"{date}T{start}",
            "number": number,
            "lab": lab,
            "projects": [],
            "url": f"{self.url}/sessions/{eid}",
            "task_protocol": "",
        }
        self.sessions.append(session)
        return session

    def add_dataset(self, session: Record, relative: str, content: Path | bytes, *, default: bool = True) -> Record:
        """Add a dataset of a session, with its file on the data server.

        Parameters
        ----------
        session : dict
            Its record.
        relative : str
            Path within the session: collection, revision in ``#``, and name, which may have a UUID.
        content : Path or bytes
            The file.
        default : bool
            Whether it is the latest revision.
        """
        data = content.read_bytes() if isinstance(content, Path) else content
        *folders, name = _UUID.sub("", relative).split("/")
        revision = next((part.strip("#") for part in folders if part.startswith("#")), "")
        collection = "/".join(part for part in folders if not part.startswith("#"))
        place = f"{session['subject']}/{session['start_time'][:10]}/{session['number']:03}/{'/'.join([*folders, name])}"
        identifier = _id("dataset", session["id"], relative)
        stem, _, extension = name.rpartition(".")
        path = f"/{session['lab']}/Subjects/{place.removesuffix(name)}{stem}.{identifier}.{extension}"
        self.files[path] = content
        dataset = {
            "url": f"{self.url}/datasets/{identifier}",
            "name": name,
            "created_by": USER,
            "created_datetime": "2021-01-01T00:00:00",
            "dataset_type": stem,
            "data_format": extension,
            "collection": collection,
            "session": session["url"],
            "file_size": len(data),
            "hash": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "version": "1.0",
            "experiment_number": session["number"],
            "file_records": [
                {
                    "id": _id("record", identifier, "local"),
                    "data_repository": f"{session['lab']}_SR",
                    "data_repository_path": "/mnt/s0/Data/Subjects/",
                    "relative_path": place,
                    "data_url": None,
                    "exists": True,
                },
                {
                    "id": _id("record", identifier, "server"),
                    "data_repository": f"flatiron_{session['lab']}",
                    "data_repository_path": f"/{session['lab']}/Subjects/",
                    "relative_path": place,
                    "data_url": f"{self.url}/data{path}",
                    "exists": True,
                },
            ],
            "auto_datetime": "2021-01-01T00:00:00",
            "revision": revision,
            "default_dataset": default,
            "protected": 0,
            "public": 0,
            "tags": [],
            "qc": "NOT_SET",
            "json": None,
        }
        self.datasets.append(dataset)
        return dataset

    def add_tree(self, tree: Path) -> None:
        """Add what a session tree holds; of each file only the last revision is the default."""
        for folder in sorted(tree.glob("*/Subjects/*")):
            lab, subject = folder.parts[-3], folder.name
            self.add_subject(lab, subject)
            for place in sorted(path for path in folder.glob("*/*") if path.is_dir()):
                session = self.add_session(lab, subject, place.parent.name, int(place.name))
                self._add_files(session, place)

    def _add_files(self, session: Record, place: Path) -> None:
        files = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
        last: dict[str, str] = {}
        for name in files:  # "#" sorts before letters, so what lies in no revision is put first
            plain = _UUID.sub("", "/".join(part for part in name.split("/") if not part.startswith("#")))
            last[plain] = max(last.get(plain, ""), name, key=lambda path: ("#" in path, path))
        for name in files:
            self.add_dataset(session, name, place / name, default=name in last.values())

    def forget(self, dataset: Record) -> None:
        """Take a dataset's file from the data server, and leave its records."""
        self.files.pop(urlsplit(dataset["file_records"][1]["data_url"]).path.removeprefix("/data"))

    def replace(self, dataset: Record, content: bytes) -> None:
        """Send another file in a dataset's place, and leave its records."""
        self.files[urlsplit(dataset["file_records"][1]["data_url"]).path.removeprefix("/data")] = content


@contextmanager
def alyx(tree: Path | None = None, port: int = 0) -> Iterator[Alyx]:
    """Run a server on a free port of this machine, or that port, until the block ends, with the sessions of `tree`."""
    state = Alyx()
    server = _Server(("127.0.0.1", port), _handler(state))
    state.url = f"http://127.0.0.1:{server.server_port}"
    if tree is not None:
        state.tree = tree
        state.add_tree(tree)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is what some tests do."""


def _handler(state: Alyx) -> type[BaseHTTPRequestHandler]:
    counting = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body go in two pieces

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self._answer(self._get)

        def do_POST(self) -> None:
            self._answer(self._post)

        def do_PATCH(self) -> None:
            self._answer(self._patch)

        def _answer(self, method: Callable[[str, dict[str, str]], None]) -> None:
            with counting:
                state.under_way += 1
                state.busiest = max(state.busiest, state.under_way)
            try:
                self._answer_one(method)
            finally:
                with counting:
                    state.under_way -= 1

        def _answer_one(self, method: Callable[[str, dict[str, str]], None]) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append(f"{self.command} {self.path}")
            fault = _fault(state, self.path)
            self.cut = bool(fault and fault.cut)
            if fault and fault.wait:
                time.sleep(fault.wait)
            if fault and fault.status:
                headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
                self._send(fault.status, fault.body, headers=headers)
                return
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            path = unquote(parts.path)
            if path.startswith("/data/"):
                self._file(path.removeprefix("/data"))
            elif path.split("/")[1] not in _PATHS:
                self._send(404, _NOT_FOUND, "text/html; charset=utf-8")
            elif path != "/auth-token" and self.headers.get("Authorization") is None:
                self._told(403, "Authentication credentials were not provided.")
            elif path != "/auth-token" and self.headers.get("Authorization") != f"Token {state.token}":
                self._told(403, "Invalid token.")
            else:
                method(path.rstrip("/"), query)

        def _get(self, path: str, query: dict[str, str]) -> None:
            kind, _, name = path.removeprefix("/").partition("/")
            if path == "/api/schema":
                self._json(200, _schema())
            elif kind in ("labs", "subjects", "sessions", "datasets") and not name:
                self._list(kind, query)
            elif kind == "subjects":
                if found := self._subject(name):
                    self._json(200, {**found, "weighings": [], "water_administrations": []})
            elif kind == "sessions" and (found := _named(state.sessions, "id", name)):
                self._json(200, _session_detail(state, found))
            elif kind == "labs" and name in state.labs:
                self._json(200, state.labs[name])
            else:
                self._told(404, f"No {kind.capitalize().removesuffix('s')} matches the given query.")

        def _subject(self, name: str) -> Record | None:
            """Return the only subject of a nickname; else answer as Alyx does, which takes no identifier there."""
            found = [subject for subject in state.subjects if subject["nickname"] == name]
            if len(found) > 1:
                self._told(500, f"get() returned more than one Subject -- it returned {len(found)}!")
            elif not found:
                self._told(404, "No Subject matches the given query.")
            return found[0] if len(found) == 1 else None

        def _post(self, path: str, query: dict[str, str]) -> None:
            given = {name: values[-1] for name, values in parse_qs(self.body.decode()).items()}
            if path != "/auth-token":
                self._told(405, 'Method "POST" not allowed.')
            elif (given.get("username"), given.get("password")) == (USER, PASSWORD):
                self._json(200, {"token": state.token})
            else:
                told = ["Unable to log in with provided credentials."]
                self._json(400, {"non_field_errors": told, "status_code": 400})

        def _patch(self, path: str, query: dict[str, str]) -> None:
            if found := self._subject(path.removeprefix("/subjects/")):
                found.update(json.loads(self.body))
                self._json(200, {**found, "weighings": [], "water_administrations": []})

        def _list(self, kind: str, query: dict[str, str]) -> None:
            limit = min(int(query.pop("limit", _PAGE)), _LONGEST_PAGE)
            offset = int(query.pop("offset", 0))
            rows = _select(state, kind, query)
            count = len(rows)
            if kind == "sessions":
                count += state.wrong_count
                rows.sort(key=lambda row: row["start_time"] or "9999", reverse=True)
                if state.shuffled_ties and offset:  # a tie may fall on two pages, and its fellow on none
                    rows.sort(key=lambda row: row["id"])
                    rows.sort(key=lambda row: row["start_time"] or "9999", reverse=True)
            more = offset + limit < count
            following = urlencode({**query, "limit": limit, "offset": offset + limit})
            next_page = f"{state.url}/{kind}?{following}" if more else None
            page = rows[offset : offset + limit]
            self._json(200, {"count": count, "next": next_page, "previous": None, "results": page})

        def _file(self, path: str) -> None:
            wanted = "Basic " + b64encode(f"{DATA_USER}:{DATA_PASSWORD}".encode()).decode()
            if state.basic_auth and self.headers.get("Authorization") != wanted:
                self._send(401, b"", headers={"WWW-Authenticate": 'Basic realm="data"'})
            elif (content := state.files.get(path)) is None or (isinstance(content, Path) and not content.exists()):
                self._send(404, b"not found")
            else:
                data = content.read_bytes() if isinstance(content, Path) else content
                self._send(200, data, "application/octet-stream")

        def _told(self, status: int, detail: str) -> None:
            self._json(status, {"detail": detail, "status_code": status})

        def _json(self, status: int, value: Any) -> None:
            self._send(status, json.dumps(value, separators=(",", ":")).encode())

        def _send(
            self, status: int, body: bytes, kind: str = "application/json", headers: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
            if self.cut:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler


def _fault(state: Alyx, path: str) -> Fault | None:
    for fault in state.faults:
        if re.search(fault.path, path) and fault.times:
            if fault.after:
                fault.after -= 1
                continue
            fault.times -= 1
            return fault
    return None


def _select(state: Alyx, kind: str, query: dict[str, str]) -> list[Record]:
    """Return the rows that every filter lets pass; a filter that is not known lets the test fail."""
    if kind == "labs":
        rows: Sequence[Record] = list(state.labs.values())
    else:
        rows = getattr(state, kind)
    tests: list[Callable[[Record], bool]] = []
    of = {session["url"]: session for session in state.sessions}
    has_sessions = {(session["subject"], session["lab"]) for session in state.sessions}
    home = {(subject["nickname"], subject["lab"]) for subject in state.subjects}

    def value(row: Record, name: str) -> Any:
        session = of[row["session"]] if kind == "datasets" else row
        return {
            "nickname": row.get("nickname"),
            "lab": row.get("lab"),
            "lab__name": session.get("lab"),
            "subject": session.get("subject"),
            "subject__nickname": session.get("subject"),
            "subject__lab__name": session.get("lab") if (session.get("subject"), session.get("lab")) in home else None,
            "session__id": session.get("id"),
            "collection": row.get("collection"),
            "session__lab__name": session.get("lab"),
            "session__subject__nickname": session.get("subject"),
            "session__subject__lab__name": session.get("lab"),
            "start_time__date": (session.get("start_time") or "")[:10],
            "session__start_time__date": (session.get("start_time") or "")[:10],
            "name": row.get("name"),
            "default_dataset": row.get("default_dataset"),
            "actions_sessions": (row.get("nickname"), row.get("lab")) in has_sessions or None,
        }[name]

    def add(name: str, wanted: Any) -> None:
        plain, _, lookup = name.rpartition("__")
        if lookup in _LOOKUPS:
            tests.append(lambda row: _LOOKUPS[lookup](value(row, plain), wanted))
        else:
            tests.append(lambda row: value(row, name) == wanted)

    for name, text in query.items():
        if name == "django":
            parts = re.findall(r"((?:\[[^]]*\]|\([^)]*\)|[^,\[(])+)(?:,|$)", text)
            for key, wanted in zip(parts[::2], parts[1::2], strict=True):
                add(key, _django_value(wanted))
        elif name == "date_range":
            first, last = text.split(",")
            add("start_time__date__gte", first)
            add("start_time__date__lte", last)
        else:
            add(name, text)
    return [row for row in rows if all(test(row) for test in tests)]


_LOOKUPS: dict[str, Callable[[Any, Any], bool]] = {
    "in": lambda value, wanted: value in wanted,
    "gte": lambda value, wanted: value >= wanted,
    "lte": lambda value, wanted: value <= wanted,
    "isnull": lambda value, wanted: (value is None) == wanted,
    "regex": lambda value, wanted: re.search(wanted, value) is not None,
}


def _django_value(text: str) -> Any:
    """Read a value as Alyx does: what looks like a number is one, even where a name is meant."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.replace(".", "", 1).isdigit():
        return float(text)
    return ast.literal_eval(text) if text.startswith(("[", "(")) and text.endswith(("]", ")")) else text


def _named(rows: Sequence[Record], key: str, name: str) -> Record | None:
    return next((row for row in rows if row[key] == name), None)


def _session_detail(state: Alyx, session: Record) -> Record:
    related = [
        {
            "id": dataset["url"][-36:],
            "name": dataset["name"],
            "dataset_type": dataset["dataset_type"],
            "data_url": dataset["file_records"][1]["data_url"],
            "url": dataset["url"],
            "file_size": dataset["file_size"],
            "hash": dataset["hash"],
            "version": dataset["version"],
            "collection": dataset["collection"],
            "revision": dataset["revision"],
            "default_revision": str(dataset["default_dataset"]),
            "qc": "NOT_SET",
        }
        for dataset in state.datasets
        if dataset["session"] == session["url"]
    ]
    empty = ("location", "type", "end_time", "parent_session", "n_correct_trials", "n_trials", "extended_qc", "json")
    lists = ("procedures", "wateradmin_session_related", "probe_insertion", "field_of_view", "notes")
    return {
        **session,
        **dict.fromkeys(empty),
        **{name: [] for name in lists},
        "users": [USER],
        "narrative": "",
        "qc": "NOT_SET",
        "auto_datetime": "2021-01-01T00:00:00",
        "data_dataset_session_related": related,
    }


def _lab(name: str) -> Record:
    return {
        "name": name,
        "institution": "",
        "address": "",
        "timezone": "Europe/London",
        "repositories": [f"flatiron_{name}"],
        "reference_weight_pct": 0.8,
        "zscore_weight_pct": 0.0,
        "json": None,
    }


def _schema() -> Record:
    """Return the endpoints and their filters, as one-api looks them up before it sends a request by `rest`."""
    filters = ["django", "limit", "offset", "lab", "subject", "nickname", "name", "date_range"]
    parameters = [{"in": "query", "name": name} for name in filters]
    paths: Record = {f"/{kind}": {"get": {"parameters": parameters}} for kind in ("labs", "sessions", "datasets")}
    paths["/subjects"] = {"get": {"parameters": parameters}}
    one_of = {"parameters": [{"in": "path", "name": "nickname"}]}
    paths["/subjects/{nickname}"] = {"get": one_of, "patch": one_of}
    paths["/sessions/{id}"] = {"get": {"parameters": [{"in": "path", "name": "id"}]}}
    return {"openapi": "3.0.3", "paths": paths, "components": {"schemas": {}}}


def _id(*parts: Any) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(map(str, parts))))
