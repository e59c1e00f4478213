"""Fit a run into the descriptors that its process may still open, and to the built-in describer."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from captioner.core import descriptors

if TYPE_CHECKING:
    from captioner.settings.settings import Settings

logger = logging.getLogger(__name__)

FILES = 96
"""Descriptors for everything but connections to the endpoints, fetches, decoders and the page: the
input, the journal, the cache, archives, images that are being read, and what libraries open."""

DESCRIBED = 4
"""Requests at once to the built-in describer, which works on two."""

A_DECODER = 2
SERVED = 72
"""Descriptors of a decoder, and of the page or the metrics with all their visitors."""


def within_limits(settings: Settings, decoders: int) -> Settings:
    """Return settings whose requests in flight and fetches fit into the free descriptors.

    The built-in describer gets no more requests than keep it at work: the others would wait there
    until they time out.

    If all is scarce, requests get half of them: other files are open for a short time only, and
    are waited for.

    Args:
        settings: The settings of a run, or of one of its processes.
        decoders: Decoders that the process may start.
    """
    run, images = settings.run, settings.images
    if settings.endpoint.offline:
        run = replace(run, concurrency=min(run.concurrency, DESCRIBED))
    free = descriptors.left()
    fetches = max(1, min(images.fetch_concurrency, free // 8))
    other = FILES + fetches + A_DECODER * decoders
    if run.processes == 1:
        other += SERVED * (run.view + (run.metrics_port is not None))
    endpoints = {(one.base_url, one.api_key_env, one.model) for one in settings.all_endpoints}
    connections = max(free - other, free // 2) // len(endpoints)
    concurrency = max(1, min(run.concurrency, connections))
    if concurrency < run.concurrency:
        logger.warning(
            "the process may have %d files and connections open (ulimit -n): "
            "--concurrency is %d instead of %d",
            descriptors.limit(),
            concurrency,
            run.concurrency,
        )
    if (concurrency, fetches) == (settings.run.concurrency, images.fetch_concurrency):
        return settings
    return replace(
        settings,
        run=replace(run, concurrency=concurrency),
        images=replace(images, fetch_concurrency=fetches),
    )
