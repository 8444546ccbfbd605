"""Talk to an Alyx server through one-api: log in, list records, download files, with what goes wrong in our words.

Nothing prompts, nothing is read through one-api's cache of answers, no token is written to the home's ``.one``, and no
request waits for ever. Importing this imports one-api.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import one.params
import requests
from filelock import FileLock
from one.webclient import AlyxClient

from core.config import SourceSettings
from core.errors import AccessRefused, ConfigurationError, MissingCredentials, TransientError
from core.names import printable

#: Seconds to wait for a connection, and for the next piece of an answer.
TIMEOUT = (10.0, 120.0)
#: How often a request is sent again where the server is too busy, and how long each time; then the task is tried later.
_ATTEMPTS, _LONGEST_WAIT = 4, 60.0
_REFUSED = frozenset({401, 403})
_LATER = frozenset({408, 409, 425, 429})


class Client(AlyxClient):  # type: ignore[misc]
    """An Alyx client that has its credentials at hand, and waits no longer than :data:`TIMEOUT`."""

    max_retry_attempts = _ATTEMPTS
    max_retry_wait_seconds = _LONGEST_WAIT

    def __init__(self, url: str, settings: SourceSettings, cache_dir: Path) -> None:
        self._settings = settings
        super().__init__(base_url=url, silent=True, cache_rest=None, cache_dir=str(cache_dir))

    def log_in(self) -> None:
        """Log in with the token, else the password, else with what the home's ``.one`` has."""
        self.authenticate(username=self._settings.one_user, force=False)

    def authenticate(self, username: str | None = None, force: bool = False, **_: Any) -> None:
        """Log in; one-api calls this, too, where a token has expired."""
        user, token, password = self._settings.one_user, self._settings.one_token, self._settings.one_password
        if force and token and not password:
            raise AccessRefused(f"{self.base_url} refuses the token of ONE: it has expired or is wrong (--one-token)")
        token = None if force else token
        stored = user or self._par.as_dict().get("ALYX_LOGIN")
        known = self._par.as_dict().get("ALYX_PWD") or stored in (self._par.as_dict().get("TOKEN") or {})
        if not token and not (stored and (password or (known and not force))):
            raise MissingCredentials(
                f"no credentials for {self.base_url}: give --one-user and --one-password, or --one-token"
            )
        super().authenticate(
            username=user, password=None if token else password, token=token, cache_token=False, force=force
        )

    @wraps(AlyxClient._generic_request)
    def _generic_request(self, reqfunction: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # one-api gives no time-out, so a server that falls silent would hold a worker until its task is ended.
        return super()._generic_request(_timed(reqfunction), *args, **kwargs)


def connect(url: str, settings: SourceSettings) -> Client:
    """Log in to an Alyx server.

    Parameters
    ----------
    url : str
        Its address.
    settings : SourceSettings
        User with password or token; what the home's ``.one`` has where neither is given.

    Raises
    ------
    ConfigurationError
        Where the address is none, or there are no credentials.
    AccessRefused
        Where the server refuses them.
    TransientError
        Where it does not answer.
    """
    url = check_url(url)
    folder = server_folder(url, settings)
    with in_our_words(f"log in to {url}"):
        client = _client(url, settings, folder)
        client.log_in()
    return client


def check_url(url: str) -> str:
    """Return the address of a server without a slash at its end.

    Raises
    ------
    ConfigurationError
        Where it is no http address.
    """
    if not url.startswith(("http://", "https://")) or not url.split("://", 1)[1].strip("/"):
        raise ConfigurationError(f"{url!r} is no address of an Alyx server: write https://... or local:<folder>")
    return url.rstrip("/")


def cache_folder(settings: SourceSettings) -> Path:
    """Return where downloads lie."""
    if settings.cache:
        return Path(settings.cache).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "training-status"


def server_folder(url: str, settings: SourceSettings) -> Path:
    """Return where downloads from one server lie."""
    return cache_folder(settings) / str(one.params._key_from_url(url)).replace(":", "_")


@contextmanager
def in_our_words(doing: str) -> Iterator[None]:
    """Turn what one-api and the clients of HTTP raise into errors of ours, one line each."""
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else None
        told = f"cannot {doing}: the server says {status}: {_told(error)}"
        if status in _REFUSED or (status == 400 and "authentication failed" in str(error)):
            raise AccessRefused(f"{told} (--one-user, --one-password, --one-token)") from error
        if status is not None and 400 <= status < 500 and status not in _LATER:
            raise ConfigurationError(told) from error
        raise TransientError(told) from error
    except (OSError, requests.exceptions.InvalidJSONError) as error:  # requests' own errors are OSErrors
        raise TransientError(f"cannot {doing}: {_told(error)}") from error
    except (ValueError, KeyError, AssertionError) as error:  # an answer that is none of Alyx
        raise ConfigurationError(f"cannot {doing}: {_told(error)} (is it an Alyx server?)") from error


def _client(url: str, settings: SourceSettings, folder: Path) -> Client:
    """Make a client; one-api writes its settings for a server into the home's ``.one`` where there are none yet."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".one.lock"):  # its files are written in place, and read by others meanwhile
            known = one.params.iopar.as_dict(one.params.iopar.read("one/caches", {})) or {}
            if one.params._key_from_url(url) not in known.get("CLIENT_MAP", {}):
                one.params.setup(client=url, silent=True, cache_dir=str(folder), username=settings.one_user)
            return Client(url, settings, folder)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot set up ONE in {folder} and the home's .one: {_told(error)}") from error


def _timed(request: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(request, "__wrapped__"):
        return request

    @wraps(request)
    def timed(*args: Any, **kwargs: Any) -> Any:
        return request(*args, timeout=TIMEOUT, **kwargs)

    return timed


def _told(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return printable(f"{type(error).__name__}: {' '.join(lines)}"[:300]).rstrip(": ")
