"""Whether a server hangs, as opposed to one that is busy."""

from __future__ import annotations

from captioner.core.humanize import duration

HANG_S = 180.0
"""Seconds without a response to the question of its health, or without progress on requests that it
says to work on, after which a server hangs."""


class Pulse:
    """The signs of life of a server.

    Args:
        now: The time in seconds, on any clock.
    """

    def __init__(self, now: float) -> None:
        self._healthy = self._moved = now
        self._answers = 0
        self._progress = 0.0

    def fault(
        self, now: float, *, healthy: bool, working: bool, progress: float, answers: int
    ) -> str:
        """Note the signs at some time; return what is wrong if it hangs, else nothing.

        A server that responds to requests is busy, however late it says that it is healthy.

        Args:
            now: The time in seconds.
            healthy: It says that it is.
            working: It says that it works on requests.
            progress: A number that grows with its work.
            answers: Responses to requests so far.
        """
        came = answers != self._answers
        if healthy or came:
            self._healthy = now
        if came or progress != self._progress or not working:
            self._moved = now
        self._answers, self._progress = answers, progress
        if now - self._healthy >= HANG_S:
            return f"did not respond for {duration(HANG_S)}"
        if now - self._moved >= HANG_S:
            return f"made no progress for {duration(HANG_S)}"
        return ""
