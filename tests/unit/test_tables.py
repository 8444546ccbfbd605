"""The stored tables: rows worked out by hand, metadata, and readers other than ours."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import schema
from core.errors import CorruptTable, InvalidName
from core.records import NAN, NO_FIT, Counts, DayStatus, DaySummary, Fit, LeftOut, Measures, SessionSummary, Verdict
from core.tables import (
    Keys,
    SubjectTables,
    build_tables,
    cohort_rows,
    fingerprint,
    merge_cohort,
    read_provenance,
    read_summaries,
    read_table,
    run_key,
    subject_keys,
)
from tests.trees import rows

#: The peer's columns, as the spec lists them.
FITTED = [f"{name}_{block}" for block in (50, 20, 80) for name in ("bias", "thres", "lapselow", "lapsehigh")]
MEASURED = ["performance_easy", "reaction_time", "n_trials", "sess_duration", "n_delay"]
COLUMNS = [
    *("date", "session_path", "task_protocol", "performance", "contrasts"),
    *FITTED,
    *MEASURED,
    *("location", "training_status", "combined_performance", "combined_contrasts"),
    *(f"combined_{name}" for name in MEASURED + FITTED),
]
TEXT = {"date", "session_path", "task_protocol", "location", "training_status"}


def measures(counts: Counts, *, fits: tuple[Fit, Fit, Fit] | None = None, duration: float = 10.0) -> Measures:
    return Measures(
        counts=counts,
        n_trials=float(counts.total),
        performance_easy=0.75,
        reaction_time=1.5,
        duration=duration,
        delay=5.0,
        fits=fits or ((1.0, 2.0, 0.3, 0.4), NO_FIT, NO_FIT),
    )


def summary(
    date: str,
    number: int,
    protocol: str = "training",
    of: Measures | None = None,
    location: str | None = "training_rig",
) -> SessionSummary:
    habituation = protocol == "habituation"
    return SessionSummary(
        path=f"/t/{date}/{number:03d}",
        number=f"{number:03d}",
        protocol=protocol,
        location=None if habituation else location,
        measures=None if habituation else of or measures(Counts(contrasts=(0.0,), n=(2,), k=(1,))),
    )


def a_day(date: str, *sessions: SessionSummary, **more: Any) -> DaySummary:
    inputs = {session.number: f"print {date} {session.number}" for session in sessions}
    protocol = sessions[-1].protocol if sessions else None
    return DaySummary(date=date, inputs=inputs, protocol=protocol, sessions=sessions, **more)


def status(date: str, name: str, *verdicts: Verdict) -> DayStatus:
    return DayStatus(date=date, status=name, window_status=name, verdicts=verdicts)


def build(days: list[DaySummary], statuses: list[DayStatus]) -> SubjectTables:
    return build_tables("alab", "S1", days, statuses)


def a_life() -> SubjectTables:
    """Habituation, two days in training of which the second has two sessions, and a biased day."""
    days = [
        a_day("2020-01-01", summary("2020-01-01", 1, "habituation")),
        a_day("2020-01-02", summary("2020-01-02", 1)),
        a_day("2020-01-05", summary("2020-01-05", 1), summary("2020-01-05", 2)),
        a_day("2020-01-06", summary("2020-01-06", 1, "biased")),
    ]
    names = ("habituation", "in training", "in training", "trained 1b")
    return build(days, [status(day.date, name) for day, name in zip(days, names, strict=True)])


# --- training.pqt -----------------------------------------------------------------------------------------


def test_the_columns_are_the_peers_in_name_type_and_order() -> None:
    found = pq.read_table(pa.BufferReader(a_life().training)).schema
    assert found.names == COLUMNS
    assert found.types == [pa.string() if name in TEXT else pa.float64() for name in COLUMNS]


def test_a_row_a_contrast_with_everything_else_repeated() -> None:
    fits = ((1.0, 2.0, 0.3, 0.4), (5.0, 6.0, 0.7, 0.8), (9.0, 10.0, 0.11, 0.12))
    of = measures(Counts(contrasts=(-25.0, 0.0, 100.0), n=(4, 5, 8), k=(1, 2, 8)), fits=fits)
    day = a_day("2020-01-02", summary("2020-01-02", 1, "biased", of))
    found = rows(build([day], [status("2020-01-02", "trained 1b")]).training)
    same = {
        "date": "2020-01-02",
        "session_path": "/t/2020-01-02/001",
        "task_protocol": "biased",
        "location": "training_rig",
        "training_status": "trained 1b",
        "performance_easy": 0.75,
        "reaction_time": 1.5,
        "n_trials": 17.0,
        "sess_duration": 10.0,
        "n_delay": 5.0,
        "bias_50": 1.0,
        "thres_50": 2.0,
        "lapselow_50": 0.3,
        "lapsehigh_50": 0.4,
        "bias_20": 5.0,
        "thres_20": 6.0,
        "lapselow_20": 0.7,
        "lapsehigh_20": 0.8,
        "bias_80": 9.0,
        "thres_80": 10.0,
        "lapselow_80": 0.11,
        "lapsehigh_80": 0.12,
    }
    # A session that stands alone is the day: the combined values are its own.
    same |= {f"combined_{name}": value for name, value in same.items() if isinstance(value, float)}
    curve = [(-25.0, 0.25), (0.0, 0.4), (100.0, 1.0)]
    assert found == [
        same | {"contrasts": x, "performance": p, "combined_contrasts": x, "combined_performance": p} for x, p in curve
    ]


def test_a_habituation_session_has_one_row_all_nan() -> None:
    (row,) = rows(
        build(
            [a_day("2020-01-01", summary("2020-01-01", 1, "habituation"))], [status("2020-01-01", "habituation")]
        ).training
    )
    told = {"date": "2020-01-01", "session_path": "/t/2020-01-01/001", "task_protocol": "habituation", "location": None}
    assert {name: row.pop(name) for name in told} == told
    assert row.pop("training_status") == "habituation"
    assert all(math.isnan(value) for value in row.values())


def test_rows_are_filled_up_where_the_day_has_more_contrasts_than_the_session() -> None:
    few = measures(Counts(contrasts=(-100.0, 100.0), n=(1, 1), k=(0, 1)), duration=10.0)
    many = measures(Counts(contrasts=(-100.0, 0.0, 100.0), n=(1, 2, 1), k=(0, 1, 1)), duration=20.0)
    both = measures(Counts(contrasts=(-100.0, 0.0, 100.0), n=(2, 2, 2), k=(0, 1, 2)), duration=30.0)
    day = a_day("2020-01-02", summary("2020-01-02", 1, of=few), summary("2020-01-02", 2, of=many), combined=both)
    found = rows(build([day], [status("2020-01-02", "in training")]).training)
    names = ("session_path", "contrasts", "performance", "combined_contrasts", "combined_performance")
    assert [[str(row[name]) for name in names] for row in found] == [
        ["/t/2020-01-02/001", "-100.0", "0.0", "-100.0", "0.0"],
        ["/t/2020-01-02/001", "100.0", "1.0", "0.0", "0.5"],
        ["/t/2020-01-02/001", "nan", "nan", "100.0", "1.0"],
        ["/t/2020-01-02/002", "-100.0", "0.0", "-100.0", "0.0"],
        ["/t/2020-01-02/002", "0.0", "0.5", "0.0", "0.5"],
        ["/t/2020-01-02/002", "100.0", "1.0", "100.0", "1.0"],
    ]
    assert [row["sess_duration"] for row in found] == [10.0] * 3 + [20.0] * 3
    assert {row["combined_sess_duration"] for row in found} == {30.0}
    assert {row["combined_n_trials"] for row in found} == {6.0}


def test_a_session_without_trials_has_one_row() -> None:
    nothing = Measures(
        counts=Counts(),
        n_trials=0.0,
        performance_easy=NAN,
        reaction_time=NAN,
        duration=3.0,
        delay=0.0,
        fits=(NO_FIT, NO_FIT, NO_FIT),
    )
    day = a_day("2020-01-02", summary("2020-01-02", 1, of=nothing))
    (row,) = rows(build([day], [status("2020-01-02", "in training")]).training)
    assert (row["n_trials"], row["sess_duration"], row["training_status"]) == (0.0, 3.0, "in training")
    assert math.isnan(row["contrasts"])


def test_rows_are_in_order_of_date_and_session_whatever_the_order_of_the_days() -> None:
    days = [
        a_day("2020-01-09", summary("2020-01-09", 1)),
        a_day("2020-01-02", summary("2020-01-02", 1), summary("2020-01-02", 2)),
    ]
    statuses = [status("2020-01-02", "in training"), status("2020-01-09", "in training")]
    tables = build(days, statuses)
    paths = [row["session_path"] for row in rows(tables.training)]
    assert paths == ["/t/2020-01-02/001", "/t/2020-01-02/002", "/t/2020-01-09/001"]
    assert build(days[::-1], statuses) == tables


def test_chained_protocols_have_a_row_set_each() -> None:
    day = a_day("2020-01-02", summary("2020-01-02", 1, "training"), summary("2020-01-02", 1, "biased"))
    found = rows(build([day], [status("2020-01-02", "trained 1b")]).training)
    assert [(row["session_path"], row["task_protocol"], row["training_status"]) for row in found] == [
        ("/t/2020-01-02/001", "training", "trained 1b"),
        ("/t/2020-01-02/001", "biased", "trained 1b"),
    ]


def test_a_day_of_which_everything_was_left_out_has_no_row_and_is_told() -> None:
    left = LeftOut(session="2020-01-03/001", reason="broken")
    gone = DaySummary(date="2020-01-03", inputs={"001": "f"}, left_out=(left,))
    tables = build([gone, a_day("2020-01-02", summary("2020-01-02", 1))], [status("2020-01-02", "in training")])
    assert {row["date"] for row in rows(tables.training)} == {"2020-01-02"}
    assert read_provenance(tables.training, "key").left_out == (left,)
    days, statuses = read_summaries(tables.summaries, "key")
    assert [day.date for day in days] == ["2020-01-02", "2020-01-03"]
    assert [day.date for day in statuses] == ["2020-01-02"]
    assert rows(tables.summaries)[1]["status"] is None


def test_tables_without_rows_have_their_columns_all_the_same() -> None:
    tables = build([], [])
    assert pq.read_schema(pa.BufferReader(tables.training)).names == COLUMNS
    assert pq.read_schema(pa.BufferReader(tables.criteria)).names == schema.CRITERIA.names
    for data in (tables.training, tables.criteria, tables.summaries, tables.aggregate):
        assert rows(data) == []
    assert tables.cohort == ()
    assert schema.empty(schema.TRAINING).schema == schema.TRAINING


# --- the other objects ------------------------------------------------------------------------------------


def test_the_aggregate_has_a_row_where_each_status_first_appears() -> None:
    frame = pd.read_parquet(BytesIO(a_life().aggregate))
    assert frame.index.name == "date"
    assert list(frame.columns) == ["training_status", "session"]
    assert list(frame.index) == ["2020-01-01", "2020-01-02", "2020-01-06"]
    assert frame.to_numpy().tolist() == [
        ["habituation", "/t/2020-01-01/001"],
        ["in training", "/t/2020-01-02/001"],
        ["trained 1b", "/t/2020-01-06/001"],
    ]


def test_untrainable_is_set_on_one_session_and_appears_in_the_aggregate_and_the_cohort() -> None:
    dates = [f"2020-{1 + at // 28:02d}-{1 + at % 28:02d}" for at in range(42)]
    days = [a_day(date, summary(date, 1)) for date in dates]
    tables = build(days, [status(date, "in training") for date in dates])
    found = [row["training_status"] for row in rows(tables.training)]
    assert found == ["in training"] * 39 + ["untrainable"] + ["in training"] * 2
    assert [(row["date"], row["training_status"]) for row in rows(tables.aggregate)] == [
        ("2020-01-01", "in training"),
        ("2020-02-12", "untrainable"),
    ]
    assert [(row["status"], row["sessions"], row["latest"]) for row in tables.cohort] == [
        ("in training", 1, True),
        ("untrainable", 40, False),
    ]


def test_the_cohorts_rows_of_a_subject() -> None:
    names = ("lab", "subject", "status", "date", "sessions", "days", "latest")
    expected = [
        ("alab", "S1", "habituation", "2020-01-01", 1, 1, False),
        ("alab", "S1", "in training", "2020-01-02", 2, 2, False),
        ("alab", "S1", "trained 1b", "2020-01-06", 5, 4, True),
    ]
    tables = a_life()
    assert [tuple(row[name] for name in names) for row in tables.cohort] == expected
    assert cohort_rows("alab", "S1", tables.training, "key") == list(tables.cohort)


def test_sessions_to_a_status_are_those_to_the_end_of_its_day() -> None:
    day = a_day("2020-01-02", summary("2020-01-02", 1), summary("2020-01-02", 2), summary("2020-01-02", 3))
    (row,) = build([day], [status("2020-01-02", "in training")]).cohort
    assert (row["sessions"], row["days"]) == (3, 1)


def test_the_latest_status_is_habituation_only_where_there_is_nothing_else() -> None:
    first = a_day("2020-01-01", summary("2020-01-01", 1, "habituation"))
    (only,) = build([first], [status("2020-01-01", "habituation")]).cohort
    assert (only["status"], only["latest"]) == ("habituation", True)
    days = [
        first,
        a_day("2020-01-02", summary("2020-01-02", 1)),
        a_day("2020-01-03", summary("2020-01-03", 1, "habituation")),
    ]
    names = ("habituation", "in training", "habituation")
    later = build(days, [status(day.date, name) for day, name in zip(days, names, strict=True)]).cohort
    assert [(row["status"], row["latest"]) for row in later] == [("habituation", False), ("in training", True)]


def test_the_cohort_is_renewed_subject_by_subject() -> None:
    def row(lab: str, subject: str, name: str, date: str = "2020-01-01") -> dict[str, Any]:
        return {"lab": lab, "subject": subject, "status": name, "date": date, "sessions": 1, "days": 1, "latest": True}

    first = merge_cohort(
        None, [row("b", "S1", "in training"), row("a", "S2", "in training"), row("a", "S1", "trained 1a")]
    )
    assert [(r["lab"], r["subject"]) for r in rows(first)] == [("a", "S1"), ("a", "S2"), ("b", "S1")]
    new = [row("a", "S1", "trained 1b", "2020-01-02"), row("a", "S1", "in training", "2020-01-02")]
    second = merge_cohort(first, new)
    assert [(r["lab"], r["subject"], r["status"]) for r in rows(second)] == [
        ("a", "S1", "in training"),  # of one date, the lower on the ladder first
        ("a", "S1", "trained 1b"),
        ("a", "S2", "in training"),
        ("b", "S1", "in training"),
    ]
    assert merge_cohort(second, new[::-1]) == second
    assert merge_cohort(second, []) == second
    assert pq.read_schema(pa.BufferReader(second)).names == schema.COHORT.names


@pytest.mark.parametrize("data", [b"", b"junk", b"PAR1junkPAR1"])
def test_a_cohort_table_that_cannot_be_read_is_told(data: bytes) -> None:
    with pytest.raises(CorruptTable, match=r"resources/training/cohort\.pqt cannot be read: "):
        merge_cohort(data, [])


def test_a_table_of_other_columns_is_no_cohort_and_no_training_table() -> None:
    other = BytesIO()
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(CorruptTable, match="has not the columns that it should have"):
        merge_cohort(other.getvalue(), [])
    with pytest.raises(CorruptTable, match="has not the columns that it should have"):
        cohort_rows("alab", "S1", other.getvalue(), "key")


def test_the_criteria_have_a_row_a_day_and_criterion() -> None:
    verdicts = (
        Verdict(target="trained 1a", name="bias", value=3.5, comparison="<", limit=16, passed=True),
        Verdict(target="trained 1b", name="reaction_time", value=NAN, comparison="<", limit=2, passed=False),
    )
    days = [a_day("2020-01-01", summary("2020-01-01", 1, "habituation")), a_day("2020-01-02", summary("2020-01-02", 1))]
    held = DayStatus(date="2020-01-02", status="trained 1a", window_status="in training", verdicts=verdicts)
    found = rows(build(days, [status("2020-01-01", "habituation"), held]).criteria)
    assert math.isnan(found[1].pop("value"))
    assert found == [
        {
            "date": "2020-01-02",
            "status": "trained 1a",
            "window_status": "in training",
            "target": "trained 1a",
            "name": "bias",
            "value": 3.5,
            "comparison": "<",
            "limit": 16.0,
            "passed": True,
        },
        {
            "date": "2020-01-02",
            "status": "trained 1a",
            "window_status": "in training",
            "target": "trained 1b",
            "name": "reaction_time",
            "comparison": "<",
            "limit": 2.0,
            "passed": False,
        },
    ]


def test_summaries_come_back_as_they_were() -> None:
    days = [a_day("2020-01-02", summary("2020-01-02", 1)), a_day("2020-01-01", summary("2020-01-01", 1, "habituation"))]
    verdicts = (
        Verdict(target="trained 1a", name="bias", value=NAN, comparison="<", limit=16, passed=False),
        Verdict(target="trained 1a", name="threshold", value=0.1 + 0.2, comparison="<", limit=19, passed=True),
    )
    of_days = [
        status("2020-01-01", "habituation"),
        DayStatus(date="2020-01-02", status="in training", window_status="in training", verdicts=verdicts),
    ]
    tables = build(days, of_days)
    assert repr(read_summaries(tables.summaries, "key")) == repr((days[::-1], of_days))


# --- keys and metadata ------------------------------------------------------------------------------------


def test_keys() -> None:
    assert subject_keys("alab", "S1") == Keys(
        training="resources/training/alab/S1/training.pqt",
        criteria="resources/training/alab/S1/criteria.pqt",
        summaries="resources/training/alab/S1/summaries.pqt",
        aggregate="aggregates/Subjects/alab/S1/_ibl_subjectTraining.table.pqt",
    )
    assert run_key("20200101T000000") == "resources/training/runs/20200101T000000.json"
    for lab, subject in (("..", "S1"), ("alab", "../S2"), ("", "S1"), ("alab", "a/b")):
        with pytest.raises(InvalidName):
            subject_keys(lab, subject)


def test_every_object_says_how_it_was_made() -> None:
    left = LeftOut(session="2020-01-02/002", reason="broken")
    day = a_day("2020-01-02", summary("2020-01-02", 1), left_out=(left,))
    tables = build([day], [status("2020-01-02", "in training")])
    for data in (tables.training, tables.criteria, tables.summaries, tables.aggregate):
        made = read_provenance(data, "key")
        assert made.schema_version == schema.SCHEMA_VERSION
        assert made.software_version == schema.SOFTWARE_VERSION
        assert made.inputs == fingerprint({"2020-01-02": {"001": "print 2020-01-02 001"}})
        assert made.left_out == (left,)


def test_the_fingerprint_of_inputs_depends_on_them_and_not_on_their_order() -> None:
    inputs = {"2020-01-01": {"001": "a", "002": "b"}, "2020-01-02": {"001": "c"}}
    turned = {"2020-01-02": {"001": "c"}, "2020-01-01": {"002": "b", "001": "a"}}
    assert fingerprint(inputs) == fingerprint(turned)
    others = [
        {"2020-01-01": {"001": "a", "002": "b"}},
        {"2020-01-01": {"001": "a", "002": "b"}, "2020-01-02": {"001": "d"}},
        {"2020-01-01": {"001": "a", "002": "b"}, "2020-01-02": {"002": "c"}},
        {"2020-01-01": {"001": "a"}, "2020-01-02": {"001": "c", "002": "b"}},
    ]
    assert len({fingerprint(one) for one in [inputs, *others]}) == 5


def with_metadata(metadata: dict[bytes, bytes] | None) -> bytes:
    buffer = BytesIO()
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PAR1",
        a_life().training[:-9],
        b"date,session_path\n",
        with_metadata(None),
        with_metadata({b"training_status": b"not json"}),
        with_metadata({b"training_status": b"[]"}),
        with_metadata({b"training_status": b"{}"}),
        with_metadata({b"training_status": orjson.dumps({"schema_version": "new", "software_version": "1"})}),
        with_metadata(
            {
                b"training_status": orjson.dumps(
                    {"schema_version": 1, "software_version": "1", "inputs": "x", "left_out": None}
                )
            }
        ),
    ],
)
def test_what_is_no_table_of_ours_is_told_in_one_line(data: bytes) -> None:
    with pytest.raises(CorruptTable, match=r"^the/key is no table of training-status: ") as told:
        read_provenance(data, "the/key")
    assert str(told.value).isprintable()


def test_what_is_no_table_at_all_is_told_in_one_line() -> None:
    for data in (b"", b"junk", a_life().training[:-9]):
        with pytest.raises(CorruptTable, match=r"^the/key cannot be read: "):
            read_table(data, "the/key")


def test_a_table_without_day_summaries_is_told() -> None:
    with pytest.raises(CorruptTable, match=r"^the/key holds no day summaries"):
        read_summaries(a_life().training, "the/key")


# --- bytes, and readers -----------------------------------------------------------------------------------


def test_the_same_days_give_the_same_bytes() -> None:
    assert a_life() == a_life()


def test_pandas_reads_what_was_written() -> None:
    frame = pd.read_parquet(BytesIO(a_life().training))
    assert list(frame.columns) == COLUMNS
    assert list(frame["training_status"]) == ["habituation", "in training", "in training", "in training", "trained 1b"]
    assert frame["n_trials"].isna().tolist() == [True, False, False, False, False]
    assert frame.drop_duplicates("session_path")["combined_n_trials"].tolist()[1:] == [2.0] * 4


def test_pyarrow_reads_what_was_written_with_nan_as_nan() -> None:
    table = pq.read_table(pa.BufferReader(a_life().training))
    assert table.num_rows == 5
    assert table.column("n_trials").null_count == 0
    assert math.isnan(table.column("n_trials")[0].as_py())
    assert table.column("location").null_count == 1


def test_duckdb_reads_what_was_written(tmp_path: Path) -> None:
    tables = a_life()
    for name in ("training", "criteria", "summaries", "aggregate"):
        (tmp_path / f"{name}.pqt").write_bytes(getattr(tables, name))
    (tmp_path / "cohort.pqt").write_bytes(merge_cohort(None, tables.cohort))
    with duckdb.connect() as connection:

        def ask(what: str, name: str, rest: str = "") -> list[tuple[Any, ...]]:
            query = f"SELECT {what} FROM read_parquet(?) {rest}"
            found: list[tuple[Any, ...]] = connection.execute(query, [str(tmp_path / f"{name}.pqt")]).fetchall()
            return found

        assert ask("training_status, count(*)", "training", "GROUP BY 1 ORDER BY 1") == [
            ("habituation", 1),
            ("in training", 3),
            ("trained 1b", 1),
        ]
        assert ask("date, training_status", "aggregate") == [
            ("2020-01-01", "habituation"),
            ("2020-01-02", "in training"),
            ("2020-01-06", "trained 1b"),
        ]
        assert ask("status", "cohort", "WHERE latest") == [("trained 1b",)]
        assert ask("count(*)", "summaries") == [(4,)]
        assert ask("count(*)", "criteria") == [(0,)]


def test_summaries_of_this_schema_are_read() -> None:
    assert max(schema.SUMMARIES_READ) == schema.SCHEMA_VERSION
