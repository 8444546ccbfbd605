"""A store in a bucket of S3, or of any server that speaks its language and honours conditional writes."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from botocore import UNSIGNED
from botocore import exceptions as boto
from botocore.config import Config
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError
from botocore.session import Session
from urllib3.exceptions import HTTPError

from core.errors import (
    AccessRefused,
    ConfigurationError,
    MissingCredentials,
    StoreMissing,
    StoreUnavailable,
    TrainingStatusError,
)
from core.storage.base import Store, StoredObject

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_WRITE_ID = "training-status-write"
"""Metadata that tells a put from any other of the same bytes: one whose answer got lost knows its own."""

# Reading what it knows of S3 is nearly all that a client costs (70 of 80 ms): once is enough for a process.
# That is why clients are made with botocore, which boto3 is built on: boto3's sessions do not share it.
_loader = Loader()

# Everything that a call, or the reading of an answer, can end with.
_FAULTS = (boto.BotoCoreError, boto.ClientError, ResponseParserError, HTTPError, OSError)

_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.ProfileNotFound,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.MetadataRetrievalError,
    boto.SSOError,
)
_NO_ANSWER = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.ChecksumError,
    boto.FlexibleChecksumError,
    ResponseParserError,
    HTTPError,
    OSError,
)

_REFUSALS = {
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key is not the one of the access key",
    "ExpiredToken": "the credentials have expired: renew them",
    "ExpiredTokenException": "the credentials have expired: renew them",
    "InvalidToken": "the session token is not valid: renew the credentials",
    "TokenRefreshRequired": "the credentials have expired: renew them",
    "RequestExpired": "the request came too late: set the clock of this machine",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
}
_BUSY = {"SlowDown", "Throttling", "RequestTimeout", "RequestLimitExceeded", "BadDigest", "IncompleteBody"}
_OTHER_REGION = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}


class S3Store(Store):
    """Objects in a bucket, under a prefix.

    Needs the rights s3:GetObject, s3:PutObject and s3:ListBucket, and no other; `discard` alone needs s3:DeleteObject.

    Parameters
    ----------
    bucket : str
    prefix : str
        Of all keys, with no ``/`` at its end; empty for the whole bucket.
    endpoint, profile, region : str, optional
        As `core.storage.open_store` takes them; what is not given comes from the AWS environment and
        configuration.
    signed : bool
        Whether requests carry credentials; a public bucket is read without.
    connect_timeout, read_timeout : float
        Seconds to wait for a connection, and for the next bytes of an answer.
    attempts : int
        Tries of one call in all, after faults that another try may not meet.

    Raises
    ------
    ConfigurationError
        The endpoint is no address.
    MissingCredentials
        There is no such profile, or its credentials are incomplete.
    """

    _rights = "the store needs s3:GetObject and s3:PutObject on its prefix, and s3:ListBucket on its bucket"

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        profile: str | None = None,
        region: str | None = None,
        signed: bool = True,
        connect_timeout: float = 5.0,
        read_timeout: float = 30.0,
        attempts: int = 3,
    ) -> None:
        self.uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._bucket = bucket
        self._base = f"{prefix}/" if prefix else ""
        self._profile = profile
        self._server = "AWS" if endpoint is None else _server(endpoint)
        config = Config(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            # 'max_attempts' would count the retries after the first try
            retries={"mode": "standard", "total_max_attempts": attempts},
        )
        if not signed:
            config = config.merge(Config(signature_version=UNSIGNED))
        try:
            session = Session(profile=profile)
            session.register_component("data_loader", _loader)
            client = session.create_client("s3", region_name=region, endpoint_url=endpoint, config=config)
        except ValueError:
            # botocore's text repeats the address
            raise ConfigurationError(
                f"{self.uri}: the endpoint or the region has no valid form: "
                "an endpoint is http://host:port or https://host"
            ) from None
        except _FAULTS as error:
            raise self._fault(error, "open") from None
        self._client = cast("S3Client", client)
        # The address may also have come from the environment.
        self._server = _server(client.meta.endpoint_url)

    def check(self) -> None:
        """See that the bucket is there and lets this prefix be listed."""
        try:
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._base, MaxKeys=1)
        except _FAULTS as error:
            raise self._fault(error, "list the bucket") from None

    def _get(self, key: str) -> StoredObject | None:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._base + key)
            with closing(answer["Body"]) as body:
                data = body.read()
        except _FAULTS as error:
            code = _code(error)
            if code == "NoSuchKey":
                return None
            if code == "404":
                # Its reason is missing: the answer broke off. Taken for a missing object, it could cost a table.
                raise StoreUnavailable(
                    f"{self.uri}: cannot read {key!r}: {self._server} answers HTTP 404 and not why: try again later"
                ) from None
            raise self._fault(error, f"read {key!r}") from None
        return StoredObject(data=data, etag=answer["ETag"])

    def _put(self, key: str, data: bytes, replaces: str | None) -> str:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces}
        write_id = uuid.uuid4().hex
        try:
            answer = self._client.put_object(
                Bucket=self._bucket,
                Key=self._base + key,
                Body=data,
                Metadata={_WRITE_ID: write_id},
                **condition,
            )
        except _FAULTS as error:
            if not _is_conflict(error, replaces):
                raise self._fault(error, f"write {key!r}") from None
        else:
            return answer["ETag"]
        # Where the answer to a first try got lost, the client's next try meets what the first one wrote.
        # Equal bytes would not tell: another writer may have come to the same, and one of two steps be lost.
        etag = self._etag_of_write(key, write_id)
        if etag is None:
            raise self._conflict(key, replaces)
        return etag

    def _etag_of_write(self, key: str, write_id: str) -> str | None:
        """Return the etag of the object that is there if it is what this very put wrote."""
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._base + key)
        except _FAULTS as error:
            if _status(error) == 404:
                return None
            raise self._fault(error, f"read {key!r}") from None
        return head["ETag"] if head["Metadata"].get(_WRITE_ID) == write_id else None

    def _discard(self, key: str) -> None:
        try:
            self._client.delete_object(Bucket=self._bucket, Key=self._base + key)
        except _FAULTS as error:
            raise self._fault(error, f"remove {key!r}") from None

    def _keys(self, prefix: str) -> Iterator[str]:
        folder = prefix[: prefix.rfind("/") + 1]
        return _in_order(self._listed(prefix), folder)

    def _listed(self, prefix: str) -> Iterator[str]:
        paginator = self._client.get_paginator("list_objects_v2")
        pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=self._base + prefix))
        while True:
            try:
                page = next(pages, None)
            except _FAULTS as error:
                raise self._fault(error, "list the bucket") from None
            if page is None:
                return
            for item in page.get("Contents", ()):
                yield item["Key"][len(self._base) :]

    def _fault(self, error: Exception, doing: str) -> TrainingStatusError:
        """Say in our own words what happened: those of client and server can hold addresses and keys."""
        said = f"{self.uri}: cannot {doing}"
        if isinstance(error, boto.ClientError):
            return self._answered(error, said)
        name = type(error).__name__
        if isinstance(error, boto.ProfileNotFound):
            which = f"{self._profile!r}" if self._profile else "of the environment (AWS_PROFILE)"
            return MissingCredentials(f"{said}: there is no profile {which}: check its name in the AWS configuration")
        if isinstance(error, _NO_CREDENTIALS) or name.startswith("Login"):  # Login*: new in botocore
            return MissingCredentials(
                f"{said}: no usable credentials ({name}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "name a profile, or sign in again"
            )
        if isinstance(error, _NO_ANSWER):
            return StoreUnavailable(
                f"{said}: no whole answer from {self._server} ({name}): check that it runs and can be reached"
            )
        return ConfigurationError(f"{said}: {name}: check the endpoint, the region and the AWS configuration")

    def _answered(self, error: boto.ClientError, said: str) -> TrainingStatusError:
        code, status = _code(error), _status(error)
        what = f"{code}, HTTP {status}" if code != str(status) else f"HTTP {status}"
        if code in ("NoSuchBucket", "InvalidBucketName"):
            return StoreMissing(
                f"{self.uri}: there is no bucket {self._bucket!r} at {self._server} ({what}): "
                "create it, or check its name and the endpoint"
            )
        if code in _REFUSALS:
            return AccessRefused(f"{said}: {self._server} refuses the credentials ({what}): {_REFUSALS[code]}")
        if status in (401, 403):
            return AccessRefused(
                f"{said}: {self._server} refuses ({what}): {self._rights}; without s3:ListBucket an object "
                "that does not exist is refused too"
            )
        if code in _OTHER_REGION or status in (301, 307, 308):
            return ConfigurationError(f"{said}: the bucket is in another region ({what}): set the region")
        if code == "NotImplemented" or status == 501:
            return ConfigurationError(f"{said}: {self._server} lacks what is needed ({what}): conditional writes?")
        if status >= 500 or status in (408, 409, 429) or code in _BUSY:
            return StoreUnavailable(f"{said}: {self._server} has a fault or is busy ({what}): try again later")
        return ConfigurationError(
            f"{said}: {self._server} does not take the request ({what}): is the endpoint an S3 server?"
        )


def _in_order(keys: Iterator[str], folder: str) -> Iterator[str]:
    """Put listed keys in the order of their characters, holding back as few as that takes.

    S3 lists in this order. Servers that keep real folders (SeaweedFS is one) list all of ``a/`` before
    ``a-b/``, though ``-`` comes before ``/``. So the keys of one subfolder of `folder` wait until all names
    that begin alike are through.
    """
    held: list[str] = []
    name = ""  # of the subfolder whose keys are held
    for key in keys:
        first, slash, _ = key[len(folder) :].partition("/")
        if held and not first.startswith(name):
            yield from sorted(held)
            held = []
        if held or slash:
            name = name if held else first
            held.append(key)
        else:
            yield key
    yield from sorted(held)


def _server(endpoint: str) -> str:
    """Return the scheme, host and port of an endpoint, refusing one that holds a secret."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        raise ConfigurationError("the endpoint has no valid form: it is http://host:port or https://host") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("the endpoint has no valid form: it is http://host:port or https://host")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(
            "the endpoint holds more than an address: it is http://host:port or https://host, "
            "and credentials come from the environment or a profile"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def _code(error: Exception) -> str:
    """Return the server's word for an error, or nothing; shortened to what a code can be."""
    if not isinstance(error, boto.ClientError):
        return ""
    code = error.response.get("Error", {}).get("Code", "")
    return re.sub(r"[^A-Za-z0-9._-]", "", str(code))[:60]


def _status(error: Exception) -> int:
    if not isinstance(error, boto.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_conflict(error: Exception, replaces: str | None) -> bool:
    """Whether a put failed on its condition."""
    status = _status(error)
    if status == 404:  # some servers' answer to If-Match on an object that is gone
        return replaces is not None and _code(error) != "NoSuchBucket"
    return status in (409, 412)
