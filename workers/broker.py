"""The Redis behind the broker's URL: reached, or said to be out of reach in one line without its password."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from core.errors import BrokerUnavailable, ConfigurationError

_SCHEMES = ("redis", "rediss", "redis+socket")


def connect(broker: str) -> redis.Redis:
    """Return a client of the Redis at `broker`; nothing is sent yet.

    Parameters
    ----------
    broker : str
        A broker URL as Celery takes it.

    Raises
    ------
    ConfigurationError
        Where the URL is not one of Redis.
    """
    try:
        parts = urlsplit(broker)
        scheme = parts.scheme
        parts.port  # noqa: B018  a property that refuses a bad port
    except ValueError:
        raise ConfigurationError("the broker's URL cannot be read: redis://[:password@]host:port/0 is wanted") from None
    if scheme not in _SCHEMES:
        raise ConfigurationError(f"the broker's URL begins with {scheme!r}: one of {', '.join(_SCHEMES)} is wanted")
    if {"password", "username"} & parse_qs(parts.query).keys():  # Celery would not find them there
        raise ConfigurationError("the broker's URL has its password after '?': redis://:password@host:port/0 is wanted")
    url = broker
    if scheme == "redis+socket":
        database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
        url = f"unix://{parts.netloc}{parts.path}?db={database}"
    retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=2.0), retries=6)
    try:
        client = redis.Redis.from_url(
            url,
            retry=retry,
            retry_on_error=[redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, redis.OutOfMemoryError],
            socket_timeout=10,
            socket_connect_timeout=5,
            health_check_interval=30,
        )
        client.connection_pool.make_connection()  # which reads the URL's options, and connects to nothing
    except (ValueError, TypeError, redis.RedisError):  # their texts repeat what the URL holds
        raise ConfigurationError("the broker's URL has an option or a database that is none of Redis's") from None
    return client


def without_password(broker: str) -> str:
    """Return the broker's URL for people to see: user name and password are left out."""
    parts = urlsplit(broker)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def check(client: redis.Redis, broker: str) -> None:
    """Say whether the broker answers.

    Raises
    ------
    BrokerUnavailable
        Where it does not, or refuses the password.
    """
    try:
        _greet(client)
        client.ping()
    except redis.AuthenticationError:
        raise BrokerUnavailable(f"the broker {without_password(broker)} refuses its password") from None
    except (redis.RedisError, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise BrokerUnavailable(f"the broker {without_password(broker)} does not answer: {reason}") from None


def _greet(client: redis.Redis) -> None:
    """See whether the password is right, at once: to redis-py a refusal is a lost connection, which it tries again."""
    connection: Any = client.connection_pool.make_connection()
    connection.retry = Retry(NoBackoff(), 0)
    try:
        connection.connect()
    except redis.AuthenticationError:
        raise
    except (redis.RedisError, OSError):
        return  # it may pass
    finally:
        connection.disconnect()
