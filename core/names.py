"""Names that become a path or a key: checked once, before they do.

A lab, subject, date or session number comes from a folder's name, a command line or a message. None of them may
climb out of its folder, hide a control character or pass for another name by a look-alike letter, so only ASCII is
admitted.
"""

from __future__ import annotations

import re
from datetime import date as Date

from core.errors import InvalidName

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NUMBER = re.compile(r"\d{3}", re.ASCII)
SUBJECTS_FOLDER = "Subjects"


def check_lab(name: str) -> str:
    """Return `name` if it can be a lab's name.

    Raises
    ------
    InvalidName
        Where it holds anything but ASCII letters, digits, ``_ . + -``, or ``..``.
    """
    return _check_name("lab", name)


def check_subject(name: str) -> str:
    """Return `name` if it can be a subject's name; same rules and errors as :func:`check_lab`."""
    return _check_name("subject", name)


def check_date(text: str) -> str:
    """Return `text` if it is a calendar date as ``yyyy-mm-dd``.

    Raises
    ------
    InvalidName
        Where it is not.
    """
    if _DATE.fullmatch(text):
        try:
            Date.fromisoformat(text)
        except ValueError:
            pass
        else:
            return text
    raise InvalidName(f"{text!r} is not a date: write it as yyyy-mm-dd")


def is_date(text: str) -> bool:
    """Return whether :func:`check_date` lets `text` pass."""
    try:
        return check_date(text) == text
    except InvalidName:
        return False


def check_number(text: str) -> str:
    """Return `text` if it is a session number of three digits.

    Raises
    ------
    InvalidName
        Where it is not.
    """
    if _NUMBER.fullmatch(text):
        return text
    raise InvalidName(f"{text!r} is not a session number: three digits are wanted, as in 001")


def printable(text: str) -> str:
    """Return `text` as one line that any encoding can hold: what cannot be printed stands as its escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _check_name(kind: str, name: str) -> str:
    if _NAME.fullmatch(name) and ".." not in name and name != SUBJECTS_FOLDER:
        return name
    raise InvalidName(
        f"{name!r} cannot be the name of a {kind}: ASCII letters, digits and _ . + - only, 64 characters at most"
    )
