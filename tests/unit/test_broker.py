"""The broker's URL: read, refused in one line, and never shown with its password."""

from __future__ import annotations

import pytest

from core.errors import BrokerUnavailable, ConfigurationError
from workers import retry
from workers.app import PRIORITIES, STAGES, TIME_LIMIT, VISIBILITY_TIMEOUT, app, priority
from workers.broker import check, connect, without_password


@pytest.mark.parametrize(
    "url",
    [
        "amqp://host",
        "redis://host:port/0",
        "localhost:6379",
        "http://user:hidden@host",
        "redis://[::1/0",
        "redis://host/0?password=hidden",
    ],
)
def test_a_url_that_is_no_redis_is_refused_in_one_line_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect(url)
    assert "\n" not in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_broker_that_does_not_answer_is_named_without_its_password() -> None:
    url = "redis://user:hidden@127.0.0.1:1/0"
    client = connect(url)
    with pytest.raises(BrokerUnavailable) as refused:
        check(client, url)
    client.close()
    assert "127.0.0.1:1" in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_the_password_is_cut_out_of_any_url() -> None:
    assert without_password("rediss://:hidden@host:6380/2") == "rediss://host:6380/2"
    assert without_password("redis+socket:///run/redis.sock?virtual_host=0") == "redis+socket:///run/redis.sock"


@pytest.mark.parametrize(
    ("url", "kind", "option"),
    [
        ("redis://host:6380/2", "Connection", {"host": "host", "port": 6380, "db": 2}),
        ("rediss://:pw@host/0", "SSLConnection", {"host": "host", "password": "pw"}),
        ("redis+socket:///run/r.sock?virtual_host=3", "UnixDomainSocketConnection", {"path": "/run/r.sock", "db": 3}),
    ],
)
def test_every_kind_of_redis_url_leads_to_its_connection(url: str, kind: str, option: dict[str, object]) -> None:
    pool = connect(url).connection_pool
    assert pool.connection_class.__name__ == kind
    assert option.items() <= pool.connection_kwargs.items()


def test_waits_grow_to_a_bound_and_differ_by_chance() -> None:
    assert [retry.delay(attempt, 1.0) for attempt in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert retry.delay(3, 0.0) == 2.0
    assert 2.0 < retry.delay(3, 0.5) < 4.0


def test_a_task_is_not_delivered_again_while_it_may_still_run() -> None:
    longest_wait = retry.delay(retry.MAX_RETRIES, 1.0)
    assert max(TIME_LIMIT, longest_wait) < VISIBILITY_TIMEOUT
    assert app.conf.broker_transport_options["visibility_timeout"] == VISIBILITY_TIMEOUT
    assert (app.conf.task_acks_late, app.conf.task_reject_on_worker_lost) == (True, True)
    assert app.conf.worker_prefetch_multiplier == 1


def test_messages_are_json_and_nothing_else() -> None:
    assert app.conf.accept_content == ["json"]
    assert {app.conf.task_serializer, app.conf.result_serializer, app.conf.event_serializer} == {"json"}


def test_every_task_has_a_priority_and_downstream_goes_first() -> None:
    import scheduler.tasks
    import workers.tasks  # noqa: F401

    ours = {name for name in app.tasks if name.startswith("training_status.")}
    assert ours == set(STAGES)
    stages = ["finish_run", "write_tables", "compute_statuses", "summarise_days", "recompute"]
    ranks = [STAGES[f"training_status.{stage}"] for stage in stages]
    assert ranks == sorted(set(ranks))
    assert scheduler.tasks.recompute.name == "training_status.recompute"


def test_all_of_a_refresh_goes_before_any_of_a_recompute() -> None:
    refreshing = {priority(task, "refresh") for task in STAGES}
    recomputing = {priority(task, "recompute") for task in STAGES}
    assert max(refreshing) < min(recomputing)
    assert refreshing | recomputing == set(PRIORITIES)
    # Every one of them has a list of its own in Redis: kombu would put it into the next lower list without a word.
    assert app.conf.broker_transport_options["priority_steps"] == list(PRIORITIES)
