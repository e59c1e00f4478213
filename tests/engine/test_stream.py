"""Captions without files: streams of records at hand, and single images."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from conftest import jpeg
from endpoint import Call, Reply

from captioner import (
    Captioner,
    CaptionError,
    EndpointGaveOutError,
    Settings,
    SettingsError,
    caption_stream,
)
from captioner.endpoints.blame import STOP_LATER
from captioner.engine.prepare import Preparer


@pytest.fixture
def options(endpoint):
    return {"base_url": endpoint.base_url, "model": "m", "concurrency": 4}


@pytest.fixture
def images(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{number}.jpg" for number in range(40)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(number))
    return paths


async def only_this_task() -> None:
    """Return once no other task is left; a test that waits here for ever has found a leak."""
    gc.collect()
    while asyncio.all_tasks() != {asyncio.current_task()}:
        await asyncio.sleep(0.01)


# -- streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "generator", "async generator"])
async def test_records_from_any_iterable(options, images, endpoint, kind):
    """A list, a generator and an async generator of records are captioned alike, each once."""
    records = [{"image": str(path), "prompt": f"q{at}"} for at, path in enumerate(images)]

    async def slowly() -> AsyncIterator[dict[str, str]]:
        for record in records:
            await asyncio.sleep(0)
            yield record

    given = {"list": records, "generator": (r for r in records), "async generator": slowly()}
    outcomes = [o async for o in caption_stream(given[kind], **options)]
    assert sorted(o.record.number for o in outcomes) == list(range(1, 41))
    assert all(o.text.startswith(f"q{o.record.number - 1} [") for o in outcomes)
    assert endpoint.count == 40
    assert endpoint.max_in_flight <= 4
    await only_this_task()


async def test_paths_urls_and_records_mixed(options, images, endpoint):
    """A bare path or URL is a record, too; a URL is left to the endpoint to fetch."""
    records = [images[0], str(images[1]), "https://example.org/a.jpg", {"image": None}]
    outcomes = {
        o.record.number: o async for o in caption_stream(records, **options, pass_urls=True)
    }
    assert [outcomes[number].ok for number in range(1, 5)] == [True, True, True, False]
    assert outcomes[4].code == "no_image"
    assert "https://example.org/a.jpg" in [url for call in endpoint.calls for url in call.urls]


async def test_a_record_that_is_no_json_is_a_failure(options, images):
    """One bad object among the records spoils only itself."""
    records = [{"image": object()}, {"image": "\ud800"}, {"image": str(images[0])}]
    outcomes = {o.record.number: o async for o in caption_stream(records, **options)}
    assert [outcomes[number].ok for number in (1, 2, 3)] == [False, False, True]
    assert outcomes[1].code == "bad_record"
    assert outcomes[1].message


async def test_no_records_are_no_outcomes(options, endpoint):
    """An empty iterable ends at once."""
    assert [o async for o in caption_stream([], **options)] == []
    assert endpoint.count == 0


async def test_settings_can_be_passed_as_such(options, images):
    """One settings object serves streams as it serves runs, but not together with options."""
    settings = Settings.create(**options)
    assert [o.ok async for o in caption_stream(images[:2], settings)] == [True, True]
    with pytest.raises(SettingsError, match="not both"):
        await anext(caption_stream(images, settings, model="m"))
    with pytest.raises(SettingsError, match="modle"):
        await anext(caption_stream(images, modle="m"))


async def test_records_are_taken_only_as_fast_as_outcomes(options, images):
    """A generator of millions of records is not read ahead of who takes the outcomes."""
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield images[taken % len(images)]

    async with aclosing(caption_stream(endless(), **options)) as stream:
        for _ in range(10):
            assert (await anext(stream)).ok
        before = -1
        while before != taken:
            before = taken
            await asyncio.sleep(0.1)
        # At most: 160 with the preparing threads and in the queue, 16 in hand, the workers' own.
        assert taken <= 10 + 160 + 16 + 2 * 4 + 1
    await only_this_task()


@pytest.mark.parametrize("how", ["break", "aclose", "cancel"])
async def test_leaving_early_gives_up_what_is_in_flight(options, images, endpoint, how):
    """However the loop is left, requests are cancelled and no task or connection is left."""
    endpoint.behave = lambda call: Reply(delay_s=0 if call.number <= 2 else 30)

    async def some() -> None:
        stream = caption_stream(images, **options)
        async for outcome in stream:
            assert outcome.ok
            while endpoint.in_flight < 4:
                await asyncio.sleep(0.01)
            if how == "aclose":
                await stream.aclose()
                assert asyncio.all_tasks() == before | {asyncio.current_task()}
                return
            if how == "cancel":
                asyncio.current_task().cancel()
                await asyncio.sleep(0)
            break

    before = asyncio.all_tasks()
    result = (await asyncio.gather(asyncio.create_task(some()), return_exceptions=True))[0]
    expected = {"cancel": asyncio.CancelledError}
    assert isinstance(result, expected.get(how, type(None)))
    async with asyncio.timeout(10):
        await only_this_task()
    assert endpoint.count <= 7


async def test_an_error_of_the_records_reaches_the_caller(options, images):
    """What the caller's own generator raises is raised, after what was begun is handed out."""

    async def records() -> AsyncIterator[Path]:
        yield images[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async for outcome in caption_stream(records(), **options):
            assert outcome.ok
    await only_this_task()


async def test_a_fatal_answer_ends_the_stream(options, images, endpoint, short_pauses):
    """A refused key is raised, not yielded a million times; what was captioned comes first."""
    refused = Reply(401, {"error": {"message": "no such key"}})
    endpoint.behave = lambda call: refused if call.number > 5 else None
    captioned = 0
    with pytest.raises(EndpointGaveOutError, match="key"):
        async for outcome in caption_stream(images, **options):
            captioned += outcome.ok
    assert captioned == endpoint.given
    assert endpoint.count <= 5 + STOP_LATER + 4
    await only_this_task()


async def test_streams_side_by_side(options, images):
    """Two streams in one process do not disturb each other."""

    async def all_of(paths: list[Path]) -> int:
        return sum([o.ok async for o in caption_stream(paths, **options)])

    assert await asyncio.gather(all_of(images[:20]), all_of(images[20:])) == [20, 20]


# -- single images ---------------------------------------------------------------------------


async def test_one_image_in_every_spelling(options, images, endpoint):
    """A path, a Path, bytes, a URL, a data URI and a record each give a caption of that image."""
    data = images[0].read_bytes()
    encoded = base64.b64encode(data).decode()
    async with Captioner(**options, prompt="what?") as captioner:
        for image in (
            images[0],
            str(images[0]),
            data,
            f"data:image/jpeg;base64,{encoded}",
            {"image": str(images[0])},
            {"messages": [{"role": "user", "content": "what?"}], "image": {"bytes": encoded}},
        ):
            assert (await captioner.caption(image)).startswith("what? [")
            assert endpoint.calls[-1].images == [data]
    await only_this_task()


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_bytes_of_every_kind_are_a_image(options, endpoint, kind):
    """A buffer is an image, not a file name that shows up in a message with all its bytes."""
    async with Captioner(**options) as captioner:
        assert await captioner.caption(kind(jpeg()))
    assert endpoint.calls[-1].images == [jpeg()]


async def test_a_question_of_ones_own(options, images, endpoint):
    """The prompt of a call goes before that of the record, and that before the settings'."""
    record = {"image": str(images[0]), "prompt": "record's"}
    async with Captioner(**options, prompt="settings'") as captioner:
        await captioner.caption(images[0])
        await captioner.caption(record)
        await captioner.caption(record, prompt="call's")
    assert [call.texts for call in endpoint.calls] == [["settings'"], ["record's"], ["call's"]]
    assert record["prompt"] == "record's", "the caller's record is the caller's"


async def test_a_question_goes_before_the_conversation_of_a_record(options, images, endpoint):
    """prompt= is what is asked even of a record that brings a conversation."""
    record = {"image": str(images[0]), "messages": [{"role": "user", "content": "record's"}]}
    async with Captioner(**options) as captioner:
        await captioner.caption(record, prompt="call's")
    assert "call's" in endpoint.calls[-1].texts


async def test_many_at_once_keep_to_the_concurrency(options, images, endpoint):
    """As many captions may be awaited at once as one likes; the endpoint gets its limit."""
    endpoint.latency_s = 0.01
    records = [{"image": str(path), "prompt": f"q{at}"} for at, path in enumerate(images)]
    async with Captioner(**options) as captioner:
        captions = await asyncio.gather(*map(captioner.caption, records))
    assert [caption.split()[0] for caption in captions] == [f"q{at}" for at in range(40)]
    assert endpoint.max_in_flight <= 4


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ("none.jpg", "image_missing"),
        (b"", "image"),
        (b"no image", "image"),
        ({"caption": "x"}, "no_image"),
        ({"image": "a.jpg", "messages": [{"role": "nobody", "content": ""}]}, "unknown_role"),
        ({"image": object()}, "bad_record"),
        (object(), "bad_record"),
    ],
)
async def test_what_cannot_be_captioned_is_a_caption_error(options, endpoint, image, code):
    """An image that is none is a CaptionError with a code and a plain, short message."""
    async with Captioner(**options) as captioner:
        with pytest.raises(CaptionError) as caught:
            await captioner.caption(image)
    assert caught.value.code.startswith(code)
    assert 0 < len(caught.value.message) < 400
    assert endpoint.count == 0


async def test_a_refusal_is_a_caption_error_and_never_a_caption(options, endpoint):
    """A refused image raises; the next one is captioned by the same captioner."""

    def behave(call: Call) -> Reply | None:
        return Reply(400, {"error": {"message": "too ugly"}}) if call.number == 1 else None

    endpoint.behave = behave
    async with Captioner(**options) as captioner:
        with pytest.raises(CaptionError, match="too ugly") as caught:
            await captioner.caption(jpeg())
        assert caught.value.code == "http_400"
        assert await captioner.caption(jpeg())


async def test_an_empty_account_is_a_run_error(options, endpoint):
    """Out of quota is no image's fault, and says so by its type."""
    endpoint.behave = lambda _: Reply(
        429, {"error": {"message": "pay first", "code": "insufficient_quota"}}
    )
    async with Captioner(**options) as captioner:
        with pytest.raises(EndpointGaveOutError, match="pay first"):
            await captioner.caption(jpeg())


async def test_a_captioner_is_used_between_enter_and_exit(options):
    """Before and after the block there is no connection, and that is said."""
    captioner = Captioner(**options)
    with pytest.raises(SettingsError, match="context manager"):
        await captioner.caption(jpeg())
    async with captioner:
        await captioner.caption(jpeg())
    with pytest.raises(SettingsError, match="context manager"):
        await captioner.caption(jpeg())


async def test_bad_options_are_told_when_they_are_given():
    """A misspelled option is told where it stands, not when the first image comes."""
    with pytest.raises(SettingsError, match="base_url"):
        Captioner(base_ulr="http://localhost:1/v1")
    with pytest.raises(SettingsError, match="no endpoint"):
        async with Captioner(model="m"):
            pass


async def test_the_only_model_is_found_by_itself(endpoint):
    """Without a model the one that is served is asked for; of several, one has to be chosen."""
    async with Captioner(base_url=endpoint.base_url) as captioner:
        await captioner.caption(jpeg())
    assert endpoint.calls[-1].body["model"] == "m"
    endpoint.models = ["m", "n"]
    with pytest.raises(SettingsError, match="m, n"):
        async with Captioner(base_url=endpoint.base_url):
            pass


async def test_more_at_once_than_threads_with_little_memory(options, images):
    """Images waiting for memory leave a thread for the name server: no deadlock."""
    url = options["base_url"].replace("127.0.0.1", "localhost")
    async with Captioner(**{**options, "base_url": url}, memory=1) as captioner:
        try:
            async with asyncio.timeout(10):
                captions = await asyncio.gather(*map(captioner.caption, images * 2))
        finally:
            captioner._engine.memory.close()  # lets the threads of a deadlock go
    assert len(captions) == 80


async def test_a_cancelled_caption_gives_its_memory_back(options, images, monkeypatch):
    """Giving up on an image while it is prepared does not take memory from those that follow."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    prepare = Preparer.prepare

    def slowly(*given: Any) -> Any:
        begun.set()
        go_on.wait(10)
        try:
            return prepare(*given)
        finally:
            ended.set()

    monkeypatch.setattr(Preparer, "prepare", slowly)
    async with Captioner(**options, memory=1) as captioner:
        task = asyncio.create_task(captioner.caption(images[0]))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        go_on.set()
        await asyncio.to_thread(ended.wait, 10)
        monkeypatch.setattr(Preparer, "prepare", prepare)
        try:
            async with asyncio.timeout(5):
                assert await captioner.caption(images[1])
        finally:
            captioner._engine.memory.close()


async def test_records_are_sent_as_they_were_given(options, images):
    """The outcome carries the record, so that whoever iterates need not keep a list."""
    record = {"id": 2**70, "image": str(images[0]), "note": "ä"}
    outcome = await anext(caption_stream([record], **options))
    assert json.loads(outcome.record.raw) == record
