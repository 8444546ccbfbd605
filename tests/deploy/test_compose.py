"""docker-compose.yml: valid, and its services, as processes with their environment, compute the tables of a tree."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from core.discover import find_labs, find_subjects
from core.pipeline import recompute_subject
from core.sources import TreeSource
from core.storage import open_store
from core.tables import COHORT_KEY, subject_keys
from scheduler.cli.options import PREFIX
from tests.deploy.compose import EXAMPLE, FILE, PROJECT, Deployment, ValueMissing, dotenv, required, resolve, used
from tests.deploy.conftest import FLOWER_PASSWORD, S3_SECRET, SECRETS, filled

OURS = ("worker", "beat", "flower")


def validated(path: Path) -> subprocess.CompletedProcess[str]:
    """Hold a file to the compose specification's JSON schema, as check-jsonschema carries it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_file_is_what_the_specification_says_before_and_after_its_variables_are_put_in(tmp_path: Path) -> None:
    resolved = tmp_path / "resolved.yml"
    resolved.write_text(yaml.safe_dump(resolve(filled(tmp_path))))
    assert validated(FILE).returncode == 0
    assert validated(resolved).returncode == 0
    broken = tmp_path / "broken.yml"
    broken.write_text(FILE.read_text().replace("healthcheck:", "health_check:"))
    refused = validated(broken)
    assert refused.returncode == 1
    assert "health_check" in refused.stdout + refused.stderr


def test_the_example_explains_every_variable_and_leaves_empty_what_must_be_set() -> None:
    example = dotenv(EXAMPLE)
    assert set(example) == used()
    assert required() == {"SESSION_TREE", "TRAINING_STATUS_STORE", "REDIS_PASSWORD", "TRAINING_STATUS_FLOWER_PASSWORD"}
    assert [name for name in required() if example[name]] == []
    lines = EXAMPLE.read_text().splitlines()
    told = [name for before, name in pairwise(lines) if before and not before.startswith("#") and "=" in name]
    # Of these pairs the comment above the first is about both.
    assert {line.partition("=")[0] for line in told} == {
        "AWS_SECRET_ACCESS_KEY",
        "TRAINING_STATUS_S3_REGION",
        "REDIS_MEMORY",
        "FLOWER_ADDRESS",
        "FLOWER_PORT",
    }


@pytest.mark.parametrize("name", sorted(required()))
def test_what_must_be_set_is_missed_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueMissing, match=rf"{name} is missing a value: set {name} in \.env"):
        resolve(filled(tmp_path, **{name: ""}))


def test_what_the_example_says_of_defaults_is_so(tmp_path: Path) -> None:
    must = {name: filled(tmp_path)[name] for name in required()}
    assert resolve({**dotenv(EXAMPLE), **must}) == resolve(must)


def test_services_are_held_as_tightly_as_they_can_be(tmp_path: Path) -> None:
    made = resolve(filled(tmp_path))
    for name, service in made["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] in ("unless-stopped", "on-failure"), name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
        assert service["logging"]["options"]["max-size"], name
        assert not service["image"].endswith(":latest"), name
        assert ":" in service["image"], name
        assert "container_name" not in service, name
        assert name == "s3" or service["user"].split(":")[0] not in ("0", "root"), name
        for volume in service.get("volumes", []):
            assert isinstance(volume, str) or volume["read_only"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert name == "bucket" or service["healthcheck"]["test"], name
    assert "ports" not in made["services"]["worker"]
    # Flower sees the runs, and neither the sessions nor the bucket.
    assert "volumes" not in made["services"]["flower"] or "/sessions" not in str(made["services"]["flower"]["volumes"])
    assert [key for key in made["services"]["flower"]["environment"] if key.startswith("AWS_")] == []


def test_no_credential_stands_in_the_file(tmp_path: Path) -> None:
    empty = dict.fromkeys(used(), "") | dict.fromkeys(required(), "given")
    environments = [service.get("environment", {}) for service in resolve(empty)["services"].values()]
    secrets = [
        value
        for environment in environments
        for key, value in environment.items()
        if "PASSWORD" in key or "SECRET" in key or key == "REDISCLI_AUTH"
    ]
    assert set(secrets) == {"", "given"}
    brokers = {environment.get("TRAINING_STATUS_BROKER") for environment in environments} - {None}
    assert brokers == {"redis://:given@redis:6379/0"}


def test_every_setting_of_ours_in_the_file_is_an_option_of_its_command(tmp_path: Path) -> None:
    from scheduler.cli.main import cli

    every = {
        "root",
        "store",
        "s3_endpoint",
        "s3_region",
        "extract",
    }  # for any command that is run in a service's environment
    for name in (*OURS, "extractor"):
        service = resolve(filled(tmp_path))["services"][name]
        command = cli.get_command(None, service["command"][0])  # type: ignore[arg-type]
        assert command is not None
        known = {parameter.envvar for parameter in command.params}
        known |= {PREFIX + option.upper() for option in every}
        given = {key for key in service["environment"] if key.startswith(PREFIX)}
        assert given - known == set(), name


def test_a_recompute_through_the_services_fills_the_bucket(deployment: Deployment, mice: Path, tmp_path: Path) -> None:
    done = deployment.run("worker", "recompute", "--json")
    assert done.code == 0, done.output
    plain = open_store(str(tmp_path))
    keys = []
    for lab in find_labs(mice)[0]:
        for subject in find_subjects(mice, lab)[0]:
            recompute_subject(TreeSource(mice), lab, subject, plain)
            keys += list(vars(subject_keys(lab, subject)).values())
    session = boto3.session.Session("try-out", S3_SECRET, region_name="us-east-1")
    client = session.client("s3", endpoint_url=f"http://127.0.0.1:{deployment.port(8333)}")
    found = {key: client.get_object(Bucket="training", Key=f"tables/{key}")["Body"].read() for key in keys}
    differing = [key for key in keys if found[key] != plain.get(key).data]  # type: ignore[union-attr]
    assert len(keys) == 16
    assert differing == []
    assert client.head_object(Bucket="training", Key=f"tables/{COHORT_KEY}")["ContentLength"] > 0
    client.close()


def test_flower_lets_in_who_knows_the_password_and_nobody_else(deployment: Deployment) -> None:
    url = f"http://127.0.0.1:{deployment.port(5555)}/workers"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=10)
    refused.value.close()
    assert refused.value.code == 401
    login = base64.b64encode(f"admin:{FLOWER_PASSWORD}".encode()).decode()
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})) as page:
        assert "celery@" in page.read().decode()


def test_health_checks_can_fail(deployment: Deployment) -> None:
    long_ago = time.time() - 3600
    os.utime(deployment.mapped("beat", "/var/lib/training-status/beat.pid"), (long_ago, long_ago))
    assert not deployment.is_healthy("beat")
    with Deployment(deployment.folder / "stopped", filled(PROJECT), profiles=("try",)) as stopped:
        assert [name for name in ("redis", "worker", "beat", "flower", "s3") if stopped.is_healthy(name)] == []


@pytest.mark.parametrize(
    ("service", "variable", "value", "told"),
    [
        ("worker", "REDIS_HOST", "[::1", "--broker (TRAINING_STATUS_BROKER)"),
        pytest.param("worker", "REDIS_PASSWORD", "wrong", "refuses its password", marks=pytest.mark.slow),
        ("worker", "WORKER_CONCURRENCY", "0", "--concurrency"),
        pytest.param("worker", "TRAINING_STATUS_LOG_FORMAT", "xml", "--log-format", marks=pytest.mark.slow),
        pytest.param("worker", "TRAINING_STATUS_S3_ENDPOINT", "s3:8333", "--s3-endpoint", marks=pytest.mark.slow),
        ("beat", "SESSION_TREE", "/no/such/tree", "--root (TRAINING_STATUS_ROOT)"),
        ("beat", "TRAINING_STATUS_STORE", "s3://no-such-bucket/tables", "--store (TRAINING_STATUS_STORE)"),
        pytest.param("beat", "TRAINING_STATUS_STORE", "https://training/tables", "--store", marks=pytest.mark.slow),
        pytest.param("beat", "AWS_SECRET_ACCESS_KEY", "wrong", "--store (TRAINING", marks=pytest.mark.slow),
        ("beat", "TRAINING_STATUS_REFRESH_AT", "0 25 * * *", "--refresh-at (TRAINING_STATUS_REFRESH_AT)"),
        pytest.param(
            "beat", "TRAINING_STATUS_RECOMPUTE_AT", "nolab=0 4 * * sun", "--recompute-at", marks=pytest.mark.slow
        ),
        ("beat", "TRAINING_STATUS_TIMEZONE", "Europe/Camelot", "--timezone (TRAINING_STATUS_TIMEZONE)"),
        ("flower", "TRAINING_STATUS_FLOWER_USER", "a:b", "--flower-user"),
    ],
)
def test_a_broken_setting_is_refused_at_the_start_in_one_line_that_names_it(
    deployment: Deployment, mice: Path, service: str, variable: str, value: str, told: str
) -> None:
    refused = broken(deployment, service, filled(mice, **{variable: value}))
    assert (refused[0], len(refused[1].splitlines())) == (2, 1), refused[1]
    assert told in refused[1]
    assert not [secret for secret in SECRETS if secret in refused[1]]


@pytest.mark.parametrize(
    ("service", "setting"),
    [
        ("worker", "TRAINING_STATUS_BROKER"),
        ("beat", "TRAINING_STATUS_ROOT"),
        ("beat", "TRAINING_STATUS_STORE"),
        ("flower", "TRAINING_STATUS_FLOWER_PASSWORD"),
    ],
)
def test_a_setting_that_is_empty_is_missed_by_name_even_where_compose_did_not(
    deployment: Deployment, service: str, setting: str
) -> None:
    ended = deployment.run(service, **{setting: ""})
    assert (ended.code, len(ended.output.splitlines())) == (2, 1), ended.output
    assert setting in ended.output


def broken(deployment: Deployment, service: str, env: dict[str, str]) -> tuple[int, str]:
    """Start a service as the deployment would with another .env; return its exit code and what it said."""
    with Deployment(deployment.folder / f"broken-{time.monotonic_ns()}", env, profiles=("try",)) as other:
        other._ports = deployment._ports  # the same Redis and S3 server
        ended = other.run(service)
    return ended.code, ended.output


# Last: they end the services.


def test_services_stop_when_told_and_what_they_logged_is_json_without_a_secret(deployment: Deployment) -> None:
    assert [deployment.stop(name) for name in (*OURS, "redis")] == [0] * (len(OURS) + 1)
    for name in OURS:
        log = deployment.log(name)
        records: list[dict[str, Any]] = [json.loads(line) for line in log.splitlines()]
        assert records, name
        assert all({"time", "level", "message"} <= record.keys() for record in records)
        assert [secret for secret in SECRETS if secret in log] == [], name
    subjects = {record.get("subject") for record in map(json.loads, deployment.log("worker").splitlines())}
    assert {"SIM01_001", "SIM02_002"} <= subjects
    assert not [secret for secret in SECRETS if secret in deployment.log("redis")]
