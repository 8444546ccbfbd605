"""`training-status worker`: a Celery worker with a pool of processes."""

from __future__ import annotations

import logging

import click

from core.config import WorkerSettings
from scheduler.cli.options import default_workers, option, store_settings


@click.command()
@option("--broker", required=True, help="URL of the Redis that carries the messages.")
@option("--concurrency", type=click.IntRange(min=1), help="Processes in the pool; one a processor where not given.")
@option("--worker-name", help="Name in Flower and in logs, such as worker@lab-server; celery@HOST where not given.")
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
@option(
    "--log-level",
    default="INFO",
    show_default=True,
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]),
    help="What to log.",
)
def worker(
    broker: str,
    concurrency: int | None,
    worker_name: str | None,
    patience: float,
    time_limit: float,
    s3_endpoint: str | None,
    s3_profile: str | None,
    s3_region: str | None,
    log_level: str,
) -> None:
    """Take tasks from the broker until told to stop (SIGTERM: after the tasks under way).

    \b
    training-status worker --broker redis://localhost:6379/0 --concurrency 4
    """
    # Imported before the pool is forked, so that its processes share the memory and start at once.
    import scheduler.tasks  # noqa: F401
    import workers.tasks  # noqa: F401
    from workers import broker as redis_broker
    from workers import context
    from workers.app import configure
    from workers.reconcile import reconcile_regularly

    client = redis_broker.connect(broker)
    redis_broker.check(client, broker)
    client.close()
    context.use(WorkerSettings(broker=broker, store=store_settings(s3_endpoint, s3_profile, s3_region)))
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(processName)s %(message)s")
    reconcile_regularly(broker, patience)
    app = configure(broker)
    app.conf.update(task_soft_time_limit=time_limit, task_time_limit=1.1 * time_limit + 1)
    app.worker_main(
        [
            "worker",
            f"--concurrency={concurrency or default_workers()}",
            f"--loglevel={log_level}",
            *([f"--hostname={worker_name}"] if worker_name else []),
            # Neither is used here, and the first holds up the start by a second.
            "--without-mingle",
            "--without-gossip",
        ]
    )
