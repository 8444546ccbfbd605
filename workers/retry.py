"""How long to wait before another try: exponential backoff with jitter, as one pure function."""

from __future__ import annotations

#: Tries of a task after its first, for what may pass: about four minutes in all.
MAX_RETRIES = 7
_BASE = 1.0
_CAP = 60.0


def delay(attempt: int, fraction: float) -> float:
    """Return the seconds to wait before the try that follows `attempt` failed ones.

    Parameters
    ----------
    attempt : int
        Tries that failed so far, from 1.
    fraction : float
        A random number in [0, 1): tries that failed together are not made together again.
    """
    longest = min(_CAP, _BASE * 2.0 ** (attempt - 1))
    return longest * (0.5 + 0.5 * fraction)
