"""Start a run, and watch it to its end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import redis
from kombu.exceptions import OperationalError

from workers import messages
from workers.ledger import Ledger
from workers.reconcile import PATIENCE
from workers.records import Progress, RunSpec

_LOOK_EVERY = 0.2
_RECONCILE_EVERY = 5.0


def new_run(kind: Literal["recompute", "refresh"], **asked: Any) -> RunSpec:
    """Return the specification of a new run; its id sorts by the time it began.

    Parameters
    ----------
    kind : {"recompute", "refresh"}
        Whether everything is computed anew.
    **asked
        What else `RunSpec` holds: ``source``, ``store``, ``labs``, ``subjects``, ``prune``, ``fingerprint``,
        ``extract``.
    """
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    return RunSpec(run_id=run_id, kind=kind, started=now.isoformat(timespec="seconds"), **asked)


def once_more(spec: RunSpec, only: tuple[str, ...]) -> RunSpec:
    """Return a new run like `spec`, over the subjects `only` (lab/subject), or over all of its where that is empty."""
    fresh = new_run(spec.kind, source=spec.source, store=spec.store)
    return replace(spec, run_id=fresh.run_id, started=fresh.started, only=only)


def start(ledger: Ledger, spec: RunSpec) -> None:
    """Enter a run into the ledger, and send its first message."""
    ledger.open_run(spec)
    messages.send_plan(spec)


def watch(
    ledger: Ledger,
    spec: RunSpec,
    *,
    on_progress: Callable[[Progress], None],
    keep_alive: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Wait for a run's end, sending again what was lost on the way, and return its record.

    Parameters
    ----------
    ledger : Ledger
        Where the run is.
    spec : RunSpec
        The run.
    on_progress : callable
        Told where the run stands, five times a second.
    keep_alive : callable
        Called as often; may restart what has died.
    """
    reconciled = time.monotonic()
    while True:
        keep_alive()
        on_progress(ledger.progress(spec.run_id))
        if record := ledger.record(spec.run_id):
            return record
        if time.monotonic() - reconciled > _RECONCILE_EVERY:
            # A Redis that is out of memory still answers what is read; one that is away is met at the next look.
            with suppress(redis.RedisError, OperationalError):
                messages.send_owed(ledger, spec, PATIENCE)
            reconciled = time.monotonic()
        time.sleep(_LOOK_EVERY)
