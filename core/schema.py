"""The ladder, the protocols, and the columns of every stored table, named once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, Final

import pyarrow as pa

#: Raised when the meaning or the columns of a stored table change, a threshold among them; such tables are made anew.
SCHEMA_VERSION: Final = 3
#: Versions whose day summaries are as those of this one: an upgrade reads no session again, and keeps those that are no
#: longer on disk. Statuses are computed anew.
SUMMARIES_READ: Final = frozenset({1, 2, 3})

try:
    SOFTWARE_VERSION: Final = version("training-status")
except PackageNotFoundError:  # a checkout that was not installed
    SOFTWARE_VERSION = "0"  # type: ignore[misc]

#: Rank of each status; a higher one is further along. Spec of the IBL's training pipeline.
LADDER: Final = MappingProxyType(
    {
        "untrainable": -4,
        "unbiasable": -3,
        "not_computed": -2,
        "habituation": -1,
        "in training": 0,
        "trained 1a": 1,
        "trained 1b": 2,
        "ready4ephysrig": 3,
        "ready4delay": 4,
        "ready4recording": 5,
    }
)

#: What a protocol's name contains -> the protocol; the first that matches counts.
PROTOCOLS: Final = MappingProxyType(
    {
        "ephysChoiceWorld": "ephys",
        "_biasedChoiceWorld": "biased",
        "_imagingChoiceWorld": "biased",
        "_habituationChoiceWorld": "habituation",
        "_trainingChoiceWorld": "training",
        "_trainingPhaseChoiceWorld": "training",
        "_advancedChoiceWorld": "training",
        "_neuromodulatorChoiceWorld": "training",
    }
)

#: The attributes of a trials object that are used; every other column is left unread.
TRIALS_ATTRIBUTES: Final = (
    "choice",
    "contrastLeft",
    "contrastRight",
    "feedbackType",
    "probabilityLeft",
    "response_times",
    "stimOn_times",
)

#: A collection of trials is one that has this attribute; its values are not used.
TRIALS_MARKER: Final = "goCueTrigger_times"

#: Blocks by their probability of a stimulus on the left, in the order of the table's columns.
BLOCKS: Final = (("50", 0.5), ("20", 0.2), ("80", 0.8))
#: Column prefixes of the four fitted parameters, in the order in which the fit returns them.
FIT_PREFIXES: Final = ("bias", "thres", "lapselow", "lapsehigh")

_FIT_COLUMNS = [f"{prefix}_{block}" for block, _ in BLOCKS for prefix in FIT_PREFIXES]
_MEASURES = ["performance_easy", "reaction_time", "n_trials", "sess_duration", "n_delay"]
_TEXT = {"date", "session_path", "task_protocol", "location", "training_status"}

TRAINING_COLUMNS: Final = (
    ["date", "session_path", "task_protocol", "performance", "contrasts"]
    + _FIT_COLUMNS
    + _MEASURES
    + ["location", "training_status", "combined_performance", "combined_contrasts"]
    + [f"combined_{name}" for name in _MEASURES + _FIT_COLUMNS]
)

TRAINING: Final = pa.schema([(name, pa.string() if name in _TEXT else pa.float64()) for name in TRAINING_COLUMNS])

CRITERIA: Final = pa.schema(
    [
        ("date", pa.string()),
        ("status", pa.string()),  # of the day, after the hierarchy
        ("window_status", pa.string()),  # what the day's window alone gives
        ("target", pa.string()),  # the status that the criterion belongs to
        ("name", pa.string()),
        ("value", pa.float64()),
        ("comparison", pa.string()),
        ("limit", pa.float64()),
        ("passed", pa.bool_()),
    ]
)

AGGREGATE_COLUMNS: Final = ("training_status", "session")  # beside the index `date`

COHORT: Final = pa.schema(
    [
        ("lab", pa.string()),
        ("subject", pa.string()),
        ("status", pa.string()),
        ("date", pa.string()),  # the first day with this status
        ("sessions", pa.int64()),  # up to the end of that day, habituation included
        ("days", pa.int64()),  # days with sessions up to that day, that day included
        ("latest", pa.bool_()),  # the status of the subject's last day
    ]
)

SUMMARIES: Final = pa.schema(
    [
        ("date", pa.string()),
        ("inputs", pa.string()),  # fingerprint of the day's sessions
        ("summary", pa.string()),  # JSON, see `records.DaySummary`
        ("status", pa.string()),  # JSON, see `records.DayStatus`; null where every session was left out
    ]
)


def empty(schema: pa.Schema) -> Any:
    """Return a table of `schema` (a `pyarrow.Table`) without rows."""
    return schema.empty_table()
