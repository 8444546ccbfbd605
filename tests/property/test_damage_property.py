"""Whatever happens to the bytes of a session's files: it is used or left out in one line, and nothing raises."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.discover import find_files
from core.load import load_session
from core.records import days_to_json
from core.sources.tree import load_days
from core.summarise import summarise
from tests.trees import session

Damage = Callable[[bytes], bytes]


def overwrite(at: float, new: bytes) -> Damage:
    """Write over what is there, from a place told as a fraction of the length."""
    return lambda old: old[: int(at * len(old))] + new + old[int(at * len(old)) + len(new) :]


def insert(at: float, new: bytes) -> Damage:
    return lambda old: old[: int(at * len(old))] + new + old[int(at * len(old)) :]


def shorten(at: float) -> Damage:
    return lambda old: old[: int(at * len(old))]


fractions = st.floats(0, 1)
# Bytes at random, and those that mean something in one of the formats.
pieces = st.binary(min_size=1, max_size=12) | st.sampled_from(
    [b"(", b"[", b"{", b"}", b"'", b'"', b":", b",", b"#", b"&a", b"*a", b"!!int", b"- ", b"\n", b"\\", b"0", b"9" * 12]
)
damages = st.one_of(
    st.builds(overwrite, fractions, pieces),
    st.builds(insert, fractions, pieces),
    st.builds(shorten, fractions),
    st.binary(max_size=60).map(lambda new: lambda old: new),
)


@pytest.fixture(scope="module")
def folders() -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory() as folder:
        yield [
            session(Path(folder), "2020-01-02", 1, layout="table"),
            session(Path(folder), "2020-01-02", 2, layout="npy"),
        ]


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.lists(damages, min_size=1, max_size=3))
def test_a_broken_file_never_raises(folders: list[Path], which: int, done: list[Damage]) -> None:
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    path = paths[which % len(paths)]
    whole = path.read_bytes()
    broken = whole
    for damage in done:
        broken = damage(broken)
    path.write_bytes(broken)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's about old headers
            loaded, left_out = load_session(find_files(folders[0]))
            days = load_days({"2020-01-02": folders})
            for left in (*left_out, *days[0].left_out):
                assert left.reason.isprintable()
                assert orjson.dumps(left.reason)
            assert {one.number for one in days[0].sessions} | {
                left.session.rpartition("/")[2] for left in days[0].left_out
            } == {"001", "002"}
            assert len(loaded) + len(left_out) == 1
            assert days_to_json(summarise(days))
    finally:
        path.write_bytes(whole)
