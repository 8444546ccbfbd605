"""Names that become paths and keys: what is admitted, and what is refused in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.errors import InvalidName
from core.names import check_date, check_lab, check_number, check_subject, printable

REAL_NAMES = [
    "KS014",
    "ibl_witten_27",
    "CSH_ZAD_001",
    "NYU-11",
    "SWC_054",
    "mrsicflogellab",
    "a",
    "1",
    "a.b+c",
    "x" * 64,
]
BAD_NAMES = [
    "",
    ".",
    "..",
    "a..b",
    ".hidden",
    "-rf",
    "a/b",
    "a\\b",
    "../../etc",
    "a b",
    "a\n",
    "a\x00b",
    "a\x1b[31m",
    "КS014",  # a Cyrillic letter that looks like K
    "SWC＿054",  # a full-width low line
    "x" * 65,
    "Subjects",
    "a:b",
    "~root",
]


@pytest.mark.parametrize("check", [check_lab, check_subject])
@pytest.mark.parametrize("name", REAL_NAMES)
def test_real_names_are_returned_as_they_are(check: Callable[[str], str], name: str) -> None:
    assert check(name) == name


@pytest.mark.parametrize("check", [check_lab, check_subject])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_cannot_be_a_path_or_key_are_refused(check: Callable[[str], str], name: str) -> None:
    with pytest.raises(InvalidName, match="cannot be the name of a") as refused:
        check(name)
    assert str(refused.value).isprintable()  # one line, and nothing that a terminal would obey


def test_the_refusal_says_of_what() -> None:
    with pytest.raises(InvalidName, match=r"'\.\.' cannot be the name of a lab"):
        check_lab("..")
    with pytest.raises(InvalidName, match=r"'' cannot be the name of a subject"):
        check_subject("")


@pytest.mark.parametrize("text", ["2020-08-21", "2024-02-29", "0001-01-01"])
def test_dates(text: str) -> None:
    assert check_date(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2020-13-45",
        "2023-02-29",
        "2020-8-21",
        "20200821",
        "2020-08-21 ",
        "2020-08-21\n",
        "2020/08/21",
        "٢٠٢٠-08-21",
    ],
)
def test_what_is_no_date(text: str) -> None:
    with pytest.raises(InvalidName, match="is not a date: write it as yyyy-mm-dd"):
        check_date(text)


@pytest.mark.parametrize("text", ["001", "000", "999"])
def test_session_numbers(text: str) -> None:
    assert check_number(text) == text


@pytest.mark.parametrize("text", ["", "1", "01", "0001", "001_bad", "abc", "٠٠١", "001\n"])
def test_what_is_no_session_number(text: str) -> None:
    with pytest.raises(InvalidName, match="three digits are wanted"):
        check_number(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("raw_behavior_data", "raw_behavior_data"),
        ("Größe", "Größe"),
        ("a\nb", r"a\nb"),
        ("a\x1b[0m", r"a\x1b[0m"),
        ("\udcff", r"\udcff"),  # a byte of a file's name that is no UTF-8
        ("\u202e", r"\u202e"),  # turns the line around
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).encode()
