"""A bucket whose files are only read, such as that of the public aggregates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from botocore import exceptions as boto

from core.errors import TransientError
from core.sources.files import File
from core.storage.s3 import _FAULTS, _REFUSALS, S3Store, _code, _status

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Answer = TypeVar("Answer")

_CHUNK = 1 << 20


class Bucket(S3Store):
    """A bucket that is only read: with credentials where there are any that it takes, else without.

    Needs the rights s3:GetObject and s3:ListBucket, which a public bucket gives to everybody.

    Parameters
    ----------
    bucket, prefix, endpoint
        See :class:`core.storage.s3.S3Store`.
    """

    _rights = "s3:GetObject and s3:ListBucket are needed, with these credentials or without any"

    def __init__(self, bucket: str, prefix: str = "", *, endpoint: str | None = None) -> None:
        super().__init__(bucket, prefix, endpoint=endpoint)
        self._without: S3Client | None = None
        self._endpoint = endpoint

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders in the folder `prefix`, which ends with ``/``, sorted."""
        found = [
            item["Prefix"][len(self._base + prefix) : -1]
            for page in self._pages(prefix, Delimiter="/")
            for item in page.get("CommonPrefixes", ())
        ]
        return sorted(set(found))

    def files(self, prefix: str) -> Iterator[File]:
        """Yield the files whose keys begin with `prefix`: a request a thousand."""
        for page in self._pages(prefix):
            for item in page.get("Contents", ()):
                yield File(
                    key=item["Key"][len(self._base) :],
                    size=item["Size"],
                    version=item["ETag"],
                    modified=item["LastModified"].timestamp(),
                )

    def version(self, file: File) -> str:
        """Return a file's version: that of the listing."""
        return file.version

    def download(self, file: File) -> Iterator[bytes]:
        """Yield a file's content in pieces.

        Raises
        ------
        TransientError
            Where it is no longer the version that was listed, or did not come whole.
        """
        doing = f"read {file.key!r}"

        def get(client: S3Client) -> Any:
            return client.get_object(Bucket=self._bucket, Key=self._base + file.key, IfMatch=file.version)

        try:
            body = self._asked(get, doing)["Body"]
        except _Gone:
            raise TransientError(f"{self.uri}: {file.key!r} changed since it was listed: look again") from None
        with closing(body):
            came = 0
            while chunk := self._next(body, doing):
                came += len(chunk)
                yield chunk
        if came != file.size:
            raise TransientError(f"{self.uri}: cannot {doing}: {came} bytes came, {file.size} were listed")

    def _next(self, body: Any, doing: str) -> bytes:
        try:
            chunk: bytes = body.read(_CHUNK)
        except _FAULTS as error:
            raise self._fault(error, doing) from None
        return chunk

    def _pages(self, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        while True:

            def list_page(client: S3Client) -> Any:
                return client.list_objects_v2(Bucket=self._bucket, Prefix=self._base + prefix, **options)

            page = self._asked(list_page, "list the bucket")
            yield page
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]

    def _asked(self, ask: Callable[[S3Client], Answer], doing: str) -> Answer:
        """Return the answer to a request, made without credentials where there are none or they are refused."""
        if self._without is None:
            try:
                return ask(self._client)
            except _FAULTS as error:
                if not _is_refused(error):
                    raise self._told(error, doing) from None
                first = error
            without = S3Store(self._bucket, endpoint=self._endpoint, signed=False)._client
        else:
            first, without = None, self._without
        try:
            answer = ask(without)
        except _FAULTS as error:
            # Whoever has credentials wants to hear of them.
            told = first if first and not isinstance(first, boto.NoCredentialsError) and _is_refused(error) else error
            raise self._told(told, doing) from None
        self._without = without
        return answer

    def _told(self, error: Exception, doing: str) -> Exception:
        if _code(error) in ("NoSuchKey", "404", "PreconditionFailed") or _status(error) == 412:
            return _Gone()
        return self._fault(error, doing)


class _Gone(Exception):
    """The object is not, or no longer, the one that was listed."""


def _is_refused(error: Exception) -> bool:
    return isinstance(error, boto.NoCredentialsError) or _status(error) in (401, 403) or _code(error) in _REFUSALS
