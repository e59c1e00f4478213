"""The options of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from captioner.settings.options.definition import OptionGroup, option, tuning


@dataclass(frozen=True, slots=True)
class ClusterSettings(OptionGroup):
    """Cluster."""

    engine: Literal["local", "ray"] = option("See --ray.", "local")
    ray_address: str | None = option("See --ray.")
    shards: int | None = tuning(
        "Parts to split the input into, fixed by the first run. Default: four for each worker."
    )
    workers: int | None = option(
        "Ray workers, each with a core. Default: one for each core of the cluster."
    )
