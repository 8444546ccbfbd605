"""`training-status worker`: a Celery worker with a pool of processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.config import SourceSettings, WorkerSettings
from core.errors import ConfigurationError
from scheduler.cli.logs import log_options
from scheduler.cli.options import blames, default_workers, option, source_settings_options, store_settings

if TYPE_CHECKING:
    from workers.logs import Format

#: How much an extraction worker gives way to others on its machine.
_NICE = 10


@click.command()
@option("--broker", required=True, help="URL of the Redis that carries the messages.")
@option("--concurrency", type=click.IntRange(min=1), help="Processes in the pool; one a processor where not given.")
@option(
    "--worker-name",
    help="Name in Flower and in logs, such as worker@lab-server; by default celery@HOST or extraction@HOST.",
)
@option("--extraction", is_flag=True, help="Only extract trials from raw files, with ibllib; others never do.")
@option(
    "--patience",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds without news after which what a run owes is sent again.",
)
@option(
    "--time-limit",
    default=600.0,
    show_default=True,
    type=click.FloatRange(min=1, max=600),
    help="Seconds after which a task is told to stop; a tenth more, and its process is killed.",
)
@option("--s3-endpoint", help="URL of an S3-compatible server; AWS where not given.")
@option("--s3-profile", help="Profile of the AWS configuration that has the credentials.")
@option("--s3-region", help="Region of the S3 server.")
@source_settings_options
@option("--alive-file", help="A file that is touched every few seconds while the broker hears this worker.")
@log_options
def worker(
    broker: str,
    concurrency: int | None,
    worker_name: str | None,
    extraction: bool,
    patience: float,
    time_limit: float,
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
    source_settings: SourceSettings,
    alive_file: str | None,
    log_format: Format,
    log_level: str,
) -> None:
    """Take tasks from the broker until told to stop (SIGTERM: after the tasks under way).

    \b
    training-status worker --broker redis://localhost:6379/0 --concurrency 4
    training-status worker --broker redis://localhost:6379/0 --concurrency 1 --extraction
    """
    # Imported before the pool is forked, so that its processes share the memory and start at once.
    import celery.apps.worker

    import scheduler.tasks  # noqa: F401
    import workers.control
    import workers.tasks  # noqa: F401
    from workers import broker as redis_broker
    from workers import context, logs
    from workers.app import EXTRACTION_QUEUE, configure
    from workers.reconcile import reconcile_regularly
    from workers.shutdown import watch_end

    if extraction:
        with blames("--extraction"):
            _import_extractors()
    settings = store_settings(s3_endpoint, s3_profile, s3_region)
    with blames("--s3-endpoint"):
        if s3_endpoint:  # stores are opened when tasks name them, which is late for a wrong address
            context.open_as("s3://any-bucket", settings)
    with blames("--broker"):
        client = redis_broker.connect(broker)
        redis_broker.check(client, broker)
    client.close()
    logs.configure("extractor" if extraction else "worker", log_format, log_level)
    context.use(WorkerSettings(broker=broker, store=settings, source=source_settings))
    reconcile_regularly(broker, patience)
    if alive_file:
        _touch_while_alive(Path(alive_file))
    # What it says at a signal becomes a record like others; there is no setting for it.
    celery.apps.worker.safe_say = logs.say  # type: ignore[attr-defined]  # not in the stubs
    app = configure(broker)
    watch_end(app)
    app.conf.update(task_soft_time_limit=time_limit, task_time_limit=1.1 * time_limit + 1)
    app.worker_main(
        [
            "--quiet",  # no banner: it is not made of lines, and names the broker
            "worker",
            f"--concurrency={concurrency or default_workers()}",
            f"--loglevel={log_level}",
            *([f"--hostname={name}"] if (name := worker_name or (extraction and "extraction@%h")) else []),
            *(["--queues", EXTRACTION_QUEUE] if extraction else []),
            # Neither is used here, and the first holds up the start by a second.
            "--without-mingle",
            "--without-gossip",
        ]
    )


def _import_extractors() -> None:
    """Import ibllib's extractors, which go on to log as all else does, and leave the processors to the fast path."""
    import logging

    from core.reextract import import_extractors

    import_extractors()
    logging.getLogger("ibllib").handlers.clear()  # it has put one there that writes to standard output
    os.nice(_NICE)


def _touch_while_alive(path: Path) -> None:
    """Touch a file with each heartbeat, for a health check that costs nothing; wrong paths are refused now."""
    from celery.signals import heartbeat_sent

    def touch(**_: Any) -> None:
        path.touch()

    try:
        touch()
        path.unlink()  # it is for a worker that the broker has heard
    except OSError as error:
        raise ConfigurationError(f"--alive-file {path} cannot be written: {error.strerror}") from None
    heartbeat_sent.connect(touch, weak=False)
