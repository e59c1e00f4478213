"""What every part of a run shares."""

from __future__ import annotations

from dataclasses import dataclass, field

from captioner.core.cancellation import CancelToken
from captioner.core.progress import Progress
from captioner.settings.settings import Settings  # noqa: TC001 - read by dataclass tools


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every part of a run shares: its settings, its progress and its cancellation.

    Warnings are logged to the logger ``captioner``.

    Attributes:
        settings: The settings, with prompts read from their files.
        progress: Counts of the run, kept up to date.
        cancel: Ends intake and waits.
    """

    settings: Settings
    progress: Progress = field(default_factory=Progress)
    cancel: CancelToken = field(default_factory=CancelToken)

    def __post_init__(self) -> None:
        """Read prompts from their files."""
        object.__setattr__(self, "settings", self.settings.resolved())
