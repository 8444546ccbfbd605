"""Talk to an Alyx server through one-api: log in, list records, download files, with what goes wrong in our words.

Nothing prompts, nothing is read through one-api's cache of answers, no token is written to the home's ``.one``, and no
request waits for ever. Importing this imports one-api.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import date as Date
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import one.params
import requests
from filelock import FileLock
from one.webclient import AlyxClient

from core.config import SourceSettings
from core.errors import AccessRefused, ConfigurationError, MissingCredentials, TransientError
from core.names import SUBJECTS_FOLDER, check_lab, check_subject, printable
from core.sources.downloads import Downloads, cache_folder
from core.sources.one_records import Dataset, SessionRecord, difference

#: Seconds to wait for a connection, and for the next piece of an answer.
TIMEOUT = (10.0, 120.0)
#: How often a request is sent again where the server is too busy, and how long each time; then the task is tried later.
_ATTEMPTS, _LONGEST_WAIT = 4, 60.0
_REFUSED = frozenset({401, 403})
_LATER = frozenset({408, 409, 425, 429})


#: Rows a page: the most that Alyx gives.
_PAGE = 1000
#: What dates are asked for between; one step in ties that pages lose is a day.
_FIRST, _LAST = Date(1970, 1, 1), Date(2199, 12, 31)
#: Of the datasets only those that may bear on a result; the regular expression must hold neither comma nor bracket.
_NAMES = "^_ibl_trials.|^_iblrig_taskSettings.raw|^_iblrig_taskData.raw|^_ibl_experiment.description"
_CHUNK = 1 << 20
#: Sessions that one task has under way at a time, and files of each: eight connections, and no wait for each answer.
_SESSIONS_AT_ONCE, _FILES_AT_ONCE = 4, 2

Row = dict[str, Any]


class _NoFile(Exception):
    """The data server has no such file."""


class Client(AlyxClient):  # type: ignore[misc]
    """An Alyx client that has its credentials at hand, and waits no longer than :data:`TIMEOUT`."""

    max_retry_attempts = _ATTEMPTS
    max_retry_wait_seconds = _LONGEST_WAIT

    def __init__(self, url: str, settings: SourceSettings, cache_dir: Path) -> None:
        self._settings = settings
        self._token: dict[str, str] | None = None
        self._from_password = False
        super().__init__(base_url=url, silent=True, cache_rest=None, cache_dir=str(cache_dir))

    def log_in(self) -> None:
        """Log in with the token, else the password, else with what the home's ``.one`` has."""
        self.authenticate()
        if not self._from_password:  # a token says nothing until it is used
            self.get("/labs?limit=1")

    def authenticate(self, force: bool = False, **_: Any) -> None:
        """Log in; one-api calls this, too, with `force` where a token has expired.

        One-api's own way has no time-out, and asks for the owner of a token, which Alyx 3.6 does not tell.
        """
        home = self._par.as_dict()
        user = self._settings.one_user or home.get("ALYX_LOGIN")
        password = self._settings.one_password
        token = None if force else self._settings.one_token
        if not token and not password and not force:
            token = ((home.get("TOKEN") or {}).get(user) or {}).get("token")
        password = password or home.get("ALYX_PWD")
        if not token and not (user and password):
            if force:
                raise AccessRefused(
                    f"{self.base_url} refuses the token of ONE: it has expired or is wrong (--one-token)"
                )
            raise MissingCredentials(
                f"no credentials for {self.base_url}: give --one-user and --one-password, or --one-token"
            )
        self._from_password = not token
        self._token = {"token": token or self._new_token(str(user), str(password))}
        self._headers = {**self._base_headers, "Authorization": f"Token {self._token['token']}"}
        self.user = user or "whoever the token belongs to"

    def _new_token(self, user: str, password: str) -> str:
        """Ask for a token; HTTPError where the server gives none."""
        login = {"username": user, "password": password}
        answer = requests.post(f"{self.base_url}/auth-token", data=login, timeout=TIMEOUT)
        if answer.status_code == 400:
            raise AccessRefused(
                f"{self.base_url} refuses the password of the user {user!r} (--one-user, --one-password, --one-token)"
            )
        answer.raise_for_status()
        return str(answer.json()["token"])

    def _clear_token(self, username: str | None) -> None:
        """Forget the token, and leave the home's ``.one`` as it is."""
        self._token = None

    @property
    def data_server(self) -> str:
        """ONE's ``HTTP_DATA_SERVER``, from the home's ``.one``."""
        return str(self._par.HTTP_DATA_SERVER)

    def data_credentials(self, url: str) -> tuple[str, str] | None:
        """Return user and password for a file, where it lies on the data server and one is set."""
        user, password = self._par.HTTP_DATA_SERVER_LOGIN, self._par.HTTP_DATA_SERVER_PWD
        return (user, password) if user and password and url.startswith(self.data_server) else None

    @wraps(AlyxClient._generic_request)
    def _generic_request(self, reqfunction: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # one-api gives no time-out, so a server that falls silent would hold a worker until its task is ended.
        return super()._generic_request(_timed(reqfunction), *args, **kwargs)


class AlyxRecords:
    """The sessions of an Alyx server, asked for a subject at a time.

    Parameters
    ----------
    url : str
        Its address.
    settings : SourceSettings
        User with password or token, and where downloads lie.
    """

    at_once = _SESSIONS_AT_ONCE

    def __init__(self, url: str, settings: SourceSettings) -> None:
        self._url = check_url(url)
        self._settings = settings
        self._logged_in: Client | None = None
        self._data = requests.Session()  # one connection serves many files
        self._downloads = Downloads.of(settings)
        self.root = server_folder(self._url, settings)

    def check(self) -> None:
        """Log in, and ask for something: a wrong token is told only then."""
        self.labs()

    def labs(self) -> list[str]:
        """Return the names of all labs."""
        return sorted(str(row["name"]) for row in self._list("labs", {}, key="name"))

    def subjects(self, lab: str) -> list[str]:
        """Return the names of a lab's subjects that have sessions; others are breeders and the like."""
        query = {"lab": check_lab(lab), "django": "actions_sessions__isnull,False"}
        rows = self._list("subjects", query, key="id")
        return sorted({str(row["nickname"]) for row in rows if row["lab"] == lab})

    def sessions(self, lab: str, subject: str, dates: Sequence[str] | None) -> list[SessionRecord]:
        """Return a subject's sessions, of some dates or of all, with their datasets: a few requests."""
        if dates is not None and not dates:
            return []
        # A name is written as a list of one: Alyx takes what looks like a number for one, and "A,B" for one name. A
        # nickname is unique within a lab only.
        of_subject = f"subject__lab__name__in,['{check_lab(lab)}'],subject__nickname__in,['{check_subject(subject)}']"
        span = (Date.fromisoformat(min(dates)), Date.fromisoformat(max(dates))) if dates else (_FIRST, _LAST)

        def of_dates(first: Date, last: Date) -> dict[str, str]:
            # A session without a start lies between no dates: it comes where all are asked for, and is told.
            dates = {} if (first, last) == (_FIRST, _LAST) else {"date_range": f"{first},{last}"}
            return {"django": of_subject, **dates}

        rows = self._by_date("sessions", of_dates, "id", span)
        of_sessions = f"session__{of_subject.replace(',subject__', ',session__subject__')}"
        found: dict[str, list[Dataset]] = {}
        for row in self._by_date(
            "datasets",
            lambda first, last: {
                "django": f"{of_sessions},name__regex,{_NAMES},"
                f"session__start_time__date__gte,{first},session__start_time__date__lte,{last}"
            },
            "url",
            span,
        ):
            found.setdefault(str(row["session"])[-36:], []).append(self._dataset(row))
        records = [_session(row).with_datasets(found.get(row["id"], ())) for row in rows]
        return [record for record in records if dates is None or record.date in dates]

    def raw(self, record: SessionRecord, collections: Sequence[str]) -> list[Dataset]:
        """Return all files of some raw collections of a session: one request."""
        query = f"session__id,{record.eid},collection__in,{list(collections)}"
        datasets = map(self._dataset, self._list("datasets", {"django": query}, key="url"))
        return [dataset for dataset in datasets if dataset.default]

    def hold(self, folder: Path) -> AbstractContextManager[None]:
        """Keep the downloads of a day where they are while the block runs."""
        return self._downloads.hold(folder)

    def provide(self, folder: Path, datasets: Sequence[Dataset]) -> str | None:
        """Download what is not there yet, some files at a time, and check all of it by its size and hash."""
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            return next(filter(None, pool.map(partial(self._provide, folder), datasets)), None)

    def _provide(self, folder: Path, dataset: Dataset) -> str | None:
        if not dataset.exists or dataset.url is None:
            return f"{dataset.path}: ONE has a record, and no file"
        try:
            wrong = self._downloads.provide(
                folder / dataset.path, partial(difference, dataset), partial(self._download, dataset.url)
            )
        except _NoFile:
            return f"{dataset.path}: ONE has a record, and the data server no file"
        return wrong and f"{dataset.path} differs from its record in ONE: {wrong}"

    @property
    def _client(self) -> Client:
        if self._logged_in is None:  # in the process that uses it, not in the one that it was forked from
            self._logged_in = connect(self._url, self._settings)
        return self._logged_in

    def _list(self, kind: str, query: dict[str, str], key: str) -> list[Row]:
        """Return all rows of a list; TransientError where pages do not add up to what the server counts."""
        count, rows = self._pages(kind, query, key)
        if len(rows) != count:
            raise TransientError(_incomplete(self._url, kind, count, len(rows)))
        return list(rows.values())

    def _by_date(
        self, kind: str, query: Callable[[Date, Date], dict[str, str]], key: str, span: tuple[Date, Date]
    ) -> list[Row]:
        """Return all rows between two dates; where pages have lost some, by asking for the halves.

        Alyx orders sessions by their start alone, so that those of one time may fall on two pages or on none.
        """
        first, last = span
        count, rows = self._pages(kind, query(first, last), key)
        if len(rows) == count:
            return list(rows.values())
        if count <= _PAGE or first == last:  # no page can have lost them
            raise TransientError(_incomplete(self._url, kind, count, len(rows)))
        middle = self._middle(kind, rows, first, last)
        undated = [row for row in rows.values() if kind == "sessions" and not row["start_time"]]
        halves = [
            *undated,
            *self._by_date(kind, query, key, (first, middle)),
            *self._by_date(kind, query, key, (middle + timedelta(days=1), last)),
        ]
        if len(halves) != count:
            raise TransientError(_incomplete(self._url, kind, count, len(halves)))
        return halves

    def _middle(self, kind: str, rows: dict[str, Row], first: Date, last: Date) -> Date:
        """Return a date that has about half of the rows up to it, and leaves a day after it."""
        if kind == "sessions":
            dates = sorted(str(row["start_time"])[:10] for row in rows.values() if row["start_time"])
        else:
            dates = sorted(date for row in rows.values() if (date := _date_of(row)))
        middle = Date.fromisoformat(dates[len(dates) // 2]) if dates else first + (last - first) // 2
        return max(first, min(middle, last - timedelta(days=1)))

    def _pages(self, kind: str, query: dict[str, str], key: str) -> tuple[int, dict[str, Row]]:
        """Return how many rows the server counts, and the distinct ones of all pages."""
        rows: dict[str, Row] = {}
        count, at = 0, 0
        while True:
            with in_our_words(f"list {kind} of {self._url}"):
                page = self._client.get(f"/{kind}?{urlencode({**query, 'limit': _PAGE, 'offset': at})}")
                whole = isinstance(page, list)
                got = page if whole else [page[place] for place in range(page.limit)]
                rows.update((str(row[key]), row) for row in got)
            count = max(count, at + len(got) if whole else page.count)
            at += len(got)
            if at >= count or not got:
                return count, rows

    def _dataset(self, row: Row) -> Dataset:
        records = [record for record in row["file_records"] if record["exists"] and record["data_url"]]
        parts = [row["collection"], f"#{row['revision']}#" if row["revision"] else "", row["name"]]
        return Dataset(
            path="/".join(part for part in parts if part),
            size=row["file_size"],
            hash=row["hash"] or None,
            url=self._address([record["data_url"] for record in records]),
            exists=bool(records),
            default=row["default_dataset"] is not False,
            stamp=str(row.get("auto_datetime") or ""),
        )

    def _address(self, urls: Sequence[str]) -> str | None:
        """Return where a file is downloaded from: ONE's data server, where the home's ``.one`` names one."""
        server = str(self._client.data_server)
        if not urls:
            return None
        if (there := next((url for url in urls if url.startswith(server)), None)) or server == _default_data_server():
            return there or urls[0]
        lab_on = urlsplit(urls[0], allow_fragments=False).path.split("/")
        at = lab_on.index(SUBJECTS_FOLDER) - 1 if SUBJECTS_FOLDER in lab_on else 1
        return f"{server.rstrip('/')}/{'/'.join(lab_on[at:])}"

    def _download(self, url: str) -> Iterator[bytes]:
        """Yield a file in pieces; the data server's password goes to the data server alone."""
        parts = urlsplit(url, allow_fragments=False)
        address = parts._replace(path=quote(parts.path)).geturl()  # revisions have "#" in their folders' names
        with in_our_words(f"download {url}", "HTTP_DATA_SERVER_LOGIN and HTTP_DATA_SERVER_PWD of ONE, in ~/.one"):
            yield from _pieces(self._data, address, self._client.data_credentials(url))


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
    if "@" in urlsplit(url).netloc:  # it would stand in the run's record, for all to read; so it is not repeated either
        raise ConfigurationError(
            "the address of an Alyx server holds no user or password: give them by TRAINING_STATUS_ONE_USER and "
            "TRAINING_STATUS_ONE_PASSWORD"
        )
    return url.rstrip("/")


def server_folder(url: str, settings: SourceSettings) -> Path:
    """Return where downloads from one server lie."""
    return cache_folder(settings) / str(one.params._key_from_url(url)).replace(":", "_")


@contextmanager
def in_our_words(doing: str, settings: str = "--one-user, --one-password, --one-token") -> Iterator[None]:
    """Turn what one-api and the clients of HTTP raise into errors of ours, one line each.

    Parameters
    ----------
    doing : str
        What is being tried.
    settings : str
        What to look at where the server refuses.
    """
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else None
        told = f"cannot {doing}: the server says {status}: {_told(error)}"
        if status in _REFUSED:
            raise AccessRefused(f"{told} ({settings})") from error
        if status is not None and 400 <= status < 500 and status not in _LATER:
            raise ConfigurationError(told) from error
        raise TransientError(told) from error
    except (OSError, requests.exceptions.InvalidJSONError) as error:  # requests' own errors are OSErrors
        raise TransientError(f"cannot {doing}: {_told(error)}") from error
    except IndexError as error:  # one-api cuts its list where the count has shrunk between two pages
        raise TransientError(f"cannot {doing}: its count changed meanwhile: the list is not whole") from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:  # an answer that is none of Alyx
        raise ConfigurationError(f"cannot {doing}: {_told(error)} (is it an Alyx server?)") from error


def _pieces(session: requests.Session, url: str, credentials: tuple[str, str] | None) -> Iterator[bytes]:
    """Yield a file in pieces; where the server is too busy, wait as long as it says, within bounds."""
    for attempt in range(_ATTEMPTS):
        with session.get(url, stream=True, timeout=TIMEOUT, auth=credentials) as answer:
            if answer.status_code == 404:
                raise _NoFile
            wait = _seconds(answer.headers.get("Retry-After"))
            if answer.status_code in (429, 503) and attempt < _ATTEMPTS - 1 and wait <= _LONGEST_WAIT:
                time.sleep(max(wait, 2.0**attempt / 10))
                continue
            answer.raise_for_status()
            yield from answer.iter_content(_CHUNK)
            return


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:  # a date
        return 1.0


def _session(row: Row) -> SessionRecord:
    number = row["number"]
    return SessionRecord(
        date=str(row["start_time"])[:10],
        number=f"{number:03}" if isinstance(number, int) else str(number),
        eid=str(row["id"]),
    )


def _date_of(dataset: Row) -> str | None:
    """Return the date of a dataset's session, from the path of a file record."""
    for record in dataset["file_records"]:
        for part in str(record["relative_path"]).split("/"):
            if len(part) == 10 and part[4] == part[7] == "-":
                return part
    return None


def _incomplete(url: str, kind: str, count: int, found: int) -> str:
    return f"{url} counts {count} {kind} and gives {found}: the list is not whole"


def _default_data_server() -> str:
    return str(one.params.default().HTTP_DATA_SERVER)


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
