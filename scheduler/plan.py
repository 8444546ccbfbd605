"""What to send, as pure functions: which subjects come next, and how a subject's days are cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from core.records import LeftOut
from core.sources import Source
from workers.ledger import RunSpec, Subject

#: Subjects in one planning message: some tens of milliseconds of work, and what a killed planner does again.
CHUNK_SUBJECTS = 8
#: Days in one piece of work: about a tenth of a second, so that one long history spreads over all workers, while
#: the cost of the queue, some milliseconds a message, stays small beside it.
PIECE_DAYS = 40


def cut(dates: Sequence[str], size: int = PIECE_DAYS) -> tuple[tuple[str, ...], ...]:
    """Cut dates into pieces of nearly equal length, `size` at most, in their order."""
    count = -(-len(dates) // size)
    bounds = [round(at * len(dates) / count) for at in range(count + 1)] if count else [0]
    return tuple(tuple(dates[start:end]) for start, end in pairwise(bounds))


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
