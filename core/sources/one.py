"""ONE as a source: sessions as an Alyx server, or the tables of a local ONE cache, have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.config import SourceSettings

if TYPE_CHECKING:
    from core.sources.alyx import Client


def connect(url: str, settings: SourceSettings) -> Client:
    """Log in to an Alyx server without prompting, see :func:`core.sources.alyx.connect`; imports one-api."""
    from core.sources import alyx

    return alyx.connect(url, settings)
