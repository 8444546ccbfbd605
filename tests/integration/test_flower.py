"""Flower beside a real run: a Redis, a worker, the command, and a Chromium that looks at the pages."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from selenium import webdriver
from selenium.webdriver.common.by import By

from core.simulation.tree import simulate
from core.tables import subject_keys
from scheduler import runs
from tests.browser import chromium
from tests.flower import LOGIN, USER, answer, flower, get, tasks
from tests.processes import PASSWORD, redis_server, training_status, wait_for, worker
from tests.servers import required
from workers.broker import connect
from workers.ledger import Ledger
from workers.records import Subject, Work

WORKER = "worker@lab-server"
FAILS = "simlab01/SIM01_002"
LEFT_OUT = "simlab02/SIM02_003"
PAGES = ("/", "/workers", f"/worker/{WORKER}", "/tasks", "/broker", "/metrics", "/api/workers", "/api/tasks")
#: Where the pictures of docs/monitor.md are put, when they are made anew.
SCREENSHOTS = os.environ.get("SCREENSHOTS")


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A Flower, and the run that it has seen."""

    port: int
    broker: str
    record: Mapping[str, Any]
    logs: tuple[Path, ...]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A Flower that has seen a whole run: of six mice one fails, and one has a session that is left out."""
    folder = tmp_path_factory.mktemp("ibl", numbered=False)
    root, store = folder / "mice", folder / "tables"
    simulate(root, labs=2, subjects=3, days=12, seed=5)
    # A folder stands where the table should: no write can succeed there.
    (store / subject_keys(*FAILS.split("/")).training / "in the way").mkdir(parents=True)
    trials = sorted((root / LEFT_OUT.replace("/", "/Subjects/")).rglob("_ibl_trials.table*.pqt"))[0]
    trials.write_bytes(trials.read_bytes()[:100])
    with (
        redis_server(folder / "redis") as broker,
        flower(broker, folder) as (port, _),
        worker(broker, folder / "worker.log", env={"TRAINING_STATUS_WORKER_NAME": WORKER}),
    ):
        wait_for(lambda: WORKER in get(port, "/workers?json=1"), "Flower to see the worker")
        told = training_status("recompute", "--root", root, "--store", store, "--broker", broker, "--json")
        assert told.returncode == 1, told.stderr
        wait_for(lambda: "SUCCESS" in states(port, "finish_run"), "Flower to see the run's end")
        wait_for(lambda: {task["state"] for task in tasks(port)} == {"SUCCESS", "FAILURE"}, "the end of every task")
        record = json.loads(told.stdout)
        yield Watched(port=port, broker=broker, record=record, logs=(folder / "flower.log", folder / "worker.log"))


def states(port: int, name: str) -> list[str]:
    """Return the states of the tasks that Flower has seen by this name."""
    return [task["state"] for task in tasks(port) if task["name"] == f"training_status.{name}"]


@pytest.fixture(scope="module")
def browser(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A Chromium that has logged in, after it was refused without."""
    with required(chromium(tmp_path_factory.mktemp("chromium") / "profile")) as running:
        running.get(f"{watched.url}/tasks")
        assert "Task history" not in running.page_source
        running.get(f"{watched.url.replace('//', f'//{USER}:{LOGIN}@')}/tasks")
        assert "Task history" in running.page_source
        yield running


def rows(browser: webdriver.Chrome, table: str) -> list[list[str]]:
    """Return what the cells of a table show, without the row of one cell that says that there are no others."""
    script = """
        const rows = [...document.querySelectorAll(arguments[0])].map(row => [...row.cells]);
        return rows.filter(row => row.length > 1).map(row => row.map(cell => cell.textContent.trim()));
    """
    found: list[list[str]] = browser.execute_script(script, f"#{table} tbody tr")  # type: ignore[no-untyped-call]
    return found


def shown(browser: webdriver.Chrome, table: str, count: int, picture: str | None = None) -> list[list[str]]:
    """Wait until a table has so many rows, and return them; take a picture where one is wanted."""
    wait_for(lambda: len(rows(browser, table)) == count, f"{count} rows of {table}: {rows(browser, table)}", 20)
    if SCREENSHOTS and picture:
        browser.set_window_size(1700, 1250)
        browser.execute_script("window.scrollTo({top: 0, behavior: 'instant'})")  # type: ignore[no-untyped-call]
        browser.save_screenshot(f"{SCREENSHOTS}/{picture}.png")
    return rows(browser, table)


def test_the_tasks_page_shows_what_ran_for_whom_and_what_came_of_it(
    browser: webdriver.Chrome, watched: Watched
) -> None:
    browser.get(f"{watched.url}/tasks")
    browser.find_element(By.CSS_SELECTOR, "[data-task-state='']").click()  # it keeps what was searched for before
    browser.find_element(By.CSS_SELECTOR, "#tasks-table_length option[value='30']").click()
    found = shown(browser, "tasks-table", 20, "flower-tasks")
    headings = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, ".dataTables_scrollHead th")]
    assert headings[:4] == ["NAME", "ARGS", "STATE", "RESULT"]
    assert {row[7] for row in found} == {WORKER}
    results = {(name.removeprefix("training_status."), args): result for name, args, _, result, *_ in found}
    run_id, counts = watched.record["run_id"], watched.record["counts"]
    assert (counts["done"], counts["failed"], counts["left_out"]) == (5, 1, 1)
    assert results["recompute", f"{run_id} after the start"].startswith("6 subjects looked at; run 0 of 6")
    assert results["finish_run", run_id] == f"6 subjects: 5 done, 1 failed; {counts['sessions']} sessions, 1 left out"
    (days,) = [args for name, args in results if name == "summarise_days" and args.startswith(LEFT_OUT)]
    assert days.removeprefix(f"{LEFT_OUT} ").replace("2025-01-", "").count("..") == 1  # first..last day
    assert results["summarise_days", days].endswith(" sessions, 1 left out")
    assert " days, " in results["compute_statuses", LEFT_OUT]
    assert any("run 6 of 6, 1 failed" in result for (name, _), result in results.items() if name == "write_tables")


def test_a_subject_that_failed_is_red_with_its_reason(browser: webdriver.Chrome, watched: Watched) -> None:
    browser.get(f"{watched.url}/tasks?state=FAILURE")
    ((name, args, state, result, *_),) = shown(browser, "tasks-table", 1)
    (failed,) = watched.record["failed"]
    assert f"{failed['lab']}/{failed['subject']}" == FAILS
    assert (name, args, state, result) == ("training_status.write_tables", FAILS, "FAILURE", failed["reason"])
    cell = browser.find_element(By.CSS_SELECTOR, "#tasks-table tbody td:nth-child(4)")
    assert cell.size["width"] > 300  # a line of it is read at a glance
    assert cell.get_property("scrollWidth") <= cell.get_property("clientWidth")  # and all of it is there
    browser.get(browser.find_element(By.CSS_SELECTOR, "#tasks-table tbody a[href*='/task/']").get_attribute("href"))
    page = browser.find_element(By.TAG_NAME, "body").text
    assert failed["reason"] in page
    assert FAILS in page


def test_the_workers_page_and_the_workers_of_each_queue(browser: webdriver.Chrome, watched: Watched) -> None:
    browser.get(f"{watched.url}/workers")
    wait_for(lambda: [row[1] for row in rows(browser, "workers-table")] == ["Online"], "the list to be filled")
    ((name, _, _, processed, failed, succeeded, _),) = shown(browser, "workers-table", 1, "flower-workers")
    assert (name, int(processed), int(failed), int(succeeded)) == (WORKER, 20, 1, 19)

    def queues() -> list[list[str]]:
        browser.get(f"{watched.url}/broker")  # which waits a second for workers to answer, on a busy machine too short
        return [[queue, waiting, consumers] for queue, waiting, _, _, consumers, _ in rows(browser, "queue-table")]

    wait_for(lambda: queues() == [["training-status", "0", WORKER]], "the worker of the queue")


@pytest.mark.parametrize("login", [None, "admin:", f"admin:{LOGIN}x", f"root:{LOGIN}", "ädmin:ü", b"\xff:\xfe", b""])
def test_nothing_is_shown_without_the_password(login: str | bytes | None, watched: Watched) -> None:
    for page in (*PAGES, "/static/js/flower.js", "/logout", "/nothing-here", "/api/task/types"):
        assert answer(watched.port, page, login) == (401, "Access denied"), page
    assert answer(watched.port, "/healthcheck", login) == (200, "OK")


def test_no_page_and_no_log_tells_a_secret(watched: Watched) -> None:
    some = tasks(watched.port)[0]["uuid"]
    told = {page: get(watched.port, page) for page in (*PAGES, f"/task/{some}")}
    told |= {log.name: log.read_text() for log in watched.logs}
    assert "redis://:**@127.0.0.1" in told["/broker"]
    assert "broker_url" in told[f"/worker/{WORKER}"]  # its settings are there, without the password
    assert [name for name, text in told.items() if PASSWORD in text or LOGIN in text] == []


def test_nothing_can_be_changed_here(watched: Watched) -> None:
    for page in (f"/api/worker/shutdown/{WORKER}", "/api/task/send-task/training_status.finish_run"):
        assert answer(watched.port, page, method="POST", body='{"args": ["x"]}')[0] == 403


def test_the_metrics_say_what_the_record_says(watched: Watched) -> None:
    families = {family.name: family for family in text_string_to_metric_families(get(watched.port, "/metrics"))}
    assert "flower_worker_online" in families
    ours = {name: family for name, family in families.items() if name.startswith("training_status_")}
    assert [name for name, family in ours.items() if family.type != "gauge" or not family.documentation] == []

    def value(name: str, **labels: str) -> float:
        (found,) = [sample.value for sample in ours[f"training_status_{name}"].samples if sample.labels == labels]
        return found

    assert value("ledger_up") == 1
    assert value("open_runs", kind="recompute") == 0
    assert value("remembered_runs", kind="recompute", outcome="failed_subjects") == 1
    assert value("failed_subjects", lab="simlab01") == 1
    assert value("failed_subjects", lab="simlab02") == 0
    assert value("last_run_subjects", lab="simlab01", kind="recompute") == 3
    assert value("last_run_left_out_sessions", lab="simlab02", kind="recompute") == 1
    sessions = [value("last_run_sessions", lab=lab, kind="recompute") for lab in ("simlab01", "simlab02")]
    # The ledger counts what was summarised, the record what came into tables.
    assert min(sessions) > 0
    assert sum(sessions) > watched.record["counts"]["sessions"]
    assert value("last_run_duration_seconds", lab="simlab01", kind="recompute") >= 0


def test_a_fault_of_ours_amid_a_chain_is_red_and_loses_nothing(watched: Watched) -> None:
    client = connect(watched.broker)
    ledger, subject = Ledger(client), Subject(lab="simlab01", subject="SIM01_001")
    spec = runs.new_run(
        "recompute", source=watched.record["source"], store=watched.record["store"], subjects=("SIM01_001",)
    )
    ledger.open_run(spec)
    ledger.register(spec.run_id, [subject])
    ledger.set_planned(spec.run_id)
    ledger.begin(spec.run_id, subject, Work(pieces=(), base=None), b"no summaries")
    # By another process: this one's connections are for the broker of other tests.
    send = "from workers import app, broker, ledger, messages, records; import sys; app.configure(sys.argv[1]); "
    send += "spec = ledger.Ledger(broker.connect(sys.argv[1])).spec(sys.argv[2]); "
    send += "messages.send_statuses(spec, records.Subject.parse(sys.argv[3]))"
    subprocess.run([sys.executable, "-c", send, watched.broker, spec.run_id, str(subject)], check=True, timeout=60)
    wait_for(lambda: ledger.is_ended(spec.run_id), "the run to end")
    record = ledger.record(spec.run_id)
    assert record is not None
    reason = record["failed"][0]["reason"]
    assert reason.startswith("training_status.compute_statuses: JSONDecodeError")
    wait_for(lambda: "FAILURE" in states(watched.port, "compute_statuses"), "Flower to see it")
    told = [task["exception"] for task in tasks(watched.port) if task["name"].endswith("compute_statuses")]
    assert [text for text in told if text] == [f"Failed({reason!r})"]
    wait_for(lambda: client.hlen("unacked") == 0, "its message to be acknowledged")
    client.close()


def test_without_a_password_everybody_may_look_and_the_api_stays_shut(redis_url: str, tmp_path: Path) -> None:
    open_to_all = {"TRAINING_STATUS_FLOWER_PASSWORD": "", "TRAINING_STATUS_FLOWER_NO_PASSWORD": "1"}
    with flower(redis_url, tmp_path, **open_to_all) as (port, _):
        assert answer(port, "/tasks", None)[0] == 200
        assert "training_status_ledger_up 1.0" in answer(port, "/metrics", None)[1]
        assert answer(port, "/api/tasks", None)[0] == 401


SETTINGS = {
    "no password": ({}, "TRAINING_STATUS_FLOWER_PASSWORD"),
    "an empty password": ({"PASSWORD": ""}, "TRAINING_STATUS_FLOWER_PASSWORD"),
    "a password and none": ({"PASSWORD": LOGIN, "NO_PASSWORD": "1"}, "--flower-no-password"),
    "a password that browsers encode differently": ({"PASSWORD": "geheimnüs"}, "--flower-password"),
    "a user that ends early": ({"PASSWORD": LOGIN, "USER": "a:b"}, "--flower-user"),
    "no port": ({"PASSWORD": LOGIN, "PORT": "http"}, "--flower-port"),
    "a port that cannot be": ({"PASSWORD": LOGIN, "PORT": "70000"}, "--flower-port"),
    "no address": ({"PASSWORD": LOGIN, "ADDRESS": "192.0.2.1"}, "--flower-address"),
    "a state that is no file": ({"PASSWORD": LOGIN, "STATE": "/"}, "--flower-state"),
    "a state under a file": ({"PASSWORD": LOGIN, "STATE": "/dev/null/flower"}, "--flower-state"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_wrong_setting_is_refused_in_one_line_that_names_it(what: str, redis_url: str, tmp_path: Path) -> None:
    settings, named = SETTINGS[what]
    env = {f"TRAINING_STATUS_FLOWER_{name}": value for name, value in settings.items()}
    state = {"TRAINING_STATUS_FLOWER_STATE": str(tmp_path / "flower")}
    told = training_status("flower", "--broker", redis_url, env={**state, **env})
    assert (told.returncode, told.stderr.count("\n"), told.stdout) == (2, 1, ""), told.stderr
    assert named in told.stderr
    assert LOGIN not in told.stderr
    assert PASSWORD not in told.stderr


def test_a_port_that_is_taken_and_a_broker_that_is_not_there(redis_url: str, tmp_path: Path) -> None:
    settings = {"TRAINING_STATUS_FLOWER_PASSWORD": LOGIN, "TRAINING_STATUS_FLOWER_STATE": str(tmp_path / "flower")}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = training_status("flower", "--broker", redis_url, "--flower-port", port, env=settings)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert f"127.0.0.1:{port}" in told.stderr
    told = training_status("flower", "--broker", redis_url.replace(PASSWORD, "wrong-one"), env=settings)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "wrong-one" not in told.stderr


def test_a_state_file_that_others_can_write_is_refused(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "flower.dat").touch()
    (tmp_path / "flower.dat").chmod(0o666)
    settings = {"TRAINING_STATUS_FLOWER_PASSWORD": LOGIN, "TRAINING_STATUS_FLOWER_STATE": str(tmp_path / "flower")}
    told = training_status("flower", "--broker", redis_url, env=settings)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "--flower-state" in told.stderr
