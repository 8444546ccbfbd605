"""What a worker tells about itself when it is asked."""

from __future__ import annotations

from typing import Any

from celery.worker.control import inspect_command

from core.schema import SCHEMA_VERSION, SOFTWARE_VERSION

#: Its name among Celery's remote control commands.
ABOUT = "training_status_about"


@inspect_command(name=ABOUT)
def about(state: Any) -> dict[str, Any]:
    """Return the worker's version, the schema of the tables that it writes, its queues and its processes."""
    consumer = state.consumer
    return {
        "version": SOFTWARE_VERSION,
        "schema": SCHEMA_VERSION,
        "queues": sorted(queue.name for queue in consumer.task_consumer.queues),
        "processes": consumer.pool.num_processes,
    }
