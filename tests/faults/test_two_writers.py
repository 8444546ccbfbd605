"""Two runs over the same subjects at once, on two brokers with one store: the table of a single run remains."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from core.storage import Store, open_store
from core.tables import subject_keys
from tests.faults.kills import Kill
from tests.faults.proxy import S3Proxy, Wrong, s3_proxy
from tests.faults.services import Arena, Herd, assert_as_undisturbed, differences, objects, undisturbed

ArenaFor = Callable[..., Arena]


@pytest.fixture
def proxy(aws: None, s3_endpoint: str) -> Iterator[S3Proxy]:
    with s3_proxy(s3_endpoint) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("recompute", "recompute"), ("refresh", "recompute")])
def test_two_brokers_with_one_folder(
    kinds: tuple[str, str], herd: Herd, folder: Path, arena_for: ArenaFor
) -> None:  # fmt: skip
    both = [arena_for("first"), arena_for("second")]
    commands = [arena.run(herd.root, folder, kind) for arena, kind in zip(both, kinds, strict=True)]
    for arena in both:
        arena.run_id()
        arena.worker()
    for arena, running in zip(both, commands, strict=True):
        record = arena.finish(running)
        assert running.code == 0, running.told
        assert record["failed"] == []
        assert record["counts"]["done"] + record["counts"]["unchanged"] == len(herd.subjects)
    assert differences(objects(open_store(str(folder)), herd.subjects), herd.objects) == []


@pytest.mark.slow
def test_two_brokers_with_one_bucket(
    herd: Herd, s3_endpoint: str, s3_uri: str, bucket: Store, arena_for: ArenaFor
) -> None:
    both = [arena_for(name, TRAINING_STATUS_S3_ENDPOINT=s3_endpoint) for name in ("first", "second")]
    commands = [arena.run(herd.root, s3_uri) for arena in both]
    for arena in both:
        arena.run_id()
        arena.worker()
    for arena, running in zip(both, commands, strict=True):
        record = arena.finish(running)
        assert running.code == 0, running.told
        assert_as_undisturbed(herd, bucket, record, arena)


@pytest.fixture
def growing(pair: Herd, tmp_path: Path) -> Path:
    """A copy of the tree from which the last days of each mouse are missing until `grow` brings them."""
    root = tmp_path / "tree"
    shutil.copytree(pair.root, root)
    for lab, subject in pair.subjects:
        for day in sorted((root / lab / "Subjects" / subject).iterdir())[-3:]:
            aside = tmp_path / "aside" / lab / "Subjects" / subject / day.name
            aside.parent.mkdir(parents=True, exist_ok=True)
            day.rename(aside)
    return root


def grow(root: Path, pair: Herd) -> Mapping[str, bytes]:
    """Bring the last days, and return what an undisturbed recompute makes of all: file times are inputs too."""
    for lab, subject in pair.subjects:
        for day in (root.parent / "aside" / lab / "Subjects" / subject).iterdir():
            day.rename(root / lab / "Subjects" / subject / day.name)
    return undisturbed(root, pair.subjects, f"grown-{uuid.uuid4()}")


#: Where the run that saw fewer sessions stands while the other one overtakes it.
_HELD_AT = ["summaries.pqt", "criteria.pqt", "_ibl_subjectTraining.table.pqt", "training.pqt"]


@pytest.mark.parametrize("first", ["refresh", pytest.param("recompute", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "held_at", [pytest.param(name, marks=() if name == "training.pqt" else pytest.mark.slow) for name in _HELD_AT]
)
def test_a_run_that_saw_fewer_sessions_does_not_win(
    held_at: str, first: str, pair: Herd, growing: Path, proxy: S3Proxy, s3_endpoint: str, s3_uri: str, bucket: Store,
    arena_for: ArenaFor,
) -> None:  # fmt: skip
    slow = arena_for("slow", TRAINING_STATUS_S3_ENDPOINT=proxy.endpoint)
    quick = arena_for("quick", TRAINING_STATUS_S3_ENDPOINT=s3_endpoint)
    held = proxy.add(Wrong.HELD, method="PUT", path=held_at, times=len(pair.subjects))
    overtaken = slow.run(growing, s3_uri, first)
    slow.worker()
    slow.wait(lambda: held.met == len(pair.subjects), "all of its writes to be held")
    wanted = grow(growing, pair)
    quick.worker()
    record = quick.finish(quick.run(growing, s3_uri))
    assert record["counts"]["done"] == len(pair.subjects)
    proxy.let_go()
    late = slow.finish(overtaken)
    assert overtaken.code == 0, overtaken.told
    assert late["counts"]["done"] + late["counts"]["unchanged"] == len(pair.subjects)
    assert differences(objects(bucket, pair.subjects), wanted) == []


@pytest.mark.slow
def test_a_writer_that_is_killed_amid_its_writes_leaves_nothing_old(
    pair: Herd, growing: Path, proxy: S3Proxy, s3_endpoint: str, s3_uri: str, bucket: Store, arena_for: ArenaFor
) -> None:
    """The one that saw fewer sessions dies with some of its objects over those of the other; its run goes on."""
    slow = arena_for("slow", TRAINING_STATUS_S3_ENDPOINT=proxy.endpoint)
    quick = arena_for("quick", TRAINING_STATUS_S3_ENDPOINT=s3_endpoint)
    held = proxy.add(Wrong.HELD, method="PUT", path="criteria.pqt", times=len(pair.subjects))
    overtaken = slow.run(growing, s3_uri)
    victim = slow.worker("victim", keep=False)
    slow.wait(lambda: held.met == len(pair.subjects), "all of its writes to be held")
    wanted = grow(growing, pair)
    quick.worker()
    quick.finish(quick.run(growing, s3_uri))
    Kill.WORKER(victim.process, slow.redis.process)
    proxy.let_go()  # the server may still take what the dead one had sent
    slow.worker("other")
    slow.finish(overtaken)
    assert overtaken.code == 0, overtaken.told
    assert differences(objects(bucket, pair.subjects), wanted) == []


@pytest.mark.slow
def test_a_refresh_afterwards_finds_nothing_to_do(herd: Herd, folder: Path, arena: Arena) -> None:
    arena.worker()
    both = [arena.run(herd.root, folder), arena.run(herd.root, folder, "refresh")]
    for running in both:
        arena.finish(running)
    record = arena.finish(arena.run(herd.root, folder, "refresh"))
    assert record["counts"]["unchanged"] == len(herd.subjects)
    store = open_store(str(folder))
    assert differences(objects(store, herd.subjects), herd.objects) == []
    lab, subject = herd.subjects[0]
    assert store.get(subject_keys(lab, subject).training) is not None
