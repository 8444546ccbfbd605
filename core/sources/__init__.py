"""Where sessions come from: a session tree, ONE, or the public aggregates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.config import SourceSettings
from core.errors import ConfigurationError
from core.records import Fingerprint
from core.sources.base import Days, Source, SubjectSource
from core.sources.one import OneSource
from core.sources.tree import TreeSource

__all__ = ["Days", "OneSource", "Source", "SubjectSource", "TreeSource", "open_source", "source_uri"]

#: What stands before the address where a source is no session tree.
ONE = "one:"
AGGREGATES = "aggregates:"
#: What stands before the address of the ONE beside the aggregates.
_BESIDE = ", one:"


def source_uri(addresses: Mapping[str, str]) -> str:
    """Return the name of a source, as :func:`open_source` takes it.

    Parameters
    ----------
    addresses : mapping of str to str
        The address of each kind that was named: ``root``, ``one``, ``aggregates``.

    Raises
    ------
    ConfigurationError
        Where there is none, or they exclude each other.
    """
    match addresses:
        case {"root": root, **others} if not others:
            return root
        case {"one": one, **others} if not others:
            return f"{ONE}{one}"
        case {"aggregates": aggregates, **others} if not others:
            return f"{AGGREGATES}{aggregates}"
        case {"aggregates": aggregates, "one": one, **others} if not others:
            if _BESIDE in aggregates:
                raise ConfigurationError(f"aggregates with a ONE beside them cannot lie in {aggregates!r}")
            return f"{AGGREGATES}{aggregates}{_BESIDE}{one}"
    named = " and ".join(f"--{name}" for name in addresses)
    raise ConfigurationError(f"{named} exclude each other: name one of them, or --aggregates with --one beside it")


def open_source(uri: str, settings: SourceSettings, by: Fingerprint = "stat") -> Source:
    """Open a source by its name; nothing is asked of it yet.

    Parameters
    ----------
    uri : str
        The path of a session tree; ``one:local:<folder>`` of a ONE cache, or ``one:<address>`` of an Alyx server; or
        ``aggregates:`` with a folder or ``s3://bucket/prefix`` behind it, and ``, one:...`` where a ONE tells what is
        not in them.
    settings : SourceSettings
        How servers are reached, and where downloads lie; a tree needs none of it.
    by : {"stat", "content"}
        What the files of a tree are known by, see :func:`core.discover.find_files`.

    Raises
    ------
    ConfigurationError
        Where the name is of no form known.
    """
    if uri.startswith(ONE):
        return OneSource(uri.removeprefix(ONE), settings)
    if uri.startswith(AGGREGATES):
        from core.sources.aggregates import open_aggregates

        address, _, one = uri.removeprefix(AGGREGATES).partition(_BESIDE)
        return open_aggregates(address, settings, by, one or None)
    return TreeSource(Path(uri), by)
