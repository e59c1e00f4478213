"""A token bucket: units that may be used a minute."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Limits units to a rate per minute, and to the units of one minute at once.

    Attributes:
        per_minute: Units a minute; infinite is no limit.
        level: Units that may be taken now; below zero after a correction.
    """

    per_minute: float = math.inf
    level: float = math.inf
    filled_at: float = 0.0

    def set_rate(self, per_minute: float, now: float) -> None:
        """Change the rate; a first one begins with a full bucket."""
        self._fill(now)
        self.per_minute = max(per_minute, 1e-6)
        self.level = min(self.level, per_minute)

    def no_more_than(self, level: float, now: float) -> None:
        """Lower the level to what is left, if it is above."""
        self._fill(now)
        self.level = min(self.level, level)

    def delay(self, amount: float, now: float) -> float:
        """Return the seconds until an amount may be taken.

        A full bucket grants any amount, because a larger one could never be granted.
        """
        if math.isinf(self.per_minute):
            return 0.0
        self._fill(now)
        missing = min(amount, self.per_minute) - self.level
        return missing / self.per_minute * 60.0 if missing > 1e-9 else 0.0

    def backlog_s(self, amount: float, now: float) -> float:
        """Return the seconds until an amount is granted, which may be more than a full bucket."""
        if math.isinf(self.per_minute):
            return 0.0
        self._fill(now)
        return max(0.0, amount - self.level) / self.per_minute * 60.0

    def take(self, amount: float, now: float) -> None:
        """Take units, or give some back."""
        if not math.isinf(self.per_minute):
            self._fill(now)
            self.level = min(self.per_minute, self.level - amount)

    def _fill(self, now: float) -> None:
        if not math.isinf(self.per_minute):
            gained = max(0.0, now - self.filled_at) * self.per_minute / 60.0
            self.level = min(self.per_minute, self.level + gained)
        self.filled_at = now
