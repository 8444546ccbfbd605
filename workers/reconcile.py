"""Send again what runs owe: what every worker does now and then, and whoever watches a run."""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery.signals import worker_ready
from celery.worker import state
from kombu.exceptions import OperationalError

from core.errors import PermanentError
from workers import messages
from workers.broker import connect
from workers.ledger import Ledger

log = logging.getLogger(__name__)

#: Seconds without any news from a subject after which what it waits for is sent again.
PATIENCE = 60.0
#: Times in that span that a worker says what is under way, and looks for what is owed.
_BEATS = 4


def reconcile(ledger: Ledger, patience: float) -> int:
    """Send again what the open runs owe and have not heard of for `patience` seconds; return for how many subjects."""
    count = 0
    for run_id in ledger.open_runs():
        try:
            count += messages.send_owed(ledger, ledger.spec(run_id), patience)
        except PermanentError as error:  # one run that makes no sense must not hold up the others
            log.error("run %s: %s", run_id, error)
    return count


def reconcile_regularly(broker: str, patience: float) -> None:
    """Have the worker of this process reconcile for as long as it runs, in its main process.

    Several workers do so beside each other: what one has sent again waits, and the others find nothing owed. What
    is under way in a pool that lives is not owed either, so that a task which hangs is not sent again and again
    until its time limit, taking one process of the pool after the other.

    Parameters
    ----------
    broker : str
        URL of the Redis with the ledger.
    patience : float
        Seconds, as for :func:`reconcile`; it looks four times in that span.
    """
    ledger = Ledger(connect(broker))

    def look() -> None:
        try:
            if sent := reconcile(ledger, patience):
                log.warning("sent again what %d subjects were waiting for", sent)
        except (redis.RedisError, OperationalError) as error:
            log.warning("cannot look for what is owed: %s", error)

    def keep() -> None:
        try:
            ledger.keep([request.id for request in list(state.active_requests)])
        except redis.RedisError as error:
            log.warning("cannot say what is under way: %s", error)

    def on_ready(sender: Any, **_: Any) -> None:
        sender.timer.call_repeatedly(patience / _BEATS, keep)
        sender.timer.call_repeatedly(patience / _BEATS, look)

    worker_ready.connect(on_ready, weak=False)
