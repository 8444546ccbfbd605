"""Where sessions come from: a session tree, ONE, or the public aggregates."""

from __future__ import annotations

from pathlib import Path

from core.config import SourceSettings
from core.records import Fingerprint
from core.sources.base import Days, Source, SubjectSource
from core.sources.one import OneSource
from core.sources.tree import TreeSource

__all__ = ["Days", "OneSource", "Source", "SubjectSource", "TreeSource", "open_source"]

#: What stands before the address where a source is no session tree.
ONE = "one:"
AGGREGATES = "aggregates:"


def open_source(uri: str, settings: SourceSettings, by: Fingerprint = "stat") -> Source:
    """Open a source by its name; nothing is asked of it yet.

    Parameters
    ----------
    uri : str
        The path of a session tree; ``one:local:<folder>`` of a ONE cache, or ``one:<address>`` of an Alyx server.
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
    return TreeSource(Path(uri), by)
