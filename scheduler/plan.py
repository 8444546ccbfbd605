"""What to send, as pure functions: which subjects come next, and how a subject's days are cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from core.records import LeftOut
from core.sources import Source
from workers.records import RunSpec, Subject

#: Subjects in one planning message: some tens of milliseconds of work, and what a killed planner does again.
CHUNK_SUBJECTS = 8
#: Days in one piece of work: some tenths of a second, so that one long history spreads over all workers, while the cost
#: of the queue, some milliseconds a message, stays small beside it, and fits come in large batches.
PIECE_DAYS = 100
#: Subjects that a refresh looks at before all others, because their folders changed last.
FIRST_SUBJECTS = 4


def cut(dates: Sequence[str], size: int = PIECE_DAYS) -> tuple[tuple[str, ...], ...]:
    """Cut dates into pieces of nearly equal length, `size` at most, in their order."""
    count = -(-len(dates) // size)
    bounds = [round(at * len(dates) / count) for at in range(count + 1)] if count else [0]
    return tuple(tuple(dates[start:end]) for start, end in pairwise(bounds))


def first_subjects(source: Source, spec: RunSpec) -> list[Subject]:
    """Return the subjects of a refresh that most likely have something new, so that nobody waits for all the others.

    A hint alone: each of them comes in its turn, too, and is then found under way.
    """
    if spec.only or spec.kind != "refresh":
        return []
    newest = source.newest(spec.labs, spec.subjects, FIRST_SUBJECTS)
    return [Subject(lab=lab, subject=subject) for lab, subject in newest]


def subjects_after(source: Source, spec: RunSpec, cursor: str) -> Iterator[Subject | LeftOut]:
    """Yield the subjects of a run that come after `cursor`, by lab and subject, and folders that are none.

    Lazy: a lab is listed when its turn comes.
    """
    if spec.only:
        yield from (Subject.parse(name) for name in sorted(spec.only) if name > cursor)
        return
    after = Subject.parse(cursor)
    labs, odd = source.labs(spec.labs)
    if not cursor:
        yield from odd
    for lab in labs:
        if lab < after.lab:
            continue
        subjects, odd = source.subjects(lab, spec.subjects)
        if lab > after.lab:
            yield from odd
        for subject in subjects:
            if (lab, subject) > (after.lab, after.subject):
                yield Subject(lab=lab, subject=subject)
