"""What a run will take, before it: records, images, tokens, money, time. Nothing is written."""

from __future__ import annotations

import asyncio
import io
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from captioner.core.errors import SettingsError
from captioner.core.keys import KeyTable, digest
from captioner.core.memory import MemoryBudget
from captioner.core.types import (
    Caption,
    FetchedImages,
    NeedsFetch,
    PreparedRecord,
)
from captioner.endpoints.connect import estimated_price
from captioner.endpoints.openai_chat import OpenAIChat
from captioner.engine.engine import Engine, decoders_of, image_folders
from captioner.engine.first_look import check_first_records, first_records
from captioner.engine.prepare import Preparer
from captioner.engine.selection import Selection
from captioner.engine.stage_costs import (
    CHARS_A_TOKEN,
    OUT_TOKENS,
    TOKENS_A_MESSAGE,
    StageCost,
    stage_costs,
    total_cost,
)
from captioner.images.archives import Archives
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fit import FitOptions
from captioner.readers.registry import open_files, open_input
from captioner.settings.context import RunContext
from captioner.settings.model_sizes import rule_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.types import EncodedImage, InputRecord, Outcome, Turn
    from captioner.settings.settings import Settings

UNKNOWN_SIDE = 1_024
"""Sides of an image that is not fetched to be measured."""

PIXELS_A_TOKEN = 750
"""Where a model's rule is not known: between those that are."""

BATCH_FACTOR = 0.5
"""Price of the provider's batch API."""


@dataclass(slots=True)
class Estimate:
    """What a run will take.

    Attributes:
        records: Records of the input.
        bad: Those that cannot be sent, by code.
        requests: Requests that will be sent: equal ones once, unless ``--no-dedup``.
        shared: Records that get the caption of an equal one.
        images: Images in them.
        upload_bytes: Bytes of all requests.
        prompt_tokens: Input tokens: by formula, or as the probe has corrected it.
        completion_tokens: Output tokens, likewise.
        probed: Requests that were sent to correct the tokens.
        cost: US dollars; None where no price is known.
        batch_cost: The same through the provider's batch API.
        seconds: Time at the limits that are known; None where none is.
        unfetched: Images that are elsewhere, whose size was guessed.
        existing: Records that have a caption and are kept (``--existing skip``).
        stages: What each stage takes if it runs for every record; empty without stages.
    """

    records: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    shared: int = 0
    images: int = 0
    upload_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    probed: int = 0
    cost: float | None = None
    batch_cost: float | None = None
    seconds: float | None = None
    unfetched: int = 0
    existing: int = 0
    stages: list[StageCost] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dictionary."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {**found, "stages": [stage._asdict() for stage in self.stages]}


async def estimate(
    settings: Settings,
    *,
    probe: int = 0,
    seed: int = 0,
) -> Estimate:
    """Return what a run with these settings will take.

    Args:
        settings: As for the run.
        probe: Number of records to send, chosen at random. Their usage corrects the formula.
            Default: 0, nothing is sent.
        seed: Seed of the random choice.

    Raises:
        SettingsError: The input cannot be read, or a probe has no endpoint to send to.
        RunError: The endpoint refuses every request of the probe.
    """
    fields = settings.records
    if probe and settings.stages:
        raise SettingsError("probe: what stages take is known by formula only; leave --probe out")
    if settings.files:
        found = open_files(settings.files)
    elif settings.input is not None:
        found = open_input(
            settings.input,
            fields.input_format,
            image_field=fields.image_field,
            max_line=fields.max_line,
            split=fields.split,
        )
    else:
        raise SettingsError("an input is needed")
    settings = found.with_image_field(settings)
    slow = str(settings.input) == "-"
    settings = RunContext(settings).settings
    selected = Selection(found.source, settings)
    first = await first_records(selected, once=slow)
    await asyncio.to_thread(check_first_records, first, settings)
    decoders = decoders_of(settings)
    with (
        ThreadPoolExecutor(decoders) as threads,
        DecoderPool(FitOptions(settings.images, settings.prompt.detail), decoders) as pool,
    ):
        survey = _Survey(settings, pool, probe, seed)
        async for batch in selected.batches():
            await asyncio.to_thread(survey.take, batch, threads)
    report = survey.report
    if settings.stages:
        _estimate_stages(settings, survey)
        return report
    out = settings.prompt.max_tokens or OUT_TOKENS
    prompt_tokens, completion_tokens = float(survey.tokens), float(report.requests * out)
    latency_s = 0.0
    if survey.chosen:
        bill = await _probe(settings, [line for line, _ in survey.chosen])
        report.probed = len(bill.prompt)
        if bill.prompt:
            sizes = [survey.sizes[number] for number in bill.numbers]
            prompt_tokens = _corrected(survey, sizes, bill.prompt)
            completion_tokens = report.requests * sum(bill.completion) / len(bill.completion)
            latency_s = sum(bill.seconds) / len(bill.seconds)
    report.prompt_tokens, report.completion_tokens = round(prompt_tokens), round(completion_tokens)
    price = estimated_price(settings)
    if price is not None:
        money = (price.input * prompt_tokens + price.output * completion_tokens) / 1_000_000
        report.cost, report.batch_cost = money, money * BATCH_FACTOR
    report.seconds = _seconds(settings, report, latency_s)
    return report


def _estimate_stages(settings: Settings, survey: _Survey) -> None:
    """Add what the stages take; ``requests`` of the survey are those of their first questions."""
    report = survey.report
    asked = len(settings.questions) or 1
    images, texts = survey.image_tokens // asked, survey.tokens - survey.image_tokens
    report.stages = stage_costs(settings, report.requests // asked, images, texts)
    report.requests = sum(stage.requests for stage in report.stages)
    report.prompt_tokens = sum(stage.prompt_tokens for stage in report.stages)
    report.completion_tokens = sum(stage.completion_tokens for stage in report.stages)
    report.cost = total_cost(report.stages)
    report.seconds = _seconds(settings, report, 0.0)


def _seconds(settings: Settings, report: Estimate, latency_s: float) -> float | None:
    """Return how long the limits make it take, None if none is known."""
    found = []
    each = settings.each_endpoint
    if all(endpoint.rpm for endpoint in each):
        found.append(report.requests / sum(endpoint.rpm or 0 for endpoint in each) * 60)
    if all(endpoint.tpm for endpoint in each):
        tokens = report.prompt_tokens + report.completion_tokens
        found.append(tokens / sum(endpoint.tpm or 0 for endpoint in each) * 60)
    if latency_s:
        found.append(report.requests * latency_s / settings.run.concurrency)
    return max(found, default=None)


class _Size(NamedTuple):
    """What the formula says of a request."""

    image_tokens: int
    text_tokens: int


class _Counts:
    """What is in the requests of a record, with the key by which equal ones are found."""

    def __init__(self) -> None:
        self.requests = self.images = self.image_tokens = self.text_tokens = self.unfetched = 0
        self.size = 0  # bytes
        self.key = b""


class _Survey:
    """Prepares every record as a run would, but sends nothing."""

    def __init__(self, settings: Settings, pool: DecoderPool, probe: int, seed: int) -> None:
        self.report = Estimate()
        self.tokens = 0
        self.image_tokens = 0
        self.chosen: list[tuple[InputRecord, int]] = []
        self.sizes: dict[int, _Size] = {}
        self._settings = settings
        self._probe = probe
        self._random = random.Random(seed)  # noqa: S311 - of a sample
        self._seen = KeyTable(offsets=False) if settings.run.dedup else None
        self._dialect = _Measuring(settings)
        images = settings.images
        self._budget = MemoryBudget(images.memory)
        self._preparer = Preparer(
            settings,
            self._dialect,
            image_folders(settings, Archives(images.max_image_bytes, images.max_video_bytes)),
            self._budget,
            pool.render,
            look=pool.look,
        )
        blank = io.BytesIO()
        Image.new("RGB", (UNKNOWN_SIDE, UNKNOWN_SIDE)).save(blank, "JPEG")
        self._blank = blank.getvalue()

    def take(self, lines: Sequence[InputRecord], threads: ThreadPoolExecutor) -> None:
        """Look at some records, several at once."""
        for line, (outcome, counts) in zip(lines, threads.map(self._look, lines), strict=True):
            self.report.records += 1
            self.report.unfetched += counts.unfetched
            if isinstance(outcome, Caption):
                self.report.existing += 1
            elif outcome is not None:
                self.report.bad[outcome.code] = self.report.bad.get(outcome.code, 0) + 1
            elif self._is_new(digest(line.raw) if self.report.unfetched else counts.key):
                self._count(line, counts)

    def _look(self, line: InputRecord) -> tuple[Outcome | None, _Counts]:
        """Return the outcome of a record that needs no request, else None; and its requests."""
        counts = self._dialect.begin()
        item = self._preparer.prepare(line)
        if isinstance(item, NeedsFetch):  # not fetched, but taken for one of the usual size
            counts.unfetched = len(item.urls)
            blanks: dict[str, bytes | Exception] = dict.fromkeys(item.urls, self._blank)
            item = self._preparer.prepare(line, fetched=FetchedImages(blanks, 0))
        if isinstance(item, PreparedRecord):
            self._budget.release(item.reserved)
            counts.size = sum(len(piece) for pieces in item.questions for piece in pieces)
            counts.key = item.key
            return None, counts
        if isinstance(item, NeedsFetch):
            raise AssertionError("a record whose images were fetched needs no fetch")  # noqa: TRY004
        return item, counts

    def _is_new(self, key: bytes) -> bool:
        if self._seen is None or not key:
            return True
        if self._seen.find(key) is not None:
            self.report.shared += 1
            return False
        self._seen.add(key)
        return True

    def _count(self, line: InputRecord, counts: _Counts) -> None:
        report = self.report
        samples = 1 if self._settings.stages else self._settings.prompt.samples
        report.requests += counts.requests * samples
        report.images += counts.images
        report.upload_bytes += counts.size * samples
        each = _Size(counts.image_tokens * samples, counts.text_tokens * samples)
        self.tokens += sum(each)
        self.image_tokens += each.image_tokens
        if self._probe:
            self._choose(line, each)

    def _choose(self, line: InputRecord, size: _Size) -> None:
        """Keep a random sample of all records, as many as are to be sent (algorithm R)."""
        number = self.report.records
        if len(self.chosen) < self._probe:
            self.chosen.append((line, number))
        elif (at := self._random.randrange(number)) < self._probe:
            self.sizes.pop(self.chosen[at][0].number, None)
            self.chosen[at] = (line, number)
        else:
            return
        self.sizes[line.number] = size


class _Measuring(OpenAIChat):
    """Builds messages as for a request, and counts what is in them."""

    def __init__(self, settings: Settings) -> None:
        model = settings.endpoint.model or ""
        super().__init__(model, detail=settings.prompt.detail)
        self._rule = rule_of(model)
        self._named = settings.prompt.detail
        self._thread = threading.local()

    def begin(self) -> _Counts:
        """Return the counts of the next record of this thread."""
        counts = self._thread.counts = _Counts()
        return counts

    def messages(self, turns: Sequence[Turn], images: Sequence[EncodedImage]) -> tuple[bytes, ...]:
        """See `Dialect`."""
        counts: _Counts = self._thread.counts
        counts.requests += 1
        chars = sum(len(part) for turn in turns for part in turn.parts if isinstance(part, str))
        counts.text_tokens += round(chars / CHARS_A_TOKEN) + TOKENS_A_MESSAGE
        for image in images:
            counts.images += 1
            width, height = image.width or UNKNOWN_SIDE, image.height or UNKNOWN_SIDE
            if self._rule is not None:
                counts.image_tokens += self._rule.tokens(width, height, self._named)
            else:
                counts.image_tokens += width * height // PIXELS_A_TOKEN
        return super().messages(turns, images)


class _Bill(NamedTuple):
    """What the probe was charged: the records' numbers, tokens in and out, seconds of each."""

    numbers: list[int]
    prompt: list[int]
    completion: list[int]
    seconds: list[float]


async def _probe(settings: Settings, lines: list[InputRecord]) -> _Bill:
    """Send some records and return what they cost."""
    bill = _Bill([], [], [], [])
    async with Engine.open(RunContext(settings)) as engine:

        async def ask(line: InputRecord) -> None:
            prepared = await engine.async_preparer.prepare(line)
            if not isinstance(prepared, PreparedRecord):
                return
            began = time.monotonic()
            try:
                outcome = await engine.deduplicator.caption(prepared)
            finally:
                engine.memory.release(prepared.reserved)
            if isinstance(outcome, Caption) and outcome.usage.prompt_tokens:
                bill.numbers.append(line.number)
                bill.prompt.append(outcome.usage.prompt_tokens)
                bill.completion.append(outcome.usage.completion_tokens)
                bill.seconds.append(time.monotonic() - began)

        await asyncio.gather(*map(ask, lines))
    return bill


def _corrected(survey: _Survey, sizes: list[_Size], billed: list[int]) -> float:
    """Return the tokens of all requests, by the line that fits those of the probe best.

    The bill of a request is a multiple of the formula's image tokens, and as much more for each
    request as its text takes.
    """
    xs = [float(size.image_tokens) for size in sizes]
    ys = [float(tokens) for tokens in billed]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    count = survey.report.records - sum(survey.report.bad.values()) - survey.report.existing
    requests = survey.report.requests or 1
    if spread > 1e-6 * len(xs) and len(xs) > 2:
        factor = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
        factor = max(0.0, factor)
        each = mean_y - factor * mean_x
        return factor * survey.image_tokens + each * min(count, requests)
    return survey.tokens * sum(ys) / max(1.0, float(sum(map(sum, sizes))))
