"""Caption image data sets through an OpenAI-compatible vision-language model.

::

    report = await run_batch("input.jsonl", base_url="http://localhost:8000/v1")

The names below are the public surface; they are imported when first used, so that importing the
package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.cluster.data import CaptionBatch
    from captioner.cluster.ray import run_on_ray
    from captioner.errors import (
        CaptionerError,
        DiskError,
        EndpointGaveOutError,
        EndpointRefusedError,
        OutputBusyError,
        OutputDamagedError,
        RunError,
        SettingsError,
    )
    from captioner.interfaces import Dialect, Sink, Source, Transport
    from captioner.records import Caption, Failure, Line, Outcome, Progress, RunReport
    from captioner.run import run_batch
    from captioner.settings import Settings
    from captioner.stopping import Stopping
    from captioner.stream import Captioner, CaptionError, caption_stream

__version__ = "0.1.0"

__all__ = [
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
    "caption_stream",
    "run_batch",
    "run_on_ray",
]

_HOMES = {
    "cluster.data": ("CaptionBatch",),
    "cluster.ray": ("run_on_ray",),
    "errors": (
        "CaptionerError",
        "DiskError",
        "EndpointGaveOutError",
        "EndpointRefusedError",
        "OutputBusyError",
        "OutputDamagedError",
        "RunError",
        "SettingsError",
    ),
    "interfaces": ("Dialect", "Sink", "Source", "Transport"),
    "records": ("Caption", "Failure", "Line", "Outcome", "Progress", "RunReport"),
    "run": ("run_batch",),
    "settings": ("Settings",),
    "stopping": ("Stopping",),
    "stream": ("CaptionError", "Captioner", "caption_stream"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"captioner.{home}"), name)
    raise AttributeError(f"module 'captioner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
