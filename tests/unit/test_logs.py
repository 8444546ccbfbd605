"""What is logged: lines or JSON, what each record is about, and no secret in either."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import get_args

import pytest

from workers import logs

PASSWORD = "pass-word-7c1f"


@pytest.fixture(autouse=True)
def handlers_of_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = before, level
    logging.captureWarnings(False)


def logged(form: logs.Format) -> io.StringIO:
    stream = io.StringIO()
    logs.configure("worker", form, "INFO", stream=stream)
    return stream


def test_a_json_line_says_what_it_is_about_and_what_went_wrong() -> None:
    stream = logged("json")
    with logs.about(run="r1", task="training_status.refresh"), logs.about(lab="mylab", subject="M_1"):
        try:
            raise ValueError("bad\nvalue")
        except ValueError:
            logging.getLogger("workers.tasks").exception("it %s", "failed")
    logging.getLogger("other").info("afterwards")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert {name: first[name] for name in ("level", "message", *logs.SUBJECTS)} == {
        "level": "ERROR",
        "message": "it failed",
        "run": "r1",
        "lab": "mylab",
        "subject": "M_1",
        "task": "training_status.refresh",
    }
    assert first["service"] == "worker"
    assert first["time"].endswith("+00:00")
    assert first["error"].endswith("ValueError: bad\nvalue")
    assert second["message"] == "afterwards"
    assert not set(logs.SUBJECTS) & set(second)


def test_a_line_for_people_ends_with_what_it_is_about() -> None:
    stream = logged("lines")
    with logs.about(run="r1", lab="mylab", subject="M_1"):
        logging.getLogger("any").warning("odd")
    logging.getLogger("any").debug("not shown")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("WARNING worker MainProcess odd [run=r1 lab=mylab subject=M_1]")


@pytest.mark.parametrize(
    ("args", "known"),
    [
        (("r1", "mylab/M_1", 0), {"run": "r1", "lab": "mylab", "subject": "M_1"}),
        (("r1", 7), {"run": "r1"}),
        (({"no": "run"},), {}),
        ((), {}),
    ],
)
def test_what_a_subjects_task_logs_carries_its_subject_whatever_its_message_holds(
    args: tuple[object, ...], known: dict[str, str]
) -> None:
    stream = logged("json")
    logs.of_subject(lambda task, *args: logging.getLogger("any").info("within"))("a task", *args)
    record = json.loads(stream.getvalue())
    assert {name: record[name] for name in logs.SUBJECTS if name in record} == known


@pytest.mark.parametrize("form", get_args(logs.Format))
def test_secrets_are_cut_out(form: logs.Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_STATUS_BROKER", f"redis://:{PASSWORD}%21@host:6379/0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-secret-51aa")
    monkeypatch.setenv("TRAINING_STATUS_FLOWER_PASSWORD", "")
    stream = logged(form)
    log = logging.getLogger("any")
    log.info("to redis://:somebody-elses@host:6379/0 with %s! and %s", PASSWORD, "aws-secret-51aa")
    try:
        raise OSError(f"no way to http://user:{PASSWORD}@host/")
    except OSError:
        log.exception("failed")
    told = stream.getvalue()
    assert "redis://host:6379/0 with *** and ***" in told
    assert "http://host/" in told
    assert not [secret for secret in (PASSWORD, "aws-secret-51aa", "somebody-elses") if secret in told]


def test_an_unknown_format_is_no_option() -> None:
    from scheduler.cli.worker import worker

    (option,) = (each for each in worker.params if each.name == "log_format")
    assert option.envvar == "TRAINING_STATUS_LOG_FORMAT"
    with pytest.raises(Exception, match="'xml' is not one of 'lines', 'json'"):
        worker.make_context("worker", ["--broker", "redis://host", "--log-format", "xml"])
