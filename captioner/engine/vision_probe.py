"""One request before a run that finds a model, or a gateway, that drops images."""

from __future__ import annotations

import asyncio
import io
import logging
from base64 import b64encode
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from captioner.core.errors import EndpointFaultError, EndpointRefusedError, ParameterError
from captioner.core.humanize import sentence
from captioner.core.retry import waits
from captioner.core.types import NO_OVERRIDES, Completion, EncodedImage, ImageRef, Turn
from captioner.engine.caption_checks import says_no_image

if TYPE_CHECKING:
    from captioner.engine.engine import Engine

logger = logging.getLogger(__name__)

RECORDS = 20
"""Records from which the probe is worth its request."""

SIZE = 224
ATTEMPTS = 2
"""Requests with the test image. The limiter waits as long as the endpoint asks between them."""

QUESTION = "Name the colour and the shape in this image in one short sentence."
EXPECTED: tuple[str, ...] = (
    "red",
    "circle",
    "dot",
    "ball",
    "disc",
    "disk",
    "round",
    "rot",
    "kreis",
    "rouge",
)
EXPECTED += ("cercle", "rojo", "círculo", "红", "圆", "赤", "丸")


async def check_vision(engine: Engine, count: int) -> None:
    """Send a test image, if the first `count` records are worth the request.

    Raises:
        EndpointRefusedError: The model says that there is no image.
        RunError: The endpoint will caption no record.
    """
    if count < RECORDS:
        return
    image = Image.new("RGB", (SIZE, SIZE), "white")
    ImageDraw.Draw(image).ellipse((32, 32, SIZE - 32, SIZE - 32), fill="red")
    file = io.BytesIO()
    image.save(file, "JPEG")
    turns = [Turn("user", (ImageRef(data=b"probe"), QUESTION))]
    encoded = EncodedImage("image/jpeg", b64encode(file.getvalue()), "", SIZE, SIZE)
    messages = engine.connected.dialect.messages(turns, [encoded])
    endpoints, pauses = engine.connected.endpoints, waits()
    for _ in range(ATTEMPTS):
        _, result = await endpoints.attempt(messages, NO_OVERRIDES, retry=False)
        if not isinstance(result, EndpointFaultError | ParameterError):
            break
        if isinstance(result, EndpointFaultError):
            await asyncio.sleep(min(next(pauses), endpoints.seconds_left))
    endpoints.forget_captions()  # it is not a caption of a record
    if not isinstance(result, Completion):
        logger.warning(
            "a test image got no answer (%s): the test whether the model sees images was skipped",
            result,
        )
        return  # the first records will tell
    text = result.text
    if says_no_image(text):
        raise EndpointRefusedError(
            "The model says that a test image is not there. "
            f"{sentence('It answered: ' + ' '.join(text.split())[:200])} It reads text only, or a "
            "gateway drops the images. Choose a vision-language model with --model, or skip this "
            "test with --no-probe."
        )
    if text and not any(word in text.lower() for word in EXPECTED):
        logger.warning(
            "the model did not recognise a test image, a red circle (%s): it may not see images",
            " ".join(text.split())[:80],
        )
