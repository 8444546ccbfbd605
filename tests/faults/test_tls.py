"""A broker behind TLS: messages and ledger go through it, and a certificate that nobody vouches for is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from core.storage import open_store
from tests.faults.services import Arena, Herd, assert_as_undisturbed
from tests.faults.tls import TlsFront, tls_front
from tests.processes import PASSWORD, training_status


@pytest.fixture
def front(arena: Arena, tmp_path: Path) -> Iterator[TlsFront]:
    port = urlsplit(arena.redis.url).port
    assert port is not None
    with tls_front(tmp_path, port) as made:
        yield made


def test_a_run_goes_through_tls(pair: Herd, arena: Arena, front: TlsFront, folder: Path) -> None:
    arena.worker(env={"TRAINING_STATUS_BROKER": front.url(PASSWORD)})
    running = arena.command(
        "recompute", "--root", pair.root, "--store", folder, "--json", "--broker", front.url(PASSWORD)
    )
    record = arena.finish(running)
    assert running.code == 0, running.told
    assert_as_undisturbed(pair, open_store(str(folder)), record, arena)
    assert front.handshakes >= 4  # the command's ledger and its messages, the worker's


@pytest.mark.parametrize("what", ["another authority", "no TLS"])
def test_a_broker_that_cannot_be_trusted_is_refused(
    what: str, pair: Herd, front: TlsFront, arena: Arena, folder: Path
) -> None:
    trusting = front.url(PASSWORD, front.other_ca)
    url = trusting if what == "another authority" else f"redis://:{PASSWORD}@127.0.0.1:{front.port}/0"
    told = training_status("recompute", "--root", pair.root, "--store", folder, "--broker", url)
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1), told.stderr
    assert f"127.0.0.1:{front.port}" in told.stderr
    assert PASSWORD not in told.stderr
    assert (front.handshakes, arena.ledger.run_ids()) == (0, [])
