"""Writers of the files that IBL's rigs and extractors leave on disk.

Two generations of rigs (iblrig 6 and 8) and two layouts of extracted trials (a Parquet table, or one
.npy file per attribute) are in use, so both are written here, with the irregularities that real
sessions show as `Quirks`. The same arguments always give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from core.errors import ConfigurationError

Trials = Mapping[str, NDArray[Any]]
Rig = Literal["v7", "v8"]
Layout = Literal["table", "npy"]
Tasks = Sequence[tuple[str, Trials | None]]

TABLE_ATTRIBUTES = (
    "intervals",
    "choice",
    "contrastLeft",
    "contrastRight",
    "feedbackType",
    "feedback_times",
    "firstMovement_times",
    "goCue_times",
    "probabilityLeft",
    "response_times",
    "rewardVolume",
    "stimOn_times",
)
"""What the trials table holds; `intervals`, of shape (n_trials, 2), as two columns."""

INTEGER_ATTRIBUTES = frozenset({"choice", "feedbackType"})
RIG_VERSIONS: Mapping[Rig, str] = {"v7": "6.4.2", "v8": "8.24.0"}

CORRUPT_TIMESTAMP = 4294967.295  # s; a 32-bit millisecond counter that ran over, as seen in real files
STALE_SHIFT = 0.5  # s; how much earlier each superseded version has the stimulus appear
PAUSE_BETWEEN_TASKS = 60.0  # s
CLEAN_UP = 30.0  # s from the last trial to the end that the settings give


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """Irregularities of real sessions that a reader has to cope with."""

    uuid_names: bool = False  # files carry a UUID before their extension, as on IBL's servers
    revisions: tuple[str, ...] = ()  # later versions of stimOn_times, in order; only the last one is right
    leftover_npy: bool = False  # a superseded stimOn_times.npy still lies beside the table
    end_time: bool = False  # the settings say when the session ended
    corrupt_trailing: int = 0  # trailing trials whose end timestamp is far beyond 6 hours


REGULAR = Quirks()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One task as it was run on a rig: what its settings file says."""

    protocol: str  # as in PYBPOD_PROTOCOL
    lab: str
    subject: str
    number: int  # of the session within its day
    rig: Rig
    start: datetime
    end: datetime | None = None
    delay: int = 0  # s before the first trial
    ephys: bool = False  # run on an electrophysiology rig


def complete_trials(trials: Trials) -> dict[str, NDArray[Any]]:
    """Add what the trials lack but files hold: intervals, cue, movement and feedback times, rewards.

    Parameters
    ----------
    trials : mapping of str to ndarray
        Arrays of shape (n_trials,), times in seconds from the start of the Bpod; `intervals` of shape
        (n_trials, 2). Needed: contrastLeft, contrastRight, feedbackType, stimOn_times, and response_times
        (or feedback_times, for habituation). What is there is kept as it is.

    Returns
    -------
    dict of str to ndarray
        With choice and feedbackType of type int64, everything else float64.

    Raises
    ------
    ConfigurationError
        If a needed array is missing, or the arrays differ in length.
    """
    needed = ("contrastLeft", "contrastRight", "feedbackType", "stimOn_times")
    missing = [name for name in needed if name not in trials]
    if "response_times" not in trials and "feedback_times" not in trials:
        missing.append("response_times")
    if missing:
        raise ConfigurationError(f"trials lack {', '.join(missing)}")
    if len(lengths := {len(values) for values in trials.values()}) != 1:
        raise ConfigurationError(f"trials differ in length: {sorted(lengths)}")

    full: dict[str, NDArray[Any]] = {
        name: np.asarray(values, np.int64 if name in INTEGER_ATTRIBUTES else np.float64)
        for name, values in trials.items()
    }
    response = full["response_times"] if "response_times" in full else full["feedback_times"]
    # The screen's sensor misses a stimulus now and then: the trial still has a beginning.
    onset = np.where(np.isnan(full["stimOn_times"]), response, full["stimOn_times"])
    rewarded = full["feedbackType"] == 1
    full.setdefault("goCueTrigger_times", onset)
    full.setdefault("goCue_times", full["goCueTrigger_times"])
    full.setdefault("firstMovement_times", (onset + response) / 2)
    full.setdefault("feedback_times", response)
    full.setdefault("rewardVolume", np.where(rewarded, 1.5, 0.0))
    full.setdefault("intervals", _intervals(onset, response))
    full.setdefault("stimOff_times", full["intervals"][:, 1])
    return full


def _intervals(onset: NDArray[Any], response: NDArray[Any]) -> NDArray[Any]:
    """Each trial until 1.5 s after its response, or until the next one; shape (n_trials, 2)."""
    ends = response + 1.5
    ends[:-1] = np.minimum(ends[:-1], onset[1:])
    return np.column_stack((np.concatenate(([0.0], ends[:-1])), ends))


def write_trials(collection_dir: Path, trials: Trials, layout: Layout = "table", *, quirks: Quirks = REGULAR) -> None:
    """Write extracted trials into a collection, as the extractors do.

    Parameters
    ----------
    collection_dir : Path
        For example `alf` or `alf/task_00` in a session; made where it does not exist.
    trials : mapping of str to ndarray
        As `complete_trials` takes them. Without `choice` or `probabilityLeft`, as in habituation, there is
        no table to write and they are written as .npy files.
    layout : {'table', 'npy'}
        `_ibl_trials.table.pqt` with goCueTrigger_times and stimOff_times beside it, or a file per attribute.
    quirks : Quirks
        Of these, names with UUIDs, revisions and left-over files matter here.

    Raises
    ------
    ConfigurationError
        As `complete_trials` raises it.
    """
    full = complete_trials(trials)
    if layout == "table" and not all(name in full for name in TABLE_ATTRIBUTES):
        layout = "npy"
    named = _Namer(collection_dir, quirks.uuid_names)
    stale = len(quirks.revisions)
    _write_version(named, _outdated(full, stale), layout)
    for nth, revision in enumerate(quirks.revisions, start=1):
        newer = _outdated(full, stale - nth)
        _write_revision(_Namer(collection_dir / f"#{revision}#", quirks.uuid_names), newer, layout)
    if quirks.leftover_npy and layout == "table":
        _save(named("_ibl_trials.stimOn_times", ".npy"), _outdated(full, stale + 1)["stimOn_times"])


def _outdated(trials: dict[str, NDArray[Any]], versions: int) -> dict[str, NDArray[Any]]:
    """The trials as they were so many versions ago: with stimulus times that were corrected since."""
    if not versions:
        return trials
    return {**trials, "stimOn_times": trials["stimOn_times"] - versions * STALE_SHIFT}


def _write_version(named: _Namer, trials: dict[str, NDArray[Any]], layout: Layout) -> None:
    beside: Sequence[str] = tuple(trials)
    if layout == "table":
        _write_table(named("_ibl_trials.table", ".pqt"), trials)
        beside = ("goCueTrigger_times", "stimOff_times")
    for name in beside:
        _save(named(f"_ibl_trials.{name}", ".npy"), trials[name])


def _write_revision(named: _Namer, trials: dict[str, NDArray[Any]], layout: Layout) -> None:
    """A revision folder holds only the files that changed."""
    if layout == "table":
        _write_table(named("_ibl_trials.table", ".pqt"), trials)
    else:
        _save(named("_ibl_trials.stimOn_times", ".npy"), trials["stimOn_times"])


def _write_table(path: Path, trials: Trials) -> None:
    columns: dict[str, NDArray[Any]] = {}
    for name in TABLE_ATTRIBUTES:
        if name == "intervals":
            columns["intervals_0"], columns["intervals_1"] = np.ascontiguousarray(trials[name].T)
        else:
            columns[name] = trials[name]
    pq.write_table(pa.table(columns, metadata={"pandas": _pandas_metadata(columns)}), path)


def _pandas_metadata(columns: Trials) -> str:
    """What pandas, which writes the real tables, puts into a file; some readers insist that there is any."""
    described = [
        {
            "name": name,
            "field_name": name,
            "pandas_type": str(values.dtype),
            "numpy_type": str(values.dtype),
            "metadata": None,
        }
        for name, values in columns.items()
    ]
    n_rows = len(next(iter(columns.values())))
    index = {"kind": "range", "name": None, "start": 0, "stop": n_rows, "step": 1}
    return json.dumps(
        {
            "index_columns": [index],
            "column_indexes": [],
            "columns": described,
            "creator": {"library": "pyarrow", "version": "20.0.0"},
            "pandas_version": "2.3.3",
        }
    )


def _save(path: Path, values: NDArray[Any]) -> None:
    np.save(path, values, allow_pickle=False)


class _Namer:
    """Names files in a folder that it makes, with a UUID where asked for."""

    def __init__(self, folder: Path, uuid_names: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._uuid_names = uuid_names

    def __call__(self, stem: str, extension: str) -> Path:
        if not self._uuid_names:
            return self._folder / f"{stem}{extension}"
        place = "/".join((*_within_tree(self._folder), stem))
        digest = hashlib.md5(place.encode(), usedforsecurity=False).digest()
        return self._folder / f"{stem}.{uuid.UUID(bytes=digest, version=4)}{extension}"


def _within_tree(folder: Path) -> tuple[str, ...]:
    """The parts of a path from the subject on, so that a tree is the same wherever it is written."""
    parts = folder.parts
    dates = [place for place, part in enumerate(parts) if re.fullmatch(r"\d{4}-\d\d-\d\d", part)]
    return parts[max(dates[-1] - 1, 0) :] if dates else parts[-1:]


def write_raw(raw_dir: Path, run: Run, trials: Trials | None, *, quirks: Quirks = REGULAR) -> None:
    """Write what a rig leaves of one task: its settings and a line of JSON per trial.

    Parameters
    ----------
    raw_dir : Path
        For example `raw_behavior_data` or `raw_task_data_00` in a session; made where it does not exist.
    run : Run
        What the settings say.
    trials : mapping of str to ndarray, or None
        As `complete_trials` takes them; None for passive stimulation, which has no trials and no such file.
    quirks : Quirks
        Of these, names with UUIDs and corrupt timestamps matter here.

    Raises
    ------
    ConfigurationError
        As `complete_trials` raises it.

    Notes
    -----
    The trials' lines hold the timestamps that give a session its duration, and the states that tell stimulus,
    response and outcome. There is no wheel, so trials cannot be extracted anew from these files.
    """
    named = _Namer(raw_dir, quirks.uuid_names)
    settings = _settings_v7(run) if run.rig == "v7" else _settings_v8(run)
    text = json.dumps(settings, indent=1 if run.rig == "v7" else 4, sort_keys=True)
    named("_iblrig_taskSettings.raw", ".json").write_text(text, encoding="utf-8")
    if trials is not None:
        lines = _trial_lines(complete_trials(trials), quirks.corrupt_trailing)
        named("_iblrig_taskData.raw", ".jsonable").write_text("".join(lines), encoding="utf-8")


def _settings_v7(run: Run) -> dict[str, Any]:
    board = f"_iblrig_{run.lab}_{'ephys' if run.ephys else 'behavior'}_0"
    settings: dict[str, Any] = {
        "IBLRIG_VERSION_TAG": RIG_VERSIONS["v7"],
        "IS_MOCK": False,
        "PYBPOD_BOARD": board,
        "PYBPOD_CREATOR": ["simulated_user", "2671b209-5f71-4f0b-8f62-ef74f2e9e833", "local"],
        "PYBPOD_PROJECT": "ibl_simulation",
        "PYBPOD_PROTOCOL": run.protocol,
        "SESSION_DATE": f"{run.start:%Y-%m-%d}",
        "SESSION_DATETIME": run.start.isoformat(),
        "SESSION_NUMBER": f"{run.number:03d}",
        "SOUND_SAMPLE_FREQ": 96000,
        "SUBJECT_NAME": run.subject,
        "SUBJECT_WEIGHT": 22.0,
    }
    if run.delay or run.ephys:  # the question for a delay is put on these rigs only
        settings["SESSION_START_DELAY_SEC"] = run.delay
    if run.end is not None:
        settings["SESSION_END_TIME"] = run.end.isoformat()
    return settings


def _settings_v8(run: Run) -> dict[str, Any]:
    return {
        "ALYX_LAB": run.lab,
        "ALYX_USER": "simulated_user",
        "IBLRIG_VERSION": RIG_VERSIONS["v8"],
        "IS_MOCK": False,
        "PROCEDURES": ["Behavior training/tasks"],
        "PROJECTS": ["ibl_simulation"],
        "PYBPOD_PROTOCOL": run.protocol,
        "RIG_NAME": f"_iblrig_{run.lab}_{'ephys' if run.ephys else 'behavior'}_0",
        "SESSION_DELAY_START": run.delay,
        "SESSION_END_TIME": None if run.end is None else run.end.isoformat(),
        "SESSION_NUMBER": run.number,
        "SESSION_START_TIME": run.start.isoformat(),
        "SUBJECT_NAME": run.subject,
        "SUBJECT_WEIGHT": 22.0,
        "device_sound": {"OUTPUT": "harp"},
    }


_OUTCOMES = ("correct", "error", "no_go")


def _line_template(outcome: str) -> str:
    """A trial's line of JSON with gaps for numbers; states that were not entered are NaN, as Bpod has it."""
    absent = "[[NaN, NaN]]"
    states = dict.fromkeys(_OUTCOMES, absent) | {outcome: "[[%.4f, %.4f]]"}
    return (
        '{"trial_num": %d, "contrast": %g, "position": %g, "stim_probability_left": %g, "reward_amount": %g, '
        f'"trial_correct": {"true" if outcome == "correct" else "false"}, '
        '"behavior_data": {"Bpod start timestamp": 0.0, "Trial start timestamp": %.4f, '
        '"Trial end timestamp": %.4f, "States timestamps": {"trial_start": [[0, 0.0001]], '
        '"play_tone": [[%.4f, %.4f]], "closed_loop": [[%.4f, %.4f]], '
        + ", ".join(f'"{name}": {times}' for name, times in states.items())
        + '}, "Events timestamps": {"BNC2High": [%.4f]}}}\n'
    )


_TEMPLATES = tuple(_line_template(outcome) for outcome in _OUTCOMES)


def _trial_lines(trials: dict[str, NDArray[Any]], corrupt_trailing: int) -> list[str]:
    """Lines of `_iblrig_taskData.raw.jsonable`; Bpod gives times within a trial from the trial's start."""
    n_trials = len(trials["feedbackType"])
    starts, ends = trials["intervals"].T
    response = trials.get("response_times", trials["feedback_times"]) - starts
    cue_trigger = trials["goCueTrigger_times"] - starts
    cue_trigger = np.where(np.isnan(cue_trigger), response, cue_trigger)
    cue = np.where(np.isnan(trials["goCue_times"]), cue_trigger, trials["goCue_times"] - starts)
    is_right = ~np.isnan(trials["contrastRight"])
    ends_told = np.where(np.arange(n_trials) >= n_trials - corrupt_trailing, CORRUPT_TIMESTAMP, ends)
    columns = (
        np.arange(n_trials),
        np.where(is_right, trials["contrastRight"], trials["contrastLeft"]),
        np.where(is_right, 35.0, -35.0),
        trials.get("probabilityLeft", np.full(n_trials, 0.5)),
        trials["rewardVolume"],
        starts,
        ends_told,
        cue_trigger,
        cue,
        cue,
        response,
        response,
        ends - starts,
        cue,
    )
    rewarded = trials["feedbackType"] == 1
    responded = trials.get("choice", rewarded) != 0
    outcome = np.where(rewarded, 0, np.where(responded, 1, 2))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [_TEMPLATES[which] % row for which, row in zip(outcome.tolist(), rows, strict=True)]


def write_description(
    session_dir: Path, tasks: Sequence[Mapping[str, Mapping[str, Any]]], *, ephys: bool = False
) -> None:
    """Write `_ibl_experiment.description.yaml`, the description that iblrig 8 gives a session.

    Parameters
    ----------
    session_dir : Path
        The session's folder; made where it does not exist.
    tasks : sequence of mapping
        One protocol each, in order: `{protocol: {'collection': 'raw_task_data_00', ...}}`.
    ephys : bool
        Whether a neural recording keeps the time, rather than the Bpod.
    """
    sync = (
        {"nidq": {"collection": "raw_ephys_data", "acquisition_software": "spikeglx", "extension": "bin"}}
        if ephys
        else {
            "bpod": {
                "collection": "raw_task_data_00",
                "acquisition_software": "pybpod",
                "extension": ".jsonable",
            }
        }
    )
    description = {
        "devices": {"cameras": {"left": {"collection": "raw_video_data", "sync_label": "audio"}}},
        "procedures": ["Behavior training/tasks"],
        "projects": ["ibl_simulation"],
        "sync": sync,
        "tasks": [{protocol: dict(details)} for task in tasks for protocol, details in task.items()],
        "version": "1.0.0",
    }
    session_dir.mkdir(parents=True, exist_ok=True)
    text: str = yaml.safe_dump(description)
    (session_dir / "_ibl_experiment.description.yaml").write_text(text, encoding="utf-8")


def write_session(
    session_dir: Path,
    *,
    tasks: Tasks,
    start: datetime,
    rig: Rig = "v8",
    lab: str | None = None,
    delay: int = 0,
    ephys: bool = False,
    layout: Layout = "table",
    quirks: Quirks = REGULAR,
) -> None:
    """Write a whole session: raw files, extracted trials and, for iblrig 8, the experiment description.

    Parameters
    ----------
    session_dir : Path
        `<...>/<subject>/<yyyy-mm-dd>/<nnn>`; subject and number are taken from it.
    tasks : sequence of (str, trials or None)
        Protocol names, as PYBPOD_PROTOCOL has them, with trials as `complete_trials` takes them; None for
        passive stimulation. iblrig 8 puts task NN into `raw_task_data_NN` and `alf/task_NN`; iblrig 6 and 7
        have one task with trials, in `raw_behavior_data` and `alf`, and passive data in `raw_passive_data`.
    start : datetime
        When the first task started; later ones follow on it.
    rig : {'v7', 'v8'}
        The generation of the rig's software.
    lab : str, optional
        Where `session_dir` is in `<lab>/Subjects`, the lab is taken from it.
    delay : int
        Seconds between the start and the first trial, as the settings give them.
    ephys : bool
        Whether the rig is one for electrophysiology.
    layout : {'table', 'npy'}
        How trials are stored.
    quirks : Quirks
        Irregularities to write.

    Raises
    ------
    ConfigurationError
        If the lab is nowhere to be had, tasks do not fit the rig, or trials are incomplete.
    """
    _check_tasks(tasks, rig)
    begin = start
    for position, (protocol, trials) in enumerate(tasks):
        raw, alf = _collections(rig, position, passive=trials is None)
        seconds = 0.0 if trials is None else float(complete_trials(trials)["intervals"][-1, 1])
        end = begin + timedelta(seconds=round(seconds + CLEAN_UP))
        run = Run(
            protocol=protocol,
            lab=lab or _lab_of(session_dir),
            subject=session_dir.parents[1].name,
            number=int(session_dir.name),
            rig=rig,
            start=begin,
            end=end if quirks.end_time else None,
            delay=delay if position == 0 else 0,
            ephys=ephys,
        )
        write_raw(session_dir / raw, run, trials, quirks=quirks)
        if trials is not None:
            write_trials(session_dir / alf, trials, layout, quirks=quirks)
        begin = end + timedelta(seconds=PAUSE_BETWEEN_TASKS)
    if rig == "v8":
        described = [
            {protocol: {"collection": f"raw_task_data_{position:02d}", "sync_label": "bpod"}}
            for position, (protocol, _) in enumerate(tasks)
        ]
        write_description(session_dir, described, ephys=ephys)


def _check_tasks(tasks: Tasks, rig: Rig) -> None:
    if not tasks:
        raise ConfigurationError("a session needs a task")
    n_passive = sum(trials is None for _, trials in tasks)
    if rig == "v7" and (len(tasks) - n_passive > 1 or n_passive > 1):
        raise ConfigurationError("a v7 rig runs one task, and one passive protocol after it")


def _collections(rig: Rig, position: int, *, passive: bool) -> tuple[str, str]:
    """Where a task's raw files and its trials go, relative to the session."""
    if rig == "v8":
        return f"raw_task_data_{position:02d}", f"alf/task_{position:02d}"
    return ("raw_passive_data" if passive else "raw_behavior_data"), "alf"


def _lab_of(session_dir: Path) -> str:
    if len(session_dir.parents) > 3 and session_dir.parents[2].name == "Subjects":
        return session_dir.parents[3].name
    raise ConfigurationError(f"the lab of {session_dir} has to be given: it is not in <lab>/Subjects")
