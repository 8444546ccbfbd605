"""Where the tables are kept: S3 and its like, a folder, or memory."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.errors import ConfigurationError
from core.storage.base import Store, StoredObject, backoff, is_key, update

__all__ = ["Store", "StoredObject", "backoff", "open_store", "update"]

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_FORMS = "a store is s3://bucket/prefix, file:///folder, memory://name or the path of a folder"


def open_store(
    uri: str, *, endpoint: str | None = None, profile: str | None = None, region: str | None = None
) -> Store:
    """Open a store by its name. Nothing is read or written yet: `Store.check` does the asking.

    Parameters
    ----------
    uri : str
        ``s3://bucket/prefix``, ``file:///folder``, the path of a folder, or ``memory://name``.
    endpoint : str, optional
        Address of an S3-compatible server; AWS where there is none. This and the next two count for
        ``s3://`` only.
    profile : str, optional
        Profile of the AWS configuration that has the credentials.
    region : str, optional

    Returns
    -------
    Store
        To be used in the process that opened it: connections do not outlive a fork.

    Raises
    ------
    ConfigurationError
        The name, or the endpoint, is not of a form known.
    MissingCredentials
        There is no such profile, or its credentials are incomplete.
    """
    if not uri.strip() or not uri.isprintable():
        raise ConfigurationError(f"the name of the store is empty or has unprintable characters: {_FORMS}")
    kind, separator, rest = uri.partition("://")
    kind = kind.lower()
    if not separator:
        if kind.startswith(("s3:", "file:", "memory:")):
            raise ConfigurationError(f"the name of the store lacks '//' after {kind.partition(':')[0]!r}: {_FORMS}")
        return _open_folder(uri)
    if kind == "s3":
        bucket, _, prefix = rest.partition("/")
        return _open_s3(bucket, prefix.rstrip("/"), endpoint=endpoint, profile=profile, region=region)
    if kind == "file":
        return _open_folder(_file_path(uri))
    if kind == "memory":
        if "/" in rest or not is_key(rest):
            raise ConfigurationError("memory:// takes a name of letters, digits and '._+@-' only")
        from core.storage.memory import MemoryStore

        return MemoryStore(rest)
    # Only the kind is repeated: the rest of a mistaken address may hold a password or a signature.
    raise ConfigurationError(f"a store cannot be {kind[:20]!r}: {_FORMS}")


def _open_s3(bucket: str, prefix: str, *, endpoint: str | None, profile: str | None, region: str | None) -> Store:
    if "@" in bucket or ":" in bucket:
        raise ConfigurationError(
            "s3:// takes the bucket alone: credentials come from the environment or a profile, "
            "the server from the endpoint"
        )
    if not _BUCKET.fullmatch(bucket):
        raise ConfigurationError(f"{bucket[:80]!r} cannot be a bucket: letters, digits and '._-' only")
    if prefix and not is_key(prefix):
        raise ConfigurationError(
            f"s3://{bucket} has a prefix that no key can have: letters, digits, spaces, '._+@-' and single '/' only"
        )
    # boto3 takes long to import: only those who use it should pay for it.
    from core.storage.s3 import S3Store

    return S3Store(bucket, prefix, endpoint=endpoint or None, profile=profile or None, region=region or None)


def _open_folder(path: str) -> Store:
    from core.storage.local import LocalStore

    try:
        folder = Path(path).expanduser()
    except RuntimeError:
        raise ConfigurationError(f"{path[:200]!r}: there is no such user's home folder") from None
    return LocalStore(folder)


def _file_path(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or len(parts.path) < 2:
        raise ConfigurationError("file:// takes a whole path after three slashes: file:///folder")
    if parts.query or parts.fragment:
        raise ConfigurationError("file:// takes a path alone: write '?' and '#' in it as %3F and %23")
    return unquote(parts.path)
