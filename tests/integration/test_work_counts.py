"""How much work a full recompute is: files opened, messages sent, requests to the store. Counts, since times are noise.

One run over four mice by a real worker with two processes, into a real S3 server. Files are counted by an audit hook in
the worker, messages by what Redis tells of its commands, requests by a proxy before the server.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from core.discover import find_files, find_sessions
from core.load import read_settings
from core.records import SessionFiles
from core.schema import TRIALS_ATTRIBUTES
from core.tables import subject_keys
from scheduler import runs
from tests.faults.proxy import S3Proxy, s3_proxy
from tests.processes import wait_for, worker
from tests.servers import aws_environment, create_bucket, required, seaweedfs
from workers.app import configure
from workers.broker import connect
from workers.ledger import Ledger

SUBJECTS = [("simlab01", "SIM01_001"), ("simlab01", "SIM01_002"), ("simlab02", "SIM02_001"), ("simlab02", "SIM02_002")]
STORE = "s3://mice/ibl"
#: A Python that finds this on its path runs it at its start; what is forked from it keeps the hook.
NOTE_OPENS = """
import os, sys

root = os.environ["NOTE_OPENS_BELOW"] + os.sep
log = os.open(os.environ["NOTE_OPENS_IN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(event, args):
    if event == "open" and not isinstance(args[0], int):
        path = os.fsdecode(args[0])
        if path.startswith(root):
            os.write(log, path.encode() + b"\\n")


sys.addaudithook(note)
"""


Requests = list[tuple[str, str]]  # method, path with its query


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What two recomputes of the four mice did."""

    opened: Counter[str]  # files of the tree, by the first
    sent: Counter[str]  # messages by task, of the first
    first: Requests
    again: Requests


@pytest.fixture(scope="module")
def counted(mice: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Counted:
    folder = tmp_path_factory.mktemp("counts")
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(NOTE_OPENS)
    opens = folder / "opens"
    with required(seaweedfs(folder / "s3")) as server, s3_proxy(server) as proxy, closing(connect(redis_url)) as client:
        client.flushall()
        create_bucket(server, "mice")
        env = {name: value for name, value in aws_environment(folder).items() if value is not None}
        env |= {"TRAINING_STATUS_S3_ENDPOINT": proxy.endpoint, "PYTHONPATH": str(folder / "hook")}
        env |= {"NOTE_OPENS_BELOW": str(mice), "NOTE_OPENS_IN": str(opens)}
        configure(redis_url)
        ledger = Ledger(client)
        with worker(redis_url, folder / "worker.log", env=env):
            with messages(client) as sent:
                first = recompute(ledger, mice, proxy)
            opened = Counter(opens.read_text().splitlines())
            again = recompute(ledger, mice, proxy)
    return Counted(opened=opened, sent=Counter(sent), first=first, again=again)


def recompute(ledger: Ledger, root: Path, proxy: S3Proxy) -> Requests:
    """Recompute all subjects, and return the requests to the store."""
    proxy.requests.clear()
    spec = runs.new_run("recompute", source=str(root), store=STORE)
    runs.start(ledger, spec)
    wait_for(lambda: ledger.is_ended(spec.run_id), "the run to end", 120)
    record = ledger.record(spec.run_id)
    assert record is not None
    assert record["counts"]["done"] == len(SUBJECTS), record
    return list(proxy.requests)


@contextmanager
def messages(client: redis.Redis) -> Iterator[list[str]]:
    """Note the tasks whose messages are put into a queue."""
    sent: list[str] = []
    ended = threading.Event()

    def listen() -> None:
        with client.monitor() as monitor:
            listening.set()
            for command in monitor.listen():
                if command["command"].startswith("ECHO the end"):
                    break
                if command["command"].upper().startswith("LPUSH"):
                    sent.extend(re.findall(r'"task\W+training_status\.(\w+)', command["command"])[:1])
        ended.set()

    listening = threading.Event()
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert listening.wait(30)
    try:
        yield sent
    finally:
        client.echo("the end")
        assert ended.wait(30), "Redis did not tell its commands"
        thread.join()


def sessions(root: Path) -> list[SessionFiles]:
    return [
        find_files(path)
        for lab, subject in SUBJECTS
        for paths in find_sessions(root, lab, subject)[0].values()
        for path in paths
    ]


def test_no_file_is_opened_twice_and_none_that_is_not_needed(mice: Path, counted: Counted) -> None:
    opened = counted.opened
    needed: set[Path] = set()
    ends: set[Path] = set()
    layouts: Counter[str] = Counter()
    for files in sessions(mice):
        needed |= {path for path in (files.description, *files.settings.values()) if path is not None}
        protocols = [read_settings(files, collection)["PYBPOD_PROTOCOL"] for collection in files.settings]
        if all("habituation" in protocol for protocol in protocols):
            layouts["habituation"] += 1
            continue
        ends |= set(files.task_data.values())
        for datasets in files.trials.values():
            layouts["table" if "table" in datasets else "arrays"] += 1
            needed |= {datasets["table"]} if "table" in datasets else {datasets[name] for name in TRIALS_ATTRIBUTES}
    assert min(layouts[kind] for kind in ("habituation", "table", "arrays")) > 0, layouts
    assert {path: times for path, times in opened.items() if times > 1} == {}
    assert {Path(path) for path in opened} - ends == needed


def test_a_subject_is_three_messages_and_a_run_two(counted: Counted) -> None:
    each = len(SUBJECTS)
    assert counted.sent == {
        "recompute": 1,
        "summarise_days": each,  # all of so short a life in one
        "compute_statuses": each,
        "write_tables": each,
        "finish_run": 1,
    }


def test_a_recompute_puts_what_has_changed_and_gets_each_object_before(counted: Counted) -> None:
    asked: Counter[tuple[str, str]] = Counter()
    for lab, subject in SUBJECTS:
        keys = subject_keys(lab, subject)
        asked.update(("GET", key) for key in vars(keys).values())
        asked["GET", keys.training] += 1  # at the look, and again before it is replaced
    assert of_subjects(counted.again) == asked
    assert of_subjects(counted.first) == asked + Counter(("PUT", key) for method, key in asked)


def of_subjects(requests: Requests) -> Counter[tuple[str, str]]:
    """Count the requests for the objects of subjects by method and key."""
    begin = STORE.removeprefix("s3:/") + "/"
    found = ((method, urlsplit(path).path.removeprefix(begin)) for method, path in requests)
    return Counter((method, key) for method, key in found if any(subject in key for _, subject in SUBJECTS))
