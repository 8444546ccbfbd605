"""Flower as this project runs it: a guard before every page, read-only, persistent, bounded, with our metrics."""

from __future__ import annotations

import ast
import hmac
import logging
import re
import signal
from base64 import b64decode
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import prometheus_client
import redis.asyncio
from celery import Celery, states
from flower.app import Flower
from flower.options import options
from flower.urls import settings
from flower.views import BaseHandler
from flower.views.broker import BrokerView
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from redis.backoff import NoBackoff
from redis.retry import Retry
from tornado import web
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop

from core.errors import ConfigurationError
from scheduler.metrics import LedgerCollector
from workers.broker import connect
from workers.ledger import Ledger

log = logging.getLogger(__name__)

#: What a person looks for first comes first; the id, which leads to a task's own page, last.
COLUMNS = "name,args,state,result,received,started,runtime,worker,uuid"
#: Three runs of 600 mice; a task takes some 7 kB.
MAX_TASKS = 10_000
MAX_WORKERS = 200
#: Seconds for which a worker that has gone is still shown, as offline.
PURGE_WORKERS_AFTER = 24 * 3600
#: Milliseconds between two copies of what is seen to the state file: what a kill can lose.
SAVE_EVERY = 15_000
#: Open to everybody: a container's health check has no password, and the page says OK and nothing else.
OPEN_PAGES = ("/healthcheck",)


@dataclass(frozen=True, kw_only=True)
class FlowerSettings:
    """Where Flower listens, who may look, and where it keeps what it has seen."""

    address: str
    port: int
    user: str
    password: str | None  # None: everybody may look
    state: Path


class _Refused(web.RequestHandler):
    """Asks for the password."""

    def prepare(self) -> None:
        self.set_header("WWW-Authenticate", 'Basic realm="training-status", charset="UTF-8"')
        self.set_status(401)
        self.finish("Access denied")


class _Metrics(BaseHandler):  # type: ignore[misc]  # untyped
    """Flower's metrics and ours; the ledger is read beside the loop that serves the pages."""

    async def get(self) -> None:
        self.application.purge_offline_worker_metrics()
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.write(await IOLoop.current().run_in_executor(None, prometheus_client.generate_latest))


class _Queues(BrokerView):  # type: ignore[misc]  # untyped
    """Flower's page of queues, with the workers that take from each in the column of its consumers."""

    def get_broker(self) -> Any:
        broker, url = super().get_broker(), self.capp.conf.broker_url
        if url.startswith("rediss:"):  # Flower does not read what the URL says of certificates
            broker.redis = redis.asyncio.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        return _WithConsumers(broker, self.application)


class _WithConsumers:
    def __init__(self, broker: Any, application: Flower) -> None:
        self._broker = broker
        self._application = application

    async def queues(self, names: Any) -> list[dict[str, Any]]:
        await self._application.update_workers()
        alive = {name for name, worker in self._application.events.state.workers.items() if worker.alive}
        consumers: dict[str, list[str]] = {name: [] for name in names}
        for worker, info in sorted(self._application.workers.items()):
            for queue in info.get("active_queues", ()) if worker in alive else ():
                consumers.setdefault(queue["name"], []).append(worker)
        found = await self._broker.queues(sorted(consumers))
        return [{**queue, "consumers": ", ".join(consumers[queue["name"]]) or "none"} for queue in found]


class _Style(BaseHandler):  # type: ignore[misc]  # untyped
    """Flower's style, but results are shown whole, on several lines: a reason that is cut off tells little."""

    def get(self) -> None:
        column = COLUMNS.split(",").index("result") + 1
        self.set_header("Content-Type", "text/css")
        self.write((Path(settings["static_path"]) / "css" / "flower.css").read_text())
        cell = "white-space: normal !important; overflow-wrap: anywhere; min-width: 26rem"
        self.write(f".tasks-table td:nth-child({column}) {{ {cell}; }}\n")


class Dashboard(Flower):  # type: ignore[misc]  # untyped
    """Flower behind one guard: Flower's own leaves out some pages, and fails on letters that are not ASCII.

    Parameters
    ----------
    credentials : str or None
        user:password; None lets everybody in.
    **arguments
        Of `Flower`.
    """

    def __init__(self, credentials: str | None, **arguments: Any) -> None:
        self._credentials = credentials
        super().__init__(**arguments)
        self.add_handlers(r".*", [(r"/metrics", _Metrics), (r"/broker", _Queues), (r"/static/css/flower.css", _Style)])

    def find_handler(self, request: HTTPServerRequest, **arguments: Any) -> Any:
        """Return the handler of a request, or one that asks for the password."""
        if self._credentials is None or request.path in OPEN_PAGES or _knows(request, self._credentials):
            return super().find_handler(request, **arguments)
        return self.get_handler_delegate(request, _Refused)


def _knows(request: HTTPServerRequest, credentials: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    try:
        decoded = b64decode(given, validate=True)
    except ValueError:
        return False
    return scheme.lower() == "basic" and hmac.compare_digest(decoded, credentials.encode())


def serve(app: Celery, broker: str, wanted: FlowerSettings) -> None:
    """Show what the workers of `app` do until told to stop (SIGTERM, Ctrl-C).

    Parameters
    ----------
    app : Celery
        The application, pointed at the broker.
    broker : str
        URL of the Redis with the ledger.
    wanted : FlowerSettings
        Where, and for whom.

    Raises
    ------
    ConfigurationError
        Where the address cannot be listened on.
    """
    credentials = None if wanted.password is None else f"{wanted.user}:{wanted.password}"
    # Flower keeps its options in a global of Tornado's; set here, and not read from FLOWER_* or a file.
    for name, value in {
        "address": wanted.address,
        "port": wanted.port,
        # The guard asks for the password; Flower's own check stays on for what depends on there being one.
        "basic_auth": [credentials] if credentials else [],
        # A task that is revoked here would be sent again by the ledger: it only looks like a way to stop a run.
        "read_only": True,
        "persistent": True,
        "db": str(wanted.state),
        "state_save_interval": SAVE_EVERY,
        "max_tasks": MAX_TASKS,
        "max_workers": MAX_WORKERS,
        "purge_offline_workers": PURGE_WORKERS_AFTER,
        "tasks_columns": COLUMNS,
        "format_task": as_read,
    }.items():
        setattr(options, name, value)
    ledger = connect(broker)
    ledger.set_retry(Retry(NoBackoff(), 0))  # a scrape says at once that it is away
    prometheus_client.REGISTRY.register(LedgerCollector(Ledger(ledger)))
    dashboard = Dashboard(credentials, capp=app, options=options, **settings)
    where = f"{wanted.address}:{wanted.port}"
    try:
        dashboard.start_http_server()
    except OSError as error:
        raise ConfigurationError(
            f"Flower cannot listen on {where} (--flower-address, --flower-port): {error.strerror or error}"
        ) from None
    log.info("Flower listens on http://%s, %s", where, "with a password" if credentials else "open to everybody")
    for told_to_stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told_to_stop, partial(_stop, dashboard))
    dashboard.start()


def _stop(dashboard: Dashboard, *_: object) -> None:
    dashboard.io_loop.add_callback_from_signal(dashboard.stop)


def as_read(task: Any) -> Any:
    """Return a task of Flower's as people read it: its result unquoted, or the reason of its failure or retry."""
    if task.exception and task.state in (states.FAILURE, states.RETRY):
        task.result = _unquoted(task.exception)
    elif task.result:
        task.result = _unquoted(task.result)
    return task


def _unquoted(told: str) -> str:
    """Return the text in the repr of a string, or of an error with one; any other as it is."""
    quoted = re.fullmatch(r"\w+\((.*?),?\)", told, re.DOTALL)
    try:
        text = ast.literal_eval(quoted[1] if quoted else told)
    except (ValueError, SyntaxError):
        return told
    return text if isinstance(text, str) else told
