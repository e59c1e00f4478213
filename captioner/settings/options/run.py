"""The options of a run, and the output formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - evaluated by get_type_hints
from typing import Literal

from captioner.core.errors import SettingsError
from captioner.core.where import Where
from captioner.settings.options.definition import OptionGroup, common, option, tuning

OutputFormat = Literal[
    "jsonl", "json", "csv", "tsv", "parquet", "webdataset", "imagefolder", "coco", "llava", "txt",
    "caption", "sqlite", "xmp", "images", "dataset",
]  # fmt: skip

CSV_SAFE = (
    "In CSV and TSV, begin text that a spreadsheet would run as a formula (=, +, -, @) with an "
    "apostrophe."
)


@dataclass(frozen=True, slots=True)
class RunSettings(OptionGroup):
    """Run."""

    concurrency: int = common(
        "Maximum requests in flight. A run starts with a sixteenth of it, at least 8, and "
        "increases while the endpoint keeps up.",
        32,
    )
    processes: int = common(
        "Processes that share the work on several cores. They divide the concurrency, the "
        "memory and the rate limits; each deduplicates its own records only.",
        1,
    )
    budget: float | None = option("See --budget.")
    budget_tokens: int | None = option("See --budget.")
    renew_budget: bool = option("See --budget-per-run.", default=False)
    prices: Path | None = option(  # noqa: RUF009 - a name with Path in it, no mutable default
        "TOML file of prices that override those of the library: a table for each model, with "
        "input and output in US dollars per million tokens."
    )
    max_attempts: int = option("Attempts to get a valid caption for a record.", 5)
    stop_after: int | None = option(
        "Stop the run after this many refusals of the same kind in a row without a caption between "
        "them. Default: 10 before the first caption, 25 after it."
    )
    hedge: Literal["auto", "on", "off"] = option(
        "At the end of a run, send a request a second time if it takes longer than 99 of 100 did; "
        "the first answer counts. auto does so where requests cost nothing: on your own network, "
        "without a price.",
        "auto",
    )
    probe: bool = option(
        "Before a run of 20 records or more, send one request with a test image, to find a model "
        "that sees no images.",
        default=True,
    )
    dedup: bool = option(
        "Send equal requests (same images, same question) once, and give each record the caption.",
        default=True,
    )
    cache: Path | None = common(  # noqa: RUF009 - a name with Path in it, no mutable default
        "Folder of captions kept across runs. A request that was sent before with the same "
        "settings is not sent again."
    )
    redo: str | None = common(
        "Caption again all records, or where WHERE is true. It is an expression over the fields of "
        "the row, code, length, model, prompt, review, file and folder, such as "
        "\"length < 20 or code == 'truncated'\". What they had is kept beside the output in a "
        "file whose name ends in .replaced-1 and so on. Model and prompt may change.",
        alone=("all", "WHERE"),
    )
    retry_failed: str | None = option("See --retry.", alone=("all", "CODE"))
    retry_rejected: bool = option("See --retry.", default=False)
    output_format: OutputFormat | None = common(  # noqa: RUF009 - a Literal by another name
        "Output format. Default: by its name. txt, caption and xmp write a file for each image, "
        "images a copy of each with the caption in it, dataset a folder for Hugging Face."
    )
    overwrite: bool = common("Replace files that captioner did not write.", default=False)
    csv_safe: bool = option(CSV_SAFE, default=False)
    order: Literal["input", "completion"] = option(
        "Order of the finished output: as in the input, or as captions were completed.", "input"
    )
    accept_changes: bool = option("See --accept-changes.", default=False)
    accept_edits: bool = option("See --accept-changes.", default=False)
    metrics_port: int | None = option(
        "Serve Prometheus metrics on this port of 127.0.0.1. With 0, a free port is chosen.",
        zero=True,
    )
    otel: bool = option(
        "Export an OpenTelemetry span for each request, as OTEL_EXPORTER_OTLP_ENDPOINT says.",
        default=False,
    )
    view: bool = common(
        "Show the captions in a browser during the run. The page is for this machine only.",
        default=False,
    )
    log_json: bool = option(
        "Write events to standard error as lines of JSON instead of the display.", default=False
    )
    log_file: Path | None = option(  # noqa: RUF009 - a name with Path in it, no mutable default
        "Add events to this file as lines of JSON, beside the display: settings, progress with "
        "the time left, warnings, and the result with its failures."
    )
    drain: float = tuning(
        "Seconds for requests in flight to finish after an interruption.",
        30.0,
        unit="seconds",
        zero=True,
    )
    cache_size: int = tuning(
        "Maximum size of the cache. Its oldest captions are removed first.", 10 << 30, unit="bytes"
    )
    disk_wait: float = tuning(
        "Seconds to wait for space on a full disk.", 600.0, unit="seconds", zero=True
    )

    def _check(self) -> None:
        if self.metrics_port is not None and self.metrics_port > 65_535:
            raise SettingsError(f"metrics-port: {self.metrics_port} is not between 0 and 65535")
        if self.retry_failed == "":
            raise SettingsError("retry: name a code, or failed")
        if self.redo not in (None, "all"):
            Where(self.redo, "redo")

    @property
    def again(self) -> str | None:
        """What is captioned again, as an expression of ``redo``; None if nothing is."""
        wanted = []
        if self.redo is not None:
            wanted.append("True" if self.redo == "all" else f"({self.redo})")
        if self.retry_failed is not None:
            codes = self.retry_failed.split(",")
            wanted.append("failed" if "all" in codes else f"(failed and code in {codes!r})")
        if self.retry_rejected:
            wanted.append("review == 'rejected'")
        return " or ".join(wanted) or None

    @property
    def replaces_captions(self) -> bool:
        """Whether captions of the output are made again, and not only failures."""
        return self.redo is not None or self.retry_rejected
