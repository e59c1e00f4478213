"""What turns records into outcomes, wired up."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from captioner.core.keys import digest
from captioner.core.memory import MemoryBudget
from captioner.core.row import RowLayout
from captioner.core.types import RequestOverrides
from captioner.endpoints.connect import connect
from captioner.engine.attempts import RecordAttempts
from captioner.engine.caption_checks import CaptionRules
from captioner.engine.dedup import RequestDeduplicator
from captioner.engine.json_schema import read_schema, validator
from captioner.engine.pipeline import Pipeline
from captioner.engine.prepare import Preparer
from captioner.engine.prepare_async import AsyncPreparer
from captioner.images.archives import Archives
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fetch.fetcher import Fetcher
from captioner.images.files import ImageFolders
from captioner.images.fit import FitOptions
from captioner.readers.registry import folder_of
from captioner.settings.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from captioner.core.cancellation import CancelToken
    from captioner.core.protocols import Dialect, Sink, Transport
    from captioner.core.types import Outcome, Progress
    from captioner.endpoints.connect import ConnectedEndpoints
    from captioner.endpoints.limiter import Limiter
    from captioner.settings.settings import Settings


class Engine:
    """What a run needs to turn records into outcomes.

    Attributes:
        model: The model asked for; several are named one after the other.
        preparation: Makes single records ready.
        deduplicator: Captions them.
        budget: Bytes held by prepared records.
    """

    def __init__(
        self,
        model: str,
        preparer: Preparer,
        preparation: AsyncPreparer,
        deduplicator: RequestDeduplicator,
        budget: MemoryBudget,
        connected: ConnectedEndpoints,
        attempts: RecordAttempts,
        rules: CaptionRules,
    ) -> None:
        self.model = model
        self.preparer = preparer
        self.connected = connected
        self.attempts = attempts
        self.rules = rules
        self.preparation = preparation
        self.deduplicator = deduplicator
        self.budget = budget

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        progress: Progress,
        cancel: CancelToken,
        dialect: Dialect | None = None,
        transport: Transport | None = None,
        *,
        limits: Callable[[Sequence[Limiter]], None] | None = None,
        warn: Callable[[str], None],
    ) -> AsyncIterator[Self]:
        """Connect to the endpoints of the settings, or to the built-in describer.

        ``limits`` is called with the limiters of the endpoints, for whoever shares out a limit.

        Raises:
            SettingsError: There is no endpoint, no model to ask for, or no cache to be opened.
        """
        settings = replace(settings, prompt=settings.prompt.resolved())
        schema, rules = _rules(settings)
        images = settings.images
        async with contextlib.AsyncExitStack() as stack:
            connected = await connect(
                settings,
                progress,
                cancel,
                stack,
                dialect=dialect,
                transport=transport,
                schema=schema,
                warn=warn,
            )
            if limits is not None:
                limits(connected.endpoints.limiters)
            model = ", ".join(dict.fromkeys(connected.models))
            budget = MemoryBudget(images.memory)
            cancel.on_request(budget.close)
            stack.callback(budget.close)
            cache = None
            if settings.run.cache is not None:
                from captioner.engine.cache import Cache

                cache = Cache(settings.run.cache, _answers_by(settings, model, rules), warn)
                stack.callback(cache.close)
            archives = Archives(images.max_image_bytes)
            stack.callback(archives.close)
            decoders = stack.enter_context(
                DecoderPool(
                    FitOptions(images, settings.prompt.detail),
                    max(1, min(8, os.cpu_count() or 1) // settings.run.processes),
                )
            )
            preparer = Preparer(
                settings,
                connected.dialect,
                image_folders(settings, archives),
                budget,
                decoders.render,
                cache,
            )
            fetcher = await stack.enter_async_context(Fetcher(images, budget, archives))
            preparation = AsyncPreparer(preparer, fetcher, budget)
            stack.callback(preparation.close)
            attempts = RecordAttempts(
                connected.endpoints,
                preparation.again,
                RowLayout(settings.fields, settings.captions.with_).compose,
                cancel,
                rules=rules,
                overrides=RequestOverrides(settings.prompt.temperature, settings.prompt.max_tokens),
                samples=settings.prompt.samples,
                warn=warn,
            )
            deduplicator = RequestDeduplicator(
                attempts, progress, dedup=settings.run.dedup, cache=cache, warn=warn
            )
            stack.callback(deduplicator.close)
            yield cls(
                model, preparer, preparation, deduplicator, budget, connected, attempts, rules
            )

    def pipeline(
        self,
        settings: Settings,
        sink: Sink,
        progress: Progress,
        cancel: CancelToken,
        settled: Callable[[Outcome], None] | None = None,
    ) -> Pipeline:
        """Return a pipeline from this engine into a sink."""
        return Pipeline(
            self.preparer,
            self.preparation.fetch,
            self.deduplicator,
            sink,
            self.budget,
            progress,
            cancel,
            concurrency=settings.run.concurrency,
            fetches=settings.images.fetch_concurrency,
            drain_s=settings.run.drain,
            settled=settled,
        )


def _rules(settings: Settings) -> tuple[dict[str, Any] | None, CaptionRules]:
    """Return the schema of the answers, None for text, and what captions have to be like."""
    prompt, captions = settings.prompt, settings.captions
    preset = PRESETS[prompt.preset] if prompt.preset else None
    schema = preset.schema if preset else None
    if prompt.schema:
        schema = read_schema(prompt.schema, "the file")
    longest = captions.max_length
    if longest is None and preset is not None:
        longest = preset.max_chars
    rules = CaptionRules(
        captions.min_length,
        longest,
        frozenset(captions.accept),
        settings.run.max_attempts,
        validator(schema) if schema else None,
        orjson.dumps(schema).decode() if schema else "",
    )
    return schema, rules


def _answers_by(settings: Settings, model: str, rules: CaptionRules) -> bytes:
    """Return what an answer depends on beside the messages, for the cache: 16 bytes."""
    prompt = settings.prompt
    return digest(
        orjson.dumps(
            {
                "version": 1,
                "model": model,
                "offline": settings.endpoint.offline,
                "max_tokens": prompt.max_tokens,
                "temperature": prompt.temperature,
                "samples": prompt.samples,
                "schema": rules.schema,
                "endpoints": [(one.model, one.extra_body) for one in settings.each_endpoint],
                "length": (rules.min_chars, rules.max_chars),
                "accept": sorted(rules.accept),
            }
        )
    )


def image_folders(settings: Settings, archives: Archives) -> ImageFolders:
    """Return where relative paths of images start from."""
    root = settings.records.image_root
    folder = folder_of(settings.input)
    here = [folder] if folder is not None else []
    return ImageFolders(
        [root] if root is not None else list(dict.fromkeys([*here, Path()])),
        bound=root is not None,
        max_bytes=settings.images.max_image_bytes,
        archives=archives,
    )
