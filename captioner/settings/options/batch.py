"""The options of a batch API."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - evaluated by get_type_hints

from captioner.core.errors import SettingsError
from captioner.settings.options.definition import OptionGroup, option, tuning


@dataclass(frozen=True, slots=True)
class BatchSettings(OptionGroup):
    """Batch API."""

    batch_api: bool = option(
        "Use the OpenAI Batch API, which costs half and may take a day. You can stop and run "
        "again: nothing is submitted twice.",
        default=False,
    )
    batch_requests: int = tuning("Maximum requests of one batch.", 50_000)
    batch_bytes: int = tuning("Maximum size of one batch's requests.", 190_000_000, unit="bytes")
    batch_poll: float = tuning("Seconds between two checks of the batches.", 30.0, unit="seconds")
    batch_max_wait: float | None = option(
        "Hours to wait for batches before the run ends with exit code 8. Default: no limit.",
        unit="hours",
    )
    to_batch_file: Path | None = option(  # noqa: RUF009 - a name with Path in it
        "Write the requests to this file for vLLM's run-batch, and exit."
    )
    from_batch_file: Path | None = option(  # noqa: RUF009 - a name with Path in it
        "Read the responses from this file, the output of run-batch."
    )

    def _check(self) -> None:
        given = [self.batch_api, self.to_batch_file is not None, self.from_batch_file is not None]
        if sum(given) > 1:
            raise SettingsError(
                "batch-api: it cannot be combined with --to-batch-file or --from-batch-file"
            )

    @property
    def any(self) -> bool:
        """Whether records go through batches."""
        return self.batch_api or (self.to_batch_file or self.from_batch_file) is not None
