"""What turns records into outcomes, wired up."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from captioner.answers import Layout
from captioner.budget import ByteBudget
from captioner.captioning import Captioning
from captioner.checks import Rules
from captioner.connecting import base_url, connect
from captioner.errors import SettingsError
from captioner.fetching.fetcher import Fetcher
from captioner.identity import digest
from captioner.images.archives import Archives
from captioner.images.convert import Wanted
from captioner.images.decoders import Decoders
from captioner.images.load import Folders
from captioner.pipeline import Pipeline
from captioner.preparation import Preparation
from captioner.prepare import Preparer
from captioner.presets import PRESETS
from captioner.records import Asking
from captioner.sharing import Sharing
from captioner.sources.formats import folder_of
from captioner.structured import read_schema, validator
from captioner.transport import AiohttpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from captioner.batches.ledger import Ledger
    from captioner.batches.pipeline import BatchPipeline
    from captioner.connecting import Connected
    from captioner.identity import Identity
    from captioner.interfaces import Dialect, Sink, Transport
    from captioner.limiter import Limiter
    from captioner.records import Outcome, Progress
    from captioner.settings import Settings
    from captioner.sinks.journal import Journal
    from captioner.sinks.jsonl import JournalSink
    from captioner.stopping import Stopping


class Engine:
    """What a run needs to turn records into outcomes.

    Attributes:
        model: The model asked for; several are named one after the other.
        preparation: Makes single records ready.
        sharing: Captions them.
        budget: Bytes held by prepared records.
    """

    def __init__(
        self,
        model: str,
        preparer: Preparer,
        preparation: Preparation,
        sharing: Sharing,
        budget: ByteBudget,
        connected: Connected,
        captioning: Captioning,
        rules: Rules,
    ) -> None:
        self.model = model
        self._preparer = preparer
        self._connected = connected
        self._captioning = captioning
        self._rules = rules
        self.preparation = preparation
        self.sharing = sharing
        self.budget = budget

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        progress: Progress,
        stopping: Stopping,
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
                stopping,
                stack,
                dialect=dialect,
                transport=transport,
                schema=schema,
                warn=warn,
            )
            if limits is not None:
                limits(connected.endpoints.limiters)
            model = ", ".join(dict.fromkeys(connected.models))
            budget = ByteBudget(images.memory)
            stopping.then(budget.close)
            stack.callback(budget.close)
            cache = None
            if settings.run.cache is not None:
                from captioner.cache import Cache

                cache = Cache(settings.run.cache, _answers_by(settings, model, rules), warn)
                stack.callback(cache.close)
            archives = Archives(images.max_image_bytes)
            stack.callback(archives.close)
            decoders = stack.enter_context(
                Decoders(
                    Wanted(images, settings.prompt.detail),
                    max(1, min(8, os.cpu_count() or 1) // settings.run.processes),
                )
            )
            preparer = Preparer(
                settings,
                connected.dialect,
                folders_of(settings, archives),
                budget,
                decoders.draw,
                cache,
            )
            fetcher = await stack.enter_async_context(Fetcher(images, budget, archives))
            preparation = Preparation(preparer, fetcher, budget)
            stack.callback(preparation.close)
            captioning = Captioning(
                connected.endpoints,
                preparation.again,
                Layout(settings.fields, settings.captions.with_).compose,
                stopping,
                rules=rules,
                asking=Asking(settings.prompt.temperature, settings.prompt.max_tokens),
                samples=settings.prompt.samples,
                warn=warn,
            )
            sharing = Sharing(
                captioning, progress, dedup=settings.run.dedup, cache=cache, warn=warn
            )
            stack.callback(sharing.close)
            yield cls(model, preparer, preparation, sharing, budget, connected, captioning, rules)

    def pipeline(
        self,
        settings: Settings,
        sink: Sink,
        progress: Progress,
        stopping: Stopping,
        settled: Callable[[Outcome], None] | None = None,
    ) -> Pipeline:
        """Return a pipeline from this engine into a sink."""
        return Pipeline(
            self._preparer,
            self.preparation.fetch,
            self.sharing,
            sink,
            self.budget,
            progress,
            stopping,
            concurrency=settings.run.concurrency,
            fetches=settings.images.fetch_concurrency,
            drain_s=settings.run.drain,
            settled=settled,
        )

    def batches(
        self,
        settings: Settings,
        sink: JournalSink,
        journal: Journal,
        identity: Identity,
        progress: Progress,
        stopping: Stopping,
        settled: Callable[[Outcome], None] | None,
        warn: Callable[[str], None],
    ) -> BatchPipeline:
        """Return a pipeline through the provider's batch API, or through files, into a journal.

        Raises:
            SettingsError: The endpoint is not one that has it.
        """
        from captioner.batches.api import BatchApi
        from captioner.batches.ledger import Ledger
        from captioner.batches.pipeline import BatchPipeline

        ledger = Ledger.of(journal.path)
        shaping = replace(settings, prompt=settings.prompt.resolved()).shaping(self.model)
        _refuse_to_mix(ledger, settings, shaping)
        ledger.settings = shaping
        api = None
        if settings.batch.batch_api:
            transport = self._connected.transport
            if not isinstance(transport, AiohttpTransport) or settings.endpoint.offline:
                raise SettingsError("batch-api: it needs an endpoint that has it")
            (endpoint,) = settings.each_endpoint

            def note(text: str) -> None:
                progress.waiting = text

            api = BatchApi(transport, stopping, max_outage_s=endpoint.max_outage, note=note)
            ledger.base_url = base_url(endpoint)
            ledger.api_key_env = list(endpoint.api_key_env)
        return BatchPipeline(
            self.preparation,
            self._connected.dialect,
            self._captioning,
            self._rules,
            self.budget,
            api,
            ledger,
            journal,
            identity,
            sink,
            progress,
            stopping,
            samples=settings.prompt.samples,
            options=settings.batch,
            settled=settled,
            warn=warn,
        )


def _refuse_to_mix(ledger: Ledger, settings: Settings, shaping: dict[str, Any]) -> None:
    """Refuse what does not go with the batches that are open.

    Raises:
        SettingsError: The settings are others, or the batches go another way.
    """
    if changed := ledger.changed(shaping):
        raise SettingsError(
            f"batches are open that were made with other settings ({', '.join(changed)}): go back "
            "to those until they are done"
        )
    exported = any(batch.state == "exported" for batch in ledger.batches)
    remote = any(batch.state not in ("exported", "merging") for batch in ledger.batches)
    if exported and settings.batch.batch_api:
        raise SettingsError(
            "batch-api: requests written with --to-batch-file wait for their answers; give them "
            "with --from-batch-file first"
        )
    if remote and not settings.batch.batch_api:
        raise SettingsError("batches are open at the provider: go on with --batch-api")
    target = settings.batch.to_batch_file
    if target is None:
        return
    if exported:
        raise SettingsError(
            "to-batch-file: requests were written already and wait for their answers; give them "
            "with --from-batch-file first"
        )
    if target.exists() and not settings.run.overwrite:
        raise SettingsError(f"to-batch-file: {target} is there already; choose another name")


def _rules(settings: Settings) -> tuple[dict[str, Any] | None, Rules]:
    """Return the schema of the answers, None for text, and what captions have to be like."""
    prompt, captions = settings.prompt, settings.captions
    preset = PRESETS[prompt.preset] if prompt.preset else None
    schema = preset.schema if preset else None
    if prompt.schema:
        schema = read_schema(prompt.schema, "the file")
    longest = captions.max_length
    if longest is None and preset is not None:
        longest = preset.max_chars
    rules = Rules(
        captions.min_length,
        longest,
        frozenset(captions.accept),
        settings.run.max_attempts,
        validator(schema) if schema else None,
        orjson.dumps(schema).decode() if schema else "",
    )
    return schema, rules


def _answers_by(settings: Settings, model: str, rules: Rules) -> bytes:
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


def folders_of(settings: Settings, archives: Archives) -> Folders:
    """Return where relative paths of pictures start from."""
    root = settings.records.image_root
    folder = folder_of(settings.input)
    here = [folder] if folder is not None else []
    return Folders(
        [root] if root is not None else list(dict.fromkeys([*here, Path()])),
        bound=root is not None,
        max_bytes=settings.images.max_image_bytes,
        archives=archives,
    )
