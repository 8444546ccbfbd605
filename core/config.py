"""Settings of one process, as plain values: the command line reads them, everything else is handed them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """How an S3-compatible server is reached; a folder needs none of it. Credentials stay with boto3."""

    s3_endpoint: str | None = None  # URL of the server; AWS where None
    s3_profile: str | None = None  # profile in the shared AWS configuration
    s3_region: str | None = None


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """How sources beside a session tree are reached; a tree needs none of it."""

    one_user: str | None = None
    one_password: str | None = field(default=None, repr=False)
    one_token: str | None = field(default=None, repr=False)  # instead of a password
    aggregates_endpoint: str | None = None  # URL of the S3 server of the aggregates; AWS where None
    cache: str | None = None  # folder of downloads; below the user's cache folder where None
    cache_size: float = 10.0  # GB that downloads may take


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker needs to know beside its messages."""

    broker: str  # URL of the Redis that carries messages and the ledger
    store: StoreSettings
    source: SourceSettings = SourceSettings()
