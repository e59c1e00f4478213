"""The engine: everything that turns input records into outcomes, wired up."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import orjson

from captioner.core.keys import digest
from captioner.core.memory import MemoryBudget
from captioner.core.types import RequestOverrides
from captioner.endpoints.connect import Connector
from captioner.endpoints.serving import serving
from captioner.engine.attempts import RecordAttempts
from captioner.engine.caption_checks import CaptionRules
from captioner.engine.dedup import RequestDeduplicator
from captioner.engine.doubt import a_number
from captioner.engine.json_schema import read_schema, validator
from captioner.engine.most_doubtful import MostDoubtfulFirst
from captioner.engine.pipeline import HeldRefusals, Pipeline
from captioner.engine.prepare import Preparer
from captioner.engine.prepare_async import AsyncPreparer
from captioner.engine.rows import Rows
from captioner.engine.shape import Shape
from captioner.engine.stage_plan import plans_of
from captioner.engine.stages import Requests, Stage, Stages
from captioner.engine.vision_probe import check_vision
from captioner.engine.within_limits import within_limits
from captioner.engine.yes_no import begins_yes_or_no, yes_or_no
from captioner.images.archives import Archives
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fetch import Fetcher
from captioner.images.files import ImageFolders
from captioner.images.fit import FitOptions
from captioner.journal.answers import KeptAnswers
from captioner.readers.registry import folder_of
from captioner.settings.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from captioner.core.cancellation import CancelToken
    from captioner.core.protocols import Dialect, Sink, Transport
    from captioner.core.types import ImageOverrides, Outcome, PreparedRecord
    from captioner.endpoints.connect import ConnectedEndpoints
    from captioner.endpoints.limiter import Limiter
    from captioner.engine.dedup import Answerer
    from captioner.engine.stage_plan import StagePlan
    from captioner.settings.context import RunContext
    from captioner.settings.settings import Settings


class Engine:
    """Turns input records into outcomes.

    Attributes:
        connected: The endpoints; those of the first stage that sends images, if there are stages.
        preparer: Prepares records; blocks.
        async_preparer: Prepares single records from the event loop.
        memory: Bytes that prepared records hold.
        rows: Makes captions of answers.
        deduplicator: Captions records, identical requests once.
        rules: What a caption must be like.
        first: Chooses the records of which a stage asks first; None if there is no such stage.
    """

    def __init__(
        self,
        asking: _Asking,
        preparer: Preparer,
        async_preparer: AsyncPreparer,
        memory: MemoryBudget,
        rows: Rows,
        deduplicator: RequestDeduplicator,
        first: MostDoubtfulFirst | None,
        *,
        settings: Settings,
        probe: bool,
    ) -> None:
        self._settings = settings
        self._probe = probe
        self.first = first
        self.model = asking.model
        self.connected = asking.connected
        self.rules = asking.rules
        self.preparer = preparer
        self.async_preparer = async_preparer
        self.memory = memory
        self.rows = rows
        self.deduplicator = deduplicator

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
            images = settings.images
            connector = Connector(context, stack, dialect, transport)
            asking = await _Asking.connect(connector, context)
            if limits is not None:
                limits(connector.limiters)
            memory = MemoryBudget(images.memory)
            context.cancel.on_request(memory.close)
            stack.callback(memory.close)
            cache = None
            if settings.run.cache is not None:
                from captioner.engine.cache import Cache

                key = _cache_key_of(settings, asking.model, asking.rules)
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
                asking.connected.dialect,
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
            kept = first = None
            if settings.answers is not None:
                if asking.is_by_doubt and connector.budget.is_limited:
                    first = MostDoubtfulFirst(connector.budget.used)
                kept = KeptAnswers(settings.answers, at_once=first is not None)
                stack.callback(kept.close)
            rows = Rows(settings, asking.model, asking.rules.shape)
            answerer = asking.attempts(async_preparer, kept, first)
            if isinstance(answerer, Stages):
                stack.callback(answerer.warn_of_unseen)
            deduplicator = RequestDeduplicator(
                answerer,
                rows,
                context.progress,
                dedup=settings.run.dedup,
                cache=cache,
            )
            stack.callback(deduplicator.close)
            known = dialect is None and transport is None and not settings.endpoint.offline
            yield cls(
                asking,
                preparer,
                async_preparer,
                memory,
                rows,
                deduplicator,
                first,
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
        self._probe = False
        context = replace(context, settings=self._settings)
        return Pipeline(self, context, sink, settled, probe, HeldRefusals() if hold else None)


class _Asked(NamedTuple):
    """What asks one kind of question: settings, endpoints and rules for its answers."""

    settings: Settings
    connected: ConnectedEndpoints
    rules: CaptionRules
    kind: str = ""  # what is read in an answer

    @classmethod
    async def connect(
        cls,
        connector: Connector,
        settings: Settings,
        parse: Callable[[str], Any] | None = None,
        *,
        logprobs: bool = False,
    ) -> Self:
        """Connect to the endpoints of some settings.

        Args:
            connector: Connects.
            settings: The settings.
            parse: Reads a number in an answer; None leaves it as it is.
            logprobs: Ask for the probabilities of tokens.
        """
        schema, rules = _rules(settings)
        connected = await connector.connect(settings, schema, logprobs=logprobs)
        if parse is not None:
            rules = rules._replace(parse=parse, wanted="the number")
        if parse is yes_or_no:
            rules = rules._replace(parse_cut=begins_yes_or_no, wanted="yes or no")
        return cls(settings, connected, rules, f"{getattr(parse, '__name__', '')} {logprobs}")

    def attempts(
        self,
        again: Callable[[PreparedRecord, ImageOverrides], Awaitable[PreparedRecord | Outcome]],
        cancel: CancelToken,
        stop_after: int | None,
    ) -> RecordAttempts:
        """Return what sends the question and checks the answer."""
        return RecordAttempts(
            self.connected.endpoints,
            again,
            cancel,
            rules=self.rules,
            defaults=_defaults(self.settings),
            samples=self.settings.prompt.samples,
            stop_after=stop_after,
        )

    @property
    def digest(self) -> bytes:
        """A digest of all that affects an answer but the question."""
        key = _cache_key_of(self.settings, _model(self.connected), self.rules)
        return digest(key + self.kind.encode())


class _Asking(NamedTuple):
    """All that a run asks: a question of each record, or ``chains`` of those that stages ask."""

    context: RunContext
    first: _Asked
    chains: list[tuple[StagePlan, list[_Asked]]]
    wants_doubt: bool

    @classmethod
    async def connect(cls, connector: Connector, context: RunContext) -> Self:
        """Connect to all endpoints of a run."""
        settings = context.settings
        chains: list[tuple[StagePlan, list[_Asked]]] = []
        plans = plans_of(settings)
        wants_doubt = "doubt" in settings.extras or any(
            plan.stage.order == "doubt" or not plan.names.isdisjoint(("doubt", "doubts"))
            for plan in plans
        )
        for plan in plans:
            parse: Callable[[str], Any] | None = None
            if plan.stage.choose is not None:
                parse = a_number
            elif plan.stage.answer == "yes-no":
                parse = yes_or_no
            logprobs = parse is yes_or_no or (wants_doubt and parse is None)
            chain = [
                await _Asked.connect(connector, own.resolved(), parse, logprobs=logprobs)
                for own in plan.stage.everywhere(settings)
            ]
            chains.append((plan, chain))
        seeing = next((chain[0] for plan, chain in chains if plan.stage.image), None)
        if seeing is None:
            seeing = chains[0][1][0] if chains else await _Asked.connect(connector, settings)
        return cls(context, seeing, chains, wants_doubt)

    @property
    def connected(self) -> ConnectedEndpoints:
        """The endpoints that are asked first about images."""
        return self.first.connected

    @property
    def rules(self) -> CaptionRules:
        """What a caption must be like."""
        field = self.context.settings.fields[0]
        own = [chain[0].rules for plan, chain in self.chains if plan.stage.field == field]
        return own[-1] if own else self.first.rules

    @property
    def model(self) -> str:
        """The requested model; several are separated by commas."""
        asked = [one for _, chain in self.chains for one in chain] or [self.first]
        return ", ".join(dict.fromkeys(name for one in asked for name in one.connected.models))

    @property
    def is_by_doubt(self) -> bool:
        """Whether a stage asks the most doubtful records first."""
        return any(plan.stage.order == "doubt" for plan, _ in self.chains)

    def attempts(
        self,
        preparer: AsyncPreparer,
        kept: KeptAnswers | None,
        first: MostDoubtfulFirst | None,
    ) -> Answerer:
        """Return what answers records."""
        cancel, settings = self.context.cancel, self.context.settings
        stop_after = settings.run.stop_after
        timed = settings.images.frame_times
        requests = Requests(self.connected.dialect, preparer, timed=timed)
        if not self.chains:
            return self.first.attempts(requests.again, cancel, stop_after)
        stages = []
        for plan, chain in self.chains:
            goes_on = len(chain) > 1 or plan.stage.on_failure == "go-on"
            limit = _NEVER if goes_on else stop_after
            senders = [asked.attempts(requests.again, cancel, limit) for asked in chain]
            stages.append(Stage(plan, senders, b"".join(asked.digest for asked in chain)))
        wants = self.wants_doubt
        return Stages(stages, settings.fields, requests, kept, wants_doubt=wants, first=first)


_NEVER = 1 << 62
"""Refusals that stop a run which goes on after each."""


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
                **_sent_otherwise(settings),
                **({"stages": settings.shaping(model)["stages"]} if settings.stages else {}),
                "schema": rules.schema,
                "endpoints": [(one.model, one.extra_body) for one in settings.each_endpoint],
                "length": (rules.min_chars, rules.max_chars),
                "accept": sorted(rules.accept),
                # What an answer must be like for its shape.
                **({"shape": settings.captions.shape} if settings.captions.shape else {}),
            }
        )
    )


def _sent_otherwise(settings: Settings) -> dict[str, Any]:
    """Return options of a request that are not the default, beside those of every cache key."""
    prompt = settings.prompt
    found = {
        "thinking": prompt.thinking if prompt.thinking != "auto" else None,
        "detail": prompt.detail,
        "frame_times": settings.images.frame_times or None,
    }
    return {name: value for name, value in found.items() if value is not None}


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
