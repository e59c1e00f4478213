"""Caption image data sets through an OpenAI-compatible vision-language model.

::

    report = caption_batch("input.jsonl", base_url="http://localhost:8000/v1")

The names below are the public surface; they are imported when first used, so that importing the
package costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the command can be interrupted while typing is imported
if TYPE_CHECKING:
    from typing import Any

    from captioner.core.cancellation import CancelToken, Stopping
    from captioner.core.errors import (
        CaptionerError,
        DiskError,
        EndpointGaveOutError,
        EndpointRefusedError,
        OutputBusyError,
        OutputDamagedError,
        RunError,
        SettingsError,
    )
    from captioner.core.progress import Progress, RunReport
    from captioner.core.protocols import Dialect, Sink, Source, Transport
    from captioner.core.types import Caption, Failure, InputRecord, Line, Outcome
    from captioner.engine.stream import Captioner, CaptionError, caption_stream
    from captioner.executors.blocking import caption_batch
    from captioner.executors.local import run_batch
    from captioner.executors.ray.driver import run_on_ray
    from captioner.executors.ray.map_batches import CaptionBatch
    from captioner.settings.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "CancelToken",
    "Caption",
    "CaptionBatch",
    "CaptionError",
    "Captioner",
    "CaptionerError",
    "Dialect",
    "DiskError",
    "EndpointGaveOutError",
    "EndpointRefusedError",
    "Failure",
    "InputRecord",
    "Line",
    "Outcome",
    "OutputBusyError",
    "OutputDamagedError",
    "Progress",
    "RunError",
    "RunReport",
    "Settings",
    "SettingsError",
    "Sink",
    "Source",
    "Stopping",
    "Transport",
    "caption_batch",
    "caption_stream",
    "run_batch",
    "run_on_ray",
]

_HOMES = {
    "executors.ray.map_batches": ("CaptionBatch",),
    "executors.ray.driver": ("run_on_ray",),
    "core.errors": (
        "CaptionerError",
        "DiskError",
        "EndpointGaveOutError",
        "EndpointRefusedError",
        "OutputBusyError",
        "OutputDamagedError",
        "RunError",
        "SettingsError",
    ),
    "core.protocols": ("Dialect", "Sink", "Source", "Transport"),
    "core.progress": ("Progress", "RunReport"),
    "core.types": ("Caption", "Failure", "InputRecord", "Line", "Outcome"),
    "executors.blocking": ("caption_batch",),
    "executors.local": ("run_batch",),
    "settings.settings": ("Settings",),
    "core.cancellation": ("CancelToken", "Stopping"),
    "engine.stream": ("CaptionError", "Captioner", "caption_stream"),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"captioner.{home}"), name)
    raise AttributeError(f"module 'captioner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
