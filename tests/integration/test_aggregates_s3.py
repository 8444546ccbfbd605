"""The public aggregates from a real S3 server: without an account, one download a subject, once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from core.config import SourceSettings
from core.errors import AccessRefused, ConfigurationError, StoreMissing, StoreUnavailable, TransientError
from core.sources import Source, open_source
from tests.aggregates import aggregate, aggregate_tree
from tests.faults.proxy import S3Proxy, Wrong, s3_proxy
from tests.integration.test_command import tables
from tests.processes import training_status
from tests.servers import (
    ACCESS_KEY,
    REGION,
    SECRET_KEY,
    aws_environment,
    create_bucket,
    free_ports,
    required,
    seaweedfs,
)

PUBLIC, CLOSED, PREFIX = "public", "closed", "data"
LAB = "simlab01"


@pytest.fixture(scope="module")
def published(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The aggregates of the mice, in a folder."""
    return aggregate_tree(mice, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def server(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server with the aggregates in a public bucket, and in one that is closed."""
    with required(seaweedfs(tmp_path_factory.mktemp("s3"), public=[PUBLIC])) as endpoint:
        for bucket in (PUBLIC, CLOSED):
            create_bucket(endpoint, bucket)
            for path in sorted(published.rglob("*.pqt")):
                upload(endpoint, path, path.relative_to(published).as_posix(), bucket)
        yield endpoint


@pytest.fixture
def proxy(server: str) -> Iterator[S3Proxy]:
    with s3_proxy(server) as running:
        yield running


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no credentials."""
    for name, value in aws_environment(tmp_path).items():
        if value is None or name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def upload(endpoint: str, path: Path, key: str, bucket: str) -> None:
    session = boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)
    client = session.client("s3", endpoint_url=endpoint)
    client.put_object(Bucket=bucket, Key=f"{PREFIX}/{key}", Body=path.read_bytes())
    client.close()


def opened(endpoint: str, cache: Path, bucket: str = PUBLIC) -> Source:
    settings = SourceSettings(aggregates_endpoint=endpoint, cache=str(cache))
    return open_source(f"aggregates:s3://{bucket}/{PREFIX}", settings)


def downloads(proxy: S3Proxy) -> list[str]:
    """The files that were asked for, each time."""
    return [path for method, path in proxy.requests if method == "GET" and path.partition("?")[0].endswith(".pqt")]


def names(source: Source) -> list[tuple[str, str]]:
    return [(lab, subject) for lab in source.labs()[0] for subject in source.subjects(lab)[0]]


def as_told(proxy: S3Proxy, store: Path, cache: Path) -> list[str]:
    """The options of a command on the public bucket."""
    source = ["--aggregates", f"s3://{PUBLIC}/{PREFIX}", "--aggregates-endpoint", proxy.endpoint]
    return [*source, "--cache", str(cache), "--store", str(store), "--embedded", "--workers", "2", "--json"]


def test_a_run_from_a_public_bucket_downloads_each_subject_once(mice: Path, proxy: S3Proxy, tmp_path: Path) -> None:
    store = tmp_path / "tables"
    done = training_status("recompute", *as_told(proxy, store, tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["counts"]["done"] == 4
    assert (record["counts"]["failed"], record["counts"]["left_out"]) == (0, 0)
    assert record["counts"]["sessions"] == sum(1 for _ in mice.glob("*/Subjects/*/*/*"))
    assert [missing["what"] for missing in record["missing"]] == ["location", "n_delay"]
    fetched = downloads(proxy)
    assert len(fetched) == len(set(fetched)) == 4

    again = training_status("refresh", *as_told(proxy, store, tmp_path / "cache"))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["counts"]["unchanged"] == 4
    assert downloads(proxy) == fetched


@pytest.mark.slow
def test_a_folder_and_a_bucket_give_the_same_tables(proxy: S3Proxy, published: Path, tmp_path: Path) -> None:
    done = training_status("recompute", *as_told(proxy, tmp_path / "a", tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    options = ["--cache", str(tmp_path / "cache"), "--store", str(tmp_path / "b")]
    done = training_status("recompute", "--aggregates", published, *options)
    assert done.returncode == 0, done.stderr
    assert tables(tmp_path / "a") == tables(tmp_path / "b") != {}


def test_a_lab_is_listed_at_once_and_an_unchanged_subject_costs_one_request(proxy: S3Proxy, tmp_path: Path) -> None:
    source = opened(proxy.endpoint, tmp_path)
    assert names(source) == [(f"simlab0{lab}", f"SIM0{lab}_00{at}") for lab in (1, 2) for at in (1, 2)]
    assert len(proxy.requests) == 1 + 2
    days, odd = source.subject(LAB, "SIM01_001").sessions()
    assert days
    assert odd == []
    proxy.requests.clear()
    again = opened(proxy.endpoint, tmp_path).subject(LAB, "SIM01_001")
    assert again.sessions() == (days, [])
    assert again.inputs(days)
    assert len(proxy.requests) == 1
    assert downloads(proxy) == []


def test_tasks_that_come_at_once_share_one_download(proxy: S3Proxy, tmp_path: Path) -> None:
    proxy.add(Wrong.SLOW, method="GET", path=".pqt")

    def look(_: int) -> int:
        subject = opened(proxy.endpoint, tmp_path).subject(LAB, "SIM01_001")
        return len(subject.load(subject.sessions()[0]))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(look, range(4)))) == 1
    assert len(downloads(proxy)) == 1


def test_a_new_version_is_downloaded_and_the_old_one_goes(
    mice: Path, server: str, proxy: S3Proxy, tmp_path: Path
) -> None:
    key = f"aggregates/Subjects/newlab/SIM01_001/_ibl_subjectTrials.table.{'0' * 8}-0000-4000-8000-{'0' * 12}.pqt"
    dates = sorted(path.name for path in mice.glob(f"{LAB}/Subjects/SIM01_001/*"))
    for until in (3, 5):
        path = aggregate(mice, tmp_path / str(until), LAB, "SIM01_001", dates[:until])
        upload(server, path, key, CLOSED)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            subject = opened(proxy.endpoint, tmp_path / "cache", CLOSED).subject("newlab", "SIM01_001")
            assert list(subject.sessions()[0]) == dates[:until]
    assert len(downloads(proxy)) == 2
    assert len(list((tmp_path / "cache").glob("*/*/Subjects/*/trials/*"))) == 1


def test_a_file_that_changes_between_its_listing_and_its_reading_is_looked_at_again(
    published: Path, mice: Path, server: str, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        key = f"aggregates/Subjects/otherlab/S/{'_ibl_subjectTrials.table'}.pqt"
        first, second = sorted(published.glob("aggregates/Subjects/simlab01/*/*.pqt"))
        upload(server, first, key, CLOSED)
        subject = opened(server, tmp_path, CLOSED).subject("otherlab", "S")
        assert subject._file()[0] is not None  # type: ignore[attr-defined]
        upload(server, second, key, CLOSED)
        with pytest.raises(TransientError, match="changed since it was listed"):
            subject.sessions()
        assert opened(server, tmp_path, CLOSED).subject("otherlab", "S").sessions()[0]


def test_credentials_that_are_for_another_server_do_not_close_a_public_bucket(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unknown")
    assert len(names(opened(server, tmp_path))) == 4
    with pytest.raises(AccessRefused, match="the access key is not known there"):
        opened(server, tmp_path, CLOSED).labs()


def test_a_closed_bucket_is_refused_and_opens_with_credentials(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AccessRefused, match="with these credentials or without any"):
        opened(server, tmp_path, CLOSED).labs()
    done = training_status(
        *("recompute", "--aggregates", f"s3://{CLOSED}/{PREFIX}", "--aggregates-endpoint", server),
        *("--cache", str(tmp_path / "cache"), "--store", str(tmp_path / "tables")),
    )
    assert done.returncode == 2
    assert f"s3://{CLOSED}/{PREFIX}: cannot list the bucket" in done.stderr
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    source = opened(server, tmp_path, CLOSED)
    assert source.labs([LAB])[0] == [LAB]
    assert source.subject(LAB, "SIM01_001").sessions()[0]


def test_a_bucket_that_is_not_there_or_holds_none_and_a_server_that_is_down(server: str, tmp_path: Path) -> None:
    with pytest.raises((StoreMissing, AccessRefused)):
        opened(server, tmp_path, "nowhere").labs()
    empty = open_source(f"aggregates:s3://{PUBLIC}/other", SourceSettings(aggregates_endpoint=server))
    with pytest.raises(ConfigurationError, match="no aggregates/Subjects/<lab> in s3://public/other"):
        empty.labs()
    (port,) = free_ports(1)
    with pytest.raises(StoreUnavailable, match="check that it runs and can be reached"):
        opened(f"http://127.0.0.1:{port}", tmp_path).labs()


def test_an_answer_that_breaks_off_is_no_file(proxy: S3Proxy, tmp_path: Path) -> None:
    proxy.add(Wrong.ANSWER_CUT, method="GET", path=".pqt")
    with pytest.raises(TransientError):
        opened(proxy.endpoint, tmp_path).subject(LAB, "SIM01_001").sessions()
    assert list(tmp_path.glob("*/*/Subjects/*/*/*")) == []
    assert opened(proxy.endpoint, tmp_path).subject(LAB, "SIM01_001").sessions()[0]


@pytest.mark.slow
def test_a_subject_with_a_broken_file_fails_and_the_others_are_computed(published: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "published"
    shutil.copytree(published, folder)
    broken, empty = sorted(folder.rglob("*.pqt"))[:2]
    broken.write_bytes(broken.read_bytes()[:999])
    empty.rename(empty.with_name("other.pqt"))
    options = ["--cache", str(tmp_path / "cache"), "--store", str(tmp_path / "tables")]
    done = training_status("recompute", "--aggregates", folder, *options, "--lab", LAB)
    assert done.returncode == 1, done.stderr
    assert f"failed: {LAB}/SIM01_001: " in done.stderr
    assert "_ibl_subjectTrials.table.pqt cannot be read" in done.stderr
    assert f"left out: {LAB}/SIM01_002: folder left out: it holds no _ibl_subjectTrials.table*.pqt" in done.stderr
    done = training_status("recompute", "--aggregates", folder, *options, "--lab", "simlab02")
    assert done.returncode == 0, done.stderr
    assert "missing: location: the public aggregates do not tell the rig" in done.stderr
    assert "2 computed" in done.stdout
