"""Messages that stop a run are plain sentences: the problem, the server's words, what to do."""

from __future__ import annotations

import json

import pytest
from endpoint import FakeEndpoint, Reply, completion

from captioner import RunError, run_batch
from captioner.core.humanize import sentence

NO_CREDIT = "The endpoint has no credit or quota left."
RUN_AGAIN = "run the same command again."


def error(status: int, message: str) -> Reply:
    return Reply(status, json.dumps({"error": {"message": message}}).encode())


async def stopped(source, endpoint: FakeEndpoint, **options) -> str:
    """Return the message of the error that ends a run."""
    with pytest.raises(RunError) as caught:
        await run_batch(source, base_url=endpoint.base_url, model="m", **options)
    assert ".)" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("words", ["No credit left.", "no credit left"])
async def test_an_empty_account(make_input, endpoint, words):
    endpoint.behave = lambda _: error(402, words)
    said = f"The endpoint responded 402: {words.removesuffix('.')}."
    message = await stopped(make_input(1), endpoint)
    assert message == f"{NO_CREDIT} {said} Top it up or wait, then {RUN_AGAIN}"


async def test_a_wrong_key(make_input, endpoint):
    endpoint.behave = lambda _: error(401, "Incorrect API key provided.")
    assert await stopped(make_input(1), endpoint) == (
        "The endpoint will caption no record. The endpoint responded 401: Incorrect API key "
        "provided. Check --base-url, --model, the key and --api-key-env."
    )


async def test_a_key_that_is_revoked_during_the_run_is_not_explained_twice(make_input, endpoint):
    """The advice for a run that never worked is left out after a caption."""
    endpoint.behave = lambda call: (
        Reply(body=completion("A dog on a lawn."))
        if call.number == 1
        else error(402, "No credit left.")
    )
    message = await stopped(make_input(9), endpoint, concurrency=1, stop_after=3)
    assert message == (
        "After captions with the same settings, 3 requests in a row were refused. The endpoint "
        "responded 402: No credit left. Check the endpoint and run the same command again. "
        "--stop-after N allows more."
    )


@pytest.mark.parametrize(
    ("stop_after", "first"), [(1, "The first request was"), (3, "The first 3 requests were all")]
)
async def test_refusals_of_the_first_requests(make_input, endpoint, stop_after, first):
    endpoint.behave = lambda _: error(400, "Nope.")
    message = await stopped(make_input(9), endpoint, stop_after=stop_after)
    assert message == (
        f"{first} refused. The endpoint responded 400: Nope. Check --base-url, --model and the "
        "key. --stop-after N allows more."
    )


async def test_an_outage(make_input, endpoint):
    endpoint.behave = lambda _: error(503, "Overloaded.")
    message = await stopped(make_input(1), endpoint, max_outage=0.05)
    assert message.startswith(f"The endpoint {endpoint.base_url} has given no caption for 0 s. ")
    assert message.endswith(
        " The last error: the endpoint responded 503: Overloaded. Run the same command again when "
        "it works."
    )


async def test_a_model_without_eyes(make_input, endpoint):
    endpoint.behave = lambda _: Reply(body=completion("I cannot see any image."))
    message = await stopped(make_input(30), endpoint)
    assert message.startswith(
        "The first 5 answers all say that there is no image. The model saw no image: I cannot see "
        "any image. The model reads text only"
    )


@pytest.mark.parametrize("ending", [".", "!", "?", "…", '."', ".)", "。"])
def test_a_text_with_an_ending_gets_no_other(ending):
    assert sentence(f"it broke{ending}") == f"It broke{ending}"
