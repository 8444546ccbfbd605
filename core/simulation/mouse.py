"""How a simulated mouse learns, and what it does on each trial.

A mouse is habituated, learns the task over days or weeks, is given blocks in which one side is likelier,
moves to a rig for electrophysiology and there waits before its first trial. How fast it gets there, and
whether it does, lies in its temperament. Some of the days are irregular, as they are in real labs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from core.simulation.formats import RIG_VERSIONS, Layout, Quirks, Rig, Tasks

FIRST_DAY = date(2025, 1, 6)  # a Monday
SATURDAY, SUNDAY = 5, 6
RESPONSE_WINDOW = 60.0  # s; without a response until then, the trial ends
UNBIASED_START = 90  # trials before the first block
BLOCK_LENGTH = (20, 100)  # trials, drawn from an exponential distribution cut off at these
BLOCK_SCALE = 60  # trials, of that distribution
FEWEST, MOST = 300, 1000  # trials in a session
LONG_DELAY = 900  # s, what counts as a delay


class Stage(Enum):
    """What a mouse is trained on; the value is the task's name."""

    HABITUATION = "habituationChoiceWorld"
    TRAINING = "trainingChoiceWorld"
    BIASED = "biasedChoiceWorld"
    RECORDING = "ephysChoiceWorld"


@dataclass(frozen=True, kw_only=True)
class Temperament:
    """What makes one mouse differ from another."""

    habituation_days: int = 3
    midpoint: float  # training days until half is learnt
    pace: float  # days; the smaller, the steeper the learning
    ceiling: float = 0.985  # how much is learnt in the end, of 1
    shift: float = 7.0  # percent contrast; how far blocks move the bias, either way, in the end
    rest_days: frozenset[int] = frozenset({SATURDAY, SUNDAY})
    missed: float = 0.04  # share of working days without a session
    hurried: bool = False  # goes to the ephys rig with its first biased session, and is never given a delay


QUICK = Temperament(midpoint=4.0, pace=1.6)
TYPICAL = Temperament(midpoint=8.0, pace=1.8)
LATE = Temperament(midpoint=15.0, pace=2.5, shift=6.0)
SLOW = Temperament(midpoint=22.0, pace=4.0)
NEVER_LEARNS = Temperament(midpoint=8.0, pace=5.0, ceiling=0.3, rest_days=frozenset({SUNDAY}), missed=0.0)
NEVER_BIASED = Temperament(midpoint=2.5, pace=0.8, shift=0.0, rest_days=frozenset(), missed=0.0)
HURRIED = replace(NEVER_BIASED, shift=7.0, hurried=True)

TEMPERAMENTS = (QUICK, TYPICAL, SLOW, NEVER_LEARNS, TYPICAL, NEVER_BIASED, LATE, HURRIED)
"""In turn over subjects, three further for each lab; eight mice of a lab have them all."""


@dataclass(frozen=True, kw_only=True)
class Skill:
    """What a mouse can do on one day."""

    contrasts: tuple[float, ...]  # shown to it, 0..1
    threshold: float  # percent contrast
    lapse: float  # proportion, on either side
    bias: float  # percent contrast
    shift: float  # percent contrast by which a block moves the bias
    reaction_time: float  # s, median
    no_response: float  # proportion of trials
    n_trials: int


@dataclass(frozen=True, kw_only=True)
class Day:
    """What a mouse is to do on one day."""

    date: date
    stage: Stage
    skill: Skill
    changes_over: bool = False  # the first biased day, when some training comes before
    ephys: bool = False
    delay: int = 0  # s


@dataclass(frozen=True, kw_only=True)
class SimulatedSession:
    """One session, as `core.simulation.formats.write_session` takes it."""

    number: int  # within its day, from 1
    tasks: Tasks
    start: datetime
    rig: Rig
    delay: int  # s
    ephys: bool
    layout: Layout
    quirks: Quirks


@dataclass(frozen=True, kw_only=True)
class Mouse:
    """A mouse of a lab; all that it does follows from these numbers."""

    lab_index: int
    subject_index: int
    seed: int = 0

    @property
    def temperament(self) -> Temperament:
        """How it learns."""
        return TEMPERAMENTS[(self.subject_index + 3 * self.lab_index) % len(TEMPERAMENTS)]

    @property
    def rig(self) -> Rig:
        """The generation of rigs it is trained on."""
        return "v8" if self.subject_index % 2 == 0 else "v7"

    def sessions(self, days: int) -> Iterator[SimulatedSession]:
        """Live for a number of days.

        Parameters
        ----------
        days : int
            Calendar days from the mouse's first. More days only add sessions at the end.

        Yields
        ------
        SimulatedSession
            By date and number.
        """
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.lab_index, self.subject_index]))
        for day in _career(self.temperament, days, rng):
            yield from _sessions_of(day, self.rig, rng)


def _career(temperament: Temperament, days: int, rng: np.random.Generator) -> Iterator[Day]:
    """Days with sessions. A mouse moves on when it has shown for some days that it can."""
    first = FIRST_DAY + timedelta(days=int(rng.integers(14)))
    side_bias = float(rng.normal(0, 25))
    n_habituation = n_training = n_biased = n_ephys = n_able = 0
    for today in (first + timedelta(days=elapsed) for elapsed in range(days)):
        if today.weekday() in temperament.rest_days or rng.random() < temperament.missed:
            continue
        learnt = _learnt(temperament, n_training + n_biased, rng)
        skill = _skill(learnt, side_bias, _shift(temperament, n_biased), rng)
        if n_habituation < temperament.habituation_days:
            n_habituation += 1
            yield Day(date=today, stage=Stage.HABITUATION, skill=skill)
        elif n_able < 3:
            n_training += 1
            n_able += learnt > 0.9
            yield Day(date=today, stage=Stage.TRAINING, skill=skill)
        else:
            n_biased += 1
            knows_blocks = n_biased > 6 and skill.shift > 4
            n_ephys += knows_blocks or temperament.hurried
            # Three days to get used to the rig, two with a delay, then neural recordings.
            records = n_ephys > 5 and not temperament.hurried
            waits = n_ephys > 3 and not temperament.hurried
            yield Day(
                date=today,
                stage=Stage.RECORDING if records else Stage.BIASED,
                skill=replace(skill, contrasts=(1.0, 0.25, 0.125, 0.0625, 0.0)),
                changes_over=n_biased == 1,
                ephys=n_ephys > 0,
                delay=LONG_DELAY + int(rng.integers(300)) if waits else 0,
            )


def _learnt(temperament: Temperament, n_days: int, rng: np.random.Generator) -> float:
    progress = 1 / (1 + np.exp((temperament.midpoint - n_days) / temperament.pace))
    return float(np.clip(temperament.ceiling * progress + rng.normal(0, 0.01), 0, 1))


def _shift(temperament: Temperament, n_biased: int) -> float:
    return temperament.shift * float(1 - np.exp(-(n_biased + 1) / 3))


def _skill(learnt: float, side_bias: float, shift: float, rng: np.random.Generator) -> Skill:
    gap = 1 - learnt
    return Skill(
        contrasts=_contrasts(learnt),
        threshold=11 + 60 * gap**2,
        lapse=0.02 + 0.42 * gap,
        bias=side_bias * gap + float(rng.normal(0, 1)),
        shift=shift,
        reaction_time=0.5 + 2.2 * gap,
        no_response=0.001 + 0.04 * gap,
        n_trials=int(np.clip(rng.normal(330 + 500 * learnt, 60), FEWEST, MOST)),
    )


def _contrasts(learnt: float) -> tuple[float, ...]:
    """Harder contrasts come one by one; 50% goes when all are there."""
    easy = (1.0,) if learnt > 0.7 else (1.0, 0.5)
    harder = ((0.25, 0.35), (0.125, 0.45), (0.0625, 0.5), (0.0, 0.55))
    return easy + tuple(contrast for contrast, needed in harder if learnt > needed)


def _sessions_of(day: Day, rig: Rig, rng: np.random.Generator) -> Iterator[SimulatedSession]:
    """What is run on a day, as one session or, now and then, as two."""
    start = datetime.combine(day.date, time(9)) + timedelta(microseconds=int(rng.integers(6 * 3600 * 10**6)))
    for number, plan in enumerate(_plan(day, rig, rng), start=1):
        delay = day.delay if number == 1 else 0
        tasks = [(_protocol(name, rig), _trials(name, skill, delay, rng)) for name, skill in plan]
        yield SimulatedSession(
            number=number,
            tasks=tasks,
            start=start + timedelta(hours=3 * (number - 1)),
            rig=rig,
            delay=delay,
            ephys=day.ephys,
            layout="table" if rng.random() < 0.7 else "npy",
            quirks=_quirks(day.date, rig, rng),
        )


_Plan = Sequence[tuple[str, Skill]]


def _plan(day: Day, rig: Rig, rng: np.random.Generator) -> list[_Plan]:
    """The tasks of each session of the day; iblrig 8 can chain several in one session."""
    whole: _Plan = [(day.stage.value, day.skill)]
    part = replace(day.skill, n_trials=max(FEWEST, round(0.55 * day.skill.n_trials)))
    half = (day.stage.value, part)
    refresher = (Stage.TRAINING.value, part)
    chains = rig == "v8"
    chance = rng.random()
    if day.changes_over:
        return [[refresher, half]] if chains and chance < 0.5 else [[refresher], [half]]
    if day.stage is Stage.RECORDING:
        return [[*whole, ("passiveChoiceWorld", part)]] if chance < 0.5 else [whole]
    if day.stage is Stage.HABITUATION or chance > 0.1:
        return [whole]
    if chance < 0.05:
        return [[half], [half]]
    if chains and day.stage is Stage.BIASED:
        return [[half, half]] if chance < 0.08 else [[half, refresher]]
    return [whole]


def _protocol(name: str, rig: Rig) -> str:
    return f"_iblrig_tasks_{name}{RIG_VERSIONS['v7'] if rig == 'v7' else ''}"


def _quirks(today: date, rig: Rig, rng: np.random.Generator) -> Quirks:
    chance = rng.random(5)
    n_revisions = 0 if chance[1] > 0.05 else 1 if chance[1] > 0.02 else 2
    return Quirks(
        uuid_names=bool(chance[0] < 0.05),
        revisions=tuple(f"{today + timedelta(days=14 * nth):%Y-%m-%d}" for nth in range(1, n_revisions + 1)),
        leftover_npy=bool(chance[2] < 0.03),
        end_time=rig == "v8" and bool(chance[3] < 0.3),
        corrupt_trailing=int(chance[4] < 0.05) + int(chance[4] < 0.01),
    )


def _trials(name: str, skill: Skill, delay: int, rng: np.random.Generator) -> dict[str, NDArray[Any]] | None:
    if name == "passiveChoiceWorld":
        return None
    if name == Stage.HABITUATION.value:
        return draw_habituation(skill.n_trials, rng)
    return draw_trials(skill, rng, blocks=name != Stage.TRAINING.value, delay=delay)


def draw_trials(skill: Skill, rng: np.random.Generator, *, blocks: bool, delay: float = 0.0) -> dict[str, NDArray[Any]]:
    """Let a mouse do its trials.

    Parameters
    ----------
    skill : Skill
        What it can do.
    rng : numpy.random.Generator
        Where chance comes from.
    blocks : bool
        Whether one side is likelier, in blocks, after the first 90 trials.
    delay : float
        Seconds before the first trial.

    Returns
    -------
    dict of str to ndarray
        Arrays of shape (n_trials,), `intervals` of shape (n_trials, 2), times in seconds from the start of
        the Bpod. choice: 1 left, -1 right, 0 none; contrasts from 0 to 1, NaN on the other side.
    """
    n = skill.n_trials
    probability_left = _blocks(n, rng) if blocks else np.full(n, 0.5)
    is_left = rng.random(n) < probability_left
    contrast = _draw_contrasts(skill.contrasts, n, rng)
    signed = np.where(is_left, -100.0, 100.0) * contrast
    # Where the left is likelier, the mouse needs more contrast on the right to go there.
    bias = skill.bias + skill.shift * np.sign(np.round(probability_left - 0.5, 6))
    goes_right = skill.lapse + (1 - 2 * skill.lapse) * (erf((signed - bias) / skill.threshold) + 1) / 2
    choice = np.where(rng.random(n) < goes_right, -1, 1)
    median = skill.reaction_time * np.where(contrast == 0, 1.3, 1.0)
    reaction = np.exp(rng.normal(np.log(median), 0.6))
    choice[(rng.random(n) < skill.no_response) | (reaction > RESPONSE_WINDOW)] = 0
    feedback = np.where(choice == np.where(is_left, 1, -1), 1, -1)
    return {
        "choice": choice,
        "contrastLeft": np.where(is_left, contrast, np.nan),
        "contrastRight": np.where(is_left, np.nan, contrast),
        "feedbackType": feedback,
        "probabilityLeft": probability_left,
        "rewardVolume": np.where(feedback == 1, 1.5, 0.0),
        **_times(choice, feedback, reaction, delay, rng),
    }


def _blocks(n_trials: int, rng: np.random.Generator) -> NDArray[Any]:
    """The probability of a stimulus on the left, for each trial: 0.5 at first, then 0.2 and 0.8 in turn."""
    shortest, longest = BLOCK_LENGTH
    n_blocks = n_trials // shortest + 1
    survival = rng.uniform(np.exp(-longest / BLOCK_SCALE), np.exp(-shortest / BLOCK_SCALE), n_blocks)
    lengths = np.round(-BLOCK_SCALE * np.log(survival)).astype(int)
    odd = int(rng.integers(2))
    likely = np.where((np.arange(n_blocks) + odd) % 2 == 0, 0.2, 0.8)
    return np.concatenate((np.full(UNBIASED_START, 0.5), np.repeat(likely, lengths)))[:n_trials]


def _draw_contrasts(contrasts: tuple[float, ...], n_trials: int, rng: np.random.Generator) -> NDArray[Any]:
    """Zero contrast is the same on both sides, so it is drawn half as often."""
    weights = np.where(np.asarray(contrasts) == 0, 0.5, 1.0)
    return rng.choice(np.asarray(contrasts), n_trials, p=weights / weights.sum())


def _times(
    choice: NDArray[Any],
    feedback: NDArray[Any],
    reaction: NDArray[Any],
    delay: float,
    rng: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """When things happened, to the 0.1 ms that a Bpod resolves."""
    n = len(choice)
    quiet = rng.uniform(0.5, 0.9, n)  # s of a still wheel before the stimulus
    quiet[0] += delay
    until_response = np.where(choice == 0, RESPONSE_WINDOW, reaction)
    after = np.where(feedback == 1, 1.5, 2.5)  # s: the outcome, and the pause after it
    ends = np.cumsum(quiet + until_response + after)
    starts = np.concatenate(([0.0], ends[:-1]))
    onset = starts + quiet
    response = onset + until_response
    movement = np.where(choice == 0, np.nan, onset + until_response * rng.uniform(0.4, 0.8, n))
    times = {
        "intervals": np.column_stack((starts, ends)),
        "stimOn_times": onset - 0.01,
        "goCueTrigger_times": onset,
        "goCue_times": onset + 0.001,
        "firstMovement_times": movement,
        "response_times": response,
        "feedback_times": response + 0.0001,
        "stimOff_times": ends - 0.5,
    }
    times = {name: np.round(values, 4) for name, values in times.items()}
    times["stimOn_times"][_unseen(n, rng)] = np.nan
    return times


def _unseen(n_trials: int, rng: np.random.Generator) -> NDArray[Any]:
    """Trials whose stimulus the screen's sensor missed: often the first, and 1% in one session of five."""
    missed = rng.random(n_trials) < (0.01 if rng.random() < 0.2 else 0.0)
    missed[0] |= rng.random() < 0.3
    return np.asarray(missed)


def draw_habituation(n_trials: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Trials of a habituation session: the stimulus comes to the middle by itself, with a reward.

    Parameters
    ----------
    n_trials : int
        How many.
    rng : numpy.random.Generator
        Where chance comes from.

    Returns
    -------
    dict of str to ndarray
        As `draw_trials` gives them, without choice, response_times and probabilityLeft, which
        habituation does not have.
    """
    is_left = rng.random(n_trials) < 0.5
    contrast = _draw_contrasts((1.0, 0.5, 0.25, 0.125, 0.0625), n_trials, rng)
    waits = rng.uniform(4, 8, n_trials)
    ends = np.round(np.cumsum(waits + 2.0), 4)
    starts = np.concatenate(([0.0], ends[:-1]))
    onset = np.round(starts + 1.0, 4)
    return {
        "contrastLeft": np.where(is_left, contrast, np.nan),
        "contrastRight": np.where(is_left, np.nan, contrast),
        "feedbackType": np.ones(n_trials, np.int64),
        "feedback_times": np.round(onset + waits, 4),
        "goCueTrigger_times": onset,
        "goCue_times": onset,
        "intervals": np.column_stack((starts, ends)),
        "rewardVolume": np.full(n_trials, 3.0),
        "stimOff_times": ends,
        "stimOn_times": onset,
    }
