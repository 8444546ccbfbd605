"""The Celery application: how messages are carried, and what becomes of them when something dies.

The reason of each setting stands beside it; the measurements behind them are in `docs/decisions/0003-delivery.md`.
"""

from __future__ import annotations

import logging
import time
from queue import Empty
from typing import Any, Literal

import kombu.transport.redis as redis_transport  # now, and not amid the first message, where Ctrl-C would break it
import redis
from celery import Celery

log = logging.getLogger(__name__)

#: A task is a second or so of work; one that runs this long is stuck, and its worker is told so, then killed.
SOFT_TIME_LIMIT = 600
TIME_LIMIT = 660
#: Longer than the longest task, or a task would be delivered again while it runs.
VISIBILITY_TIMEOUT = TIME_LIMIT + 60

#: Downstream first: what is nearest to its end is taken first, so that little is ever under way at once, the
#: first tables are written early, and Redis stays small. 0 is the most urgent.
STAGES = {
    "training_status.start_run": 0,
    "training_status.finish_run": 0,
    "training_status.write_tables": 1,
    "training_status.compute_statuses": 2,
    "training_status.summarise_days": 3,
    "training_status.recompute": 4,
    "training_status.refresh": 4,
}
#: All of a refresh goes before any of a recompute: a lab that waits for its day's sessions overtakes a bulk run.
_OF_RECOMPUTE = max(STAGES.values()) + 1
PRIORITIES = range(2 * _OF_RECOMPUTE)


#: Seconds between two tries to note a message as taken, and how many of them, where Redis is out of memory.
_MEMORY_PAUSE = 0.5
_MEMORY_TRIES = 20


class _QoS(redis_transport.QoS):
    """Notes the messages that are taken; where Redis is out of memory, it waits a little for some to come free."""

    def append(self, *message: Any) -> None:
        for _ in range(_MEMORY_TRIES):
            try:
                super().append(*message)
            except redis.OutOfMemoryError:
                time.sleep(_MEMORY_PAUSE)
            else:
                return
        super().append(*message)


class _Channel(redis_transport.Channel):
    """A channel that outlives what is no message, and a Redis that is out of memory.

    Raised, the error would end the worker: with what is no message, the next one after it too.
    """

    QoS = _QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # not in the stubs
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.error("what is no message was dropped: %s: %s", type(error).__name__, str(error)[:80])
            raise Empty from None
        except redis.OutOfMemoryError:
            # It was taken from its list and cannot be noted as taken, nor put back: it is owed, and sent again.
            log.error("a message was dropped: Redis is out of memory")
            raise Empty from None


# kombu takes the channel's class from its transport; there is no setting for it.
redis_transport.Transport.Channel = _Channel
# Out of memory is as out of reach: it may pass. Senders try again, and a worker connects anew in place of ending.
redis_transport.Transport.connection_errors += (redis.OutOfMemoryError,)

#: Where trials are extracted from raw files, which takes seconds a session: nothing else waits behind it.
EXTRACTION_QUEUE = "training-status-extraction"

app = Celery("training_status")
app.conf.update(
    # JSON only: a message can never be code.
    accept_content=["json"],
    task_serializer="json",
    result_serializer="json",
    event_serializer="json",
    # The ledger holds results; a result backend would be a second, weaker record of the same.
    task_ignore_result=True,
    # Acknowledged when done: a killed worker's task goes to another.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    task_soft_time_limit=SOFT_TIME_LIMIT,
    task_time_limit=TIME_LIMIT,
    broker_connection_retry_on_startup=True,
    # A sender outlives a broker that is started anew.
    task_publish_retry_policy={"max_retries": 12, "interval_start": 0.1, "interval_step": 0.5, "interval_max": 3},
    broker_transport_options={
        "visibility_timeout": VISIBILITY_TIMEOUT,
        # Looked for every 100 s by default, which would add to the wait for a killed worker's tasks.
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
        "priority_steps": list(PRIORITIES),
        "queue_order_strategy": "priority",
    },
    task_default_queue="training-status",
    task_default_priority=max(PRIORITIES),
    # For people who watch in Flower.
    worker_send_task_events=True,
    task_send_sent_event=True,
    worker_hijack_root_logger=False,
    enable_utc=True,
)


def priority(task: str, kind: Literal["recompute", "refresh"]) -> int:
    """Return the priority of messages for the task named `task` in a run of this kind; 0 is the most urgent."""
    return STAGES[task] + (0 if kind == "refresh" else _OF_RECOMPUTE)


def lists_of(queue: str) -> list[str]:
    """Return the lists in Redis that messages of a queue lie in, the most urgent first."""
    return [f"{queue}{_Channel.sep}{priority}" if priority else queue for priority in PRIORITIES]


def configure(broker: str) -> Celery:
    """Point the application at a broker, and return it.

    Parameters
    ----------
    broker : str
        URL of a Redis: ``redis://``, ``rediss://`` or ``redis+socket://``.
    """
    app.conf.update(broker_url=broker)
    return app
