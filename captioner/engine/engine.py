"""The engine: everything that turns input records into outcomes, wired up."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from captioner.core.keys import digest
from captioner.core.memory import MemoryBudget
from captioner.core.row import RowLayout
from captioner.core.types import RequestOverrides
from captioner.endpoints.connect import connect
from captioner.endpoints.serving import serving
from captioner.engine.attempts import RecordAttempts
from captioner.engine.caption_checks import CaptionRules
from captioner.engine.dedup import RequestDeduplicator
from captioner.engine.json_schema import read_schema, validator
from captioner.engine.pipeline import HeldRefusals, Pipeline
from captioner.engine.prepare import Preparer
from captioner.engine.prepare_async import AsyncPreparer
from captioner.engine.shape import Shape
from captioner.engine.vision_probe import check_vision
from captioner.engine.within_limits import within_limits
from captioner.images.archives import Archives
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fetch import Fetcher
from captioner.images.files import ImageFolders
from captioner.images.fit import FitOptions
from captioner.readers.registry import folder_of
from captioner.settings.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from captioner.core.protocols import Dialect, Sink, Transport
    from captioner.core.types import Outcome
    from captioner.endpoints.connect import ConnectedEndpoints
    from captioner.endpoints.limiter import Limiter
    from captioner.settings.context import RunContext
    from captioner.settings.settings import Settings


class Engine:
    """Turns input records into outcomes.

    Attributes:
        connected: The endpoints.
        preparer: Prepares records; blocks.
        async_preparer: Prepares single records from the event loop.
        memory: Bytes that prepared records hold.
        attempts: Captions one record.
        deduplicator: Captions records, identical requests once.
        rules: What a caption must be like.
    """

    def __init__(
        self,
        connected: ConnectedEndpoints,
        preparer: Preparer,
        async_preparer: AsyncPreparer,
        memory: MemoryBudget,
        attempts: RecordAttempts,
        deduplicator: RequestDeduplicator,
        rules: CaptionRules,
        *,
        settings: Settings,
        probe: bool,
    ) -> None:
        self._settings = settings
        self._probe = probe
        self.connected = connected
        self.preparer = preparer
        self.async_preparer = async_preparer
        self.memory = memory
        self.attempts = attempts
        self.deduplicator = deduplicator
        self.rules = rules

    @property
    def model(self) -> str:
        """The requested model; several are separated by commas."""
        return _model(self.connected)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        context: RunContext,
        dialect: Dialect | None = None,
        transport: Transport | None = None,
        *,
        limits: Callable[[Sequence[Limiter]], None] | None = None,
    ) -> AsyncIterator[Self]:
        """Connect to the endpoints of the settings, or to the built-in describer.

        The servers of ``--serve`` are started first.

        Args:
            context: The run.
            dialect: Builds requests and parses responses instead of OpenAI's chat completions.
            transport: Sends requests instead of aiohttp.
            limits: Called with the limiters of the endpoints, to share limits between processes.

        Raises:
            SettingsError: There is no endpoint or no model, a server does not start, or the
                cache cannot be opened.
            StoppedError: The run was cancelled while a server started.
        """
        decoders = decoders_of(context.settings)
        async with contextlib.AsyncExitStack() as stack:
            context = await stack.enter_async_context(serving(context))
            settings = within_limits(context.settings, decoders)
            context = replace(context, settings=settings)
            schema, rules = _rules(settings)
            images = settings.images
            connected = await connect(
                context, stack, dialect=dialect, transport=transport, schema=schema
            )
            if limits is not None:
                limits(connected.endpoints.limiters)
            memory = MemoryBudget(images.memory)
            context.cancel.on_request(memory.close)
            stack.callback(memory.close)
            cache = None
            if settings.run.cache is not None:
                from captioner.engine.cache import Cache

                key = _cache_key_of(settings, _model(connected), rules)
                cache = Cache(settings.run.cache, key, settings.run.cache_size)
                stack.callback(cache.close)
            archives = Archives(images.max_image_bytes, images.max_video_bytes)
            stack.callback(archives.close)
            pool = stack.enter_context(
                DecoderPool(FitOptions(images, settings.prompt.detail), decoders)
            )
            context.cancel.on_request(pool.close)  # an image may take up to --image-timeout
            preparer = Preparer(
                settings,
                connected.dialect,
                image_folders(settings, archives, context.cancel.__bool__),
                memory,
                pool.render,
                cache,
                pool.look,
            )
            fetcher = await stack.enter_async_context(
                Fetcher(images, memory, archives, settings.run.stop_after)
            )
            async_preparer = AsyncPreparer(preparer, fetcher, memory)
            stack.callback(async_preparer.close)
            attempts = RecordAttempts(
                connected.endpoints,
                async_preparer.again,
                RowLayout(
                    settings.fields, settings.extras, settings.fingerprint(_model(connected))
                ).compose,
                context.cancel,
                rules=rules,
                defaults=_defaults(settings),
                samples=settings.prompt.samples,
                stop_after=settings.run.stop_after,
            )
            deduplicator = RequestDeduplicator(
                attempts, context.progress, dedup=settings.run.dedup, cache=cache
            )
            stack.callback(deduplicator.close)
            known = dialect is None and transport is None and not settings.endpoint.offline
            yield cls(
                connected,
                preparer,
                async_preparer,
                memory,
                attempts,
                deduplicator,
                rules,
                settings=settings,
                probe=known and settings.run.probe and settings.run.processes == 1,
            )

    def pipeline(
        self,
        context: RunContext,
        sink: Sink,
        settled: Callable[[Outcome], None] | None = None,
        *,
        hold: bool = True,
    ) -> Pipeline:
        """Return a pipeline from this engine into a sink.

        Args:
            context: The run.
            sink: Takes the outcomes.
            settled: Called with every outcome after it is written.
            hold: Hold refusals back; see `HeldRefusals`.
        """
        probe = partial(check_vision, self) if self._probe else None
        context = replace(context, settings=self._settings)
        return Pipeline(self, context, sink, settled, probe, HeldRefusals() if hold else None)


def _defaults(settings: Settings) -> RequestOverrides:
    prompt = settings.prompt
    thinking = {"auto": None, "on": True, "off": False}[prompt.thinking]
    return RequestOverrides(prompt.temperature, prompt.max_tokens, thinking=thinking)


def _model(connected: ConnectedEndpoints) -> str:
    return ", ".join(dict.fromkeys(connected.models))


def _rules(settings: Settings) -> tuple[dict[str, Any] | None, CaptionRules]:
    """Return the JSON Schema of captions, None for text, and the rules for captions."""
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
        Shape(settings) if captions.shape or settings.joins else None,
    )
    return schema, rules


def _cache_key_of(settings: Settings, model: str, rules: CaptionRules) -> bytes:
    """Return a 16-byte digest of the settings that affect a response, for the cache key."""
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
                # What an answer must be like for its shape.
                **({"shape": settings.captions.shape} if settings.captions.shape else {}),
            }
        )
    )


def decoders_of(settings: Settings) -> int:
    """Return how many decoders one process of a run may start."""
    return max(1, min(8, os.cpu_count() or 1) // settings.run.processes)


def image_folders(
    settings: Settings, archives: Archives, is_over: Callable[[], bool] = bool
) -> ImageFolders:
    """Return the folders that relative image paths start from."""
    root = settings.records.image_root
    folder = folder_of(settings.input)
    here = [folder] if folder is not None else []
    return ImageFolders(
        [root] if root is not None else list(dict.fromkeys([*here, Path()])),
        bound=root is not None,
        max_bytes=settings.images.max_image_bytes,
        max_video_bytes=settings.images.max_video_bytes,
        archives=archives,
        is_over=is_over,
    )
