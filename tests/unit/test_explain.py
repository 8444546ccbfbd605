"""Why a mouse has its status, in words: from the stored criteria alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from core.errors import ConfigurationError, CorruptTable, InvalidName
from core.explain import explain_day, find_criteria
from core.pipeline import recompute_subject
from core.records import NAN
from core.sources import TreeSource
from core.storage import Store, open_store
from tests.trees import KEYS, LAB, SUBJECT, session, trials


def row(date: str, target: str, name: str, value: float, comparison: str, limit: float, **more: Any) -> dict[str, Any]:
    passed = {"<": value < limit, ">": value > limit, ">=": value >= limit, "<=": value <= limit}[comparison]
    judged = {"date": date, "status": "trained 1a", "window_status": "trained 1a", "target": target, "name": name}
    return judged | {"value": value, "comparison": comparison, "limit": float(limit), "passed": passed} | more


ROWS = [
    row("2020-01-02", "trained 1a", "n_trials", 300, ">", 200),
    row("2020-01-02", "trained 1b", "n_trials", 300, ">", 400),
    row("2020-01-02", "trained 1b", "bias", 3.0, "<", 10),
    row("2020-01-02", "trained 1b", "reaction_time", NAN, "<", 2),
    row("2020-01-03", "trained 1a", "n_trials", 500, ">", 200, window_status="in training"),
    row("2020-01-03", "trained 1b", "performance_easy", 0.87654321, ">", 0.9, window_status="in training"),
]


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid4().hex}")


def test_the_last_day_judged_is_explained_where_none_is_named() -> None:
    found = explain_day("alab", "S1", ROWS, None)
    assert (found.lab, found.subject, found.date) == ("alab", "S1", "2020-01-03")
    assert (found.status, found.window_status, found.next_status) == ("trained 1a", "in training", "trained 1b")
    assert found.missing == "For trained 1b is missing: performance_easy is 0.8765, must be > 0.9."


def test_each_criterion_with_value_limit_and_meaning() -> None:
    found = explain_day("alab", "S1", ROWS, "2020-01-02")
    assert [(v.target, v.name, v.comparison, v.limit, v.passed) for v in found.verdicts] == [
        ("trained 1a", "n_trials", ">", 200.0, True),
        ("trained 1b", "n_trials", ">", 400.0, False),
        ("trained 1b", "bias", "<", 10.0, True),
        ("trained 1b", "reaction_time", "<", 2.0, False),
    ]
    assert [v.meaning for v in found.verdicts] == [
        "trials on every day",
        "trials on every day",
        "size of the bias, percent contrast",
        "median reaction time at zero contrast, s",
    ]
    assert found.missing == (
        "For trained 1b is missing: n_trials is 300, must be > 400; reaction_time could not be measured in this window."
    )


def test_a_criterion_that_is_not_known_any_more_has_no_words() -> None:
    found = explain_day("alab", "S1", [row("2020-01-02", "trained 1b", "weight", 20, ">", 18)], None)
    assert found.verdicts[0].meaning == ""


def test_at_the_top_nothing_is_missing() -> None:
    top = {"status": "ready4recording", "window_status": "ready4recording"}
    found = explain_day("alab", "S1", [row("2020-01-02", "ready4recording", "ephys_days", 3, ">=", 3, **top)], None)
    assert (found.next_status, found.missing) == (None, "There is no higher status.")


def test_what_the_source_does_not_tell_is_called_missing() -> None:
    judged = {"status": "ready4delay", "window_status": "ready4delay"}
    rows = [
        row("2020-01-02", "ready4recording", "ephys_days", NAN, ">=", 3, **judged),
        row("2020-01-02", "ready4recording", "delay_days", NAN, ">=", 1, **judged),
    ]
    assert explain_day("alab", "S1", rows, None).missing == (
        "For ready4recording is missing: "
        "ephys_days is not known: the rig of a day in this window is missing in its source; "
        "delay_days is not known: the delay of a day in this window is missing in its source."
    )


def test_where_every_criterion_is_met_it_points_to_the_rules() -> None:
    found = explain_day("alab", "S1", [row("2020-01-02", "trained 1b", "n_trials", 500, ">", 400)], None)
    assert found.missing.startswith("Every criterion of trained 1b is met in this window, but another rule")


@pytest.mark.parametrize("date", ["2020-01-01", "2021-01-01"])
def test_a_day_that_was_not_judged_is_refused_with_those_that_were(date: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        explain_day("alab", "S1", ROWS, date)
    assert str(refused.value) == (
        f"alab/S1 was not judged on {date}: no session then, or habituation (days judged: 2020-01-02 to 2020-01-03)"
    )


def test_a_subject_that_was_never_judged() -> None:
    with pytest.raises(ConfigurationError, match=r"was not judged on any day: .* \(days judged: none\)"):
        explain_day("alab", "S1", [], None)


# --- from the store ---------------------------------------------------------------------------------------


def test_from_sessions_to_words(tmp_path: Path, store: Store) -> None:
    # 90 trials at each side and 40 at zero contrast: everything for 1a is there, for 1b the number of trials is not.
    session(tmp_path, "2020-01-02", trials=trials([(-100.0, 90, 0), (0.0, 40, 20), (100.0, 90, 90)]))
    session(tmp_path, "2020-01-01", protocol="habituation")
    recompute_subject(TreeSource(tmp_path), LAB, SUBJECT, store)
    for lab in (LAB, None):
        found_lab, rows = find_criteria(store, SUBJECT, lab)
        assert found_lab == LAB
    found = explain_day(LAB, SUBJECT, rows, None)
    assert (found.date, found.status, found.next_status) == ("2020-01-02", "trained 1a", "trained 1b")
    assert "n_trials is 220, must be > 400" in found.missing
    values = {(v.target, v.name): v.value for v in found.verdicts}
    assert values["trained 1a", "performance_easy"] == 1.0
    assert values["trained 1a", "zero_contrast"] == 1.0
    assert values["trained 1b", "reaction_time"] == 1.0
    with pytest.raises(ConfigurationError, match="or habituation"):
        explain_day(LAB, SUBJECT, rows, "2020-01-01")


def test_a_subject_that_is_not_in_the_store(store: Store) -> None:
    with pytest.raises(ConfigurationError, match=r"no tables of S1 in memory://\w+: run `training-status recompute`"):
        find_criteria(store, "S1", None)
    with pytest.raises(ConfigurationError, match="no tables of S1"):
        find_criteria(store, "S1", "alab")
    with pytest.raises(InvalidName):
        find_criteria(store, "S1", "../alab")


def test_a_name_that_two_labs_have_needs_the_lab(store: Store) -> None:
    for lab in ("alab", "blab"):
        store.put(f"resources/training/{lab}/S1/criteria.pqt", b"", replaces=None)
    store.put("resources/training/alab/XS1/criteria.pqt", b"", replaces=None)  # another name that ends alike
    with pytest.raises(ConfigurationError, match="S1 is a name in alab, blab: name the lab with --lab"):
        find_criteria(store, "S1", None)


def test_criteria_that_cannot_be_read_are_told(store: Store) -> None:
    store.put(KEYS.criteria, b"junk", replaces=None)
    with pytest.raises(CorruptTable, match=r"criteria\.pqt cannot be read"):
        find_criteria(store, SUBJECT, None)
